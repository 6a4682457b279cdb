"""Pooling."""

import torch
import torch.nn.functional as F

from pydl.aside import Own, steps_aside
from pydl.nn._common import _Eager
from pydl.ops import _nodes
from pydl.ops._nodes import is_compiling
from pydl.ops.avg_pool2d import avg_pool2d_unasked
from pydl.ops.max_pool2d import max_pool2d_unasked


class MaxPool2d(_Eager, torch.nn.MaxPool2d):
    """``torch.nn.MaxPool2d`` over :func:`pydl.functional.max_pool2d` (d2l chapter "Pooling"); on the CPU."""

    own = Own(torch.nn.MaxPool2d, "max_pool2d")

    def forward(self, input):
        own = MaxPool2d.own
        options = self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        if (
            F.max_pool2d is own.function
            and own.cls.forward is own.forward
            and self.return_indices is False
            and not is_compiling()
        ):
            output = _nodes.max_pool2d(input, *options)
            if output is not NotImplemented:
                return output
        if steps_aside(self, own, F.max_pool2d, input):
            return torch.nn.MaxPool2d.forward(self, input)
        return max_pool2d_unasked(input, *options, self.return_indices)


class AvgPool2d(_Eager, torch.nn.AvgPool2d):
    """``torch.nn.AvgPool2d`` over :func:`pydl.functional.avg_pool2d` (d2l chapter "Pooling"); on the CPU."""

    own = Own(torch.nn.AvgPool2d, "avg_pool2d")

    def forward(self, input):
        own = AvgPool2d.own
        options = self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad
        options = *options, self.divisor_override
        if F.avg_pool2d is own.function and own.cls.forward is own.forward and not is_compiling():
            output = _nodes.avg_pool2d(input, *options)
            if output is not NotImplemented:
                return output
        if steps_aside(self, own, F.avg_pool2d, input):
            return torch.nn.AvgPool2d.forward(self, input)
        return avg_pool2d_unasked(input, *options)
