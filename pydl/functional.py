"""torch.nn.functional's names and signatures, served by our kernels; keyword-only extras are marked in each docstring."""

from pydl.ops.conv2d import conv2d
from pydl.ops.dropout import dropout

__all__ = ["conv2d", "dropout"]
