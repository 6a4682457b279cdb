"""The ops of attention: schemas, and what they return, for tracing."""

import torch

from pydl.ops import _library

# mask: broadcasts to (N, H, L, S). layout: how torch lays out the output and the gradients, decided once in
# attention.py, for the kernel and for tracing. A gradient that is not needed is empty.
FLASH = 0  # as torch's flash attention: the output as query, gradients with their heads side by side in memory
CONTIGUOUS = 1
TRANSPOSED_KEY = 2  # contiguous, but for the gradient of key, whose columns are
_library.define(
    "attention_forward",
    "(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? lengths, Tensor? seed, float dropout_p, "
    "bool is_causal, float scale, int layout) -> (Tensor, Tensor)",
)
_library.define(
    "attention_backward",
    "(Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor output, Tensor lse, Tensor? mask, "
    "Tensor? lengths, Tensor? seed, float dropout_p, bool is_causal, float scale, int layout, bool needs_query, "
    "bool needs_key, bool needs_value) -> (Tensor, Tensor, Tensor)",
)
# Of an additive mask, contiguous. An op of its own: two more products, for those few who train a mask.
_library.define(
    "attention_backward_mask",
    "(Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor output, Tensor lse, Tensor mask, "
    "Tensor? lengths, Tensor? seed, float dropout_p, bool is_causal, float scale) -> Tensor",
)


def _like(query):
    """torch.empty_like, which for tensors without data forgets the strides of dimensions of size 1."""
    sizes, strides = query.shape, query.stride()
    if 1 in sizes:
        expected = 1
        for d in sorted((d for d in range(4) if sizes[d] != 1), key=lambda d: strides[d]):
            if strides[d] != expected:
                return torch.empty_like(query)
            expected *= sizes[d]
        return query.new_empty_strided(sizes, strides)
    return torch.empty_like(query)


@_library.fake("attention_forward")
def _(query, key, value, mask, lengths, seed, dropout_p, is_causal, scale, layout):
    shape = (*query.shape[:3], value.shape[3])
    output = _like(query) if layout == FLASH else query.new_empty(shape)
    accumulate = torch.float64 if query.dtype == torch.float64 else torch.float32
    return output, query.new_empty(query.shape[:3], dtype=accumulate)


@_library.fake("attention_backward")
def _(grad_output, query, key, value, *rest):
    *_, layout, needs_query, needs_key, needs_value = rest

    def empty(of, needed):
        n, heads, rows, width = of.shape
        if not needed:
            return of.new_empty(0)
        if layout == FLASH:
            return of.new_empty((n, rows, heads, width)).transpose(1, 2)
        if layout == TRANSPOSED_KEY and of is key:
            return of.new_empty((n, heads, width, rows)).mT
        return of.new_empty(of.shape)

    return empty(query, needs_query), empty(key, needs_key), empty(value, needs_value)


@_library.fake("attention_backward_mask")
def _(grad_output, query, key, value, output, lse, mask, *rest):
    return mask.new_empty(mask.shape)
