"""Derivatives of attention, and of its backward: the latter in torch's ops, with the weights written out."""

import torch

from pydl.ops import _attention_schema, _library  # noqa: F401  (the former defines the ops)


def _forward_context(ctx, inputs, output):
    query, key, value, mask, lengths, seed, ctx.dropout_p, ctx.is_causal, ctx.scale, ctx.layout = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, *output, mask, lengths, seed)


def gradients(ops, ctx, grad, needs):
    """The gradients of query, key and value, or None."""
    options = ctx.dropout_p, ctx.is_causal, ctx.scale, ctx.layout
    found = ops.attention_backward(grad, *ctx.saved_tensors, *options, *needs)
    return tuple(gradient if need else None for gradient, need in zip(found, needs, strict=True))


def gradient_of_mask(ops, ctx, grad):
    return ops.attention_backward_mask(grad, *ctx.saved_tensors, ctx.dropout_p, ctx.is_causal, ctx.scale)


def _forward_backward(ops, ctx, grad, _grad_lse):
    if grad is None:
        return (None,) * 10
    *needs, needs_mask = ctx.needs_input_grad[:4]
    found = gradients(ops, ctx, grad, needs) if any(needs) else (None,) * 3
    return *found, gradient_of_mask(ops, ctx, grad) if needs_mask else None, *(None,) * 6


_library.autograd("attention_forward", _forward_context, _forward_backward)


def seen_keys(query, keys, mask, lengths, is_causal):
    """Which keys each row sees, boolean, of a shape that broadcasts to (N, H, L, S); None: all."""
    rows, device, seen = query.shape[-2], query.device, None
    if is_causal:
        seen = torch.ones(rows, keys, dtype=torch.bool, device=device).tril()
    if lengths is not None:
        limit = lengths[:, None, None, None] if lengths.dim() == 1 else lengths[:, None, :, None]
        within = torch.arange(keys, device=device) < limit
        seen = within if seen is None else seen & within
    if mask is not None and mask.dtype == torch.bool:
        seen = mask if seen is None else seen & mask
    return seen


def _weights(query, key, mask, lengths, is_causal, scale):
    scores = query @ key.mT * scale
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask
    seen = seen_keys(query, key.shape[-2], mask, lengths, is_causal)
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    top = scores.detach().amax(-1, keepdim=True)
    terms = (scores - top.masked_fill(top == -torch.inf, 0)).exp()
    total = terms.sum(-1, keepdim=True)
    return terms / total.masked_fill(total == 0, 1)


def _second_derivatives(ops, ctx, to_query, to_key, to_value, to_mask=None):
    """Of grad_output, query, key, value and an additive mask: the derivation is in kernels/cpu/attention/NOTES.md."""
    grad, query, key, value, mask, lengths, seed = ctx.saved_tensors
    dtype = query.dtype
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    shared = query.shape[1] // key.shape[1]

    def each(t):  # a key head's tensor for each of its query heads
        return t.repeat_interleave(shared, 1) if shared > 1 else t

    def total(t):
        return t.unflatten(1, (-1, shared)).sum(2) if shared > 1 else t

    q, g = query.to(accumulate), grad.to(accumulate)
    k, v = each(key.to(accumulate)), each(value.to(accumulate))
    weight = _weights(q, k, mask, lengths, ctx.is_causal, ctx.scale)
    keep = None if seed is None else ops.dropout(torch.ones_like(weight), ctx.dropout_p, seed)

    def kept(t):
        return t if keep is None else t * keep

    def rows(t):
        return t.sum(-1, keepdim=True)

    of_weight = kept(g @ v.mT)
    centered = of_weight - rows(weight * of_weight)
    bar_weight = bar_grad = bar_query = bar_key = bar_value = 0
    if to_query is not None or to_key is not None or to_mask is not None:
        of_score = weight * centered
        bar_score = 0
        if to_query is not None:
            u = to_query.to(accumulate)
            bar_score = u @ k.mT
            bar_key = of_score.mT @ u * ctx.scale
        if to_key is not None:
            w = each(to_key.to(accumulate))
            bar_score = bar_score + q @ w.mT
            bar_query = of_score @ w * ctx.scale
        bar_score = bar_score * ctx.scale
        if to_mask is not None:
            bar_score = bar_score + to_mask
        along = rows(bar_score * weight)
        bar_weight = bar_score * centered - along * of_weight
        through = kept(weight * (bar_score - along))
        bar_grad, bar_value = through @ v, through.mT @ g
    if to_value is not None:
        z = each(to_value.to(accumulate))
        bar_weight = bar_weight + kept(g @ z.mT)
        bar_grad = bar_grad + kept(weight) @ z
    bar_score = weight * (bar_weight - rows(bar_weight * weight))
    bar_mask = bar_score.sum_to_size(mask.shape).to(mask.dtype) if ctx.needs_input_grad[6] else None
    bar_score = bar_score * ctx.scale
    bar_query = bar_query + bar_score @ k
    bar_key = bar_key + bar_score.mT @ q
    bar_value = None if isinstance(bar_value, int) else total(bar_value).to(dtype)
    return bar_grad.to(dtype), bar_query.to(dtype), total(bar_key).to(dtype), bar_value, None, None, bar_mask


def _backward_context(ctx, inputs, output):
    grad, query, key, value, _, _, mask, lengths, seed, ctx.dropout_p, ctx.is_causal, ctx.scale, _, *ctx.needs = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad, query, key, value, mask, lengths, seed)


def _backward_backward(ops, ctx, *grads):
    # output and lse are functions of the rest, through which their share is counted
    grads = [grad if need else None for grad, need in zip(grads, ctx.needs, strict=True)]
    if all(grad is None for grad in grads):
        return (None,) * 16
    return *_second_derivatives(ops, ctx, *grads), *(None,) * 9


_library.autograd("attention_backward", _backward_context, _backward_backward)


def _backward_mask_context(ctx, inputs, output):
    grad, query, key, value, _, _, mask, lengths, seed, ctx.dropout_p, ctx.is_causal, ctx.scale = inputs
    ctx.save_for_backward(grad, query, key, value, mask, lengths, seed)


def _backward_mask_backward(ops, ctx, to_mask):
    return *_second_derivatives(ops, ctx, None, None, None, to_mask), *(None,) * 5


_library.autograd("attention_backward_mask", _backward_mask_context, _backward_mask_backward)
