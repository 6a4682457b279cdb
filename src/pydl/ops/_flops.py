"""Floating-point operations of convolutions, linear and recurrent layers, attention and products, for flop_counter.

By the rule of torch.utils.flop_counter: a multiply-add counts as two, bias and activation as nothing. The other ops
have no matrix product in them; torch counts nothing for theirs either.
"""

from math import prod

import torch

from pydl._importing import when_imported
from pydl.ops import (  # noqa: F401  (which define the ops)
    _library,
    attention,
    conv2d,
    conv3d,
    conv_transpose2d,
    linear,
    linear_cross_entropy,
    matmul,
    recurrent,
)


def _forward(input_shape, weight_shape, *_, out_shape=None, **__):
    """2 N O H' W' (C / groups) KH KW, and with depth D' and KD."""
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


def _recurrent(input_shape, _hidden, _cell, weight_ih_shape, weight_hh_shape, *_, out_shape=None, **__):
    """2 R G (I + H), of R rows of all steps."""
    return 2 * prod(input_shape[:-1]) * (prod(weight_ih_shape) + prod(weight_hh_shape))


def _recurrent_backward(*args, out_shape=None, **__):
    input_shape, (weight_ih_shape, weight_hh_shape) = args[3], args[6:8]
    need_input, _, need_weight_ih, need_weight_hh, _ = args[-5:]
    of_input, of_state = (prod(input_shape[:-1]) * prod(shape) for shape in (weight_ih_shape, weight_hh_shape))
    return 2 * (of_input * (need_input + need_weight_ih) + of_state * (1 + need_weight_hh))  # 1: through the steps


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
    formula(ops.conv2d_backward_parameters)(
        lambda grad_shape, input_shape, _output, weight_shape, *_, **__: _backward_weight(
            grad_shape, input_shape, out_shape=weight_shape
        )
    )
    formula(ops.conv3d_forward)(_forward)
    formula(ops.conv3d_backward_input)(_backward_input)
    formula(ops.conv3d_backward_weight)(_backward_weight)
    formula(ops.conv_transpose2d)(_backward_input)
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
    formula(ops.attention_backward_mask)(lambda grad, *shapes, **_: _attention(*shapes[:3]))
    formula(ops.recurrent_forward)(_recurrent)
    formula(ops.recurrent_backward)(_recurrent_backward)


# torch's counter imports Triton where that is installed, which takes longer than all of pydl; a FlopCounterMode copies
# the formulas that there are when it is made
when_imported("torch.utils.flop_counter", _register)
