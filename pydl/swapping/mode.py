"""``with pydl.swapped():`` serves calls of torch's functions by ours, for code that has no module to swap."""

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from pydl import functional


def _batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled=True):
    """torch.batch_norm's own order of arguments; which library computes it is no option here."""
    return functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _dropout(input, p, train):
    return functional.dropout(input, p, train)


_OURS = {getattr(F, name): getattr(functional, name) for name in functional.__all__}
_OURS |= {torch.conv2d: functional.conv2d, torch.batch_norm: _batch_norm, torch.dropout: _dropout}


class swapped(TorchFunctionMode):
    """Serves ``torch.nn.functional``'s (and torch's own) ``cross_entropy, conv2d, batch_norm, dropout...`` by pydl.

    Inside the block, in this thread, whoever calls them: a loss that is a plain function, or the modules of a model
    that was not swapped. Results are those of ``pydl.functional``; nothing is fused. The backward is ours wherever it
    runs.

    >>> with pydl.swapped():
    ...     loss = F.cross_entropy(model(x), target)
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return _OURS.get(function, function)(*args, **(kwargs or {}))
