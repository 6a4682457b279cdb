"""Recurrent language models: a plain recurrent net, gated recurrent units, long short-term memory."""

import torch.nn.functional as F
from torch.nn import Module

from pydl.models._registry import check_at_least, register
from pydl.nn import GRU, LSTM, RNN, Dropout, Embedding, Linear


class RecurrentLM(Module):
    """One-hot or embedded tokens, recurrent layers, an affine layer to the vocabulary."""

    def __init__(self, layer, vocab_size, hidden, layers, embedding, dropout):
        super().__init__()
        self.vocab_size = vocab_size
        self.embedding = Embedding(vocab_size, embedding) if embedding else None
        self.recurrent = layer(embedding or vocab_size, hidden, layers, dropout=dropout if layers > 1 else 0.0)
        self.dropout = Dropout(dropout) if dropout else None
        self.output = Linear(hidden, vocab_size)

    def forward(self, tokens, state=None):
        """(logits (N, T, V), state) of tokens (N, T); the state is torch's of the recurrent layers."""
        steps = tokens.T  # time first
        if self.embedding is None:
            inputs = F.one_hot(steps, self.vocab_size).to(self.output.weight.dtype)
        else:
            inputs = self.embedding(steps)
        outputs, state = self.recurrent(inputs, state)
        if self.dropout is not None:
            outputs = self.dropout(outputs)
        return self.output(outputs.transpose(0, 1)), state


def _build(name, layer, vocab_size, hidden, layers, embedding, dropout, bidirectional):
    check_at_least(name, hidden=hidden, layers=layers)
    if embedding < 0:
        raise ValueError(f"{name}: expected embedding to be at least 0 (0: one-hot), got {embedding}")
    if bidirectional:
        raise ValueError(
            f"{name}: expected bidirectional to be 0, got {bidirectional}: a language model that reads backwards too "
            "would see the token that it predicts"
        )
    return RecurrentLM(layer, vocab_size, hidden, layers, embedding, dropout)


@register("language")
def rnn_lm(vocab_size=28, hidden=256, layers=1, embedding=0, dropout=0.0, bidirectional=0):
    """A recurrent net with tanh over characters; ``embedding=0`` takes them one-hot.

    Source: d2l chapter "Recurrent Neural Networks", section "Concise Implementation".
    Input: (N, T). Output: (N, T, 28), or (N, T, vocab_size), and the state.
    Parameters: 80,412.
    FLOPs: 159,744 a token.

    Raises:
        ValueError: for a size below 1, a dropout that is no probability, or ``bidirectional``.
    """
    return _build("rnn_lm", RNN, vocab_size, hidden, layers, embedding, dropout, bidirectional)


@register("language")
def gru_lm(vocab_size=28, hidden=256, layers=1, embedding=0, dropout=0.0, bidirectional=0):
    """Gated recurrent units over characters; ``embedding=0`` takes them one-hot.

    Source: d2l section "Gated Recurrent Units (GRU)".
    Input: (N, T). Output: (N, T, 28), or (N, T, vocab_size), and the state.
    Parameters: 226,844.
    FLOPs: 450,560 a token.

    Raises:
        ValueError: for a size below 1, a dropout that is no probability, or ``bidirectional``.
    """
    return _build("gru_lm", GRU, vocab_size, hidden, layers, embedding, dropout, bidirectional)


@register("language")
def lstm_lm(vocab_size=28, hidden=256, layers=1, embedding=0, dropout=0.0, bidirectional=0):
    """Long short-term memory over characters; ``embedding=0`` takes them one-hot.

    Source: d2l section "Long Short-Term Memory (LSTM)"; two layers: section "Deep Recurrent Neural Networks".
    Input: (N, T). Output: (N, T, 28), or (N, T, vocab_size), and the state.
    Parameters: 300,060.
    FLOPs: 595,968 a token.

    Raises:
        ValueError: for a size below 1, a dropout that is no probability, or ``bidirectional``.
    """
    return _build("lstm_lm", LSTM, vocab_size, hidden, layers, embedding, dropout, bidirectional)
