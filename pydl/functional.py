"""torch.nn.functional's names and signatures, served by our kernels; keyword-only extras are marked in each docstring."""

from pydl.ops.dropout import dropout

__all__ = ["dropout"]
