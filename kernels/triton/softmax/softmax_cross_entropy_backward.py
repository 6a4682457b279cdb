"""Cross entropy's backward kernels: the logits are read once more, and the gradient is written."""

import triton
import triton.language as tl

from ..arithmetic import double_of, multiple, offset_of
from .softmax_cross_entropy_rows import dense_q


@triton.jit(do_not_specialize=["rows", "sizes", "smoothing_bits"])
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


@triton.jit(
    do_not_specialize=[
        "rows",
        "sizes",
        "row_strides",
        "grad_output_strides",
        "ignore_index",
        "smoothing_bits",
        "z_loss_bits",
    ]
)
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
    UNIT: tl.constexpr,  # divides the classes and the rows' offsets
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
    input_row_ptr = input_ptr + multiple(offset_of(row, sizes, input_strides), UNIT)
    grad_row_ptr = grad_input_ptr + multiple(offset_of(row, sizes, grad_strides), UNIT)
    classes = multiple(classes, UNIT)
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


@triton.jit(do_not_specialize=["rows", "sizes", "row_strides", "grad_output_strides", "smoothing_bits"])
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
