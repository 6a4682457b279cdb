"""Dropout of numbers and of whole channels."""

import torch
import torch.nn.functional as F

from pydl.aside import Own, steps_aside
from pydl.nn._common import _Eager
from pydl.ops import _nodes
from pydl.ops._nodes import is_compiling
from pydl.ops.dropout import dropout_unasked

__all__ = ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d"]


class Dropout(_Eager, torch.nn.Dropout):
    """``torch.nn.Dropout`` over :func:`pydl.functional.dropout`; any shape.

    >>> torch.equal(nn.Dropout(0.5).eval()(torch.ones(6)), torch.ones(6))  # in evaluation it does nothing
    True
    """

    own = Own(torch.nn.Dropout, "dropout")

    def forward(self, input):
        own = Dropout.own
        is_torchs = F.dropout is own.function and own.cls.forward is own.forward
        if is_torchs and self.inplace is False and not is_compiling():
            output = _nodes.dropout(input, self.p, self.training)
            if output is not NotImplemented:
                return output
        if steps_aside(self, own, F.dropout, input):
            return torch.nn.Dropout.forward(self, input)
        return dropout_unasked("dropout", input, self.p, self.training, self.inplace)


class Dropout1d(_Eager, torch.nn.Dropout1d):
    """``torch.nn.Dropout1d`` over :func:`pydl.functional.dropout1d`; whole channels of (N, C, L) or (C, L).

    >>> nn.Dropout1d(0.5)(torch.ones(4, 3, 20)).shape
    torch.Size([4, 3, 20])
    """

    own = Own(torch.nn.Dropout1d, "dropout1d")

    def forward(self, input):
        if steps_aside(self, Dropout1d.own, F.dropout1d, input):
            return torch.nn.Dropout1d.forward(self, input)
        return dropout_unasked("dropout1d", input, self.p, self.training, self.inplace)


class Dropout2d(_Eager, torch.nn.Dropout2d):
    """``torch.nn.Dropout2d`` over :func:`pydl.functional.dropout2d`; whole channels of (N, C, H, W).

    >>> nn.Dropout2d(0.5)(torch.ones(4, 3, 8, 8)).shape
    torch.Size([4, 3, 8, 8])
    """

    own = Own(torch.nn.Dropout2d, "dropout2d")

    def forward(self, input):
        if steps_aside(self, Dropout2d.own, F.dropout2d, input):
            return torch.nn.Dropout2d.forward(self, input)
        return dropout_unasked("dropout2d", input, self.p, self.training, self.inplace)


class Dropout3d(_Eager, torch.nn.Dropout3d):
    """``torch.nn.Dropout3d`` over :func:`pydl.functional.dropout3d`; whole channels of (N, C, D, H, W).

    >>> nn.Dropout3d(0.5)(torch.ones(4, 3, 2, 8, 8)).shape
    torch.Size([4, 3, 2, 8, 8])
    """

    own = Own(torch.nn.Dropout3d, "dropout3d")

    def forward(self, input):
        if steps_aside(self, Dropout3d.own, F.dropout3d, input):
            return torch.nn.Dropout3d.forward(self, input)
        return dropout_unasked("dropout3d", input, self.p, self.training, self.inplace)
