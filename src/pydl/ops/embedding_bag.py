"""Embedding bags: sums or means of rows of a table, looked up by number; the gradient of the table is ours, on the CPU.

The forward is torch's. Of the gradient, each row is summed up in the order of its places and written once, as of an
embedding (kernels/cpu/embedding). Maxima, sparse gradients, those that are scaled by frequency, gradients of the
samples' weights, compiled graphs and transforms of torch.func are torch's, and so is what is over there before a call
of ours has begun.
"""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl._private import alive, below_autograd, functorch_active
from pydl.aside import is_torchs
from pydl.ops import _library, _nodes
from pydl.ops._nodes import is_compiling
from pydl.ops.embedding import SUPPORTED

__all__ = ["embedding_bag"]

# offsets: where each bag begins, and, with include_last_offset, the end of the last. padding_idx: -1 for none.
_library.define(
    "embedding_bag_backward",
    "(Tensor grad_output, Tensor ids, Tensor offsets, Tensor? per_sample_weights, int num_weights, int padding_idx, "
    "bool mean, bool include_last_offset) -> Tensor",
)

WORTH_A_CALL = 1 << 16  # numbers that are looked up; measured, kernels/cpu/embedding/NOTES.md
_MODES = {"sum": 0, "mean": 1}  # torch's numbers


@_library.fake("embedding_bag_backward")
def _(grad_output, ids, offsets, per_sample_weights, num_weights, *options):
    return grad_output.new_empty((num_weights, grad_output.shape[-1]))


def _backward_context(ctx, inputs, output):
    ctx.bags = inputs[0].shape[0]
    _, ids, offsets, per_sample_weights, *ctx.options = inputs
    ctx.save_for_backward(ids, offsets, per_sample_weights)


def _backward_again(ops, ctx, grad):
    """Linear in grad_output: the gradient of each bag is the sum of those of its places' rows, as they are weighted."""
    ids, offsets, factor = ctx.saved_tensors
    _, padding_idx, mean, include_last_offset = ctx.options
    starts = offsets[:-1] if include_last_offset else offsets
    bag = torch.searchsorted(starts, torch.arange(ids.numel()), right=True) - 1
    inside = (ids != padding_idx).to(grad.dtype)
    factor = inside if factor is None else factor * inside
    if mean:
        factor = factor / inside.new_zeros(ctx.bags).index_add(0, bag, inside).clamp(min=1)[bag]
    found = grad.new_zeros(ctx.bags, grad.shape[1]).index_add(0, bag, F.embedding(ids, grad) * factor.unsqueeze(1))
    return found, *(None,) * 7


_library.autograd("embedding_bag_backward", _backward_context, _backward_again)


class _Eager(torch.autograd.Function):
    """torch's forward and our gradient; with create_graph it goes through the formula above, to be differentiated."""

    @staticmethod
    def forward(ctx, weight, rest):
        ops, ids, offsets, per_sample_weights, padding_idx, mode, last = rest
        with below_autograd():
            output, *_ = torch.embedding_bag(
                weight.detach(), ids, offsets, False, mode, False, per_sample_weights, last, padding_idx
            )
        ctx.rest = ops, weight.shape[0], -1 if padding_idx is None else padding_idx, mode == 1, last
        ctx.to_save = ids, offsets, per_sample_weights  # what ctx.save_for_backward sets
        return output

    @staticmethod
    def backward(ctx, grad):
        ops, *options = ctx.rest
        ids, offsets, per_sample_weights = ctx.saved_tensors
        places = ids.long(), offsets.long(), per_sample_weights
        if _library.transforms_active():  # torch.func.vmap over the gradient
            return _library.transformed(ops).embedding_bag_backward(grad, *places, *options), None
        if torch.is_grad_enabled():
            return ops.embedding_bag_backward(grad, *places, *options), None
        with below_autograd():
            return _library.quick(ops).embedding_bag_backward(grad, *places, *options), None


_apply = _library.eager(_Eager)


def is_small(input, width):
    """Whether the call is torch's for its size alone."""
    return not is_compiling() and _nodes.is_small(input, WORTH_A_CALL // max(width, 1))


def embedding_bag(
    input,
    weight,
    offsets=None,
    max_norm=None,
    norm_type=2,
    scale_grad_by_freq=False,
    mode="mean",
    sparse=False,
    per_sample_weights=None,
    include_last_offset=False,
    padding_idx=None,
):
    """Sums or means of rows of ``weight``, as :func:`torch.nn.functional.embedding_bag`.

    Args:
        input: int64 or int32: (B, L), bags of L rows; or (n), bags that begin at ``offsets``.
        weight: (V, D); float32, float64, bfloat16 or float16 on the CPU.
        offsets: (B), for an ``input`` of one dimension, in order, the first of them 0.
        max_norm: rows that are looked up and longer than this are scaled to it first, in place.
        norm_type: of ``max_norm``.
        scale_grad_by_freq: divides the gradient of a row by a count, which is torch's: it takes other rows' counts.
        mode: ``"sum"``, ``"mean"``, or ``"max"``, which is torch's.
        sparse: a sparse gradient, which is torch's. Fewer than 2^16 numbers that are looked up, weights of samples that
            want a gradient, and calls without a gradient, are so too.
        per_sample_weights: of the shape of ``input``, with ``"sum"``: a factor for each row.
        include_last_offset: whether ``offsets`` ends with the end of the last bag; one before the input's is torch's.
        padding_idx: a row that counts in no bag.

    Returns:
        (B, D). The gradient is (V, D), and does not depend on the number of threads; sums of half types are kept in
        float32.

    Raises:
        RuntimeError: a number that is not in [0, V).
        ValueError: shapes that do not fit, and an unknown ``mode``.

    >>> rows = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    >>> F.embedding_bag(torch.tensor([[2, 0]]), rows, mode="sum")
    tensor([[4., 6.]])
    """
    options = (
        max_norm,
        norm_type,
        scale_grad_by_freq,
        mode,
        sparse,
        per_sample_weights,
        include_last_offset,
        padding_idx,
    )
    if is_torchs(input, weight, offsets, per_sample_weights):
        return F.embedding_bag(input, weight, offsets, *options)
    return embedding_bag_unasked(input, weight, offsets, *options)


def embedding_bag_unasked(input, weight, offsets, max_norm, norm_type, scale_grad_by_freq, mode, sparse, *rest):
    """:func:`embedding_bag` for who has asked whether it is torch's (aside.py)."""
    per_sample_weights, include_last_offset, padding_idx = rest
    torchs = sparse or scale_grad_by_freq
    served = not torchs and _is_served(input, weight, offsets, mode, *rest)
    ops = backend.ops_for(weight, "embedding_bag") if served else None
    if ops is None:
        options = max_norm, norm_type, scale_grad_by_freq, mode, sparse, *rest
        return F.embedding_bag(input, weight, offsets, *options)
    if input.dim() == 2:
        offsets = torch.arange(0, input.numel(), input.shape[1], dtype=input.dtype)
        input, include_last_offset = input.reshape(-1), False
        per_sample_weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
    if max_norm is not None:
        torch.embedding_renorm_(weight.detach(), input, max_norm, norm_type)
    if padding_idx is not None:
        padding_idx %= weight.shape[0]
    options = padding_idx, _MODES[mode], include_last_offset
    return _apply(alive(weight), (ops, input, offsets, per_sample_weights, *options))


def _is_served(input, weight, offsets, mode, per_sample_weights, include_last_offset, padding_idx):
    """Whether a gradient is wanted, and the call is ours; torch says in its own words what it does not take."""
    try:
        if not (weight.requires_grad and torch.is_grad_enabled()) or type(mode) is not str or mode not in _MODES:
            return False
        if weight.dtype not in SUPPORTED or weight.dim() != 2 or input.dtype not in (torch.int64, torch.int32):
            return False
        if is_compiling() or functorch_active() or type(include_last_offset) is not bool:
            return False
        given = [t for t in (input, weight, offsets, per_sample_weights) if t is not None]
        if not all(t.is_cpu and t.layout is torch.strided for t in given):
            return False
        if input.dim() not in (1, 2) or (input.dim() == 2) != (offsets is None) or 0 in input.shape:
            return False
        if offsets is not None and (
            offsets.dim() != 1 or offsets.dtype != input.dtype or offsets.numel() < 1 + include_last_offset
        ):
            return False
        if per_sample_weights is not None and (
            per_sample_weights.requires_grad
            or (mode, per_sample_weights.dtype, per_sample_weights.shape) != ("sum", weight.dtype, input.shape)
        ):
            return False
        if include_last_offset and int(offsets[-1]) != input.numel():
            return False
        rows = weight.shape[0]
        if padding_idx is not None and (type(padding_idx) is not int or not -rows <= padding_idx < rows):
            return False
        return input.numel() * weight.shape[1] >= WORTH_A_CALL
    except AttributeError:  # no tensor
        return False
