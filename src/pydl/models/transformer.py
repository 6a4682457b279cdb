"""The Transformer: an encoder and a decoder of attention alone."""

import torch
from torch.nn import Module, ModuleList, Sequential, init

from pydl.models._registry import check_at_least, register
from pydl.models.attention import AddNorm, MultiHead, sinusoids
from pydl.nn import Dropout, Embedding, Linear, ReLU


class Words(Module):
    """Embedded tokens times sqrt(width), plus sinusoidal positions, then dropout."""

    def __init__(self, vocab_size, width, dropout, positions):
        super().__init__()
        self.embedding, self.dropout = Embedding(vocab_size, width), Dropout(dropout)
        init.normal_(self.embedding.weight, std=width**-0.5)  # times sqrt(width) as large as the positions
        self.register_buffer("positions", sinusoids(positions, width), persistent=False)

    def forward(self, tokens, first=0):
        """(N, T, width) of tokens (N, T) that stand at places from ``first`` on."""
        count, end = len(self.positions), first + tokens.shape[1]
        if end > count:
            raise ValueError(f"transformer: expected at most {count} tokens, one a position, got {end}")
        words = self.embedding(tokens) * self.positions.shape[1] ** 0.5
        return self.dropout(words + self.positions[first:end].to(words.dtype))


def feed_forward(width, hidden):
    """Two affine layers with ReLU between them, at each position."""
    return Sequential(Linear(width, hidden), ReLU(), Linear(hidden, width))


class EncoderBlock(Module):
    """Attention among the source's words, and a net at each."""

    def __init__(self, width, heads, hidden, dropout):
        super().__init__()
        self.attention, self.add1 = MultiHead(width, heads, dropout, own=True), AddNorm(width, dropout)
        self.net, self.add2 = feed_forward(width, hidden), AddNorm(width, dropout)

    def forward(self, x, lengths):
        query, memory = self.attention.all(x).tensor_split([x.shape[-1]], -1)
        x = self.add1(x, self.attention(query, memory, lengths)[0])
        return self.add2(x, self.net(x))


class DecoderBlock(Module):
    """Attention among the words so far, attention to the source, and a net at each word."""

    def __init__(self, width, heads, hidden, dropout):
        super().__init__()
        self.attention, self.add1 = MultiHead(width, heads, dropout, own=True), AddNorm(width, dropout)
        self.cross, self.add2 = MultiHead(width, heads, dropout, own=False), AddNorm(width, dropout)
        self.net, self.add3 = feed_forward(width, hidden), AddNorm(width, dropout)

    def forward(self, x, past, source, lengths, need_weights):
        """(output (N, T, width), keys and values of all words so far, weights (N, heads, T, S) or None).

        Args:
            past: keys and values of the words before, (N, P, 2 · width), or None.
            source: keys and values of the source, for ``cross``.
        """
        query, memory = self.attention.all(x).tensor_split([x.shape[-1]], -1)
        seen = None
        if past is not None:
            seen = torch.arange(1, x.shape[1] + 1, device=x.device) + past.shape[1]
            seen, memory = seen.expand(len(x), -1).contiguous(), torch.cat([past, memory], 1)
        x = self.add1(x, self.attention(query, memory, seen, causal=past is None)[0])
        found, weights = self.cross(self.cross.query(x), source, lengths, need_weights=need_weights)
        x = self.add2(x, found)
        return self.add3(x, self.net(x)), memory, weights


class Transformer(Module):
    """Blocks of an encoder and as many of a decoder.

    The state is (valid lengths (N,), the source's keys and values for each block, those of the words so far or None).
    """

    def __init__(self, source_vocab_size, vocab_size, width, hidden, heads, blocks, dropout, positions):
        super().__init__()
        sizes = width, heads, hidden, dropout
        self.source_words = Words(source_vocab_size, width, dropout, positions)
        self.encoder = ModuleList(EncoderBlock(*sizes) for _ in range(blocks))
        self.words = Words(vocab_size, width, dropout, positions)
        self.decoder = ModuleList(DecoderBlock(*sizes) for _ in range(blocks))
        self.output = Linear(width, vocab_size)

    def begin(self, source, lengths):
        """The state before the first word, of source (N, S) and its valid lengths (N,)."""
        x = self.source_words(source)
        for block in self.encoder:
            x = block(x, lengths)
        return lengths, [block.cross.memory(x) for block in self.decoder], None

    def decode(self, target, state, need_weights=False):
        """(logits (N, T, V), state, weights) of the tokens (N, T) that come next.

        ``weights`` are those to the source's words in the last block, (N, heads, T, S), where they are asked for.
        """
        lengths, source, past = state
        x = self.words(target, 0 if past is None else past[0].shape[1])
        kept, last = [], len(self.decoder) - 1
        for i, block in enumerate(self.decoder):
            x, memory, weights = block(
                x, None if past is None else past[i], source[i], lengths, need_weights and i == last
            )
            kept.append(memory)
        return self.output(x), (lengths, source, kept), weights

    def take(self, state, rows):
        """The state of these rows (int64)."""
        lengths, source, past = state
        source, past = (parts and [part.index_select(0, rows) for part in parts] for parts in (source, past))
        return lengths.index_select(0, rows), source, past

    def forward(self, source, lengths, target):
        """Logits (N, T, V) of what follows each of the target's tokens (N, T)."""
        return self.decode(target, self.begin(source, lengths))[0]


@register("translation")
def transformer(
    source_vocab_size=35, vocab_size=30, width=512, hidden=2048, heads=8, blocks=6, dropout=0.1, positions=1000
):
    """Attention alone: blocks of an encoder and as many of a decoder, by default the paper's 6 and 6.

    Source: d2l section "The Transformer Architecture"; Vaswani et al., "Attention Is All You Need", NeurIPS 2017.
    Input: (N, S), (N,), (N, T). Output: (N, T, 30), or (N, T, vocab_size).
    Parameters: 44,187,166.
    FLOPs: 88,111,104 a source's and a target's word in affine layers.

    Raises:
        ValueError: for a size below 1, a width that the heads do not divide, a dropout that is no probability, and in
            the forward for more tokens than positions.
    """
    sizes = {"width": width, "hidden": hidden, "heads": heads, "blocks": blocks, "positions": positions}
    check_at_least("transformer", **sizes)
    if width % heads:
        raise ValueError(f"transformer: expected width to be a multiple of {heads} heads, got {width}")
    return Transformer(source_vocab_size, vocab_size, width, hidden, heads, blocks, dropout, positions)
