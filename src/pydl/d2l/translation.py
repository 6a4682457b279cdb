"""Pairs of sentences in two languages: cleaning, tokens, batches, and the score BLEU."""

import collections
import math

import torch

from pydl.d2l import spelling
from pydl.d2l.images import folders, say_once
from pydl.d2l.objects import DataModule
from pydl.d2l.regression import load_array
from pydl.d2l.text import Vocab
from pydl.text.pairs import spaced

FILES = ("fra.txt", "fra-eng/fra.txt")


def read_data_nmt():
    """Lines "english<tab>french" as one text.

    They are those of ``fra.txt`` (or ``fra-eng/fra.txt``) where it is in the folder that ``PYDL_DATA`` names, ``data``
    or ``../data``; else the numbers from 0 to 9,999 in words, in a random order that is always the same.
    """
    found = (folder / name for folder in folders() for name in FILES)
    path = next((path for path in found if path.is_file()), None)
    if path is not None:
        return path.read_text(encoding="utf-8")
    say_once(
        f"d2l: no {FILES[0]} in "
        + ", ".join(map(str, folders()))
        + ": the sentences are numbers in English and French."
    )
    return spelling.pairs()


def preprocess_nmt(text):
    """Small letters, plain blanks, and a blank before each mark ``, . ! ?``."""
    return spaced(text)


def tokenize_nmt(text, num_examples=None):
    """(source, target): lists of words for the first ``num_examples`` lines, or for all."""
    lines = text.split("\n")[:num_examples]
    parts = [line.split("\t") for line in lines]
    parts = [part for part in parts if len(part) >= 2]  # a line of Tatoeba's has a third: whose it is
    return tuple([part[side].split(" ") for part in parts] for side in (0, 1))


def truncate_pad(line, num_steps, padding_token):
    """The first ``num_steps`` of a list, filled up to as many."""
    return line[:num_steps] + [padding_token] * (num_steps - len(line))


def build_array_nmt(lines, vocab, num_steps):
    """(array, valid_len): numbers (N, num_steps) of sentences with ``<eos>``, and how many of a row are no padding."""
    lines = [[*vocab[line], vocab["<eos>"]] for line in lines]
    array = torch.tensor([truncate_pad(line, num_steps, vocab["<pad>"]) for line in lines])
    return array, (array != vocab["<pad>"]).sum(1)


def load_data_nmt(batch_size, num_steps, num_examples=600):
    """(batches, source vocabulary, target vocabulary) of the first ``num_examples`` pairs.

    A batch is (source, its valid lengths, target, its valid lengths); words that occur once are unknown.
    """
    sentences = tokenize_nmt(preprocess_nmt(read_data_nmt()), num_examples)
    vocabs = [Vocab(lines, min_freq=2, reserved_tokens=["<pad>", "<bos>", "<eos>"]) for lines in sentences]
    arrays = [
        array
        for lines, vocab in zip(sentences, vocabs, strict=True)
        for array in build_array_nmt(lines, vocab, num_steps)
    ]
    return load_array(arrays, batch_size), *vocabs


class MTFraEng(DataModule):
    """Pairs of sentences: the first ``num_train`` of :func:`read_data_nmt`'s, then ``num_val``.

    Words that occur once among them are unknown; a sentence ends in ``<eos>``, and has ``num_steps`` words.

    Attributes:
        arrays: (source, target from ``<bos>`` on, valid lengths of the source, target one word further).
        src_vocab, tgt_vocab: the vocabularies.
    """

    def __init__(self, batch_size, num_steps=9, num_train=512, num_val=128):
        super().__init__()
        self.save_hyperparameters()
        self.arrays, self.src_vocab, self.tgt_vocab = self._build_arrays(self._download())

    def _download(self):
        """The lines as one text; nothing is downloaded."""
        return read_data_nmt()

    def _preprocess(self, text):
        return preprocess_nmt(text)

    def _tokenize(self, text, max_examples=None):
        """(source, target): lists of words with ``<eos>``."""
        return tuple(
            [[word for word in words if word] + ["<eos>"] for words in side]
            for side in tokenize_nmt(text, max_examples)
        )

    def _build_arrays(self, raw_text, src_vocab=None, tgt_vocab=None):
        found = []
        sides = self._tokenize(self._preprocess(raw_text), self.num_train + self.num_val)
        for lines, vocab in zip(sides, (src_vocab, tgt_vocab), strict=True):
            lines = [truncate_pad(line, self.num_steps, "<pad>") for line in lines]
            vocab = Vocab(lines, min_freq=2, reserved_tokens=["<pad>", "<bos>", "<eos>"]) if vocab is None else vocab
            found.append((torch.tensor(vocab[lines]), vocab))
        (source, src_vocab), (target, tgt_vocab) = found
        before = torch.cat((torch.full_like(target[:, :1], tgt_vocab["<bos>"]), target[:, :-1]), dim=1)
        return (source, before, (source != src_vocab["<pad>"]).sum(1), target), src_vocab, tgt_vocab

    def build(self, src_sentences, tgt_sentences):
        """Arrays as ``arrays`` of these sentences, by the vocabularies that there are."""
        pairs = zip(src_sentences, tgt_sentences, strict=True)
        return self._build_arrays("\n".join("\t".join(pair) for pair in pairs), self.src_vocab, self.tgt_vocab)[0]

    def get_dataloader(self, train):
        """A loader of one of both parts."""
        return self.get_tensorloader(
            self.arrays, train, slice(0, self.num_train) if train else slice(self.num_train, None)
        )


def bleu(pred_seq, label_seq, k):
    """BLEU of a sentence: ``exp(min(0, 1 - |label| / |pred|)) Π pₙ^(½ⁿ)`` for n = 1 … k.

    pₙ is the share of the prediction's sequences of n words that are in the label, each there counted once.

    Args:
        pred_seq, label_seq: sentences, words between blanks.
        k: the longest sequences; of a prediction that has none of them, the score is 0.

    Source: d2l section on sequence to sequence learning; Papineni et al., ACL 2002.
    """
    predicted, label = pred_seq.split(), label_seq.split()
    if len(predicted) < max(k, 1):
        return 0.0
    score = math.exp(min(0.0, 1 - len(label) / len(predicted)))
    for n in range(1, k + 1):
        ours, theirs = (
            collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
            for words in (predicted, label)
        )
        score *= ((ours & theirs).total() / ours.total()) ** 0.5**n
    return score
