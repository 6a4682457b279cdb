"""torch.nn.functional's names and signatures, served by our kernels; keyword-only extras are marked in each docstring."""

from pydl.ops.dropout import dropout
from pydl.ops.softmax_cross_entropy import cross_entropy

__all__ = ["cross_entropy", "dropout"]
