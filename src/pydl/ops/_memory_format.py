"""Which memory format a result takes, decided once in Python for kernel and fake alike."""

import torch

from pydl._private import suggest_memory_format


def row_major(sizes):
    """The strides of a contiguous tensor of these sizes."""
    strides, stride = [], 1
    for size in reversed(sizes):
        strides.append(stride)
        stride *= size or 1
    return tuple(reversed(strides))


def product_strides(a, b):
    """The strides of torch's ``a * b``, where ``b`` broadcasts to the shape of ``a``; ``a`` may be on the meta device.

    TensorIterator's rules: dense tensors of one shape keep their format; otherwise dimensions are sorted, innermost
    first, by the strides of ``a`` and where those say nothing by those of ``b``.
    """
    size, dims = a.shape, a.dim()
    if b.shape == size:
        if a.is_contiguous() and b.is_contiguous():
            return row_major(size)
        if dims == 4 and all(t.is_contiguous(memory_format=torch.channels_last) for t in (a, b)):
            return torch.empty_like(a, memory_format=torch.channels_last).stride()
        if a.stride() == b.stride() == torch.empty_like(b).stride():
            return a.stride()
    wide = b.expand(size)

    def order(inner, outer):  # -1: as they are, 1: the other way round, 0: no opinion
        for t in (a, wide):
            x, y = t.stride(inner), t.stride(outer)
            if x and y and (x != y or size[inner] > size[outer]):
                return -1 if x < y else 1
        return 0

    innermost_first = list(range(dims - 1, -1, -1))
    for i in range(1, dims):
        at = i
        for before in range(i - 1, -1, -1):
            opinion = order(innermost_first[before], innermost_first[at])
            if opinion < 0:
                break
            if opinion > 0:
                innermost_first[before], innermost_first[at] = innermost_first[at], innermost_first[before]
                at = before
    strides, stride = [0] * dims, 1
    for d in innermost_first:
        strides[d] = stride
        stride *= size[d]
    return tuple(strides)


def normalised_format(input, grad_output=None):
    """The memory format of batch norm's result, or of the gradient of its input: csrc/batch_norm_call.h once more."""
    suggested = suggest_memory_format(input)
    if input.dim() not in (4, 5):
        return suggested
    last = torch.channels_last if input.dim() == 4 else torch.channels_last_3d
    dense = _is_dense(input, last)
    if grad_output is not None:
        same = suggest_memory_format(grad_output) == suggested
        dense = dense and _is_dense(grad_output, last) and same
    if not dense:
        return suggested
    return torch.contiguous_format if input.is_contiguous() else last


def _is_dense(t, last):
    return t.is_contiguous() or t.is_contiguous(memory_format=last)


def is_channels_last(t):
    """Whether the strides of ``t`` say channels_last (of volumes channels_last_3d), as torch decides it.

    Ambiguous ones say contiguous.
    """
    stride = t.stride()
    if stride[-1] < stride[1]:  # the common case: rows of pixels
        return False
    if stride[1] == 0:  # one channel that is repeated: a grey image expanded to three
        return False
    size, smallest = t.shape, 0
    for d in (1, 3, 2, 0) if len(size) == 4 else (1, 4, 3, 2, 0):
        if size[d] == 0 or stride[d] < smallest:
            return False
        if d == 0 and smallest == stride[1]:  # one channel of one pixel
            return False
        smallest = stride[d] * size[d] if size[d] > 1 else stride[d]
    return True
