"""What ``torch.utils.flop_counter.FlopCounterMode`` counts for our convolutions: the numbers that it has for torch's.

It counts nothing for normalisation, pooling, dropout and losses, ours or torch's.
"""

import torch
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from pydl.ops import _library, conv2d  # noqa: F401  (which defines the ops)


def _swapped(shape):
    return [shape[1], shape[0], *shape[2:]]


def _forward(input, weight, *_, out_shape, **__):
    return conv_flop_count(input, weight, out_shape)


def _backward_input(grad_output, weight, *_, out_shape, **__):
    return conv_flop_count(grad_output, weight, out_shape, transposed=True)


def _backward_weight(grad_output, input, *_, out_shape, **__):
    return conv_flop_count(_swapped(input), _swapped(grad_output), _swapped(out_shape))


for _namespace in _library.NAMESPACES:
    _ops = getattr(torch.ops, _namespace)
    register_flop_formula(_ops.conv2d_forward)(_forward)
    register_flop_formula(_ops.conv2d_backward_input)(_backward_input)
    register_flop_formula(_ops.conv2d_backward_weight)(_backward_weight)
    register_flop_formula(_ops.conv2d_backward_bias)(lambda *_, **__: 0)
