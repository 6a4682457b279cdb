"""Scaled dot-product attention (Vaswani et al., NeurIPS 2017; d2l chapter "Attention Mechanisms and Transformers").

    softmax(query @ key.mT * scale + mask) @ value

forward and backward in one op each, on the CPU alone: scores are never stored, dropout is the one of ``dropout`` on the
weights, and is made again in the backward. Who takes torch's flash attention away (``torch.nn.attention.sdpa_kernel``)
gets torch's own way (torch.compile does not see the choice).
"""

import torch
import torch.nn.functional as F
from torch.backends.cuda import flash_sdp_enabled  # of the CPU too

from pydl import backend
from pydl._private import alive, below_autograd, functorch_active
from pydl.aside import is_torchs
from pydl.ops import _attention_batching, _library, _nodes  # noqa: F401  (the rules of torch.func.vmap)
from pydl.ops._attention_autograd import gradient_of_mask, gradients, seen_keys
from pydl.ops._attention_schema import CONTIGUOUS, FLASH, TRANSPOSED_KEY
from pydl.ops._autocast import lowered
from pydl.ops._nodes import is_compiling

__all__ = ["scaled_dot_product_attention"]

SUPPORTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
WIDEST = 256  # numbers of a head


class _Eager(torch.autograd.Function):
    """The op in eager mode with the fewest hops: each is called below the autograd layer of the dispatcher."""

    @staticmethod
    def forward(ctx, query, key, value, rest):
        # what needs no gradient comes as one tuple: each argument of its own costs on the way in and out
        ops, (mask, lengths, seed, ctx.dropout_p, ctx.is_causal, ctx.scale, ctx.layout) = rest
        ctx.ops = ops
        with below_autograd():
            output, lse = _library.quick(ops).attention_forward(query, key, value, *rest[1])
        ctx.to_save = (query, key, value, output, lse, mask, lengths, seed)  # what ctx.save_for_backward sets
        return output

    @staticmethod
    def backward(ctx, grad):
        return *_in_eager(gradients, ctx, grad, ctx.needs_input_grad[:3]), None


class _EagerWithMask(torch.autograd.Function):
    """The same where an additive mask has a gradient too."""

    @staticmethod
    def forward(ctx, query, key, value, mask, rest):
        return _Eager.forward(ctx, query, key, value, rest)

    @staticmethod
    def backward(ctx, grad):
        needs = ctx.needs_input_grad[:3]
        found = _in_eager(gradients, ctx, grad, needs) if any(needs) else (None,) * 3
        return *found, _in_eager(gradient_of_mask, ctx, grad), None


def _in_eager(function, ctx, *args):
    if _library.transforms_active():  # torch.func.vmap over the gradient
        return function(_library.transformed(ctx.ops), ctx, *args)
    if torch.is_grad_enabled():
        return function(ctx.ops, ctx, *args)
    with below_autograd():
        return function(_library.quick(ctx.ops), ctx, *args)


_apply = _library.eager(_Eager)
_apply_with_mask = _library.eager(_EagerWithMask)


def _fits(query, key, value, enable_gqa):
    """Whether shapes are those that the op takes, of two to four dimensions; what broadcasts is left to torch."""
    dims = query.dim()
    if not 2 <= dims <= 4 or key.dim() != dims or value.dim() != dims or value.shape[-2] != key.shape[-2]:
        return False
    if not 1 <= query.shape[-1] <= WIDEST or not 1 <= value.shape[-1] <= WIDEST or key.shape[-1] != query.shape[-1]:
        return False
    outer = query.shape[:-2]
    if key.shape[:-2] == outer and value.shape[:-2] == outer:
        return True
    heads = key.shape[1] if dims == 4 else 0
    return bool(
        enable_gqa and heads and outer[1] % heads == 0 and key.shape[:2] == value.shape[:2] == (outer[0], heads)
    )


def _mask_fits(query, key, mask):
    if mask.dtype not in (torch.bool, torch.float32, query.dtype) or not 2 <= mask.dim() <= query.dim():
        return False
    if mask.device != query.device or mask.layout is not torch.strided:
        return False
    sizes = (*query.shape[:-1], key.shape[-2])[query.dim() - mask.dim() :]
    return all(size in (1, whole) for size, whole in zip(mask.shape, sizes, strict=True))


def _is_served(query, key, value, mask, dropout_p, is_causal, scale, enable_gqa):
    try:
        dtype = query.dtype
        if dtype not in SUPPORTED or key.dtype != dtype or value.dtype != dtype:
            return False
        if key.layout is not torch.strided or value.layout is not torch.strided:
            return False
        if not key.device == value.device == query.device:
            return False
        if type(is_causal) is not bool or type(enable_gqa) is not bool or type(dropout_p) not in (float, int):
            return False
        if type(scale) not in (float, int, type(None)) or not _fits(query, key, value, enable_gqa):
            return False
        if not 0 <= dropout_p <= 1:
            return False
        return mask is None or (not is_causal and _mask_fits(query, key, mask))
    except (AttributeError, TypeError):  # no tensor, no number: torch says so in its own words
        return False


def _layout(query, key, value, mask, dropout_p, gqa, lengths):
    """How torch lays out the output and the gradients: by which of its own ways serves the call.

    Of ``lengths`` it has none: there dropout changes nothing, and heads cut from a projection are put together again
    without a copy.
    """
    if _is_flashs(query, key, value, mask, dropout_p if lengths is None else 0.0):
        return FLASH
    return CONTIGUOUS if gqa or query.dim() == 2 else TRANSPOSED_KEY


def _is_flashs(query, key, value, mask, dropout_p):
    width = query.shape[-1]
    if dropout_p > 0 or query.dim() != 4 or value.shape[-1] != width or query.shape[2] == 0 or key.shape[2] == 0:
        return False
    if not query.stride(3) == key.stride(3) == value.stride(3) == 1:
        return False
    return mask is None or (mask.dim() in (2, 4) and not mask.requires_grad)


def _four(tensor):
    """(N, H, L, E) of (L, E), (N, L, E) or itself."""
    dims = tensor.dim()
    return tensor if dims == 4 else tensor.unsqueeze(1) if dims == 3 else tensor[None, None]


def scaled_dot_product_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, *, lengths=None
):
    """``softmax(query @ key.mT * scale + attn_mask) @ value``, as torch's function of this name.

    Args:
        query: (N, H, L, E), (N, L, E) or (L, E), with any strides; float32, float64, bfloat16 or float16 on the CPU.
            Sums are accumulated in float32 (float64 for float64); float16 is copied to float32 and back. E and Ev are
            at most 256; wider heads, other ranks, dtypes and devices, and samples that broadcast, are served by torch.
        key: (N, Hk, S, E), alike. Hk is H, or divides it where ``enable_gqa``.
        value: (N, Hk, S, Ev), alike.
        attn_mask: boolean (True: is seen) or additive, of two dimensions or more that broadcast to (N, H, L, S). The
            gradient of an additive one is summed over what it broadcasts, and is all that is as large as the mask.
        dropout_p: probability to drop a weight; the weights that are kept are those that :func:`dropout` keeps of a
            tensor (N, H, L, S).
        is_causal: row i sees the keys up to i alone.
        scale: 1 / sqrt(E) if None.
        enable_gqa: each head of key and value serves H / Hk neighbours of query.
        lengths: keyword-only: int64, (N,) or (N, L): how many keys are seen, the first ones. What lies beyond the
            largest of a sample is not read.

    Returns:
        (N, H, L, Ev), or of as many dimensions as query. A row that sees no key is 0. The result does not depend on the
        number of threads.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit; attn_mask together with is_causal.

    >>> values = torch.tensor([[[1.0], [3.0], [100.0]]])  # of three keys, of which two count
    >>> F.scaled_dot_product_attention(torch.zeros(1, 1, 4), torch.randn(1, 3, 4), values, lengths=torch.tensor([2]))
    tensor([[[2.]]])
    """
    if attn_mask is None and lengths is None and enable_gqa is False and not is_compiling():
        output = _nodes.scaled_dot_product_attention(query, key, value, dropout_p, is_causal, scale, None)
        if output is not NotImplemented:
            return output
    if is_torchs(query, key, value, attn_mask, lengths):
        return _by_torch(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, lengths)
    return attention_unasked(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, lengths)


def attention_unasked(
    query, key, value, mask, dropout_p=0.0, is_causal=False, scale=None, gqa=False, lengths=None, layout=None
):
    """:func:`scaled_dot_product_attention` for who has asked whether it is torch's (aside.py).

    ``layout`` is torch's where it is None (_attention_schema.py).
    """
    if lengths is not None:
        _check_lengths(query, lengths)
    if torch.is_autocast_enabled("cpu") and query.is_cpu:
        query, key, value, mask = lowered("cpu", query, key, value, mask)  # one of its ops of lower precision
    served = _is_served(query, key, value, mask, dropout_p, is_causal, scale, gqa)
    served = served and (torch.compiler.is_compiling() or flash_sdp_enabled())
    ops = backend.ops_for(query, "attention") if served else None
    if ops is None:
        return _by_torch(query, key, value, mask, dropout_p, is_causal, scale, gqa, lengths)
    dims = query.dim()
    if layout is None:
        layout = _layout(query, key, value, mask, dropout_p, gqa, lengths)
    if mask is not None:
        if query.dtype == torch.float64 and mask.dtype == torch.float32:
            mask = mask.double()
        mask = _four(mask) if mask.dim() == dims else mask[(None,) * (4 - mask.dim())]
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    seed = None
    if dropout_p > 0:
        # torch.randint even under compile: see dropout.py
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=query.device)
    rest = (mask, lengths, seed, float(dropout_p), is_causal, scale, layout)
    output = _call(ops, _four(query), _four(key), _four(value), rest)
    return output if dims == 4 else output.squeeze(1) if dims == 3 else output[0, 0]


def _call(ops, query, key, value, rest):
    transforms = functorch_active()
    if transforms:
        ops = _library.transformed(ops)
    if transforms or torch.compiler.is_compiling():
        return ops.attention_forward(query, key, value, *rest)[0]
    output = _nodes.attention(query, key, value, *rest)
    if output is not NotImplemented:
        return output
    if torch.is_grad_enabled():
        if rest[0] is not None and rest[0].requires_grad:
            return _apply_with_mask(alive(query), alive(key), alive(value), alive(rest[0]), (ops, rest))
        return _apply(alive(query), alive(key), alive(value), (ops, rest))
    with below_autograd():
        return _library.quick(ops).attention_forward(query, key, value, *rest)[0]


def _check_lengths(query, lengths):
    if lengths.dtype != torch.int64:
        raise RuntimeError(f"scaled_dot_product_attention: expected lengths to be int64, got {lengths.dtype}")
    shape, batch = tuple(lengths.shape), tuple(query.shape[:1])
    if query.dim() < 3 or shape not in (batch, (*batch, query.shape[-2])):
        rule = "of the shape of query's first dimension, or of that and its rows"
        raise RuntimeError(
            f"scaled_dot_product_attention: expected lengths to be {rule}, got {shape} for {tuple(query.shape)}"
        )


def _by_torch(query, key, value, mask, dropout_p, is_causal, scale, gqa, lengths):
    if lengths is not None:
        _check_lengths(query, lengths)
        seen = seen_keys(query, key.shape[-2], None, lengths, is_causal)
        if query.dim() == 3:
            seen = seen.squeeze(1)
        is_causal = False
        if mask is None:
            mask = seen
        else:
            mask = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -torch.inf)
    return F.scaled_dot_product_attention(query, key, value, mask, dropout_p, is_causal, scale=scale, enable_gqa=gqa)
