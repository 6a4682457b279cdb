"""How the cross entropy kernels walk rows and classes.

A row is any position of an N-d input: classes may be strided, as in (N, C, H, W).
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from ..launch import merged_dims, power_of_2

NONE, MEAN = 0, 1  # reductions


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


def rows_of(input, target, grad=None, grad_output=None, reduction=NONE):
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
