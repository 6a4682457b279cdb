"""The norm of a sample's own channels, by groups of them."""

import torch
import torch.nn.functional as F

from pydl.aside import Own, is_special, steps_aside
from pydl.nn._common import _Eager
from pydl.ops import _nodes
from pydl.ops._nodes import is_compiling
from pydl.ops.group_norm import group_norm_unasked

__all__ = ["GroupNorm"]


class GroupNorm(_Eager, torch.nn.GroupNorm):
    """``torch.nn.GroupNorm`` over :func:`pydl.functional.group_norm`; on the CPU. Input and output (N, C, ...).

    >>> nn.GroupNorm(2, 6)(torch.randn(4, 6, 8, 8)).shape
    torch.Size([4, 6, 8, 8])
    """

    own = Own(torch.nn.GroupNorm, "group_norm")

    def forward(self, input):
        own = GroupNorm.own
        if F.group_norm is own.function and own.cls.forward is own.forward and not is_compiling():
            output = _nodes.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
            if output is not NotImplemented:
                return output
        if steps_aside(self, own, F.group_norm, input):
            return torch.nn.GroupNorm.forward(self, input)
        weight, bias = self.weight, self.bias
        if is_special(self, weight, bias):
            return torch.nn.GroupNorm.forward(self, input)
        return group_norm_unasked(input, self.num_groups, weight, bias, self.eps)
