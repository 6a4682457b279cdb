"""Embedding: rows of a table, looked up by number (d2l chapter "Word Embedding"); its gradient is ours, on the CPU.

The forward copies rows, which torch's own does as fast as memory allows. Of the gradient, each row is summed up in the
order of its places and written once. Sparse gradients, compiled graphs and transforms of torch.func are torch's, and so
is what is over there before a call of ours has begun.
"""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl._private import alive, below_autograd, functorch_active
from pydl.aside import is_torchs
from pydl.ops import _library, _nodes
from pydl.ops._nodes import is_compiling

__all__ = ["embedding"]

_library.define(
    "embedding_backward",
    "(Tensor grad_output, Tensor ids, int num_weights, int padding_idx, bool scale_grad_by_freq) -> Tensor",
)

SUPPORTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
WORTH_A_CALL = 1 << 15  # numbers of the result; measured, kernels/cpu/embedding/NOTES.md


@_library.fake("embedding_backward")
def _(grad_output, ids, num_weights, padding_idx, scale_grad_by_freq):
    return grad_output.new_empty((num_weights, grad_output.shape[-1]))


def _backward_context(ctx, inputs, output):
    _, ids, _, ctx.padding_idx, ctx.scaled = inputs
    ctx.save_for_backward(ids)


def _backward_again(ops, ctx, grad):
    """Linear in grad_output: the gradient of each place is that of its row."""
    (ids,) = ctx.saved_tensors
    found = F.embedding(ids, grad)
    if ctx.scaled:
        found = found / torch.bincount(ids.flatten(), minlength=grad.shape[0])[ids].unsqueeze(-1)
    if ctx.padding_idx >= 0:
        found = found.masked_fill((ids == ctx.padding_idx).unsqueeze(-1), 0)
    return found, None, None, None, None


_library.autograd("embedding_backward", _backward_context, _backward_again)


class _Eager(torch.autograd.Function):
    """torch's forward and our gradient; with create_graph it goes through the formula above, to be differentiated."""

    @staticmethod
    def forward(ctx, weight, rest):
        ops, ids, padding_idx, scaled = rest
        ctx.rest = ops, weight.shape[0], padding_idx, scaled
        with below_autograd():
            output = torch.embedding(weight, ids, padding_idx)
        ctx.to_save = (ids,)  # what ctx.save_for_backward sets
        return output

    @staticmethod
    def backward(ctx, grad):
        ops, *options = ctx.rest
        (ids,) = ctx.saved_tensors
        if ids.dtype != torch.int64:
            ids = ids.long()
        if _library.transforms_active():  # torch.func.vmap over the gradient
            return _library.transformed(ops).embedding_backward(grad, ids, *options), None
        if torch.is_grad_enabled():
            return ops.embedding_backward(grad, ids, *options), None
        with below_autograd():
            return _library.quick(ops).embedding_backward(grad, ids, *options), None


_apply = _library.eager(_Eager)


def is_small(input, width):
    """Whether the call is torch's for its size alone: the most frequent reason, and the cheapest to see."""
    return not is_compiling() and _nodes.is_small(input, WORTH_A_CALL // max(width, 1))


def quick(input, weight, padding_idx, max_norm, scale_grad_by_freq, sparse):
    """The call by its C++ node (_nodes.py), or NotImplemented."""
    if max_norm is not None or sparse or not torch.is_grad_enabled() or is_compiling():
        return NotImplemented
    return _nodes.embedding(weight, input, padding_idx, scale_grad_by_freq, WORTH_A_CALL)


def _is_served(input, weight, padding_idx, sparse):
    """Whether a gradient is wanted, and the call is ours; torch says in its own words what it does not take."""
    try:
        if not (weight.requires_grad and torch.is_grad_enabled()) or sparse:
            return False
        if weight.dtype not in SUPPORTED or weight.dim() != 2 or input.dtype not in (torch.int64, torch.int32):
            return False
        if not input.is_cpu or input.layout is not torch.strided or weight.layout is not torch.strided:
            return False
        if torch.compiler.is_compiling() or functorch_active():
            return False
        rows = weight.shape[0]
        if padding_idx is not None and (type(padding_idx) is not int or not -rows <= padding_idx < rows):
            return False
        return input.numel() * weight.shape[1] >= WORTH_A_CALL
    except AttributeError:  # no tensor
        return False


def embedding(input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False):
    """Rows of ``weight`` by their numbers, as :func:`torch.nn.functional.embedding`.

    Args:
        input: int64 or int32, any shape: which rows.
        weight: (V, D); float32, float64, bfloat16 or float16 on the CPU.
        padding_idx: a row that gets no gradient.
        max_norm: rows that are looked up and longer than this are scaled to it first, in place.
        norm_type: of ``max_norm``.
        scale_grad_by_freq: divides the gradient of a row by how often it was looked up.
        sparse: a sparse gradient, which is torch's. Fewer than 2^15 numbers, and calls without a gradient, are so too.

    Returns:
        ``(*input.shape, D)``. The gradient is (V, D), and does not depend on the number of threads; sums of half types
        are kept in float32.

    Raises:
        IndexError: a number that is not in [0, V).

    >>> F.embedding(torch.tensor([2, 0]), torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]))
    tensor([[4., 5.],
            [0., 1.]])
    """
    output = quick(input, weight, padding_idx, max_norm, scale_grad_by_freq, sparse)
    if output is not NotImplemented:
        return output
    if is_torchs(input, weight):
        return F.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    return embedding_unasked(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)


def embedding_unasked(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse):
    """:func:`embedding` for who has asked whether it is torch's (aside.py)."""
    ops = backend.ops_for(weight, "embedding") if _is_served(input, weight, padding_idx, sparse) else None
    if ops is None:
        return F.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    if max_norm is not None:
        torch.embedding_renorm_(weight.detach(), input.contiguous(), max_norm, norm_type)
    padding_idx = -1 if padding_idx is None else padding_idx % weight.shape[0]
    return _apply(alive(weight), (ops, input, padding_idx, bool(scale_grad_by_freq)))
