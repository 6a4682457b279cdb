"""Attention of several heads between its projections (Vaswani et al., 2017; d2l section "Multi-Head Attention").

The projections are our linear layers; heads are cut from them as views, and attention reads and writes them where they
lie, so that nothing is copied between the layers. Weights are made only where they are asked for.
"""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl.aside import is_torchs
from pydl.ops import _nodes
from pydl.ops._attention_schema import FLASH
from pydl.ops._nodes import is_compiling
from pydl.ops.attention import attention_unasked
from pydl.ops.dropout import dropout
from pydl.ops.linear import linear_unasked
from pydl.ops.matmul import matmul
from pydl.ops.softmax import softmax

__all__ = ["multi_head_attention_forward"]


def multi_head_attention_forward(
    query,
    key,
    value,
    embed_dim_to_check,
    num_heads,
    in_proj_weight,
    in_proj_bias,
    bias_k,
    bias_v,
    add_zero_attn,
    dropout_p,
    out_proj_weight,
    out_proj_bias,
    training=True,
    key_padding_mask=None,
    need_weights=True,
    attn_mask=None,
    use_separate_proj_weight=False,
    q_proj_weight=None,
    k_proj_weight=None,
    v_proj_weight=None,
    static_k=None,
    static_v=None,
    average_attn_weights=True,
    is_causal=False,
):
    """As :func:`torch.nn.functional.multi_head_attention_forward`, which has the arguments in words.

    ``bias_k``, ``add_zero_attn``, ``static_k``, masks of two kinds at once, and what torch refuses, are torch's.

    >>> x, weight, bias = torch.randn(5, 2, 4), torch.randn(12, 4), torch.zeros(12)
    >>> more = dict(bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0, out_proj_weight=torch.eye(4))
    >>> F.multi_head_attention_forward(x, x, x, 4, 2, weight, bias, out_proj_bias=None, **more)[0].shape
    torch.Size([5, 2, 4])
    """
    weights = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else in_proj_weight
    rare = bias_k is not None or bias_v is not None or add_zero_attn or static_k is not None or static_v is not None
    if (
        rare
        or is_torchs(query, key, value, key_padding_mask, attn_mask)
        or is_torchs(
            out_proj_weight, in_proj_bias, out_proj_bias, *(weights if use_separate_proj_weight else (weights,))
        )
        or backend.ops_for(query, "attention") is None
        or not fits(query, key, value, embed_dim_to_check, num_heads, weights, key_padding_mask, attn_mask, is_causal)
    ):
        return F.multi_head_attention_forward(
            query, key, value, embed_dim_to_check, num_heads, in_proj_weight, in_proj_bias, bias_k, bias_v,
            add_zero_attn, dropout_p, out_proj_weight, out_proj_bias, training, key_padding_mask, need_weights,
            attn_mask, use_separate_proj_weight, q_proj_weight, k_proj_weight, v_proj_weight, static_k, static_v,
            average_attn_weights, is_causal,
        )  # fmt: skip
    projections = (weights, in_proj_bias, out_proj_weight, out_proj_bias)
    masks = (key_padding_mask, attn_mask, is_causal)
    drops = dropout_p if training else 0.0
    return multi_head_attention_unasked(
        query, key, value, num_heads, projections, drops, masks, need_weights, average_attn_weights
    )


def batch_second(tensors):
    """(N, L, E) as (L, N, E), which torch's layer makes of its inputs with batch_first; one tensor stays one."""
    made = {id(t): t.transpose(0, 1) for t in tensors}
    return [made[id(t)] for t in tensors]


def fits(query, key, value, embed_dim, num_heads, weights, key_padding_mask, attn_mask, is_causal):
    """Whether the call is one that ours serves: of tensors and masks that torch takes."""
    try:
        dims, separate = query.dim(), isinstance(weights, tuple)
        if dims not in (2, 3) or key.dim() != dims or value.dim() != dims or query.shape[-1] != embed_dim:
            return False
        if key.shape[:-1] != value.shape[:-1] or not (separate or key.shape == value.shape) or embed_dim % num_heads:
            return False
        if weights is None or (separate and None in [None if w is None else 0 for w in weights]):
            return False
        batch, rows, keys = query.shape[1] if dims == 3 else 1, query.shape[0], key.shape[0]
        if dims == 3 and key.shape[1] != batch:
            return False
        masks = [mask for mask in (key_padding_mask, attn_mask) if mask is not None]
        if any(mask.dtype not in (torch.bool, query.dtype) for mask in masks) or len({m.dtype for m in masks}) > 1:
            return False
        if key_padding_mask is not None and key_padding_mask.shape != ((batch, keys) if dims == 3 else (keys,)):
            return False
        if attn_mask is None:
            return not is_causal
        return tuple(attn_mask.shape) in ((rows, keys), (batch * num_heads, rows, keys))
    except (AttributeError, TypeError):  # no tensor: torch says so in its own words
        return False


def _linear(input, weight, bias):
    """:func:`linear_unasked` by the quick way where there is one."""
    output = NotImplemented if is_compiling() else _nodes.linear(input, weight, bias, None)
    return linear_unasked(input, weight, bias) if output is NotImplemented else output


def attention_of_heads(query, key, value, mask, dropout_p, is_causal, gqa=False):
    """The same of :func:`attention_unasked`, over heads that lie as flash attention leaves them.

    What comes after it takes them without a copy, with dropout too, where torch's own function would leave the heads
    apart.
    """
    output = NotImplemented
    if mask is None and not gqa and not is_compiling():
        output = _nodes.scaled_dot_product_attention(query, key, value, dropout_p, is_causal, None, FLASH)
    if output is NotImplemented:
        output = attention_unasked(query, key, value, mask, dropout_p, is_causal, None, gqa, layout=FLASH)
    return output


def _projected(query, key, value, weights, bias):
    if isinstance(weights, tuple):
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        return [_linear(t, w, b) for t, w, b in zip((query, key, value), weights, biases, strict=True)]
    if query is key and key is value:
        return _linear(query, weights, bias).chunk(3, -1)
    if key is value:
        width = weights.shape[0] // 3
        of_query, of_others = weights.split((width, 2 * width))
        biases = (None, None) if bias is None else bias.split((width, 2 * width))
        return _linear(query, of_query, biases[0]), *_linear(key, of_others, biases[1]).chunk(2, -1)
    return _projected(query, key, value, weights.chunk(3), bias)


def _merged(key_padding_mask, attn_mask, heads):
    """One mask that broadcasts to (N, H, L, S): boolean, True where a key is ignored, or additive; or None."""
    if attn_mask is not None and attn_mask.dim() == 3:
        attn_mask = attn_mask.unflatten(0, (-1, heads))
    if key_padding_mask is None:
        return attn_mask
    padding = key_padding_mask[:, None, None] if key_padding_mask.dim() == 2 else key_padding_mask[None]
    if attn_mask is None:
        return padding
    return padding | attn_mask if padding.dtype == torch.bool else padding + attn_mask


def multi_head_attention_unasked(query, key, value, heads, projections, dropout_p, masks, need_weights, average):
    """:func:`multi_head_attention_forward` for who has asked whether it is torch's.

    Args:
        query, key, value: (L, N, E) or (L, E).
        projections: weight (3 E, E), or three of them; bias (3 E,) or None; the last layer's weight and bias.
        masks: key_padding_mask, attn_mask and is_causal, as torch has them.

    Returns:
        The output, contiguous, and the weights (N, L, S), (N, H, L, S), or None.
    """
    weights, bias, out_weight, out_bias = projections
    key_padding_mask, attn_mask, is_causal = masks
    batched = query.dim() == 3
    is_causal = bool(is_causal and key_padding_mask is None and not need_weights)
    # torch takes the hint for the mask
    mask = _merged(key_padding_mask, None if is_causal else attn_mask, heads)

    def cut(t):  # to (N, H, L, D)
        t = t.unflatten(-1, (heads, -1))
        return t.permute(1, 2, 0, 3) if batched else t.transpose(0, 1)[None]

    q, k, v = map(cut, _projected(query, key, value, weights, bias))
    found = None
    if need_weights:
        scores = matmul(q * q.shape[-1] ** -0.5, k.mT)
        if mask is not None:
            scores = scores.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        found = softmax(scores, -1)
        if dropout_p > 0:
            found = dropout(found, dropout_p)
        output = matmul(found, v)
        if average:
            found = found.mean(1)
        if not batched:
            found = found[0]
    else:
        seen = ~mask if mask is not None and mask.dtype == torch.bool else mask
        output = attention_of_heads(q, k, v, seen, dropout_p, is_causal)
    output = (output.permute(2, 0, 1, 3) if batched else output[0].transpose(0, 1)).flatten(-2)
    return _linear(output, out_weight, out_bias), found
