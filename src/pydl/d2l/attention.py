"""Attention: masked softmax, scores by products and by a small net, several heads, positions."""

import math

import torch
from torch import nn

from pydl import functional
from pydl.d2l.editions import bound, signature
from pydl.models.attention import sinusoids


def sequence_mask(X, valid_len, value=0):
    """``X`` (N, T, ...) with ``value`` behind the first ``valid_len`` (N) places of each row: a new tensor."""
    behind = torch.arange(X.shape[1], device=X.device) >= valid_len.unsqueeze(1)
    return X.masked_fill(behind.reshape(*behind.shape, *(1,) * (X.dim() - 2)), value)


def masked_softmax(X, valid_lens):
    """Softmax along the last dimension of ``X`` (N, queries, keys), in which the keys behind valid_lens count nothing.

    Args:
        valid_lens: (N), or (N, queries), or None for all keys. A row of length 0 gets the same everywhere, as in the
            book, where all its scores become one large negative number.
    """
    if valid_lens is None:
        return functional.softmax(X, dim=-1)
    weights = functional.softmax(X, dim=-1, lengths=valid_lens.to(torch.int64))  # 0 for a row of length 0
    empty = (valid_lens < 1).to(weights.dtype) / max(X.shape[-1], 1)
    return weights + empty.reshape(*empty.shape, *(1,) * (X.dim() - empty.dim()))


class MaskedSoftmaxCELoss(nn.CrossEntropyLoss):
    """Cross entropy of sequences: (N) means over the steps, where steps behind ``valid_len`` add 0."""

    def forward(self, pred, label, valid_len):
        """``pred`` (N, T, vocabulary), ``label`` (N, T), ``valid_len`` (N)."""
        unweighted = functional.cross_entropy(
            pred.flatten(0, 1), label.flatten(), weight=self.weight, ignore_index=self.ignore_index, reduction="none",
            label_smoothing=self.label_smoothing,
        )  # fmt: skip
        return sequence_mask(unweighted.reshape(label.shape), valid_len).mean(dim=1)


class AdditiveAttention(nn.Module):
    """Scores ``w · tanh(W_q q + W_k k)``.

    ``AdditiveAttention(key_size, query_size, num_hiddens, dropout)`` in the earlier edition,
    ``AdditiveAttention(num_hiddens, dropout)`` in the later one, which finds the sizes itself.

    Attributes:
        attention_weights: of the last call, (N, queries, keys), without a graph.
    """

    _SIGNATURES = (
        signature(lambda num_hiddens, dropout: None),
        signature(lambda key_size, query_size, num_hiddens, dropout: None),
    )

    def __init__(self, *args, **kwargs):
        super().__init__()
        sizes = bound("AdditiveAttention", self._SIGNATURES, args, kwargs)
        hiddens = sizes["num_hiddens"]
        self.W_k = _affine(sizes.get("key_size"), hiddens)
        self.W_q = _affine(sizes.get("query_size"), hiddens)
        self.w_v = nn.Linear(hiddens, 1, bias=False)
        self.dropout = nn.Dropout(sizes["dropout"])

    def forward(self, queries, keys, values, valid_lens=None):
        """(N, queries, width of values)."""
        features = torch.tanh(self.W_q(queries).unsqueeze(2) + self.W_k(keys).unsqueeze(1))
        weights = masked_softmax(self.w_v(features).squeeze(-1), valid_lens)
        self.attention_weights = weights.detach()
        return functional.bmm(self.dropout(weights), values)


def _affine(inputs, outputs, bias=False):
    return nn.LazyLinear(outputs, bias=bias) if inputs is None else nn.Linear(inputs, outputs, bias=bias)


class DotProductAttention(nn.Module):
    """Scores ``q · k / sqrt(d)``; ``attention_weights`` as :class:`AdditiveAttention`."""

    def __init__(self, dropout, **kwargs):
        super().__init__(**kwargs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries, keys, values, valid_lens=None):
        """(N, queries, width of values); queries and keys are of one width."""
        scores = functional.bmm(queries, keys.transpose(1, 2)) / math.sqrt(queries.shape[-1])
        weights = masked_softmax(scores, valid_lens)
        self.attention_weights = weights.detach()
        return functional.bmm(self.dropout(weights), values)


def transpose_qkv(X, num_heads):
    """(N, T, heads · d) to (N · heads, T, d)."""
    return X.unflatten(-1, (num_heads, -1)).transpose(1, 2).flatten(0, 1)


def transpose_output(X, num_heads):
    """(N · heads, T, d) to (N, T, heads · d): undoes :func:`transpose_qkv`."""
    return X.unflatten(0, (-1, num_heads)).transpose(1, 2).flatten(2)


class MultiHeadAttention(nn.Module):
    """Attention by products, in ``num_heads`` parts of the width, between four affine layers.

    ``MultiHeadAttention(key_size, query_size, value_size, num_hiddens, num_heads, dropout, bias=False)`` in the earlier
    edition, ``MultiHeadAttention(num_hiddens, num_heads, dropout, bias=False)`` in the later one, which finds the sizes
    itself. ``attention`` is its :class:`DotProductAttention`.
    """

    _SIGNATURES = (
        signature(lambda num_hiddens, num_heads, dropout, bias=False: None),
        signature(lambda key_size, query_size, value_size, num_hiddens, num_heads, dropout, bias=False: None),
    )

    def __init__(self, *args, **kwargs):
        super().__init__()
        sizes = bound("MultiHeadAttention", self._SIGNATURES, args, kwargs)
        hiddens, self.num_heads, bias = sizes["num_hiddens"], sizes["num_heads"], sizes["bias"]
        if hiddens % self.num_heads:
            raise ValueError(
                f"MultiHeadAttention: expected num_hiddens to be a multiple of {self.num_heads} heads, got {hiddens}"
            )
        self.attention = DotProductAttention(sizes["dropout"])
        self.W_q = _affine(sizes.get("query_size"), hiddens, bias)
        self.W_k = _affine(sizes.get("key_size"), hiddens, bias)
        self.W_v = _affine(sizes.get("value_size"), hiddens, bias)
        self.W_o = nn.Linear(hiddens, hiddens, bias=bias)

    def forward(self, queries, keys, values, valid_lens=None):
        """(N, queries, num_hiddens); ``valid_lens`` is (N), (N, queries) or None."""
        queries, keys, values = (
            transpose_qkv(layer(tensor), self.num_heads)
            for layer, tensor in ((self.W_q, queries), (self.W_k, keys), (self.W_v, values))
        )
        if valid_lens is not None:
            valid_lens = valid_lens.repeat_interleave(self.num_heads, dim=0)
        return self.W_o(transpose_output(self.attention(queries, keys, values, valid_lens), self.num_heads))


class PositionalEncoding(nn.Module):
    """Adds sin(i / 10000^(2j/d)) in column 2j and the cosine in column 2j + 1 of row i, then dropout.

    Attributes:
        P: (1, max_len, num_hiddens).

    Source: Vaswani et al., NeurIPS 2017, section 3.5.
    """

    def __init__(self, num_hiddens, dropout, max_len=1000):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        P = sinusoids(max_len, num_hiddens)
        self.register_buffer("P", P.unsqueeze(0), persistent=False)

    def forward(self, X):
        """``X`` (N, T, num_hiddens), T at most max_len."""
        return self.dropout(X + self.P[:, : X.shape[1]].to(X.dtype))
