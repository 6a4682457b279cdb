"""Floating-point operations of convolutions, linear layers, attention, matrix products, for torch's flop_counter.

By torch's rule: a multiply-add counts as two, bias and activation as nothing. The other ops have no matrix product in
them; torch counts nothing for theirs either.
"""

from math import prod

import torch

from pydl._importing import when_imported
from pydl.ops import _library, attention, conv2d, linear, linear_cross_entropy, matmul  # noqa: F401  (which define the ops)


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


def _linear_cross_entropy(input_shape, weight_shape, *_, out_shape=None, **__):
    return 2 * prod(input_shape) * weight_shape[0]


def _linear_cross_entropy_with_gradients(input_shape, weight_shape, *args, out_shape=None, **__):
    *_, needs_input, needs_weight, _ = args
    return (1 + needs_input + needs_weight) * _linear_cross_entropy(input_shape, weight_shape)


def _linear_cross_entropy_backward(grad_output_shape, *args, out_shape=None, **__):
    return _linear_cross_entropy_with_gradients(*args)


def _matmul(left_shape, right_shape, *_, out_shape=None, **__):
    """2 B M N K."""
    return 2 * prod(out_shape) * left_shape[-1]


def _attention(query_shape, key_shape, value_shape, *_, out_shape=None, **__):
    """2 N H L S (E + Ev)."""
    return 2 * prod(query_shape[:3]) * key_shape[2] * (query_shape[3] + value_shape[3])


def _attention_backward(grad_output_shape, query_shape, key_shape, value_shape, *_, out_shape=None, **__):
    """2 N H L S (3 E + 2 Ev)."""
    return 2 * prod(query_shape[:3]) * key_shape[2] * (3 * query_shape[3] + 2 * value_shape[3])


def _register(counter):
    """With ``counter``, the module torch.utils.flop_counter."""
    formula = counter.register_flop_formula
    for namespace in _library.NAMESPACES:
        ops = getattr(torch.ops, namespace)
        formula(ops.conv2d_forward)(_forward)
        formula(ops.conv2d_backward_input)(_backward_input)
        formula(ops.conv2d_backward_weight)(_backward_weight)
        formula(ops.conv2d_backward_bias)(lambda *_, **__: 0)
    ops = torch.ops.pydl
    formula(ops.linear_forward)(_linear_forward)
    formula(ops.linear_backward_input)(_linear_backward)
    formula(ops.linear_backward_weight)(_linear_backward)
    formula(ops.linear_backward_bias)(lambda *_, **__: 0)
    formula(ops.linear_cross_entropy_forward)(_linear_cross_entropy)
    formula(ops.linear_cross_entropy_forward_backward)(_linear_cross_entropy_with_gradients)
    formula(ops.linear_cross_entropy_backward)(_linear_cross_entropy_backward)
    formula(ops.matmul)(_matmul)
    formula(ops.attention_forward)(_attention)
    formula(ops.attention_backward)(_attention_backward)


# torch's counter imports Triton where that is installed, which takes longer than all of pydl; a FlopCounterMode copies
# the formulas that there are when it is made
when_imported("torch.utils.flop_counter", _register)
