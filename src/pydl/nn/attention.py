"""Attention of several heads."""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl.aside import Own, is_special, steps_aside
from pydl.nn._common import _Eager
from pydl.ops.multi_head_attention import batch_second, fits, multi_head_attention_unasked

__all__ = ["MultiheadAttention"]


class MultiheadAttention(_Eager, torch.nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` over our linear layers and attention (d2l "Multi-Head Attention"); on the CPU.

    Weights are made only with ``need_weights``, which is torch's default. ``add_bias_kv``, ``add_zero_attn`` and masks
    of two kinds at once are served by torch.

    >>> x = torch.randn(2, 5, 16)
    >>> output, weights = nn.MultiheadAttention(16, 4, batch_first=True)(x, x, x)
    >>> output.shape, weights.shape
    (torch.Size([2, 5, 16]), torch.Size([2, 5, 5]))
    """

    own = Own(torch.nn.MultiheadAttention, "multi_head_attention_forward")

    def forward(
        self,
        query,
        key,
        value,
        key_padding_mask=None,
        need_weights=True,
        attn_mask=None,
        average_attn_weights=True,
        is_causal=False,
    ):
        own, function = MultiheadAttention.own, F.multi_head_attention_forward
        masks = key_padding_mask, attn_mask, is_causal
        if (
            steps_aside(self, own, function, query, key)
            or steps_aside(self, own, function, value)
            or is_special(self, key_padding_mask, attn_mask)
            or backend.ops_for(query, "attention") is None
            or self.bias_k is not None
            or self.add_zero_attn
        ):
            found = None
        else:
            found = _served(self, query, key, value, masks, need_weights, average_attn_weights)
        if found is None:
            return torch.nn.MultiheadAttention.forward(
                self, query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        return found


def _served(layer, query, key, value, masks, need_weights, average_attn_weights):
    """What the layer gives, by ours; None for tensors and parameters that torch's is to get."""
    last, bias = layer.out_proj, layer.in_proj_bias
    weights = layer.in_proj_weight
    if not layer._qkv_same_embed_dim:
        weights = layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight
    tensors = query, key, value
    batch_first = layer.batch_first and all(t.dim() == 3 for t in tensors)
    if batch_first:
        tensors = batch_second(tensors)
    if not fits(*tensors, layer.embed_dim, layer.num_heads, weights, *masks):
        return None
    if is_special(layer, last.weight, last.bias, bias) or is_special(
        layer, *(weights if isinstance(weights, tuple) else (weights,))
    ):
        return None
    output, found = multi_head_attention_unasked(
        *tensors,
        layer.num_heads,
        (weights, bias, last.weight, last.bias),
        layer.dropout if layer.training else 0.0,
        masks,
        need_weights,
        average_attn_weights,
    )
    return (output.transpose(0, 1) if batch_first else output), found
