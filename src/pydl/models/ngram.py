"""The language models from before recurrent nets: interpolated counts, and a window of embedded tokens."""

import torch
from torch.nn import Module, Parameter

from pydl.models._registry import check_at_least, register
from pydl.nn import Embedding, Linear, Tanh

HELD = 10  # the last tenth of the text is not counted: the weights are learnt on it


class NGram(Module):
    """Mixes the relative frequencies of a token after its last 0, 1, … order - 1 tokens, and 1/V for every token.

    The counts are taken by :meth:`count`; the weights of the mixture are the only parameters. Contexts of an order
    that were never counted leave their weight to the others.
    """

    def __init__(self, vocab_size, order):
        super().__init__()
        if vocab_size**order >= 2**63:
            raise ValueError(f"ngram: expected at most {int(2 ** (63 / order)):,} tokens, got {vocab_size:,}")
        self.vocab_size, self.order = vocab_size, order
        self.weights = Parameter(torch.zeros(order + 1))
        self.count(torch.empty(0, dtype=torch.int64))

    def count(self, tokens):
        """Counts all but the last tenth of ``tokens``, int64 (N,); returns that tenth, for the weights."""
        counted = tokens[: len(tokens) - len(tokens) // HELD]
        for k in range(self.order):
            keys = torch.zeros(max(0, len(counted) - k), dtype=torch.int64, device=tokens.device)
            for i in range(k + 1):  # the number of an n-gram, its digits the tokens
                keys = keys * self.vocab_size + counted[i : len(counted) - k + i]
            grams, counts = keys.unique(return_counts=True)  # sorted: those of a context lie side by side
            contexts, sizes = (grams // self.vocab_size).unique_consecutive(return_counts=True)
            ends = sizes.cumsum(0)
            self._keep(k, contexts=contexts, ends=ends, tokens=grams % self.vocab_size, counts=counts)
        return tokens[len(counted) :]

    def make_room(self, state):
        """Takes the sizes of the counts in ``state``, so that it can be loaded."""
        for k in range(self.order):
            names = [name for name in ("contexts", "ends", "tokens", "counts") if f"{name}{k}" in state]
            self._keep(k, **{name: torch.zeros_like(state[f"{name}{k}"]) for name in names})

    def _keep(self, k, **tables):
        for name, table in tables.items():
            self.register_buffer(f"{name}{k}", table)

    def _frequencies(self, k, contexts):
        """(P, V) relative frequencies after each of ``contexts`` (P,), zeros after one that was never counted."""
        known, ends, tokens, counts = (getattr(self, f"{name}{k}") for name in ("contexts", "ends", "tokens", "counts"))
        out = torch.zeros(len(contexts), self.vocab_size, device=contexts.device)
        if not len(known):
            return out
        places = torch.searchsorted(known, contexts).clamp_max(len(known) - 1)
        begins = torch.where(places > 0, ends[places - 1], 0)
        sizes = torch.where(known[places] == contexts, ends[places] - begins, 0)
        rows = torch.arange(len(contexts), device=contexts.device).repeat_interleave(sizes)
        before = sizes.cumsum(0) - sizes
        cells = begins[rows] + torch.arange(len(rows), device=rows.device) - before[rows]
        out[rows, tokens[cells]] = counts[cells].float()
        return out / out.sum(1, keepdim=True).clamp_min(1)

    def forward(self, tokens, state=None):
        """(logarithms of probabilities (N, T, V), the last tokens (N, order - 1)) of tokens (N, T)."""
        rows, before = len(tokens), self.order - 1
        state = tokens.new_full((rows, before), -1) if state is None else state  # -1: nothing stands there
        whole = torch.cat([state, tokens], 1)
        weights, logits, total = self.weights.exp(), 0.0, 0.0
        for k in range(self.order):
            contexts = torch.zeros_like(tokens)
            for i in range(before - k + 1, before + 1):
                here = whole[:, i : i + tokens.shape[1]]
                contexts = torch.where((contexts < 0) | (here < 0), -1, contexts * self.vocab_size + here)
            frequencies = self._frequencies(k, contexts.flatten())
            weight = weights[k] * (frequencies.sum(1, keepdim=True) > 0)
            logits, total = logits + weight * frequencies, total + weight
        logits = (logits + weights[-1] / self.vocab_size) / (total + weights[-1])
        return logits.log().view(rows, -1, self.vocab_size), whole[:, whole.shape[1] - before :]


@register("language")
def ngram(vocab_size=28, order=4):
    """Interpolated counts of 1 to 4 tokens: the statistical language model.

    Source: d2l section "Language Models"; Jelinek and Mercer, "Interpolated estimation of Markov source parameters from
    sparse data", 1980, for weights learnt on text that is not counted.
    Input: (N, T). Output: (N, T, 28), or (N, T, vocab_size), and the state.
    Parameters: 5.
    FLOPs: 0 a token in affine layers: it looks up.

    Raises:
        ValueError: for an order below 1, or too many tokens for it.
    """
    check_at_least("ngram", order=order)
    return NGram(vocab_size, order)


class WindowLM(Module):
    """Embeds the last ``window`` tokens, side by side, to a tanh layer, to the vocabulary."""

    def __init__(self, vocab_size, window, embedding, hidden):
        super().__init__()
        self.window = window
        self.embedding = Embedding(vocab_size, embedding)
        self.hidden = Linear(window * embedding, hidden)
        self.activation = Tanh()
        self.output = Linear(hidden, vocab_size)

    def forward(self, tokens, state=None):
        """(logits (N, T, V), the last tokens (N, window - 1)) of tokens (N, T); before the first stands ``<unk>``."""
        state = tokens.new_zeros(len(tokens), self.window - 1) if state is None else state
        whole = torch.cat([state, tokens], 1)
        windows = self.embedding(whole.unfold(1, self.window, 1)).flatten(2)  # (N, T, window · embedding)
        return self.output(self.activation(self.hidden(windows))), whole[:, whole.shape[1] - self.window + 1 :]


@register("language")
def nnlm(vocab_size=28, window=8, embedding=32, hidden=256):
    """The neural language model: embeddings of a window of tokens, one tanh layer.

    Source: Bengio, Ducharme, Vincent and Jauvin, "A Neural Probabilistic Language Model", JMLR 2003, without the direct
    connections.
    Input: (N, T). Output: (N, T, 28), or (N, T, vocab_size), and the state.
    Parameters: 73,884.
    FLOPs: 145,408 a token.

    Raises:
        ValueError: for a size below 1.
    """
    check_at_least("nnlm", window=window, embedding=embedding, hidden=hidden)
    return WindowLM(vocab_size, window, embedding, hidden)
