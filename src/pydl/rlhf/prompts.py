"""Beginnings of sentences out of a text, for a language model to go on from."""

import torch

SHORTEST = 1 / 3  # of the longest prompt


class Prompts:
    """Prompts out of a corpus: indexed by places (N,) it gives (tokens (N, longest), lengths (N,)).

    Where the vocabulary has a blank, a prompt is of whole words, ends in a blank and is from a third of ``longest`` to
    ``longest`` tokens long; elsewhere each is ``longest`` tokens. None has an unknown token; rows are padded with 0.

    Args:
        corpus: int64 tensor of token numbers.
        vocab: a :class:`pydl.text.Vocab`.
        longest: tokens.
    """

    def __init__(self, corpus, vocab, longest, device="cpu"):
        self.corpus, self.longest, self.device = corpus.cpu(), longest, torch.device(device)
        if " " in vocab:
            blanks = (self.corpus == vocab[" "]).nonzero().squeeze(1)
            last = torch.searchsorted(blanks, blanks + longest, right=True) - 1  # the last blank that each reaches to
            starts, lengths = blanks + 1, blanks[last] - blanks
        else:
            starts = torch.arange(len(corpus) - longest + 1)
            lengths = torch.full_like(starts, longest)
        unknown = torch.cat([torch.zeros(1, dtype=torch.int64), (self.corpus == 0).cumsum(0)])  # before each place
        fits = (lengths >= max(1.0, SHORTEST * longest)) & (unknown[starts + lengths] == unknown[starts])
        self.starts, self.lengths = starts[fits], lengths[fits]

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, indices):
        indices = indices.cpu()
        lengths, places = self.lengths[indices], torch.arange(self.longest)
        at = (self.starts[indices].unsqueeze(1) + places).clamp_max(len(self.corpus) - 1)
        tokens = torch.where(places < lengths.unsqueeze(1), self.corpus[at], 0)
        return tokens[:, : int(lengths.max())].to(self.device), lengths.to(self.device)
