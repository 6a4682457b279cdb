"""The fully connected layer."""

import torch
import torch.nn.functional as F

from pydl.aside import Own, is_special, steps_aside
from pydl.nn._common import _Eager
from pydl.ops import _nodes
from pydl.ops._activations import finished
from pydl.ops._nodes import is_compiling
from pydl.ops.linear import linear_unasked

__all__ = ["LazyLinear", "Linear"]


class Linear(_Eager, torch.nn.Linear):
    """``torch.nn.Linear`` over :func:`pydl.functional.linear` (d2l chapter "Linear Neural Networks"); on the CPU.

    Input (..., in_features), output (..., out_features). ``forward`` takes :func:`~pydl.functional.linear`'s
    ``activation`` too, keyword-only.

    >>> nn.Linear(20, 5)(torch.randn(4, 20)).shape
    torch.Size([4, 5])
    """

    own = Own(torch.nn.Linear, "linear")

    def forward(self, input, *, activation=None):
        own = Linear.own
        if F.linear is own.function and own.cls.forward is own.forward and not is_compiling():
            output = _nodes.linear(input, self.weight, self.bias, activation)
            if output is not NotImplemented:
                return output
        if steps_aside(self, own, F.linear, input):
            return finished(torch.nn.Linear.forward(self, input), activation)
        weight, bias = self.weight, self.bias
        if is_special(self, weight, bias):
            return finished(F.linear(input, weight, bias), activation)
        return linear_unasked(input, weight, bias, activation)


# torch's lazy class, with ours next in the method resolution order: its __init__ reaches our constructor, its
# forward is ours, and on the first input it becomes our class instead of torch's.
class LazyLinear(torch.nn.LazyLinear, Linear):
    """:class:`Linear` that takes ``in_features`` from its first input.

    >>> layer = nn.LazyLinear(5)
    >>> layer(torch.randn(4, 20)).shape, layer.in_features
    (torch.Size([4, 5]), 20)
    """

    cls_to_become = Linear
