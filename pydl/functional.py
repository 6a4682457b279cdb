"""torch.nn.functional's names and signatures, served by our kernels; what is keyword-only is our addition."""

from pydl.ops.dropout import dropout

__all__ = ["dropout"]
