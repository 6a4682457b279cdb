"""Word vectors: a word and the words around it are told from noise by the product of their vectors."""

import torch
from torch.nn import Module, init

from pydl import functional
from pydl.models._registry import check_at_least, register
from pydl.nn import Embedding, EmbeddingBag

PAD = 1  # the number that stands where no word is


class WordVectors(Module):
    """Two vectors of each word: one as what is seen, one as what is predicted.

    Attributes:
        inputs: the vectors of what is seen, of which the mean is taken; these are the words' vectors.
        outputs: the vectors of what is predicted.
        window, negatives, rate: of the examples it is trained on; see :class:`pydl.text.ContextWords`.
        around: whether it sees the words around (cbow), or the one in the middle.
    """

    def __init__(self, vocab_size, width, window, negatives, rate, sparse, around):
        super().__init__()
        self.window, self.negatives, self.rate, self.around = window, negatives, rate, around
        self.inputs = EmbeddingBag(vocab_size, width, mode="mean", padding_idx=PAD, sparse=sparse)
        self.outputs = Embedding(vocab_size, width, padding_idx=PAD, sparse=sparse)
        with torch.no_grad():  # word2vec's own beginnings
            init.uniform_(self.inputs.weight, -0.5 / width, 0.5 / width)
            init.zeros_(self.outputs.weight)
            self.inputs.weight[PAD] = 0

    def forward(self, inputs, candidates):
        """Logits (N, C) that each of the candidates (N, C) stands with the inputs (N, I), whose vectors' mean counts.

        A candidate or an input ``PAD`` is none.
        """
        seen = self.inputs(inputs)
        return functional.bmm(self.outputs(candidates), seen.unsqueeze(2)).squeeze(2)


def _build(name, vocab_size, width, window, negatives, rate, sparse, around):
    check_at_least(name, width=width, window=window, negatives=negatives)
    if not 0 <= rate < 1:
        raise ValueError(f"{name}: expected rate to be from 0 to below 1, got {rate}")
    return WordVectors(vocab_size, width, window, negatives, rate, bool(sparse), around)


@register("vectors")
def skipgram(vocab_size=1000, width=100, window=5, negatives=5, rate=1e-3, sparse=0):
    """word2vec's skip-gram: a word predicts each of the words around it, beside ``negatives`` noise words for each.

    ``rate`` is the frequency from which on words are left out at random; ``sparse=1`` makes gradients sparse.

    Source: d2l section "Word Embedding (word2vec)"; Mikolov et al., NeurIPS 2013.
    Input: (N, 1), (N, C). Output: (N, C).
    Parameters: 200,000.
    FLOPs: 0 in affine layers; 2 · width a candidate.

    Raises:
        ValueError: for a size below 1, or a rate that is none.
    """
    return _build("skipgram", vocab_size, width, window, negatives, rate, sparse, False)


@register("vectors")
def cbow(vocab_size=1000, width=100, window=5, negatives=5, rate=1e-3, sparse=0):
    """word2vec's continuous bag of words: the mean of the words around predicts the one between them.

    Options as of :func:`skipgram`.

    Source: d2l section "Word Embedding (word2vec)"; Mikolov, Chen, Corrado and Dean, "Efficient Estimation of Word
    Representations in Vector Space", ICLR 2013.
    Input: (N, I), (N, C). Output: (N, C).
    Parameters: 200,000.
    FLOPs: 0 in affine layers; 2 · width a candidate.

    Raises:
        ValueError: for a size below 1, or a rate that is none.
    """
    return _build("cbow", vocab_size, width, window, negatives, rate, sparse, True)
