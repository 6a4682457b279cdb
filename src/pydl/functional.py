"""torch.nn.functional's names and signatures, served by our kernels; what is keyword-only is our addition.

Which names a file of ``pydl.ops`` gives to users, its ``__all__`` says.
"""

from pydl.ops import _batching, _flops  # noqa: F401  (rules of torch.func.vmap, formulas of FLOP counters)
from pydl.ops.adaptive_pool2d import *
from pydl.ops.attention import *
from pydl.ops.avg_pool2d import *
from pydl.ops.batch_norm import *
from pydl.ops.conv1d import *
from pydl.ops.conv2d import *
from pydl.ops.conv3d import *
from pydl.ops.conv_transpose2d import *
from pydl.ops.dropout import *
from pydl.ops.elementwise import *
from pydl.ops.embedding import *
from pydl.ops.embedding_bag import *
from pydl.ops.group_norm import *
from pydl.ops.instance_norm import *
from pydl.ops.layer_norm import *
from pydl.ops.linear import *
from pydl.ops.linear_cross_entropy import *
from pydl.ops.losses import *
from pydl.ops.matmul import *
from pydl.ops.max_pool2d import *
from pydl.ops.multi_head_attention import *
from pydl.ops.pool1d import *
from pydl.ops.pool3d import *
from pydl.ops.recurrent import *
from pydl.ops.recurrent_cells import *
from pydl.ops.softmax import *
from pydl.ops.softmax_cross_entropy import *

__all__ = sorted(name for name in globals() if not name.startswith("_"))
