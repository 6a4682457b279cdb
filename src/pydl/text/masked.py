"""BERT's examples: stretches of text that follow each other or not, with tokens masked; and rows of one sentence.

Source: d2l section "The Dataset for Pretraining BERT"; Devlin et al., "BERT: Pre-training of Deep Bidirectional
Transformers for Language Understanding", NAACL 2019, appendix A.
"""

import torch

SHARE = 0.15  # of the tokens of a row, at most, are predicted, but one at least
MASKED, KEPT = 0.8, 0.1  # of these; the rest become a random word
IGNORED = -100  # cross_entropy's own mark of what is not counted


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
    """Pairs of stretches of text.

    Indexed by places (N,) it gives ((tokens, segments, lengths, places), (answers, follows)). There is a pair for each
    place between two sentences of a document: what stands before it, and what follows (``follows`` (N,) is 0) or, by
    chance, what stands from a sentence of another document on (1; of the same document, where there is no other). Each
    stretch has half a row, and what the other one leaves.

    Source: Devlin et al., appendix A.2: "spans" of text, and a random one of the corpus. d2l joins single sentences.

    Args:
        documents: lists of sentences, lists of word numbers.
        longest: tokens of a row.
        reserved: the numbers (pad, mask, cls, sep).
        words: how many numbers there are; words come after ``sep``.
        collections: how many of the documents belong to each collection, in order: another document is one of the same
            collection, or two kinds of text would be told apart in place of what follows. Empty for one collection.
    """

    def __init__(self, documents, longest, reserved, words, device="cpu", collections=()):
        sizes = torch.tensor([len(document) for document in documents])
        ends = sizes.cumsum(0)
        starts = torch.tensor([0, *(len(line) for document in documents for line in document)]).cumsum(0)
        self.corpus = torch.tensor([word for document in documents for line in document for word in line])
        self.starts = starts[:-1]  # of sentences, in words
        self.document = torch.arange(len(sizes)).repeat_interleave(sizes)  # of a sentence
        # of documents: the first sentence and how many, the first word and the last one, of the collection likewise
        self.first, self.count, self.begin, self.end = ends - sizes, sizes, starts[ends - sizes], starts[ends]
        kinds = torch.tensor(collections or [len(sizes)])
        kind = torch.arange(len(kinds)).repeat_interleave(kinds)
        totals = torch.zeros_like(kinds).index_add(0, kind, sizes)
        self.kind_first, self.kind_count = (totals.cumsum(0) - totals)[kind], totals[kind]
        inside = torch.ones(len(self.starts), dtype=torch.bool)
        inside[self.first[sizes > 0]] = False
        self.seconds = inside.nonzero().squeeze(1)  # sentences that follow one
        self.longest, self.reserved, self.words = longest, reserved, words
        self.device = torch.device(device)

    def __len__(self):
        return len(self.seconds)

    def _elsewhere(self, documents, generator):
        """A sentence of another document for each of ``documents``."""
        first, count, total = self.first[documents], self.count[documents], self.kind_count[documents]
        count = torch.where(count == total, 0, count)
        share = torch.rand(len(documents), generator=generator, dtype=torch.float64)
        found = self.kind_first[documents] + (share * (total - count)).long()
        return torch.where(found < first, found, found + count)

    def draw(self, generator=None):
        """Draws which stretches follow and what is masked."""
        pad, _, cls, sep = self.reserved
        document = self.document[self.seconds]
        self.follows = torch.randint(2, (len(self),), generator=generator)
        second = torch.where(self.follows == 0, self.seconds, self._elsewhere(document, generator))
        end, begin = self.starts[self.seconds], self.starts[second]  # of the first stretch, of the second
        before, after, room = end - self.begin[document], self.end[self.document[second]] - begin, self.longest - 3
        a = before.minimum((room - after).clamp_min(room // 2))
        b = after.minimum(room - a)
        place = torch.arange(self.longest)
        a, b, end, begin = (each.unsqueeze(1) for each in (a, b, end, begin))
        text = torch.where(place <= a, end - a + place - 1, begin + place - a - 2)
        tokens = self.corpus[text.clamp(0, len(self.corpus) - 1)]
        tokens[:, 0] = cls
        tokens[(place == a + 1) | (place == a + b + 2)] = sep
        tokens[place > a + b + 2] = pad
        segments = ((place > a + 1) & (place <= a + b + 2)).long()
        self.lengths = (a + b + 3).squeeze(1)
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
        tokens = padded([[cls, *line[: longest - 2], sep] for line in sentences], pad)
        self.lengths, self.device = (tokens != pad).sum(1), torch.device(device)
        self.tokens, self.targets = tokens.to(device), torch.tensor(targets).to(device)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, indices):
        width = int(self.lengths[indices.cpu()].max()) if len(indices) else 1
        tokens = self.tokens.index_select(0, indices.to(self.device))[:, :width]
        inputs = tokens, torch.zeros_like(tokens), self.lengths[indices.cpu()].to(self.device)
        return inputs, self.targets.index_select(0, indices.to(self.device))
