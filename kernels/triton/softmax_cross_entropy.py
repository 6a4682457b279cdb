"""Softmax cross entropy. The formulas, for each row, are kernels/softmax_cross_entropy.h's:

    lse  = log sum_c exp(x_c)
    loss = sum_c q_c (lse - x_c) + z_loss lse^2
    q_c  = (1 - s) w_t [c = t] + (s / C) w_c                  class index t
    q_c  = w_c ((1 - s) t_c + s / C)                          probabilities t_c

    grad_input_c  = g ((sum_j q_j + 2 z_loss lse) exp(x_c - lse) - q_c)
    grad_target_c = g (1 - s) w_c (lse - x_c)

Bound by memory: the forward reads the logits once, with a running maximum over blocks of a row of any length, so that
each element costs one exponential; the backward reads them once more and writes the gradient. A program takes several
short rows, one long row, or, where rows are few, a piece of one. A row is any position of an N-d input: classes may be
strided, as in (N, C, H, W).

The softmax is never stored. lse is, as the two numbers it is the sum of, max_c x_c and log sum_c exp(x_c - max): added
up they would lose places that every gradient needs. Sums over rows are taken in float64, in chunks of fixed size in a
fixed order.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .arithmetic import double_of, offset_of
from .launch import ACCUMULATE, device_of, double_bits, launch, merged_dims, power_of_2

# ---- forward


@triton.jit
def dense_q(target_row_ptr, weight_ptr, column, inside, target_class_stride, smoothing, share, PROBABILITIES, ACC):
    """q_c without the part of a class index, for a block of classes, [R, B] or [1, B]; undefined where not inside."""
    if PROBABILITIES:
        t = tl.load(target_row_ptr[:, None] + column[None, :] * target_class_stride, mask=inside)
        q = t.to(ACC) * (1.0 - smoothing) + share
    else:
        q = tl.zeros_like(column)[None, :].to(ACC) + share
    if weight_ptr is not None:
        q *= tl.load(weight_ptr + column[None, :], mask=inside).to(ACC)
    return q


@triton.jit
def absorb(
    state,
    input_row_ptr,
    target_row_ptr,
    weight_ptr,
    start,
    end,
    input_class_stride,
    target_class_stride,
    smoothing,
    share,
    PROBABILITIES: tl.constexpr,
    DENSE: tl.constexpr,
    WHOLE: tl.constexpr,
    ACC: tl.constexpr,
    B: tl.constexpr,
):
    """Takes classes [start, start + B) into the running (maximum, sum of exp, sum of q (x - maximum), sum of q)."""
    maximum, total, q_x, q_total = state
    column = start + tl.arange(0, B).to(tl.int64)
    if WHOLE:  # no mask: one that is no multiple of 16 bytes would split the loads
        inside = None
        x = tl.load(input_row_ptr[:, None] + column[None, :] * input_class_stride).to(ACC)
    else:
        inside = (column < end)[None, :]
        x = tl.load(input_row_ptr[:, None] + column[None, :] * input_class_stride, mask=inside, other=-float("inf")).to(
            ACC
        )
    larger = tl.maximum(maximum, tl.max(x, axis=1))
    # a row of nothing but -inf so far is measured from 0: -inf - -inf would be nan
    reference = tl.where(larger == -float("inf"), 0.0, larger)
    total = total * tl.exp(maximum - reference) + tl.sum(tl.exp(x - reference[:, None]), axis=1)
    if DENSE:
        before = tl.where(maximum == -float("inf"), 0.0, maximum)
        q = dense_q(
            target_row_ptr, weight_ptr, column, inside, target_class_stride, smoothing, share, PROBABILITIES, ACC
        )
        part = q * (x - reference[:, None])
        if not WHOLE:
            part = tl.where(inside, part, 0.0)
            q = tl.where(inside, q, 0.0)
        q_x = q_x - q_total * (reference - before) + tl.sum(part, axis=1)
        q_total = q_total + tl.sum(q + tl.zeros_like(x), axis=1)
    return larger, total, q_x, q_total


@triton.jit
def finish(
    state,
    input_row_ptr,
    target_row_ptr,
    weight_ptr,
    loss_ptr,
    row_weight_ptr,
    norm_ptr,
    stored,
    live,
    rows,
    classes,
    input_class_stride,
    ignore_index,
    smoothing,
    z_loss,
    PROBABILITIES: tl.constexpr,
    DENSE: tl.constexpr,
    Z_LOSS: tl.constexpr,
    ACC: tl.constexpr,
):
    """The loss of each row from its state; ``stored`` is where a row's results go."""
    maximum, total, q_x, q_total = state
    reference = tl.where(maximum == -float("inf"), 0.0, maximum)
    log_total = tl.log(total)
    tl.store(norm_ptr + stored, reference, mask=live)
    tl.store(norm_ptr + tl.cast(rows, tl.int64) + stored, log_total, mask=live)
    loss = tl.zeros_like(total)
    if DENSE:
        loss = q_total * log_total - q_x
    if not PROBABILITIES:
        target = tl.load(target_row_ptr).to(tl.int64)
        ignored = target == ignore_index
        valid = (target >= 0) & (target < classes)
        target = tl.where(valid, target, 0)
        x = tl.load(input_row_ptr + target * input_class_stride).to(ACC)
        row_weight = tl.full(total.shape, 1.0, ACC)
        if weight_ptr is not None:
            row_weight = tl.load(weight_ptr + target).to(ACC)
        loss += (1.0 - smoothing) * row_weight * (log_total - (x - reference))
    if Z_LOSS:
        lse = reference + log_total
        loss += z_loss * lse * lse
    if not PROBABILITIES:
        loss = tl.where(ignored, 0.0, tl.where(valid, loss, float("nan")))
        if row_weight_ptr is not None:
            tl.store(row_weight_ptr + stored, tl.where(ignored, 0.0, row_weight), mask=live)
    tl.store(loss_ptr + stored, loss.to(loss_ptr.dtype.element_ty), mask=live)


@triton.jit
def softmax_cross_entropy_forward_kernel(
    input_ptr,  # [rows, classes], any strides
    target_ptr,  # [rows] int64, or as input
    weight_ptr,  # [classes], or None
    loss_ptr,  # [rows]
    row_weight_ptr,  # [rows]: w_t, 0 where ignored; or None
    norm_ptr,  # [2, rows]: maximum and log of the sum of exp(x - maximum)
    partial_ptr,  # [4, SPLITS, rows]: the states of the pieces of each row; None for SPLITS = 1
    rows,
    classes,
    piece,  # classes of one split, a multiple of B
    sizes,  # tuples: the dimensions of rows in the order of the input's memory
    row_strides,  # of the logical row index
    input_strides,
    target_strides,
    input_class_stride,
    target_class_stride,
    ignore_index,
    smoothing_bits,
    z_loss_bits,
    PROBABILITIES: tl.constexpr,
    SMOOTHING: tl.constexpr,
    Z_LOSS: tl.constexpr,
    SPLITS: tl.constexpr,
    ACC: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
):
    split = tl.program_id(0) % SPLITS
    row = (tl.program_id(0) // SPLITS).to(tl.int64) * R + tl.arange(0, R)
    live = row < rows
    row = tl.minimum(row, rows - 1)  # rows beyond the last repeat it and are not stored: loads need no mask
    input_row_ptr = input_ptr + offset_of(row, sizes, input_strides)
    target_row_ptr = target_ptr + offset_of(row, sizes, target_strides)
    smoothing = double_of(smoothing_bits).to(ACC)
    z_loss = double_of(z_loss_bits).to(ACC)
    share = (double_of(smoothing_bits) / classes).to(ACC)
    DENSE: tl.constexpr = PROBABILITIES or SMOOTHING

    zero = tl.zeros([R], ACC)
    state = (zero - float("inf"), zero, zero, zero)
    begin = split * piece
    end = tl.minimum(begin + piece, classes)
    whole = begin + (end - begin) // B * B
    for start in range(begin, whole, B):
        state = absorb(
            state, input_row_ptr, target_row_ptr, weight_ptr, start, end, input_class_stride, target_class_stride,
            smoothing, share, PROBABILITIES, DENSE, True, ACC, B,
        )  # fmt: skip
    if whole < end:
        state = absorb(
            state, input_row_ptr, target_row_ptr, weight_ptr, whole, end, input_class_stride, target_class_stride,
            smoothing, share, PROBABILITIES, DENSE, False, ACC, B,
        )  # fmt: skip
    if SPLITS == 1:
        stored = offset_of(row, sizes, row_strides)
        finish(
            state, input_row_ptr, target_row_ptr, weight_ptr, loss_ptr, row_weight_ptr, norm_ptr, stored, live, rows,
            classes, input_class_stride, ignore_index, smoothing, z_loss, PROBABILITIES, DENSE, Z_LOSS, ACC,
        )  # fmt: skip
    else:
        for k in tl.static_range(4):
            tl.store(partial_ptr + (k * SPLITS + split) * tl.cast(rows, tl.int64) + row, state[k], mask=live)


@triton.jit
def softmax_cross_entropy_join_kernel(
    input_ptr,
    target_ptr,
    weight_ptr,
    loss_ptr,
    row_weight_ptr,
    norm_ptr,
    partial_ptr,
    rows,
    classes,
    sizes,
    row_strides,
    input_strides,
    target_strides,
    input_class_stride,
    ignore_index,
    smoothing_bits,
    z_loss_bits,
    PROBABILITIES: tl.constexpr,
    SMOOTHING: tl.constexpr,
    Z_LOSS: tl.constexpr,
    SPLITS: tl.constexpr,
    ACC: tl.constexpr,
    R: tl.constexpr,
):
    """Joins the states of the pieces of each row, in order, and finishes the row. Pointers as in the forward kernel."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    live = row < rows
    row = tl.minimum(row, rows - 1)
    DENSE: tl.constexpr = PROBABILITIES or SMOOTHING
    zero = tl.zeros([R], ACC)
    maximum, total, q_x, q_total = zero - float("inf"), zero, zero, zero
    for split in range(SPLITS):
        at = partial_ptr + split * tl.cast(rows, tl.int64) + row
        step = SPLITS * tl.cast(rows, tl.int64)
        piece_maximum = tl.load(at)
        larger = tl.maximum(maximum, piece_maximum)
        reference = tl.where(larger == -float("inf"), 0.0, larger)
        total = total * tl.exp(maximum - reference) + tl.load(at + step) * tl.exp(piece_maximum - reference)
        if DENSE:
            before = tl.where(maximum == -float("inf"), 0.0, maximum)
            piece_before = tl.where(piece_maximum == -float("inf"), 0.0, piece_maximum)
            piece_q = tl.load(at + 3 * step)
            q_x = q_x - q_total * (reference - before)
            q_x += tl.load(at + 2 * step) - piece_q * (reference - piece_before)
            q_total += piece_q
        maximum = larger
    state = (maximum, total, q_x, q_total)
    input_row_ptr = input_ptr + offset_of(row, sizes, input_strides)
    target_row_ptr = target_ptr + offset_of(row, sizes, target_strides)
    stored = offset_of(row, sizes, row_strides)
    smoothing = double_of(smoothing_bits).to(ACC)
    z_loss = double_of(z_loss_bits).to(ACC)
    finish(
        state, input_row_ptr, target_row_ptr, weight_ptr, loss_ptr, row_weight_ptr, norm_ptr, stored, live, rows,
        classes, input_class_stride, ignore_index, smoothing, z_loss, PROBABILITIES, DENSE, Z_LOSS, ACC,
    )  # fmt: skip


@triton.jit
def softmax_cross_entropy_reduce_kernel(
    loss_ptr,  # [n]
    row_weight_ptr,  # [n], or None where every row weighs 1
    output_ptr,  # [1], or [programs] float64 unless FINAL
    denominator_ptr,  # [1] float64, or [programs] float64 unless FINAL; None for a sum
    n,
    rows,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    FINAL: tl.constexpr,
):
    """Sums losses and row weights over chunks of fixed size; the final program forms the sum or the mean."""
    begin = tl.program_id(0).to(tl.int64) * CHUNK
    loss = tl.zeros([BLOCK], tl.float64)
    weight = tl.zeros([BLOCK], tl.float64)
    for start in range(0, CHUNK, BLOCK):
        at = begin + start + tl.arange(0, BLOCK)
        loss += tl.load(loss_ptr + at, mask=at < n, other=0.0).to(tl.float64)
        if row_weight_ptr is not None:
            weight += tl.load(row_weight_ptr + at, mask=at < n, other=0.0).to(tl.float64)
    total = tl.sum(loss, axis=0)
    if FINAL:
        if denominator_ptr is not None:
            denominator = tl.cast(rows, tl.float64)
            if row_weight_ptr is not None:
                denominator = tl.sum(weight, axis=0)
            tl.store(denominator_ptr, denominator)
            total = total / denominator
        if output_ptr.dtype.element_ty != tl.float64:
            total = total.to(tl.float32)  # on the way to a half type
        tl.store(output_ptr, total.to(output_ptr.dtype.element_ty))
    else:
        tl.store(output_ptr + tl.program_id(0), total)
        if row_weight_ptr is not None:
            tl.store(denominator_ptr + tl.program_id(0), tl.sum(weight, axis=0))


# ---- backward


@triton.jit
def softmax_cross_entropy_q_kernel(
    target_ptr,  # [rows, classes] probabilities
    weight_ptr,  # [classes], or None
    q_ptr,  # [rows]
    rows,
    classes,
    sizes,
    target_strides,
    target_class_stride,
    smoothing_bits,
    ACC: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
):
    """sum_c q_c of each row of probabilities."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    live = row < rows
    row = tl.minimum(row, rows - 1)
    target_row_ptr = target_ptr + offset_of(row, sizes, target_strides)
    smoothing = double_of(smoothing_bits).to(ACC)
    share = (double_of(smoothing_bits) / classes).to(ACC)
    total = tl.zeros([R], ACC)
    for start in range(0, classes, B):
        column = start + tl.arange(0, B).to(tl.int64)
        inside = (column < classes)[None, :]
        q = dense_q(target_row_ptr, weight_ptr, column, inside, target_class_stride, smoothing, share, True, ACC)
        total += tl.sum(tl.where(inside, q, 0.0), axis=1)
    tl.store(q_ptr + row, total, mask=live)


@triton.jit
def row_gradient(grad_output_ptr, denominator_ptr, row, sizes, grad_output_strides, ACC: tl.constexpr):
    """g of each row: its gradient, over the denominator for the mean."""
    g = tl.load(grad_output_ptr + offset_of(row, sizes, grad_output_strides)).to(ACC)
    if denominator_ptr is not None:
        g = (g.to(tl.float64) / tl.load(denominator_ptr)).to(ACC)
    return g


@triton.jit
def write_gradient(
    input_row_ptr,
    target_row_ptr,
    weight_ptr,
    grad_row_ptr,
    live,
    start,
    classes,
    input_class_stride,
    target_class_stride,
    grad_class_stride,
    g,  # of each row, like all that follows
    q_total,  # sum_c q_c + 2 z_loss lse
    one_hot,  # q_t without its dense part
    target,
    ignored,
    maximum,
    log_total,
    smoothing,
    share,
    PROBABILITIES: tl.constexpr,
    SMOOTHING: tl.constexpr,
    WHOLE: tl.constexpr,  # every row and class is inside: no mask, which could split the accesses
    ACC: tl.constexpr,
    B: tl.constexpr,
):
    column = start + tl.arange(0, B).to(tl.int64)
    inside = None
    if not WHOLE:
        inside = live[:, None] & (column < classes)[None, :]
    x = tl.load(input_row_ptr[:, None] + column[None, :] * input_class_stride, mask=inside).to(ACC)
    grad = q_total[:, None] * tl.exp(x - maximum[:, None] - log_total[:, None])
    if PROBABILITIES or SMOOTHING:
        grad -= dense_q(
            target_row_ptr, weight_ptr, column, inside, target_class_stride, smoothing, share, PROBABILITIES, ACC
        )
    if not PROBABILITIES:
        grad -= tl.where(column[None, :] == target[:, None], one_hot[:, None], 0.0)
    grad = grad * g[:, None]
    if not PROBABILITIES:
        grad = tl.where(ignored[:, None], 0.0, grad)
    sink = grad_row_ptr[:, None] + column[None, :] * grad_class_stride
    tl.store(sink, grad.to(grad_row_ptr.dtype.element_ty), mask=inside)


@triton.jit
def softmax_cross_entropy_backward_kernel(
    grad_output_ptr,  # [rows], any strides, 0 for one gradient
    input_ptr,  # [rows, classes]
    target_ptr,  # [rows] int64, or as input
    weight_ptr,  # [classes], or None
    norm_ptr,  # [2, rows]: maximum and log of the sum of exp(x - maximum)
    denominator_ptr,  # [1] float64, or None
    q_ptr,  # [rows] sum_c q_c for probabilities; else [1] sum_c w_c float64 where SMOOTHING with weight; else None
    grad_input_ptr,  # [rows, classes]
    rows,
    classes,
    sizes,
    row_strides,
    input_strides,
    target_strides,
    grad_strides,
    grad_output_strides,
    input_class_stride,
    target_class_stride,
    grad_class_stride,
    ignore_index,
    smoothing_bits,
    z_loss_bits,
    PROBABILITIES: tl.constexpr,
    SMOOTHING: tl.constexpr,
    Z_LOSS: tl.constexpr,
    ACC: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
):
    blocks = tl.cdiv(classes, B)
    row = (tl.program_id(0) // blocks).to(tl.int64) * R + tl.arange(0, R)
    start = (tl.program_id(0) % blocks).to(tl.int64) * B
    live = row < rows
    row = tl.minimum(row, rows - 1)
    smoothing = double_of(smoothing_bits).to(ACC)
    share = (double_of(smoothing_bits) / classes).to(ACC)
    g = row_gradient(grad_output_ptr, denominator_ptr, row, sizes, grad_output_strides, ACC)
    stored = offset_of(row, sizes, row_strides)
    maximum = tl.load(norm_ptr + stored)
    log_total = tl.load(norm_ptr + tl.cast(rows, tl.int64) + stored)
    target_row_ptr = target_ptr + offset_of(row, sizes, target_strides)
    ignored = row < 0
    target = row
    if PROBABILITIES:
        q_total = tl.load(q_ptr + row)
        one_hot = tl.zeros([R], ACC)
    else:
        target = tl.load(target_row_ptr).to(tl.int64)
        ignored = target == ignore_index
        valid = (target >= 0) & (target < classes)
        one_hot = tl.full([R], 1.0, ACC)
        if weight_ptr is not None:
            one_hot = tl.load(weight_ptr + target, mask=valid, other=0.0).to(ACC)
        one_hot = (1.0 - smoothing) * one_hot
        q_total = one_hot
        if SMOOTHING:
            if weight_ptr is not None:
                q_total += share * tl.load(q_ptr).to(ACC)
            else:
                q_total += smoothing
        g = tl.where(valid, g, float("nan"))
    if Z_LOSS:
        q_total += 2.0 * double_of(z_loss_bits).to(ACC) * (maximum + log_total)
    input_row_ptr = input_ptr + offset_of(row, sizes, input_strides)
    grad_row_ptr = grad_input_ptr + offset_of(row, sizes, grad_strides)
    if (R == 1) & (start + B <= classes):
        write_gradient(
            input_row_ptr, target_row_ptr, weight_ptr, grad_row_ptr, live, start, classes, input_class_stride,
            target_class_stride, grad_class_stride, g, q_total, one_hot, target, ignored, maximum, log_total, smoothing,
            share, PROBABILITIES, SMOOTHING, True, ACC, B,
        )  # fmt: skip
    else:
        write_gradient(
            input_row_ptr, target_row_ptr, weight_ptr, grad_row_ptr, live, start, classes, input_class_stride,
            target_class_stride, grad_class_stride, g, q_total, one_hot, target, ignored, maximum, log_total, smoothing,
            share, PROBABILITIES, SMOOTHING, False, ACC, B,
        )  # fmt: skip


@triton.jit
def softmax_cross_entropy_backward_target_kernel(
    grad_output_ptr,
    input_ptr,  # [rows, classes]
    weight_ptr,  # [classes], or None
    norm_ptr,  # [2, rows]: maximum and log of the sum of exp(x - maximum)
    denominator_ptr,  # [1] float64, or None
    grad_target_ptr,  # [rows, classes]
    rows,
    classes,
    sizes,
    row_strides,
    input_strides,
    grad_strides,
    grad_output_strides,
    input_class_stride,
    grad_class_stride,
    smoothing_bits,
    ACC: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
):
    blocks = tl.cdiv(classes, B)
    row = (tl.program_id(0) // blocks).to(tl.int64) * R + tl.arange(0, R)
    column = (tl.program_id(0) % blocks).to(tl.int64) * B + tl.arange(0, B)
    inside = (row < rows)[:, None] & (column < classes)[None, :]
    row = tl.minimum(row, rows - 1)
    g = row_gradient(grad_output_ptr, denominator_ptr, row, sizes, grad_output_strides, ACC)
    g = g * (1.0 - double_of(smoothing_bits).to(ACC))
    stored = offset_of(row, sizes, row_strides)
    maximum = tl.load(norm_ptr + stored)
    log_total = tl.load(norm_ptr + tl.cast(rows, tl.int64) + stored)
    source = input_ptr + offset_of(row, sizes, input_strides)[:, None] + column[None, :] * input_class_stride
    x = tl.load(source, mask=inside, other=0.0).to(ACC)
    grad = g[:, None] * (maximum[:, None] - x + log_total[:, None])
    if weight_ptr is not None:
        grad *= tl.load(weight_ptr + column[None, :], mask=(column < classes)[None, :], other=0.0).to(ACC)
    sink = grad_target_ptr + offset_of(row, sizes, grad_strides)[:, None] + column[None, :] * grad_class_stride
    tl.store(sink, grad.to(grad_target_ptr.dtype.element_ty), mask=inside)


# ---- launchers

MEAN, NONE = 1, 0
CHUNK = 16384  # losses that one program sums


@dataclass(frozen=True)
class Rows:
    """How the kernels walk the rows and classes of their tensors."""

    count: int
    classes: int
    probabilities: bool
    sizes: tuple  # of the dimensions of rows, outermost in the input's memory first, and the strides that go with them
    stored: tuple
    input: tuple
    target: tuple
    grad: tuple
    grad_output: tuple
    input_class_stride: int
    target_class_stride: int
    grad_class_stride: int

    def tile(self, elements, widest, acc):
        """(rows, classes) of a tile of ``elements``: along whichever of the two lies contiguous in memory."""
        if acc == tl.float64:  # twice the registers, and those of a longer exp
            elements, widest = elements // 4, widest // 4
        if self.input_class_stride != 1 and self.count != 1:
            widest = 32
        columns = min(power_of_2(self.classes), widest)
        if columns <= 64:  # many rows: their addresses take registers too
            elements //= 2
        return min(max(elements // columns, 1), power_of_2(self.count)), columns


def _rows(input, target, grad=None, grad_output=None, reduction=NONE):
    class_dim = 0 if input.dim() == 1 else 1
    probabilities = target.is_floating_point() and target.shape == input.shape
    dims = [d for d in range(input.dim()) if d != class_dim]
    sizes = [input.size(d) for d in dims]
    stored = [1] * len(dims)
    for i in range(len(dims) - 2, -1, -1):
        stored[i] = stored[i + 1] * sizes[i + 1]
    strides = {
        "stored": stored,
        "input": [input.stride(d) for d in dims],
        "target": [target.stride(d if probabilities else i) for i, d in enumerate(dims)],
        "grad": [0 if grad is None else grad.stride(d) for d in dims],
        "grad_output": [
            0 if grad_output is None or reduction != NONE else grad_output.stride(i) for i in range(len(dims))
        ],
    }
    order = sorted(range(len(dims)), key=lambda i: -strides["input"][i])
    columns = [[values[i] for i in order] for values in (sizes, *strides.values())]
    merged, *others = merged_dims(*columns)
    classes = input.size(class_dim)
    count = 1
    for size in sizes:
        count *= size
    return Rows(
        count,
        classes,
        probabilities,
        merged,
        *others,
        *(1 if t is None or classes == 1 or not p else t.stride(class_dim)
          for t, p in ((input, True), (target, probabilities), (grad, True))),
    )  # fmt: skip


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
    rows = _rows(input, target)
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
    wanted = 2 * device.multiprocessors
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
        *walk, rows.target_class_stride, *scalars, **options, B=b,
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
    grad_input = torch.empty_like(input)
    rows = _rows(input, target, grad_input, grad_output, reduction)
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
        ACC=acc, R=r, B=b, num_warps=4,
    )  # fmt: skip
    return grad_input


def softmax_cross_entropy_backward_target(
    grad_output, input, target, weight, norm, denominator, reduction, label_smoothing
):
    """Returns the gradient of the class probabilities, in their dtype and memory format."""
    _check(input, target, weight, label_smoothing)
    grad_target = torch.empty_like(target)
    rows = _rows(input, target, grad_target, grad_output, reduction)
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
