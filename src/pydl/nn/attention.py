"""Attention of several heads."""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl.aside import Own, is_special, steps_aside
from pydl.nn._common import _Eager
from pydl.ops.multi_head_attention import fits, multi_head_attention_unasked


class MultiheadAttention(_Eager, torch.nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` over our linear layers and attention (d2l "Multi-Head Attention"); on the CPU.

    Weights are made only with ``need_weights``, which is torch's default. ``add_bias_kv``, ``add_zero_attn`` and masks
    of two kinds at once are served by torch. The output is contiguous where torch leaves it transposed.
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
        weights = self.in_proj_weight if self._qkv_same_embed_dim else (
            self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        )  # fmt: skip
        last = self.out_proj
        if (
            steps_aside(self, MultiheadAttention.own, F.multi_head_attention_forward, query, key)
            or steps_aside(self, MultiheadAttention.own, F.multi_head_attention_forward, value)
            or backend.ops_for(query, "attention") is None
            or self.bias_k is not None
            or self.add_zero_attn
            or not fits(
                *(query, key, value, self.embed_dim, self.num_heads, weights, key_padding_mask, attn_mask, is_causal),
                self.batch_first,
            )
            or is_special(self, last.weight, last.bias, self.in_proj_bias)
            or is_special(self, key_padding_mask, attn_mask)
            or is_special(self, *(weights if isinstance(weights, tuple) else (weights,)))
        ):
            return torch.nn.MultiheadAttention.forward(
                self, query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        return multi_head_attention_unasked(
            *(query, key, value, self.batch_first, self.num_heads),
            (weights, self.in_proj_bias, last.weight, last.bias),
            self.dropout if self.training else 0.0,
            (key_padding_mask, attn_mask, is_causal),
            need_weights,
            average_attn_weights,
        )
