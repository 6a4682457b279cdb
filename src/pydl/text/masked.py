"""BERT's examples: pairs of sentences that follow each other or not, with tokens masked; and rows of one sentence.

Source: d2l section "The Dataset for Pretraining BERT"; Devlin et al., "BERT: Pre-training of Deep Bidirectional
Transformers for Language Understanding", NAACL 2019, appendix A.
"""

import torch

SHARE = 0.15  # of the tokens of a row, at most, are predicted, but one at least
MASKED, KEPT = 0.8, 0.1  # of these; the rest become a random word
IGNORED = -100  # cross_entropy's own mark of what is not counted


def joined(first, second, longest, cls, sep):
    """(tokens, segments): ``<cls> first <sep> second <sep>``, the longer sentence cut until ``longest`` suffices.

    Without a second sentence (None) ``<cls> first <sep>``.
    """
    if second is None:
        tokens = [cls, *first[: longest - 2], sep]
        return tokens, [0] * len(tokens)
    first, second = list(first), list(second)
    while len(first) + len(second) > longest - 3:
        (first if len(first) > len(second) else second).pop()
    return [cls, *first, sep, *second, sep], [0] * (len(first) + 2) + [1] * (len(second) + 1)


def padded(rows, pad):
    """int64 (N, longest) of lists of numbers."""
    width = max(map(len, rows), default=0)
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows]).view(-1, width)


def masked(tokens, reserved, words, generator=None):
    """(tokens with some replaced, their places (N, P), what stood there (N, P)) of tokens (N, T).

    At most 15 % of a row's tokens are chosen (one where that is less than one), among words: 80 % become the mask, 10 %
    stay, 10 % become any word. A row with fewer than P has place 0 and -100 in the rest.

    Args:
        reserved: the numbers (pad, mask, cls, sep); words are those after ``sep``.
        words: how many numbers there are.
    """
    pad, mask, _, sep = reserved
    known = tokens > sep
    count = (SHARE * (tokens != pad).sum(1)).long().clamp_min(1).minimum(known.sum(1))
    scores = torch.rand(tokens.shape, generator=generator).masked_fill(~known, -1)
    places = scores.topk(max(1, int(count.max())), 1).indices
    chosen = torch.arange(places.shape[1]) < count.unsqueeze(1)
    answers = tokens.gather(1, places)
    kind = torch.rand(places.shape, generator=generator)
    other = torch.randint(sep + 1, words, places.shape, generator=generator)
    new = torch.where(kind < MASKED, mask, torch.where(kind < MASKED + KEPT, answers, other))
    replaced = tokens.scatter(1, places, torch.where(chosen, new, answers))
    return replaced, places.masked_fill(~chosen, 0), answers.masked_fill(~chosen, IGNORED)


class MaskedPairs:
    """Pairs of sentences: indexed by places (N,) it gives ((tokens, segments, lengths, places), (answers, follows)).

    ``follows`` (N,) is 0 where the second sentence followed the first, 1 where it is any; each pair is either, by
    chance. Of two sentences only those of one document, side by side, are a pair.

    Args:
        documents: lists of sentences, lists of word numbers.
        longest: tokens of a row.
        reserved: the numbers (pad, mask, cls, sep).
        words: how many numbers there are; words come after ``sep``.
    """

    def __init__(self, documents, longest, reserved, words, device="cpu"):
        self.sentences = [line for document in documents for line in document]
        ends, self.firsts = 0, []
        for document in documents:
            self.firsts += range(ends, ends + len(document) - 1)
            ends += len(document)
        self.longest, self.reserved, self.words = longest, reserved, words
        self.device = torch.device(device)

    def __len__(self):
        return len(self.firsts)

    def draw(self, generator=None):
        """Draws which sentences follow and what is masked."""
        pad, _, cls, sep = self.reserved
        firsts = torch.tensor(self.firsts)
        self.follows = torch.randint(2, (len(firsts),), generator=generator)
        other = torch.randint(len(self.sentences), (len(firsts),), generator=generator)
        seconds = torch.where(self.follows == 0, firsts + 1, other)
        rows = [
            joined(self.sentences[a], self.sentences[b], self.longest, cls, sep)
            for a, b in zip(firsts.tolist(), seconds.tolist(), strict=True)
        ]
        tokens, segments = (padded([row[i] for row in rows], fill) for i, fill in ((0, pad), (1, 0)))
        self.lengths = (tokens != pad).sum(1)
        tokens, places, answers = masked(tokens, self.reserved, self.words, generator)
        self.counts = (answers != IGNORED).sum(1)
        found = tokens, segments, self.lengths, places, answers, self.follows
        self._all = [part.to(self.device) for part in found]

    def __getitem__(self, indices):
        width, most = (int(sizes[indices.cpu()].max()) if len(indices) else 1 for sizes in (self.lengths, self.counts))
        parts = [part.index_select(0, indices.to(self.device)) for part in self._all]
        tokens, segments, lengths, places, answers, follows = parts
        inputs = tokens[:, :width], segments[:, :width], lengths, places[:, : max(1, most)]
        return inputs, (answers[:, : max(1, most)], follows)


class Labelled:
    """Sentences with classes: indexed by places (N,) it gives ((tokens, segments, lengths), targets).

    Args:
        sentences: lists of word numbers.
        targets: a class for each.
    """

    def __init__(self, sentences, targets, longest, reserved, device="cpu"):
        pad, _, cls, sep = reserved
        tokens = padded([joined(line, None, longest, cls, sep)[0] for line in sentences], pad)
        self.lengths, self.device = (tokens != pad).sum(1), torch.device(device)
        self.tokens, self.targets = tokens.to(device), torch.tensor(targets).to(device)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, indices):
        width = int(self.lengths[indices.cpu()].max()) if len(indices) else 1
        tokens = self.tokens.index_select(0, indices.to(self.device))[:, :width]
        inputs = tokens, torch.zeros_like(tokens), self.lengths[indices.cpu()].to(self.device)
        return inputs, self.targets.index_select(0, indices.to(self.device))
