"""Batches of neighbouring tokens, as places in a corpus where the windows of each batch begin."""

import torch


def random_starts(length, batch_size, num_steps, generator=None):
    """Places of windows in random order: a list of int64 tensors (batch_size,).

    They begin at a random one of the first ``num_steps`` tokens; no two windows overlap. There are as many batches
    wherever they begin, so that the epochs of a training are of one length.

    Args:
        length: tokens of the corpus.
        num_steps: tokens of a window; its targets end one token further.
        generator: of the random numbers; torch's own if None.

    Source: d2l section "Language Models", partitioning sequences.
    """
    offset = _below(num_steps, generator)
    count = (length - offset - 1) // num_steps
    fewest = max(0, (length - num_steps) // num_steps // batch_size)  # at the last of these tokens
    if fewest == 0:
        return []
    starts = offset + torch.randperm(count, generator=generator) * num_steps
    return list(starts[: fewest * batch_size].view(-1, batch_size))


def sequential_starts(length, batch_size, num_steps, generator=None):
    """As :func:`random_starts`, but a row of a batch goes on where that row of the batch before ended.

    A state that a model carries from one batch to the next then is that of the tokens before.
    """
    offset = _below(num_steps, generator)
    row = (length - offset - 1) // batch_size
    rows = offset + torch.arange(batch_size) * row
    fewest = (length - num_steps) // batch_size // num_steps
    return [rows + start for start in range(0, fewest * num_steps, num_steps)]


def _below(count, generator):
    return int(torch.randint(count, (), generator=generator))


class Windows:
    """Windows of a corpus: indexed by places (N,) it gives (X, Y), each (N, num_steps), Y one token further.

    Attributes:
        corpus: int64 tensor of token numbers.
    """

    def __init__(self, corpus, num_steps, device="cpu"):
        self.corpus, self.num_steps, self.device = corpus.to(device), num_steps, torch.device(device)

    def __len__(self):
        return len(self.corpus)

    def __getitem__(self, starts):
        places = starts.to(self.device).unsqueeze(1) + torch.arange(self.num_steps, device=self.device)
        return self.corpus[places], self.corpus[places + 1]


class BothWays(Windows):
    """As :class:`Windows` for texts that are read both ways: Y (N, 2, num_steps) is the token after and the one before.

    X begins one token after its place, so that the first one has a token before it.
    """

    def __getitem__(self, starts):
        places = starts.to(self.device).unsqueeze(1) + torch.arange(self.num_steps + 2, device=self.device)
        rows = self.corpus[places]
        return rows[:, 1:-1], torch.stack([rows[:, 2:], rows[:, :-2]], 1)
