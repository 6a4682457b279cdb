"""Pairs of sentences as token numbers: cleaning, padding with valid lengths, and batches of sentences of a length."""

import zlib

import torch

from pydl.text.vocabulary import Vocab

RESERVED = ("<pad>", "<bos>", "<eos>")
PAD, BOS, EOS = 1, 2, 3  # their numbers: 0 is <unk>
POOL = 32  # batches whose sentences are sorted by length together


def spaced(text):
    """Small letters, plain blanks, and a blank before each mark ``, . ! ?``.

    Source: d2l section "Machine Translation and the Dataset".

    >>> text.spaced("Go now!")
    'go now !'
    """
    text = text.replace("\u202f", " ").replace("\xa0", " ").lower()
    marks = set(",.!?")
    before = (" " + text)[:-1]
    return "".join(f" {c}" if c in marks and b != " " else c for b, c in zip(before, text, strict=True))


def is_held_out(text):
    """Whether ``text`` is of the tenth, by a checksum, that is tested on and never trained on."""
    return zlib.crc32(text.encode()) % 10 == 0


def vocabulary(sentences, min_freq=0):
    """The :class:`pydl.text.Vocab` of sentences, words between blanks, with ``<pad>``, ``<bos>`` and ``<eos>``."""
    return Vocab([word for sentence in sentences for word in sentence.split()], min_freq, RESERVED)


class SentencePairs:
    """Pairs of sentences: indexed by numbers (N,) it gives ((source, lengths, target), answer).

    ``source`` (N, S) ends in ``<eos>`` and is padded to the longest of the batch, ``lengths`` (N,) are its valid
    lengths; ``target`` (N, T) begins with ``<bos>``, and ``answer`` (N, T) is one word further, to ``<eos>``.

    Args:
        texts: list of (source, target), words between blanks.
        source_vocab, target_vocab: of :func:`pydl.text.pairs.vocabulary`.

    Attributes:
        sizes: (2, pairs) int64 on the CPU, the valid lengths of both sides with ``<eos>``.
    """

    def __init__(self, texts, source_vocab, target_vocab, device="cpu"):
        self.texts, self.device = texts, torch.device(device)
        sides = [
            [vocab[text[side].split()] for text in texts] for side, vocab in ((0, source_vocab), (1, target_vocab))
        ]
        self.sizes = torch.tensor([[len(words) + 1 for words in side] for side in sides]).view(2, -1)
        self.source = _padded(sides[0], ()).to(device)
        self.target = _padded(sides[1], (BOS,)).to(device)
        self.lengths = self.sizes[0].to(device)

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, indices):
        here = indices.cpu()
        longest, steps = (int(sizes[here].max()) if len(here) else 1 for sizes in self.sizes)
        source, target = self.source[indices, :longest], self.target[indices, : steps + 1]
        return (source, self.lengths[indices], target[:, :-1]), target[:, 1:]


def _padded(lines, begin):
    width = max(map(len, lines), default=0) + len(begin) + 1
    rows = [[*begin, *line, EOS] for line in lines]
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows]).view(-1, width)


def buckets(sizes, batch_size, generator=None, least=1):
    """Batches of indices in random order, each of sentences of about a length.

    The order is random; within so many batches together the pairs are sorted by their lengths and cut into batches.

    Args:
        sizes: (sides, N) lengths; the first side is sorted by first.
        generator: of the random numbers; torch's own if None.
        least: a last batch of fewer joins the one before.
    """
    order = torch.randperm(sizes.shape[1], generator=generator)
    batches = []
    for pool in order.split(POOL * batch_size):
        for side in reversed(sizes):  # a stable sort by the last key first
            pool = pool[side[pool].argsort(stable=True)]
        batches += pool.split(batch_size)
    if len(batches) > 1 and len(batches[-1]) < least:
        batches[-2:] = [torch.cat(batches[-2:])]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
