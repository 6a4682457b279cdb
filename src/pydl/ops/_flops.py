"""Floating-point operations of our convolutions, linear layers and matrix products, for torch.utils.flop_counter.

By torch's rule: a multiply-add counts as two, bias and activation as nothing. The other ops have no matrix product in
them; torch counts nothing for theirs either.
"""

from math import prod

import torch
from torch.utils.flop_counter import register_flop_formula

from pydl.ops import _library, conv2d, linear, matmul  # noqa: F401  (which define the ops)


def _forward(input_shape, weight_shape, *_, out_shape=None, **__):
    """2 N O H' W' (C / groups) KH KW."""
    return 2 * prod(out_shape) * prod(weight_shape[1:])


def _backward_input(grad_output_shape, weight_shape, *_, out_shape=None, **__):
    return 2 * prod(grad_output_shape) * prod(weight_shape[1:])


def _backward_weight(grad_output_shape, input_shape, *_, out_shape=None, **__):
    return 2 * prod(grad_output_shape) * prod(out_shape[1:])


def _linear_forward(input_shape, weight_shape, *_, out_shape=None, **__):
    """2 N O I."""
    return 2 * prod(out_shape) * weight_shape[1]


def _linear_backward(grad_output_shape, other_shape, *_, **__):
    return 2 * prod(grad_output_shape) * other_shape[-1]


def _matmul(left_shape, right_shape, *_, out_shape=None, **__):
    """2 B M N K."""
    return 2 * prod(out_shape) * left_shape[-1]


for _namespace in _library.NAMESPACES:
    _ops = getattr(torch.ops, _namespace)
    register_flop_formula(_ops.conv2d_forward)(_forward)
    register_flop_formula(_ops.conv2d_backward_input)(_backward_input)
    register_flop_formula(_ops.conv2d_backward_weight)(_backward_weight)
    register_flop_formula(_ops.conv2d_backward_bias)(lambda *_, **__: 0)

register_flop_formula(torch.ops.pydl.linear_forward)(_linear_forward)
register_flop_formula(torch.ops.pydl.linear_backward_input)(_linear_backward)
register_flop_formula(torch.ops.pydl.linear_backward_weight)(_linear_backward)
register_flop_formula(torch.ops.pydl.linear_backward_bias)(lambda *_, **__: 0)
register_flop_formula(torch.ops.pydl.matmul)(_matmul)
