"""Attention of translators: additive and by products over one query, several heads, and the sinusoidal positions."""

import torch
from torch.nn import Module

from pydl import functional
from pydl.nn import Dropout, LayerNorm, Linear, Tanh


def sinusoids(count, width):
    """(count, width): sin(i / 10000^(2j / width)) in column 2j of row i, and the cosine in column 2j + 1.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.5.
    """
    columns = torch.arange(0, width, 2, dtype=torch.float32)
    angles = torch.arange(count, dtype=torch.float32).unsqueeze(1) / 10000 ** (columns / width)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :width]  # an odd width ends in a sine


class Additive(Module):
    """Scores ``w · tanh(W_q q + W_k k)`` of one query for each row. The keys' part is made once, by :meth:`keys`.

    Source: Bahdanau, Cho and Bengio, "Neural Machine Translation by Jointly Learning to Align and Translate", ICLR
    2015.
    """

    def __init__(self, width):
        super().__init__()
        self.query, self.key = Linear(width, width, bias=False), Linear(width, width, bias=False)
        self.tanh, self.score = Tanh(), Linear(width, 1, bias=False)

    def keys(self, values):
        """What :meth:`forward` takes for keys, of values (N, S, width)."""
        return self.key(values)

    def forward(self, query, keys, values, lengths):
        """(context (N, 1, width), weights (N, 1, S)) of query (N, 1, width); keys behind the lengths count nothing."""
        scores = self.score(self.tanh(self.query(query) + keys)).mT
        weights = functional.softmax(scores, -1, lengths=lengths)
        return functional.bmm(weights, values), weights


class Dot:
    """Scores ``q · k / sqrt(width)`` of one query for each row; nothing is learnt."""

    def keys(self, values):
        """The values themselves."""
        return values

    def __call__(self, query, keys, values, lengths):
        """As :meth:`Additive.forward`."""
        scores = functional.bmm(query * query.shape[-1] ** -0.5, keys.mT)
        weights = functional.softmax(scores, -1, lengths=lengths)
        return functional.bmm(weights, values), weights


class MultiHead(Module):
    """Attention by products in ``heads`` parts of the width, between affine layers.

    Keys and values come as one tensor (N, S, 2 · width), so that a decoder can keep those of earlier tokens.

    Args:
        own: whether query, keys and values are of one tensor, whose layer then is one.

    Source: Vaswani et al., NeurIPS 2017, section 3.2.
    """

    def __init__(self, width, heads, dropout, own):
        super().__init__()
        self.heads, self.p, self.own = heads, dropout, own
        if own:
            self.all = Linear(width, 3 * width)
        else:
            self.query, self.memory = Linear(width, width), Linear(width, 2 * width)
        self.output = Linear(width, width)

    def forward(self, query, memory, lengths, causal=False, need_weights=False):
        """(output (N, T, width), weights (N, heads, T, S) or None).

        Args:
            query: (N, T, width), after its layer.
            memory: keys and values (N, S, 2 · width), after theirs.
            lengths: how many keys are seen, (N,) or (N, T); None for all.
            causal: row i sees the keys up to i alone.
        """
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, *memory.chunk(2, -1)))
        weights = None
        if need_weights:
            weights = self._weights(q, k, lengths, causal)
            output = functional.matmul(weights, v)
        else:
            p = self.p if self.training else 0.0
            output = functional.scaled_dot_product_attention(q, k, v, None, p, causal, lengths=lengths)
        return self.output(output.transpose(1, 2).flatten(2)), weights

    def _weights(self, q, k, lengths, causal):
        """(N, heads, T, S), without dropout."""
        steps, keys = q.shape[2], k.shape[2]
        if causal:
            lengths = torch.arange(1, steps + 1, device=q.device).expand(len(q), -1)
        elif lengths is None:
            lengths = torch.full((len(q),), keys, device=q.device)
        if lengths.dim() == 1:
            lengths = lengths.unsqueeze(1).expand(-1, steps)
        scores = functional.matmul(q * q.shape[-1] ** -0.5, k.mT)
        return functional.softmax(scores, -1, lengths=lengths.unsqueeze(1).expand(-1, self.heads, -1))


class AddNorm(Module):
    """``LayerNorm(x + dropout(y))``."""

    def __init__(self, width, dropout):
        super().__init__()
        self.dropout, self.norm = Dropout(dropout), LayerNorm(width)

    def forward(self, x, y):
        return self.norm(x + self.dropout(y))
