"""torch.nn.functional's names and signatures, served by our kernels; what is keyword-only is our addition."""

<<<<<<< HEAD
from pydl.ops.conv2d import conv2d
from pydl.ops.dropout import dropout

__all__ = ["conv2d", "dropout"]
=======
from pydl.ops.dropout import dropout, dropout1d, dropout2d, dropout3d

__all__ = ["dropout", "dropout1d", "dropout2d", "dropout3d"]
>>>>>>> main
