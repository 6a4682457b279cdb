"""Cross entropy's forward kernels.

The logits are read once, with a running maximum over blocks of a row of any length, so that each element costs one
exponential. A program takes several short rows, one long row, or, where rows are few, a piece of one, whose state a
second kernel joins with the others'. Sums over rows are taken in float64, in chunks of fixed size in a fixed order.
"""

import triton
import triton.language as tl

from ..arithmetic import double_of, multiple, offset_of
from .softmax_cross_entropy_rows import dense_q


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


@triton.jit(do_not_specialize=["rows", "sizes", "row_strides", "ignore_index", "smoothing_bits", "z_loss_bits"])
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
    UNIT: tl.constexpr,  # divides the classes and the rows' offsets
    ACC: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
):
    split = tl.program_id(0) % SPLITS
    row = (tl.program_id(0) // SPLITS).to(tl.int64) * R + tl.arange(0, R)
    live = row < rows
    row = tl.minimum(row, rows - 1)  # rows beyond the last repeat it and are not stored: loads need no mask
    input_row_ptr = input_ptr + multiple(offset_of(row, sizes, input_strides), UNIT)
    target_row_ptr = target_ptr + offset_of(row, sizes, target_strides)
    smoothing = double_of(smoothing_bits).to(ACC)
    z_loss = double_of(z_loss_bits).to(ACC)
    share = (double_of(smoothing_bits) / classes).to(ACC)
    DENSE: tl.constexpr = PROBABILITIES or SMOOTHING

    zero = tl.zeros([R], ACC)
    state = (zero - float("inf"), zero, zero, zero)
    begin = tl.cast(split, tl.int64) * piece
    end = multiple(tl.minimum(begin + piece, classes), UNIT)
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


@triton.jit(
    do_not_specialize=[
        "rows",
        "classes",
        "sizes",
        "row_strides",
        "input_strides",
        "target_strides",
        "input_class_stride",
        "ignore_index",
        "smoothing_bits",
        "z_loss_bits",
    ]
)
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


@triton.jit(do_not_specialize=["n", "rows"])
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
