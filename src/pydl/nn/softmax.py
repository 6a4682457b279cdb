"""Softmax and its logarithm."""

import torch
import torch.nn.functional as F

from pydl.aside import Own, steps_aside
from pydl.nn._common import _Eager
from pydl.ops import _nodes
from pydl.ops._nodes import is_compiling
from pydl.ops.softmax import log_softmax_unasked, softmax_unasked

__all__ = ["LogSoftmax", "Softmax", "Softmax2d"]


class Softmax(_Eager, torch.nn.Softmax):
    """``torch.nn.Softmax`` over :func:`pydl.functional.softmax` (d2l chapter "Softmax Regression"); on the CPU.

    >>> nn.Softmax(0)(torch.tensor([1.0, 1.0]))
    tensor([0.5000, 0.5000])
    """

    own = Own(torch.nn.Softmax, "softmax")

    def forward(self, input):
        own = Softmax.own
        if F.softmax is own.function and own.cls.forward is own.forward and not is_compiling():
            output = _nodes.softmax(input, self.dim)
            if output is not NotImplemented:
                return output
        if steps_aside(self, own, F.softmax, input):
            return torch.nn.Softmax.forward(self, input)
        return softmax_unasked(input, self.dim, 5, None)


class Softmax2d(_Eager, torch.nn.Softmax2d):
    """``torch.nn.Softmax2d``, over the channels of images, by :func:`pydl.functional.softmax`; on the CPU.

    >>> nn.Softmax2d()(torch.zeros(1, 2, 1, 1)).flatten()
    tensor([0.5000, 0.5000])
    """

    own = Own(torch.nn.Softmax2d, "softmax")

    def forward(self, input):
        own = Softmax2d.own
        if F.softmax is own.function and own.cls.forward is own.forward and not is_compiling():
            output = _nodes.softmax(input, -3)
            if output is not NotImplemented and output.dim() in (3, 4):
                return output
        if steps_aside(self, own, F.softmax, input) or input.dim() not in (3, 4):
            return torch.nn.Softmax2d.forward(self, input)
        return softmax_unasked(input, -3, 5, None)


class LogSoftmax(_Eager, torch.nn.LogSoftmax):
    """``torch.nn.LogSoftmax`` over :func:`pydl.functional.log_softmax`; on the CPU.

    >>> nn.LogSoftmax(0)(torch.tensor([1.0, 1.0]))
    tensor([-0.6931, -0.6931])
    """

    own = Own(torch.nn.LogSoftmax, "log_softmax")

    def forward(self, input):
        own = LogSoftmax.own
        if F.log_softmax is own.function and own.cls.forward is own.forward and not is_compiling():
            output = _nodes.log_softmax(input, self.dim)
            if output is not NotImplemented:
                return output
        if steps_aside(self, own, F.log_softmax, input):
            return torch.nn.LogSoftmax.forward(self, input)
        return log_softmax_unasked(input, self.dim, 5, None)
