"""Pairs of sentences: cleaning, numbers in words, padding and lengths, batches of a length, greedy and beam search."""

import itertools
import math

import pytest
import torch

from pydl import data
from pydl.errors import DataError, OptionError
from pydl.text import SentencePairs, beam_search, buckets, greedy, spaced
from pydl.text.pairs import BOS, EOS, PAD, is_held_out, vocabulary


def test_cleaning_is_the_books():
    assert spaced("Go.\tVa\u202f!") == "go .\tva !"
    assert spaced("Wait, what?") == "wait , what ?"
    assert spaced("") == ""


@pytest.mark.parametrize(
    "language, words",
    [
        (None, "deux cent quarante et un"),
        ("fr", "deux cent quarante et un"),
        ("de", "zwei hundert ein und vierzig"),
        ("es", "doscientos cuarenta y uno"),
    ],
)
def test_numbers(language, words, monkeypatch):
    from pydl.data import translation

    monkeypatch.setattr(translation, "LARGEST", 300)
    found = data.get("numbers", language=language, trained=1000, tested=1000)
    every = dict(found.train + found.test)
    assert len(every) == 301 == len(found.train) + len(found.test)
    assert every["two hundred and forty one"] == words
    assert not set(found.train) & set(found.test)
    assert 15 < len(found.test) < 45
    assert {word for pair in found.train for word in pair[1].split()} <= set(found.classes)
    assert found.classes[:4] == found.source[:4] == ("<unk>", "<pad>", "<bos>", "<eos>")


def test_numbers_are_drawn_alike_and_held_out_by_their_checksum():
    one, other = (data.get("numbers", trained=30, tested=10) for _ in range(2))
    assert one.train == other.train
    assert (len(one.train), len(one.test)) == (30, 10)
    more = data.get("numbers", trained=60, tested=20)
    assert more.train[:30] == one.train
    assert not set(more.train) & set(more.test)
    assert sum(is_held_out(str(n)) for n in range(100_000)) == pytest.approx(10_000, rel=0.02)
    with pytest.raises(OptionError, match="--language: expected one of fr, de, es, got 'it'"):
        data.get("numbers", language="it")


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_pairs_of_a_file(tmp_path):
    lines = [f"Word{n // 2}, go!\tVa{n} ! \tCC-BY {n}" for n in range(100)]
    path = write(tmp_path / "fra.txt", "\n".join(["", *lines, ""]))
    found = data.get("pairs", root=path)
    assert ("word0 , go !", "va0 !") in found.train + found.test
    assert len(found.train) + len(found.test) == 100
    # both translations of a source lie on one side
    assert not {source for source, _ in found.train} & {source for source, _ in found.test}
    assert "va0" not in found.classes  # it occurs once
    assert "!" in found.classes
    assert len(data.get("pairs", root=path, longest=4).train) == len(found.train)
    with pytest.raises(DataError, match="of at most 3 words to train on and a tenth to test on, got 0 and 0"):
        data.get("pairs", root=path, longest=3)


@pytest.mark.parametrize(
    "text, message",
    [
        ("go\tva\n\nrun cours\n", "expected a tab between two sentences, got none in line 3"),
        ("go\tva\nrun\t \n", "expected a sentence on both sides of the tab, got none in line 2"),
        (" \n", "expected sentence pairs, got an empty file"),
        ("go\tva\n", "expected sentence pairs to train on and a tenth to test on, got 1 and 0"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        data.get("pairs", root=write(tmp_path / "pairs.txt", text))
    (tmp_path / "bytes.txt").write_bytes(b"go\t\xff\n")
    with pytest.raises(DataError, match="expected text in UTF-8, got byte 0xff"):
        data.get("pairs", root=tmp_path / "bytes.txt")
    with pytest.raises(DataError, match="expected --root to be a file of sentence pairs, got '"):
        data.get("pairs", root=tmp_path)
    with pytest.raises(OptionError, match="--language: expected the data set numbers to take it, got pairs and 'fr'"):
        data.get("pairs", root=tmp_path / "bytes.txt", language="fr")


def test_padding_and_lengths():
    texts = [("a b c", "x"), ("a", "y x y"), ("b what", "x y")]
    source, target = (vocabulary([pair[side] for pair in texts]) for side in (0, 1))
    a, b, c, x, y = *source[["a", "b", "c"]], *target[["x", "y"]]
    every = SentencePairs(texts, source, target)
    (words, lengths, given), answer = every[torch.tensor([2, 1])]
    assert words.tolist() == [[b, source["what"], EOS], [a, EOS, PAD]]
    assert lengths.tolist() == [3, 2]
    assert given.tolist() == [[BOS, x, y, EOS], [BOS, y, x, y]]
    assert answer.tolist() == [[x, y, EOS, PAD], [y, x, y, EOS]]
    assert every.sizes.tolist() == [[4, 2, 3], [2, 4, 3]]
    assert (every[torch.tensor([0])][0][0].tolist(), len(every)) == ([[a, b, c, EOS]], 3)
    (words, lengths, given), answer = every[torch.empty(0, dtype=torch.int64)]  # a process's part of a short batch
    assert [t.shape[0] for t in (words, lengths, given, answer)] == [0] * 4
    assert SentencePairs([("q", "q")], source, target)[torch.tensor([0])][0][0].tolist() == [[0, EOS]]


def test_buckets():
    sizes = torch.randint(1, 20, (2, 1000))
    batches = buckets(sizes, 16, torch.Generator().manual_seed(1))
    assert torch.equal(torch.cat(batches).sort()[0], torch.arange(1000))
    assert sorted(map(len, batches))[1:] == [16] * 62
    spread = [int(sizes[0, batch].max() - sizes[0, batch].min()) for batch in batches]
    assert sum(spread) / len(spread) < 3
    first = [int(sizes[0, batch].min()) for batch in batches]
    assert first != sorted(first)
    fewer = buckets(sizes, 16, torch.Generator().manual_seed(1), least=9)  # the last one of 8 joins another
    assert sorted(map(len, fewer)) == [16] * 61 + [24]
    again = buckets(sizes, 16, torch.Generator().manual_seed(1))
    assert all(map(torch.equal, batches, again))
    assert not torch.equal(torch.cat(batches), torch.cat(buckets(sizes, 16, torch.Generator().manual_seed(2))))


class Table:
    """A translator whose next word depends on the last one and the place alone, by a table of logits."""

    def __init__(self, logits):
        self.logits = logits  # (places, last word, next word)

    def begin(self, source, lengths):
        return torch.zeros(len(source), dtype=torch.int64)

    def decode(self, target, state):
        return self.logits[state, target[:, 0]].unsqueeze(1), state + 1, None

    def take(self, state, rows):
        return state[rows]


def best(logits, longest):
    """The best sentence of all, by trying every one."""
    scores = {}
    allowed = logits.clone()
    allowed[..., :EOS] = -math.inf
    chances = allowed.log_softmax(-1)
    words = range(EOS + 1, logits.shape[-1])
    for length in range(longest + 1):
        for row in itertools.product(words, repeat=length):
            whole = [*row, EOS][:longest]
            total = sum(chances[i, a, b].item() for i, (a, b) in enumerate(zip([BOS, *whole], whole, strict=False)))
            scores[row] = total / len(whole) ** 0.75
    return list(max(scores, key=scores.get))


@pytest.mark.parametrize("seed", range(8))
def test_a_beam_as_wide_as_all_sentences_finds_the_best(seed):
    logits = 2 * torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)).double()
    model, source, lengths = Table(logits), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    assert beam_search(model, source, lengths, 4, 5**4) == best(logits, 4)
    assert beam_search(model, source, lengths, 4, 1) == greedy(model, source, lengths, 4)[0]


def test_greedy_stops_at_the_end_and_writes_no_marks():
    logits = torch.zeros(6, 6, 6)
    logits[..., :EOS] = 9  # <unk>, <pad> and <bos> are never written
    logits[:2, :, 4] = 3
    logits[2, :, EOS] = 3
    logits[3:, :, 5] = 3  # after the end nothing counts
    source, lengths = torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, dtype=torch.int64)
    assert greedy(Table(logits), source, lengths, 6) == [[4, 4]] * 2
    assert greedy(Table(logits), source, lengths, 1) == [[4]] * 2
    assert greedy(Table(logits), source, lengths, 0) == [[]] * 2
