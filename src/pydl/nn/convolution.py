"""Convolutions."""

import torch
import torch.nn.functional as F

from pydl.aside import Own, is_special, steps_aside
from pydl.nn._common import _Eager
from pydl.ops import _nodes
from pydl.ops._activations import finished
from pydl.ops._nodes import is_compiling
from pydl.ops.conv1d import conv1d_unasked, conv_transpose1d_unasked
from pydl.ops.conv2d import conv2d_unasked
from pydl.ops.conv3d import conv3d_unasked
from pydl.ops.conv_transpose2d import conv_transpose2d_unasked

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConv3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
]


class Conv2d(_Eager, torch.nn.Conv2d):
    """``torch.nn.Conv2d`` over :func:`pydl.functional.conv2d` (d2l chapter "Convolutional Neural Networks").

    Input (N, C, H, W) or (C, H, W), output (N, out_channels, H', W') in the memory format that torch would choose.
    ``forward`` takes :func:`~pydl.functional.conv2d`'s ``activation`` too, keyword-only.

    >>> nn.Conv2d(3, 8, kernel_size=3, padding=1)(torch.randn(4, 3, 32, 32)).shape
    torch.Size([4, 8, 32, 32])
    """

    own = Own(torch.nn.Conv2d, "conv2d", "_conv_forward")

    def forward(self, input, *, activation=None):
        own = Conv2d.own
        if "_conv_forward" in self.__dict__ or type(self)._conv_forward is not _CONV_FORWARD:
            return finished(torch.nn.Conv2d.forward(self, input), activation)
        if (
            F.conv2d is own.function
            and own.cls.forward is own.forward
            and self.padding_mode == "zeros"
            and not is_compiling()
        ):
            options = self.stride, self.padding, self.dilation, self.groups
            output = _nodes.conv2d(input, self.weight, self.bias, *options, activation)
            if output is not NotImplemented:
                return output
        if steps_aside(self, own, F.conv2d, input):
            return finished(torch.nn.Conv2d.forward(self, input), activation)
        weight, bias, padding = self.weight, self.bias, self.padding
        if is_special(self, weight, bias):
            return finished(torch.nn.Conv2d._conv_forward(self, input, weight, bias), activation)
        if self.padding_mode != "zeros":
            # the border is data, not zeros: it is written out once, and the convolution itself pads nothing
            input, padding = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), (0, 0)
        return conv2d_unasked(input, weight, bias, self.stride, padding, self.dilation, self.groups, activation)


_CONV_FORWARD = dict(Conv2d.own.methods)["_conv_forward"]  # torch's


# torch's lazy class, with ours next in the method resolution order: its __init__ reaches our constructor, its
# forward is ours, and on the first input it becomes our class instead of torch's.
class LazyConv2d(torch.nn.LazyConv2d, Conv2d):
    """:class:`Conv2d` that takes ``in_channels`` from its first input.

    >>> layer = nn.LazyConv2d(8, 3)
    >>> layer(torch.randn(4, 6, 8, 8)).shape, layer.in_channels
    (torch.Size([4, 8, 6, 6]), 6)
    """

    cls_to_become = Conv2d


class ConvTranspose2d(_Eager, torch.nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d`` over :func:`pydl.functional.conv_transpose2d` (d2l "Transposed Convolution").

    Input (N, C, H, W) or (C, H, W), output (N, out_channels, H', W'), ``output_size`` as torch's; on the CPU.
    ``forward`` takes :func:`~pydl.functional.conv_transpose2d`'s ``activation`` too, keyword-only.

    >>> nn.ConvTranspose2d(3, 8, kernel_size=4, stride=2, padding=1)(torch.randn(4, 3, 16, 16)).shape
    torch.Size([4, 8, 32, 32])
    """

    own = Own(torch.nn.ConvTranspose2d, "conv_transpose2d", "_output_padding")

    def forward(self, input, output_size=None, *, activation=None):
        own = ConvTranspose2d.own
        replaced = "_output_padding" in self.__dict__ or type(self)._output_padding is not _OUTPUT_PADDING
        if replaced or self.padding_mode != "zeros":
            return finished(torch.nn.ConvTranspose2d.forward(self, input, output_size), activation)
        stride, padding, dilation = self.stride, self.padding, self.dilation
        more = self.output_padding
        if (
            F.conv_transpose2d is own.function
            and own.cls.forward is own.forward
            and output_size is None
            and not is_compiling()
        ):
            options = stride, padding, more, self.groups, dilation
            output = _nodes.conv_transpose2d(input, self.weight, self.bias, *options, activation)
            if output is not NotImplemented:
                return output
        if steps_aside(self, own, F.conv_transpose2d, input):
            return finished(torch.nn.ConvTranspose2d.forward(self, input, output_size), activation)
        weight, bias = self.weight, self.bias
        if is_special(self, weight, bias):
            return finished(torch.nn.ConvTranspose2d.forward(self, input, output_size), activation)
        if output_size is not None:
            more = self._output_padding(input, output_size, stride, padding, self.kernel_size, 2, dilation)
        options = stride, padding, tuple(more), self.groups, dilation
        return conv_transpose2d_unasked(input, weight, bias, *options, activation)


_OUTPUT_PADDING = dict(ConvTranspose2d.own.methods)["_output_padding"]  # torch's


class LazyConvTranspose2d(torch.nn.LazyConvTranspose2d, ConvTranspose2d):
    """:class:`ConvTranspose2d` that takes ``in_channels`` from its first input.

    >>> layer = nn.LazyConvTranspose2d(8, 3)
    >>> layer(torch.randn(4, 6, 8, 8)).shape, layer.in_channels
    (torch.Size([4, 8, 10, 10]), 6)
    """

    cls_to_become = ConvTranspose2d


class Conv1d(_Eager, torch.nn.Conv1d):
    """``torch.nn.Conv1d`` over :func:`pydl.functional.conv1d` (d2l "TextCNN"); on the CPU.

    Input (N, C, L) or (C, L), output (N, out_channels, L').

    >>> nn.Conv1d(3, 8, kernel_size=5)(torch.randn(4, 3, 20)).shape
    torch.Size([4, 8, 16])
    """

    own = Own(torch.nn.Conv1d, "conv1d", "_conv_forward")

    def forward(self, input):
        own = Conv1d.own
        replaced = "_conv_forward" in self.__dict__ or type(self)._conv_forward is not _CONV_FORWARD_1D
        if replaced or steps_aside(self, own, F.conv1d, input):
            return torch.nn.Conv1d.forward(self, input)
        weight, bias, padding = self.weight, self.bias, self.padding
        if is_special(self, weight, bias):
            return torch.nn.Conv1d.forward(self, input)
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), (0,)
        return conv1d_unasked(input, weight, bias, self.stride, padding, self.dilation, self.groups)


_CONV_FORWARD_1D = dict(Conv1d.own.methods)["_conv_forward"]  # torch's


class LazyConv1d(torch.nn.LazyConv1d, Conv1d):
    """:class:`Conv1d` that takes ``in_channels`` from its first input.

    >>> layer = nn.LazyConv1d(8, 3)
    >>> layer(torch.randn(4, 6, 20)).shape, layer.in_channels
    (torch.Size([4, 8, 18]), 6)
    """

    cls_to_become = Conv1d


class ConvTranspose1d(_Eager, torch.nn.ConvTranspose1d):
    """``torch.nn.ConvTranspose1d`` over :func:`pydl.functional.conv_transpose1d`; on the CPU.

    Input (N, C, L) or (C, L), output (N, out_channels, L'), ``output_size`` as torch's.

    >>> nn.ConvTranspose1d(3, 8, kernel_size=4, stride=2)(torch.randn(4, 3, 20)).shape
    torch.Size([4, 8, 42])
    """

    own = Own(torch.nn.ConvTranspose1d, "conv_transpose1d", "_output_padding")

    def forward(self, input, output_size=None):
        own = ConvTranspose1d.own
        replaced = "_output_padding" in self.__dict__ or type(self)._output_padding is not _OUTPUT_PADDING
        if replaced or steps_aside(self, own, F.conv_transpose1d, input) or self.padding_mode != "zeros":
            return torch.nn.ConvTranspose1d.forward(self, input, output_size)
        weight, bias = self.weight, self.bias
        if is_special(self, weight, bias):
            return torch.nn.ConvTranspose1d.forward(self, input, output_size)
        stride, padding, dilation = self.stride, self.padding, self.dilation
        more = self.output_padding
        if output_size is not None:
            more = self._output_padding(input, output_size, stride, padding, self.kernel_size, 1, dilation)
        return conv_transpose1d_unasked(input, weight, bias, stride, padding, tuple(more), self.groups, dilation)


class LazyConvTranspose1d(torch.nn.LazyConvTranspose1d, ConvTranspose1d):
    """:class:`ConvTranspose1d` that takes ``in_channels`` from its first input.

    >>> layer = nn.LazyConvTranspose1d(8, 3)
    >>> layer(torch.randn(4, 6, 20)).shape, layer.in_channels
    (torch.Size([4, 8, 22]), 6)
    """

    cls_to_become = ConvTranspose1d


class Conv3d(_Eager, torch.nn.Conv3d):
    """``torch.nn.Conv3d`` over :func:`pydl.functional.conv3d`; on the CPU.

    Input (N, C, D, H, W) or (C, D, H, W), output (N, out_channels, D', H', W') in the memory format that torch would
    choose.

    >>> nn.Conv3d(3, 8, kernel_size=3, padding=1)(torch.randn(1, 3, 8, 16, 16)).shape
    torch.Size([1, 8, 8, 16, 16])
    """

    own = Own(torch.nn.Conv3d, "conv3d", "_conv_forward")

    def forward(self, input):
        own = Conv3d.own
        replaced = "_conv_forward" in self.__dict__ or type(self)._conv_forward is not _CONV_FORWARD_3D
        if replaced or steps_aside(self, own, F.conv3d, input):
            return torch.nn.Conv3d.forward(self, input)
        weight, bias, padding = self.weight, self.bias, self.padding
        if is_special(self, weight, bias):
            return torch.nn.Conv3d.forward(self, input)
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), (0, 0, 0)
        return conv3d_unasked(input, weight, bias, self.stride, padding, self.dilation, self.groups)


_CONV_FORWARD_3D = dict(Conv3d.own.methods)["_conv_forward"]  # torch's


class LazyConv3d(torch.nn.LazyConv3d, Conv3d):
    """:class:`Conv3d` that takes ``in_channels`` from its first input.

    >>> layer = nn.LazyConv3d(8, 3)
    >>> layer(torch.randn(1, 6, 4, 8, 8)).shape, layer.in_channels
    (torch.Size([1, 8, 2, 6, 6]), 6)
    """

    cls_to_become = Conv3d
