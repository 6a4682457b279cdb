"""Translators of gated recurrent units: an encoder's last state, or attention to all of its states."""

import torch
from torch.nn import Module
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pydl.models._registry import check_at_least, register
from pydl.models.attention import Additive, Dot
from pydl.nn import GRU, Dropout, Embedding, Linear


class Encoder(Module):
    """Embedded tokens, recurrent layers that end with each sentence."""

    def __init__(self, vocab_size, embedding, hidden, layers, dropout):
        super().__init__()
        self.embedding = Embedding(vocab_size, embedding)
        self.dropout = Dropout(dropout)
        self.recurrent = GRU(embedding, hidden, layers, dropout=dropout if layers > 1 else 0.0)

    def forward(self, source, lengths):
        """(outputs (N, S, hidden), zero behind a sentence's end; last state (layers, N, hidden))."""
        words = self.dropout(self.embedding(source.T))
        packed = pack_padded_sequence(words, lengths.cpu(), enforce_sorted=False)
        outputs, state = self.recurrent(packed)
        return pad_packed_sequence(outputs, batch_first=True, total_length=source.shape[1])[0], state


class Seq2Seq(Module):
    """An encoder, and a decoder that sees the encoder's last output beside each of its own words.

    The state is (the decoder's (layers, N, hidden), the encoder's last output (N, hidden)).
    """

    def __init__(self, source_vocab_size, vocab_size, embedding, hidden, layers, dropout):
        super().__init__()
        self.encoder = Encoder(source_vocab_size, embedding, hidden, layers, dropout)
        self.embedding = Embedding(vocab_size, embedding)
        self.dropout = Dropout(dropout)
        self.recurrent = GRU(embedding + hidden, hidden, layers, dropout=dropout if layers > 1 else 0.0)
        self.output = Linear(hidden, vocab_size)

    def begin(self, source, lengths):
        """The state before the first word, of source (N, S) and its valid lengths (N,)."""
        state = self.encoder(source, lengths)[1]
        return state, state[-1]

    def decode(self, target, state, need_weights=False):
        """(logits (N, T, V), state, weights) of the tokens (N, T) that come next; weights are always None."""
        state, context = state
        words = self.dropout(self.embedding(target.T))
        outputs, state = self.recurrent(torch.cat([words, context.expand(len(words), -1, -1)], -1), state)
        return self.output(self.dropout(outputs).transpose(0, 1)), (state, context), None

    def take(self, state, rows):
        """The state of these rows (int64)."""
        return state[0].index_select(1, rows), state[1].index_select(0, rows)

    def forward(self, source, lengths, target):
        """Logits (N, T, V) of what follows each of the target's tokens (N, T)."""
        return self.decode(target, self.begin(source, lengths))[0]


class Seq2SeqAttention(Module):
    """As :class:`Seq2Seq`, but beside each word stands what the decoder's state before it attends to.

    The state is (the decoder's (layers, N, hidden), keys, encoder's outputs (N, S, hidden), valid lengths (N,)).
    """

    def __init__(self, source_vocab_size, vocab_size, embedding, hidden, layers, dropout, attention):
        super().__init__()
        self.encoder = Encoder(source_vocab_size, embedding, hidden, layers, dropout)
        self.attention = Additive(hidden) if attention == "additive" else Dot()
        self.embedding = Embedding(vocab_size, embedding)
        self.dropout = Dropout(dropout)
        self.recurrent = GRU(embedding + hidden, hidden, layers, dropout=dropout if layers > 1 else 0.0)
        self.output = Linear(hidden, vocab_size)

    def begin(self, source, lengths):
        """As :meth:`Seq2Seq.begin`."""
        outputs, state = self.encoder(source, lengths)
        return state, self.attention.keys(outputs), outputs, lengths

    def decode(self, target, state, need_weights=False):
        """(logits (N, T, V), state, weights) of the tokens (N, T) that come next.

        ``weights`` are those to the source's words, (N, 1, T, S), where they are asked for.
        """
        state, keys, values, lengths = state
        outputs, weights = [], []
        for word in self.dropout(self.embedding(target.T)):
            context, weight = self.attention(state[-1].unsqueeze(1), keys, values, lengths)
            output, state = self.recurrent(torch.cat([word, context[:, 0]], -1).unsqueeze(0), state)
            outputs.append(output)
            if need_weights:
                weights.append(weight)
        logits = self.output(self.dropout(torch.cat(outputs)).transpose(0, 1))
        return logits, (state, keys, values, lengths), torch.stack(weights, 2) if weights else None

    def take(self, state, rows):
        """As :meth:`Seq2Seq.take`."""
        return state[0].index_select(1, rows), *(t.index_select(0, rows) for t in state[1:])

    def forward(self, source, lengths, target):
        """As :meth:`Seq2Seq.forward`."""
        return self.decode(target, self.begin(source, lengths))[0]


@register("translation")
def seq2seq(source_vocab_size=35, vocab_size=30, embedding=256, hidden=256, layers=2, dropout=0.2):
    """Gated recurrent units read a sentence into a vector; others write the translation from it.

    Source: d2l section "Sequence to Sequence Learning"; Cho et al., "Learning Phrase Representations using RNN
    Encoder-Decoder for Statistical Machine Translation", EMNLP 2014.
    Input: (N, S), (N,), (N, T). Output: (N, T, 30), or (N, T, vocab_size).
    Parameters: 1,799,966.
    FLOPs: 3,554,304 a source's and a target's word.

    Raises:
        ValueError: for a size below 1, or a dropout that is no probability.
    """
    check_at_least("seq2seq", embedding=embedding, hidden=hidden, layers=layers)
    return Seq2Seq(source_vocab_size, vocab_size, embedding, hidden, layers, dropout)


@register("translation")
def seq2seq_attention(
    source_vocab_size=35, vocab_size=30, embedding=256, hidden=256, layers=2, dropout=0.2, attention="additive"
):
    """As :func:`seq2seq`, with attention to every word of the source; ``attention``: ``additive`` or ``dot``.

    Source: d2l section "The Bahdanau Attention Mechanism"; Bahdanau, Cho and Bengio, ICLR 2015; Luong, Pham and
    Manning, "Effective Approaches to Attention-based Neural Machine Translation", EMNLP 2015, for ``dot``.
    Input: (N, S), (N,), (N, T). Output: (N, T, 30), or (N, T, vocab_size).
    Parameters: 1,931,294.
    FLOPs: 3,816,960 a source's and a target's word, without the scores' sums over the source.

    Raises:
        ValueError: for a size below 1, a dropout that is no probability, or another attention.
    """
    check_at_least("seq2seq_attention", embedding=embedding, hidden=hidden, layers=layers)
    if attention not in ("additive", "dot"):
        raise ValueError(f"seq2seq_attention: expected attention to be one of additive, dot, got {attention!r}")
    return Seq2SeqAttention(source_vocab_size, vocab_size, embedding, hidden, layers, dropout, attention)
