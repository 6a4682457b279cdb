"""Words with the words around them, and noise words, as word2vec learns from them.

Source: d2l section "The Dataset for Pretraining Word Embeddings"; Mikolov, Sutskever, Chen, Corrado and Dean,
"Distributed Representations of Words and Phrases and their Compositionality", NeurIPS 2013, section 2.
"""

import torch

POWER = 0.75  # noise words are drawn by their frequency to this power


def subsampled(numbers, counts, rate, generator=None):
    """Where to keep the words ``numbers`` (N,): one of frequency f stays with probability sqrt(rate / f), at most 1.

    Args:
        counts: (V,) how often each word occurs in the text.
        rate: a word of this frequency or less always stays; 0 keeps all.
        generator: of the random numbers; torch's own if None.

    Returns:
        bool (N,).
    """
    chances = torch.rand(len(numbers), generator=generator)
    if rate == 0:
        return torch.ones(len(numbers), dtype=torch.bool)
    frequency = counts[numbers] / counts.sum()
    return chances < (rate / frequency).sqrt()


def contexts(numbers, sentence, window, pad, generator=None):
    """(N, 2 · window): the words before and after each, as far as a window of its own reaches; ``pad`` elsewhere.

    The windows' sizes are drawn from 1 to ``window`` alike, and end with the sentence.

    Args:
        numbers: (N,) words in their order.
        sentence: (N,) the number of the sentence that each is in.
    """
    size = torch.randint(1, window + 1, (len(numbers), 1), generator=generator)
    away = torch.cat([torch.arange(-window, 0), torch.arange(1, window + 1)])
    places = torch.arange(len(numbers)).unsqueeze(1) + away
    inside = (places >= 0) & (places < len(numbers)) & (away.abs() <= size)
    places = places.clamp(0, max(0, len(numbers) - 1))
    inside &= sentence[places] == sentence.unsqueeze(1)
    return torch.where(inside, numbers[places], pad)


class Noise:
    """Noise words: drawn by their frequencies to the power 3/4.

    Args:
        counts: (V,) how often each word occurs; a word with 0 is never drawn.
    """

    def __init__(self, counts):
        self._ends = counts.double().pow(POWER).cumsum(0)
        self._last = int(counts.nonzero()[-1])

    def __call__(self, shape, generator=None):
        """int64 of ``shape``."""
        chances = torch.rand(shape, dtype=torch.float64, generator=generator) * self._ends[-1]
        return torch.searchsorted(self._ends, chances, right=True).clamp_max(self._last)


class ContextWords:
    """Examples of word2vec: indexed by places (N,) it gives ((inputs, candidates), targets).

    ``skipgram``: inputs (N, 1) are centres, candidates (N, 2 · window · (1 + negatives)) the words around each, then
    noise words for each of these. ``cbow``: inputs (N, 2 · window) are the words around, candidates (N, 1 + negatives)
    the centre, then noise words. Targets are 1 for a word of the text, 0 for a noise word, -1 where ``pad`` stands. A
    noise word that is one of the text's words in that place counts as ``pad``.

    Args:
        numbers: list of sentences, lists of word numbers.
        counts: (V,) of the text that is trained on.
        pad: the number of a word that occurs nowhere.
        around: whether words around are the inputs (cbow), and not what is predicted (skipgram).
    """

    def __init__(self, numbers, counts, window, negatives, rate, pad, around, device="cpu"):
        self.numbers = torch.tensor([number for line in numbers for number in line], dtype=torch.int64)
        self.sentence = torch.arange(len(numbers)).repeat_interleave(torch.tensor([len(line) for line in numbers]))
        self.counts, self.window, self.negatives, self.rate = counts, window, negatives, rate
        self.pad, self.around, self.device = pad, around, torch.device(device)
        self.noise = Noise(counts)

    def __len__(self):
        return len(self.numbers)

    def draw(self, generator=None):
        """Draws the words that are kept, their windows and their noise; returns how many examples there are."""
        kept = subsampled(self.numbers, self.counts, self.rate, generator)
        centres = self.numbers[kept]
        found = contexts(centres, self.sentence[kept], self.window, self.pad, generator)
        some = (found != self.pad).any(1)
        centres, found = centres[some].unsqueeze(1), found[some]
        right, inputs = (centres, found) if self.around else (found, centres)
        noise = self.noise((len(right), right.shape[1], self.negatives), generator)
        clash = (noise.unsqueeze(3) == right[:, None, None]).any(3) | (right == self.pad).unsqueeze(2)
        noise = noise.masked_fill(clash, self.pad).flatten(1)
        targets = torch.cat([torch.ones_like(right), torch.zeros_like(noise)], 1)
        candidates = torch.cat([right, noise], 1)
        targets = targets.masked_fill(candidates == self.pad, -1).float()
        self.sizes = (targets >= 0).sum(1)
        self._all = [part.to(self.device) for part in (inputs, candidates, targets)]
        return len(inputs)

    def __getitem__(self, indices):
        inputs, candidates, targets = (part.index_select(0, indices.to(self.device)) for part in self._all)
        return (inputs, candidates), targets
