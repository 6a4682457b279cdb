"""Pooling by torch's own kernels, called so that they run fast on the CPU.

torch 2.13's pooling of rows of pixels (NCHW) goes through them one by one: 4.4 ms for the maximum over 2×2 of
(64, 32, 32, 32) on two cores, where the same kernel takes 0.35 ms in channels_last. So the maximum is taken there, and
the result and the places are brought back; the backward, fast in either layout, is torch's on those places: values,
ties and gradients are torch's to the last bit. The mean over 2×2 is two additions of strided views.
"""

import torch
import torch.nn.functional as F

from pydl.ops import _library


class Pool:
    """A pooling layer in a plan, in the place of the layer itself."""

    def __init__(self, layer, name):
        self.layer = layer
        self.names = [name]
        self._function, self.remark = _SERVED[type(layer)]

    def __call__(self, input):
        return self._function(self.layer, input)


_FROM = 1 << 14  # elements; below, the calls cost more than the pooling


def max_pool2d(module, input):
    """``module(input)`` for a ``torch.nn.MaxPool2d`` without hooks."""
    if module.return_indices or not _rows(input) or input.shape[1] < 4:
        return type(module).forward(module, input)
    options = module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
    if input.requires_grad and torch.is_grad_enabled():
        return _MaxPool.apply(input, *(_pair(option) for option in options[:4]), options[4])
    return F.max_pool2d(input.contiguous(memory_format=torch.channels_last), *options).contiguous()


def avg_pool2d(module, input):
    """``module(input)`` for a ``torch.nn.AvgPool2d`` without hooks."""
    halves = (
        module.kernel_size in (2, (2, 2))
        and module.stride in (2, (2, 2))
        and module.padding in (0, (0, 0))
        and module.divisor_override in (None, 4)
        and input.dtype in (torch.float32, torch.float64)
    )
    if not halves or not _rows(input) or input.shape[2] % 2 or input.shape[3] % 2:
        return type(module).forward(module, input)
    return _Mean.apply(input)


def _rows(input):
    """Whether ``input`` is a batch of images in rows of pixels, on the CPU, large enough, in plain eager mode."""
    return (
        not torch.compiler.is_compiling()
        and not _library.transforms_active()
        and input.dim() == 4
        and input.is_cpu
        and input.numel() >= _FROM
        and input.is_floating_point()
        and input.is_contiguous()
    )


def _pair(value):
    return [value, value] if isinstance(value, int) else list(value)


_SERVED = {
    torch.nn.MaxPool2d: (max_pool2d, "pooled in channels_last, which is faster"),
    torch.nn.AvgPool2d: (avg_pool2d, "pooled by adding views, which is faster"),
}
CLASSES = tuple(_SERVED)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, *options):
        there = input.contiguous(memory_format=torch.channels_last)
        output, places = torch.ops.aten.max_pool2d_with_indices(there, *options)
        ctx.options = options
        ctx.save_for_backward(input, places.contiguous())
        return output.contiguous()

    @staticmethod
    def backward(ctx, grad_output):
        input, places = ctx.saved_tensors
        backward = torch.ops.aten.max_pool2d_with_indices_backward
        return backward(grad_output.contiguous(), input, *ctx.options, places), None, None, None, None, None


class _Mean(torch.autograd.Function):
    """The mean over 2×2; its derivative is a quarter of :class:`_Spread`, whose derivative is four of this."""

    @staticmethod
    def forward(ctx, input):
        n, c, height, width = input.shape
        rows = input.contiguous().view(n, c, height // 2, 2, width)
        sums = rows[:, :, :, 0] + rows[:, :, :, 1]
        return (sums[..., ::2] + sums[..., 1::2]).mul_(0.25)

    @staticmethod
    def backward(ctx, grad_output):
        return _Spread.apply(grad_output)


class _Spread(torch.autograd.Function):
    """A quarter of each pixel to each of the four that it stands for."""

    @staticmethod
    def forward(ctx, input):
        n, c, height, width = input.shape
        quarter = input * 0.25
        output = input.new_empty(n, c, height, 2, 2 * width)
        output[:, :, :, 0, ::2] = quarter
        output[:, :, :, 0, 1::2] = quarter
        output[:, :, :, 1] = output[:, :, :, 0]
        return output.view(n, c, 2 * height, 2 * width)

    @staticmethod
    def backward(ctx, grad_output):
        return _Mean.apply(grad_output)
