"""Softmax cross entropy: the launchers. The formulas, for each row, are kernels/softmax_cross_entropy.h's:

    lse  = log sum_c exp(x_c)
    loss = sum_c q_c (lse - x_c) + z_loss lse^2
    q_c  = (1 - s) w_t [c = t] + (s / C) w_c                  class index t
    q_c  = w_c ((1 - s) t_c + s / C)                          probabilities t_c

    grad_input_c  = g ((sum_j q_j + 2 z_loss lse) exp(x_c - lse) - q_c)
    grad_target_c = g (1 - s) w_c (lse - x_c)

Bound by memory: the forward reads the logits once, the backward once more and writes the gradient.

The softmax is never stored. lse is, as the two numbers it is the sum of, max_c x_c and log sum_c exp(x_c - max): added
up they would lose places that every gradient needs.
"""

import math

import torch
import triton

from ..launch import ACCUMULATE, device_of, double_bits, launch, power_of_2, require_device, unit_of
from .softmax_cross_entropy_backward import (
    softmax_cross_entropy_backward_kernel,
    softmax_cross_entropy_backward_target_kernel,
    softmax_cross_entropy_q_kernel,
)
from .softmax_cross_entropy_forward import (
    softmax_cross_entropy_forward_kernel,
    softmax_cross_entropy_join_kernel,
    softmax_cross_entropy_reduce_kernel,
)
from .softmax_cross_entropy_rows import MEAN, NONE, rows_of

CHUNK = 16384  # losses that one program sums


def _check(input, target, weight, label_smoothing):
    """The checks of csrc/softmax_cross_entropy.cpp."""

    def require(condition, expected, error=RuntimeError):
        if not condition:
            raise error(f"cross_entropy: expected {expected}")

    require(input.dim() > 0, "input to be of 1 or more dimensions, got 0", IndexError)
    require(not label_smoothing > 1.0, f"label_smoothing to be in [0, 1], got {label_smoothing}")
    shape = input.shape
    classes = shape[0] if input.dim() == 1 else shape[1]
    if target.shape == shape:
        require(
            target.dtype in ACCUMULATE,
            f"target of input's shape to be class probabilities of a floating point dtype, got {target.dtype}",
        )
    elif input.dim() == 1:
        require(target.dim() <= 1, f"target to be of 0 or 1 dimensions, got shape {tuple(target.shape)}")
        require(target.numel() == 1, f"target to be one class index, got shape {tuple(target.shape)}", ValueError)
    else:
        rows = (*shape[:1], *shape[2:])
        message = f"target to be of shape {rows} or {tuple(shape)}, got {tuple(target.shape)}"
        require(target.dim() > 0 and target.shape[0] == shape[0], message, ValueError)
        require(target.shape == rows, message)
    require_device("cross_entropy", "input", input, target=target, weight=weight)
    if target.shape != shape:
        require(target.dtype == torch.int64, f"target dtype to be int64 or uint8, got {target.dtype}")
    if weight is not None:
        message = f"weight to be of shape ({classes}), one for each class, got {tuple(weight.shape)}"
        require(weight.shape == (classes,), message)
        kept = torch.float64 if input.dtype == torch.float64 else torch.float32
        require(weight.dtype == kept, f"weight to be of the dtype that sums are kept in, got {weight.dtype}")


def softmax_cross_entropy_forward(
    input, target, weight, reduction, ignore_index, label_smoothing, z_loss, float_output=False
):
    """Returns output, norm (two numbers per row, whose sum is lse) and denominator (what the mean divides by)."""
    _check(input, target, weight, label_smoothing)
    rows = rows_of(input, target)
    acc = ACCUMULATE[input.dtype]
    kept = torch.float64 if input.dtype == torch.float64 else torch.float32
    row_sizes = input.shape[:0] if input.dim() == 1 else input.shape[:1] + input.shape[2:]
    output = input.new_empty(row_sizes if reduction == NONE else (), dtype=kept if float_output else input.dtype)
    norm = input.new_empty((2, *row_sizes), dtype=kept)
    denominator = input.new_empty((), dtype=torch.float64)
    loss = output if reduction == NONE else input.new_empty(rows.count, dtype=kept)
    row_weight = None
    if reduction == MEAN and not rows.probabilities:
        row_weight = input.new_empty(rows.count, dtype=kept)

    device = device_of(input)
    elements = 2048 if rows.probabilities or 0 < device.capability < 80 else 4096  # of 128 threads; more would spill
    r, b = rows.tile(elements, elements, acc)
    programs = triton.cdiv(rows.count, r)
    splits, piece = 1, triton.cdiv(rows.classes, b) * b
    wanted = 16 * device.multiprocessors  # three times what runs at once: the last ones leave few multiprocessors idle
    if 0 < programs < wanted and rows.classes >= 4 * b:  # rows are few and long: each in pieces
        splits = min(triton.cdiv(wanted, programs), triton.cdiv(rows.classes, 2 * b))
        piece = triton.cdiv(triton.cdiv(rows.classes, splits), b) * b
        splits = power_of_2(triton.cdiv(rows.classes, piece))  # few different numbers: each is a compilation
    smoothing = max(label_smoothing, 0.0)
    options = {
        "PROBABILITIES": rows.probabilities,
        "SMOOTHING": smoothing != 0.0,
        "Z_LOSS": z_loss != 0.0,
        "SPLITS": splits,
        "ACC": acc,
        "R": r,
        "num_warps": 4,
    }
    partial = None if splits == 1 else input.new_empty((4, splits, rows.count), dtype=kept)
    pointers = (input, target, weight, loss, row_weight, norm, partial)
    walk = (rows.sizes, rows.stored, rows.input, rows.target, rows.input_class_stride)
    scalars = (ignore_index, double_bits(smoothing), double_bits(z_loss))
    launch(
        softmax_cross_entropy_forward_kernel, programs * splits, input, *pointers, rows.count, rows.classes, piece,
        *walk, rows.target_class_stride, *scalars, **options, UNIT=unit_of(rows.classes, *rows.input), B=b,
    )  # fmt: skip
    if splits > 1:
        launch(
            softmax_cross_entropy_join_kernel, programs, input, *pointers, rows.count, rows.classes, *walk, *scalars,
            **options,
        )  # fmt: skip
    if rows.classes == 0 and rows.probabilities:  # sums of nothing, and torch's mean of nothing
        output.fill_(math.nan if reduction == MEAN else 0.0)
    elif reduction != NONE:
        _reduce(loss, row_weight, output, denominator if reduction == MEAN else None, rows.count)
    return output, norm, denominator


def _reduce(loss, row_weight, output, denominator, rows):
    n = rows
    programs = triton.cdiv(n, CHUNK)
    if programs > 1:
        sums = loss.new_empty((2, programs), dtype=torch.float64)
        weights = None if row_weight is None else sums[1]
        options = {"CHUNK": CHUNK, "BLOCK": 2048, "FINAL": False, "num_warps": 4}
        launch(
            softmax_cross_entropy_reduce_kernel, programs, loss, loss, row_weight, sums[0], sums[1], n, rows, **options
        )
        loss, row_weight, n = sums[0], weights, programs
    chunk = max(power_of_2(n), 512)
    options = {"CHUNK": chunk, "BLOCK": min(chunk, 2048), "FINAL": True, "num_warps": 4}
    launch(softmax_cross_entropy_reduce_kernel, 1, loss, loss, row_weight, output, denominator, n, rows, **options)


def softmax_cross_entropy_backward(
    grad_output, input, target, weight, norm, denominator, reduction, ignore_index, label_smoothing, z_loss
):
    """Returns the gradient of the logits, in their dtype and memory format."""
    _check(input, target, weight, label_smoothing)
    grad_input = input.new_empty(input.shape)  # row-major, as torch's always is
    rows = rows_of(input, target, grad_input, grad_output, reduction)
    if grad_input.numel() == 0:
        return grad_input
    acc = ACCUMULATE[input.dtype]
    smoothing = max(label_smoothing, 0.0)
    r, b = rows.tile(2048, 2048, acc)
    q = None
    if rows.probabilities:
        q = input.new_empty(rows.count, dtype=norm.dtype)
        launch(
            softmax_cross_entropy_q_kernel, triton.cdiv(rows.count, r), input, target, weight, q, rows.count,
            rows.classes, rows.sizes, rows.target, rows.target_class_stride, double_bits(smoothing), ACC=acc, R=r, B=b,
            num_warps=4,
        )  # fmt: skip
    elif smoothing != 0.0 and weight is not None:
        q = weight.sum(dtype=torch.float64)
    launch(
        softmax_cross_entropy_backward_kernel, triton.cdiv(rows.count, r) * triton.cdiv(rows.classes, b), input,
        grad_output, input, target, weight, norm, denominator if reduction == MEAN else None, q, grad_input, rows.count,
        rows.classes, rows.sizes, rows.stored, rows.input, rows.target, rows.grad, rows.grad_output,
        rows.input_class_stride, rows.target_class_stride, rows.grad_class_stride, ignore_index, double_bits(smoothing),
        double_bits(z_loss), PROBABILITIES=rows.probabilities, SMOOTHING=smoothing != 0.0, Z_LOSS=z_loss != 0.0,
        UNIT=unit_of(rows.classes, *rows.input, *rows.grad), ACC=acc, R=r, B=b, num_warps=4,
    )  # fmt: skip
    return grad_input


def softmax_cross_entropy_forward_backward(
    input, target, weight, reduction, ignore_index, label_smoothing, z_loss, float_output=False
):
    """The forward, and the gradient of the logits for an upstream gradient of 1: one launch after the other."""
    options = (reduction, ignore_index, label_smoothing, z_loss)
    output, norm, denominator = softmax_cross_entropy_forward(input, target, weight, *options, float_output)
    saved = (torch.ones_like(output), input, target, weight, norm, denominator)
    return output, norm, denominator, softmax_cross_entropy_backward(*saved, *options)


def softmax_cross_entropy_backward_target(
    grad_output, input, target, weight, norm, denominator, reduction, label_smoothing
):
    """Returns the gradient of the class probabilities, in their dtype and memory format."""
    _check(input, target, weight, label_smoothing)
    grad_target = target.new_empty(target.shape)
    rows = rows_of(input, target, grad_target, grad_output, reduction)
    if not rows.probabilities:
        raise RuntimeError(f"cross_entropy: expected target to be class probabilities, got shape {tuple(target.shape)}")
    if grad_target.numel() == 0:
        return grad_target
    acc = ACCUMULATE[input.dtype]
    r, b = rows.tile(2048, 2048, acc)
    launch(
        softmax_cross_entropy_backward_target_kernel, triton.cdiv(rows.count, r) * triton.cdiv(rows.classes, b), input,
        grad_output, input, weight, norm, denominator if reduction == MEAN else None, grad_target, rows.count,
        rows.classes, rows.sizes, rows.stored, rows.input, rows.grad, rows.grad_output, rows.input_class_stride,
        rows.grad_class_stride, double_bits(max(label_smoothing, 0.0)), ACC=acc, R=r, B=b,
        num_warps=4,
    )  # fmt: skip
    return grad_target
