"""ELMo: a language model that reads forwards and one that reads backwards; a word is a mix of their layers."""

import torch
from torch.nn import Module, ModuleList, Parameter

from pydl.models._registry import check_at_least, register
from pydl.nn import LSTM, Dropout, Embedding, Linear


class BidirectionalLM(Module):
    """Two language models, one a direction, which share the embedding and the output layer.

    Each layer but the first adds its input to what it puts out.
    """

    def __init__(self, vocab_size, hidden, layers, dropout):
        super().__init__()
        self.embedding, self.output = Embedding(vocab_size, hidden), Linear(hidden, vocab_size)
        self.ahead, self.back = (ModuleList(LSTM(hidden, hidden) for _ in range(layers)) for _ in range(2))
        self.dropout = Dropout(dropout)

    def _read(self, layers, x):
        """What each layer puts out of x (T, N, hidden): a list, the first of which is x."""
        found = [x]
        for number, layer in enumerate(layers):
            inputs = self.dropout(found[-1])
            outputs = layer(inputs)[0]
            found.append(outputs + inputs if number else outputs)
        return found

    def _both(self, tokens):
        """(ahead, back) as of :meth:`_read`, the latter still from the last token to the first."""
        x = self.embedding(tokens.T)  # time first
        return self._read(self.ahead, x), self._read(self.back, x.flip(0))

    def vectors(self, tokens):
        """(layers + 1, N, T, 2 · hidden) of tokens (N, T): the word itself twice, then both directions of each layer.

        Where the model reads ahead a token's vectors know the tokens before it, and those after it where it reads back.
        """
        ahead, back = self._both(tokens)
        found = [torch.cat([a, b.flip(0)], 2).transpose(0, 1) for a, b in zip(ahead, back, strict=True)]
        return torch.stack(found)

    def forward(self, tokens):
        """Logits (N, 2, T, V) of tokens (N, T): of the token after each, and of the one before it."""
        ahead, back = self._both(tokens)
        top = torch.stack([ahead[-1], back[-1].flip(0)]).permute(2, 0, 1, 3)
        return self.output(self.dropout(top))


class LayerMix(Module):
    """``scale * sum_j softmax(weights)_j * layer_j``: what a task makes of the layers, learnt with it.

    Source: Peters et al., NAACL 2018, equation 1.
    """

    def __init__(self, layers):
        super().__init__()
        self.weights, self.scale = Parameter(torch.zeros(layers)), Parameter(torch.ones(()))

    def forward(self, vectors):
        """(..., width) of vectors (layers, ..., width)."""
        return self.scale * torch.tensordot(self.weights.softmax(0), vectors, 1)


@register("contextual")
def elmo(vocab_size=2000, hidden=128, layers=2, dropout=0.5):
    """ELMo's language model: two stacks of LSTMs over words, one ahead and one back, with one embedding and one output.

    Smaller than the paper's (4096 units, projected to 512), and with an embedding of words in place of convolutions
    over their characters. ``pydl train elmo`` shows what its vectors know by pseudo-words: two words of the text are
    written as one, and a classifier on :class:`LayerMix` tells from the vectors which it was. The two meanings are made
    that way because the text has too few uses of words that have two by nature.

    Source: d2l section "Bidirectional Encoder Representations from Transformers (BERT)", ELMo; Peters, Neumann, Iyyer,
    Gardner, Clark, Lee and Zettlemoyer, "Deep Contextualized Word Representations", NAACL 2018.
    Input: (N, T). Output: (N, 2, T, 2000), or (N, 2, T, vocab_size).
    Parameters: 1,042,384.
    FLOPs: 1,048,576 a token in the LSTMs, 1,024,000 in the output layer.

    Raises:
        ValueError: for a size below 1, or a dropout that is no probability.
    """
    check_at_least("elmo", hidden=hidden, layers=layers)
    return BidirectionalLM(vocab_size, hidden, layers, dropout)
