"""torch.nn.functional's names and signatures, served by our kernels; what is keyword-only is our addition."""

from pydl.ops.dropout import dropout, dropout1d, dropout2d, dropout3d

__all__ = ["dropout", "dropout1d", "dropout2d", "dropout3d"]
