"""Pooling."""

import torch
import torch.nn.functional as F

from pydl.aside import Own, steps_aside
from pydl.nn._common import _Eager
from pydl.ops import _nodes
from pydl.ops._nodes import is_compiling
from pydl.ops.adaptive_pool2d import adaptive_avg_pool2d_unasked, adaptive_max_pool2d_unasked
from pydl.ops.avg_pool2d import avg_pool2d_unasked
from pydl.ops.max_pool2d import max_pool2d_unasked
from pydl.ops.pool1d import (
    adaptive_avg_pool1d_unasked,
    adaptive_max_pool1d_unasked,
    avg_pool1d_unasked,
    max_pool1d_unasked,
)
from pydl.ops.pool3d import (
    adaptive_avg_pool3d_unasked,
    adaptive_max_pool3d_unasked,
    avg_pool3d_unasked,
    is_small,
    max_pool3d_unasked,
)

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
]


class MaxPool2d(_Eager, torch.nn.MaxPool2d):
    """``torch.nn.MaxPool2d`` over :func:`pydl.functional.max_pool2d` (d2l chapter "Pooling"); on the CPU.

    >>> nn.MaxPool2d(2)(torch.arange(16.0).reshape(1, 4, 4))
    tensor([[[ 5.,  7.],
             [13., 15.]]])
    """

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
    """``torch.nn.AvgPool2d`` over :func:`pydl.functional.avg_pool2d` (d2l chapter "Pooling"); on the CPU.

    >>> nn.AvgPool2d(2)(torch.arange(16.0).reshape(1, 4, 4))
    tensor([[[ 2.5000,  4.5000],
             [10.5000, 12.5000]]])
    """

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


class MaxPool1d(_Eager, torch.nn.MaxPool1d):
    """``torch.nn.MaxPool1d`` over :func:`pydl.functional.max_pool1d`; on the CPU.

    >>> nn.MaxPool1d(2)(torch.tensor([[1.0, 3.0, 5.0, 7.0]]))
    tensor([[3., 7.]])
    """

    own = Own(torch.nn.MaxPool1d, "max_pool1d")

    def forward(self, input):
        if steps_aside(self, MaxPool1d.own, F.max_pool1d, input):
            return torch.nn.MaxPool1d.forward(self, input)
        options = self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        return max_pool1d_unasked(input, *options, self.return_indices)


class AvgPool1d(_Eager, torch.nn.AvgPool1d):
    """``torch.nn.AvgPool1d`` over :func:`pydl.functional.avg_pool1d`; on the CPU.

    >>> nn.AvgPool1d(2)(torch.tensor([[1.0, 3.0, 5.0, 7.0]]))
    tensor([[2., 6.]])
    """

    own = Own(torch.nn.AvgPool1d, "avg_pool1d")

    def forward(self, input):
        if steps_aside(self, AvgPool1d.own, F.avg_pool1d, input):
            return torch.nn.AvgPool1d.forward(self, input)
        options = self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad
        return avg_pool1d_unasked(input, *options)


class AdaptiveAvgPool2d(_Eager, torch.nn.AdaptiveAvgPool2d):
    """``torch.nn.AdaptiveAvgPool2d`` over :func:`pydl.functional.adaptive_avg_pool2d` (d2l "NiN"); on the CPU.

    >>> nn.AdaptiveAvgPool2d(2)(torch.arange(16.0).reshape(1, 4, 4))
    tensor([[[ 2.5000,  4.5000],
             [10.5000, 12.5000]]])
    """

    own = Own(torch.nn.AdaptiveAvgPool2d, "adaptive_avg_pool2d")

    def forward(self, input):
        own = AdaptiveAvgPool2d.own
        if F.adaptive_avg_pool2d is own.function and own.cls.forward is own.forward and not is_compiling():
            output = _nodes.adaptive_avg_pool2d(input, self.output_size)
            if output is not NotImplemented:
                return output
        if steps_aside(self, own, F.adaptive_avg_pool2d, input):
            return torch.nn.AdaptiveAvgPool2d.forward(self, input)
        return adaptive_avg_pool2d_unasked(input, self.output_size)


class AdaptiveMaxPool2d(_Eager, torch.nn.AdaptiveMaxPool2d):
    """``torch.nn.AdaptiveMaxPool2d`` over :func:`pydl.functional.adaptive_max_pool2d`; on the CPU.

    >>> nn.AdaptiveMaxPool2d(2)(torch.arange(16.0).reshape(1, 4, 4))
    tensor([[[ 5.,  7.],
             [13., 15.]]])
    """

    own = Own(torch.nn.AdaptiveMaxPool2d, "adaptive_max_pool2d")

    def forward(self, input):
        own = AdaptiveMaxPool2d.own
        if (
            F.adaptive_max_pool2d is own.function
            and own.cls.forward is own.forward
            and self.return_indices is False
            and not is_compiling()
        ):
            output = _nodes.adaptive_max_pool2d(input, self.output_size)
            if output is not NotImplemented:
                return output
        if steps_aside(self, own, F.adaptive_max_pool2d, input):
            return torch.nn.AdaptiveMaxPool2d.forward(self, input)
        return adaptive_max_pool2d_unasked(input, self.output_size, self.return_indices)


class AdaptiveAvgPool1d(_Eager, torch.nn.AdaptiveAvgPool1d):
    """``torch.nn.AdaptiveAvgPool1d`` over :func:`pydl.functional.adaptive_avg_pool1d` (d2l "TextCNN"); on the CPU.

    >>> nn.AdaptiveAvgPool1d(2)(torch.tensor([[1.0, 3.0, 5.0, 7.0]]))
    tensor([[2., 6.]])
    """

    own = Own(torch.nn.AdaptiveAvgPool1d, "adaptive_avg_pool1d")

    def forward(self, input):
        if steps_aside(self, AdaptiveAvgPool1d.own, F.adaptive_avg_pool1d, input):
            return torch.nn.AdaptiveAvgPool1d.forward(self, input)
        return adaptive_avg_pool1d_unasked(input, self.output_size)


class AdaptiveMaxPool1d(_Eager, torch.nn.AdaptiveMaxPool1d):
    """``torch.nn.AdaptiveMaxPool1d`` over :func:`pydl.functional.adaptive_max_pool1d`; on the CPU.

    >>> nn.AdaptiveMaxPool1d(2)(torch.tensor([[1.0, 3.0, 5.0, 7.0]]))
    tensor([[3., 7.]])
    """

    own = Own(torch.nn.AdaptiveMaxPool1d, "adaptive_max_pool1d")

    def forward(self, input):
        if steps_aside(self, AdaptiveMaxPool1d.own, F.adaptive_max_pool1d, input):
            return torch.nn.AdaptiveMaxPool1d.forward(self, input)
        return adaptive_max_pool1d_unasked(input, self.output_size, self.return_indices)


class MaxPool3d(_Eager, torch.nn.MaxPool3d):
    """``torch.nn.MaxPool3d`` over :func:`pydl.functional.max_pool3d`; on the CPU.

    >>> nn.MaxPool3d(2)(torch.arange(8.0).reshape(1, 2, 2, 2))
    tensor([[[[7.]]]])
    """

    own = Own(torch.nn.MaxPool3d, "max_pool3d")

    def forward(self, input):
        if is_small(input) or steps_aside(self, MaxPool3d.own, F.max_pool3d, input):
            return torch.nn.MaxPool3d.forward(self, input)
        options = self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        return max_pool3d_unasked(input, *options, self.return_indices)


class AvgPool3d(_Eager, torch.nn.AvgPool3d):
    """``torch.nn.AvgPool3d`` over :func:`pydl.functional.avg_pool3d`; on the CPU.

    >>> nn.AvgPool3d(2)(torch.arange(8.0).reshape(1, 2, 2, 2))
    tensor([[[[3.5000]]]])
    """

    own = Own(torch.nn.AvgPool3d, "avg_pool3d")

    def forward(self, input):
        if is_small(input) or steps_aside(self, AvgPool3d.own, F.avg_pool3d, input):
            return torch.nn.AvgPool3d.forward(self, input)
        options = self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad
        return avg_pool3d_unasked(input, *options, self.divisor_override)


class AdaptiveAvgPool3d(_Eager, torch.nn.AdaptiveAvgPool3d):
    """``torch.nn.AdaptiveAvgPool3d`` over :func:`pydl.functional.adaptive_avg_pool3d`; on the CPU.

    >>> nn.AdaptiveAvgPool3d(1)(torch.arange(8.0).reshape(1, 2, 2, 2))
    tensor([[[[3.5000]]]])
    """

    own = Own(torch.nn.AdaptiveAvgPool3d, "adaptive_avg_pool3d")

    def forward(self, input):
        if is_small(input) or steps_aside(self, AdaptiveAvgPool3d.own, F.adaptive_avg_pool3d, input):
            return torch.nn.AdaptiveAvgPool3d.forward(self, input)
        return adaptive_avg_pool3d_unasked(input, self.output_size)


class AdaptiveMaxPool3d(_Eager, torch.nn.AdaptiveMaxPool3d):
    """``torch.nn.AdaptiveMaxPool3d`` over :func:`pydl.functional.adaptive_max_pool3d`; on the CPU.

    >>> nn.AdaptiveMaxPool3d(1)(torch.arange(8.0).reshape(1, 2, 2, 2))
    tensor([[[[7.]]]])
    """

    own = Own(torch.nn.AdaptiveMaxPool3d, "adaptive_max_pool3d")

    def forward(self, input):
        if is_small(input) or steps_aside(self, AdaptiveMaxPool3d.own, F.adaptive_max_pool3d, input):
            return torch.nn.AdaptiveMaxPool3d.forward(self, input)
        return adaptive_max_pool3d_unasked(input, self.output_size, self.return_indices)
