"""torch.nn's names for the layers that pydl serves: the same arguments, ``state_dict`` and ``repr``, our kernels.

Each class is a subclass of torch's that replaces ``forward`` alone, and reads nothing but torch's own attributes: so
``pydl.swap`` can put the same ``forward`` under an instance of torch's class. Every other layer (Flatten, Identity,
Sequential) is torch's: import it from ``torch.nn``. Under the backend ``torch`` the functions called here are torch's,
and where torch would honour what is not its own (:mod:`pydl.aside`), torch's own forward computes.
"""

from pydl.nn.activation import *
from pydl.nn.attention import *
from pydl.nn.convolution import *
from pydl.nn.dropout import *
from pydl.nn.embedding import *
from pydl.nn.group_norm import *
from pydl.nn.instance_norm import *
from pydl.nn.layer_norm import *
from pydl.nn.linear import *
from pydl.nn.loss import *
from pydl.nn.norm import *
from pydl.nn.pooling import *
from pydl.nn.recurrent import *
from pydl.nn.softmax import *

__all__ = sorted(name for name, value in globals().items() if isinstance(value, type))
