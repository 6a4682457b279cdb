"""Norms of rows."""

import torch
import torch.nn.functional as F

from pydl.aside import Own, is_special, steps_aside
from pydl.nn._common import _Eager
from pydl.ops import _nodes
from pydl.ops._nodes import is_compiling
from pydl.ops.layer_norm import layer_norm_unasked, rms_norm_unasked

__all__ = ["LayerNorm", "RMSNorm"]


class LayerNorm(_Eager, torch.nn.LayerNorm):
    """``torch.nn.LayerNorm`` over :func:`pydl.functional.layer_norm` (d2l chapter "Transformer"); on the CPU.

    Input and output ``(..., *normalized_shape)``.

    >>> nn.LayerNorm(2)(torch.tensor([[1.0, 3.0], [10.0, 30.0]])).detach()
    tensor([[-1.0000,  1.0000],
            [-1.0000,  1.0000]])
    """

    own = Own(torch.nn.LayerNorm, "layer_norm")

    def forward(self, input):
        own = LayerNorm.own
        if F.layer_norm is own.function and own.cls.forward is own.forward and not is_compiling():
            output = _nodes.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
            if output is not NotImplemented:
                return output
        if steps_aside(self, own, F.layer_norm, input):
            return torch.nn.LayerNorm.forward(self, input)
        weight, bias = self.weight, self.bias
        if is_special(self, weight, bias):
            return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)
        return layer_norm_unasked(input, self.normalized_shape, weight, bias, self.eps)


class RMSNorm(_Eager, torch.nn.RMSNorm):
    """``torch.nn.RMSNorm`` over :func:`pydl.functional.rms_norm`; on the CPU.

    Input and output ``(..., *normalized_shape)``.

    >>> nn.RMSNorm(2)(torch.tensor([[3.0, 4.0]])).detach()
    tensor([[0.8485, 1.1314]])
    """

    own = Own(torch.nn.RMSNorm, "rms_norm")

    def forward(self, x):
        own = RMSNorm.own
        if F.rms_norm is own.function and own.cls.forward is own.forward and not is_compiling():
            output = _nodes.rms_norm(x, self.normalized_shape, self.weight, self.eps)
            if output is not NotImplemented:
                return output
        if steps_aside(self, own, F.rms_norm, x):
            return torch.nn.RMSNorm.forward(self, x)
        weight = self.weight
        if is_special(self, weight):
            return F.rms_norm(x, self.normalized_shape, weight, self.eps)
        return rms_norm_unasked(x, self.normalized_shape, weight, self.eps)
