"""word2vec's examples: which words stay, their windows, noise words; and neighbours among vectors."""

import math

import pytest
import torch

from pydl import data
from pydl.errors import OptionError
from pydl.text import ContextWords, Noise, contexts, subsampled
from pydl.text.word_pairs import PAIRS, found, neighbours
from pydl.training.word_map import principal


def test_frequent_words_are_left_out_by_their_frequency():
    counts = torch.tensor([0, 900_000, 90_000, 100])
    numbers = torch.repeat_interleave(torch.arange(1, 4), 50_000)
    kept = subsampled(numbers, counts, 1e-3, torch.Generator().manual_seed(0)).view(3, -1).double().mean(1)
    for share, count in zip(kept.tolist(), counts[1:].tolist(), strict=True):
        assert share == pytest.approx(min(1, math.sqrt(1e-3 / (count / 990_100))), abs=0.01)
    assert subsampled(numbers, counts, 0).all()


def test_contexts_end_with_the_window_and_the_sentence():
    numbers, sentence = torch.arange(10, 18), torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
    sizes = set()
    for seed in range(50):
        rows = contexts(numbers, sentence, 3, 1, torch.Generator().manual_seed(seed))
        assert rows.shape == (8, 6)
        for place, row in enumerate(rows.tolist()):
            around = {n for n in row if n != 1}
            size = max(abs(n - 10 - place) for n in around)
            inside = range(0, 5) if place < 5 else range(5, 8)
            assert around == {10 + p for p in inside if 0 < abs(p - place) <= size}
            sizes.add(size)
    assert sizes == {1, 2, 3}


def test_noise_is_by_the_power_of_three_quarters():
    counts = torch.tensor([0, 0, 16, 81, 0, 1, 0])
    drawn = Noise(counts)((100_000,), torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=7) / 100_000
    torch.testing.assert_close(shares, torch.tensor([0, 0, 8, 27, 0, 1, 0]) / 36, rtol=0, atol=0.01)


@pytest.mark.parametrize("around", [False, True])
def test_examples(around):
    lines = [[5, 6, 7, 8], [9, 5], [6, 9, 7]]
    counts = torch.tensor([0, 0, 0, 0, 0, 2, 2, 2, 1, 2])
    words = ContextWords(lines, counts, 2, 3, 0, 1, around)
    count = words.draw(torch.Generator().manual_seed(0))
    assert count == len(words) == 9
    (inputs, candidates), targets = words[torch.arange(9)]
    assert inputs.shape == (9, 4 if around else 1)
    assert candidates.shape == targets.shape == (9, 4 if around else 16)
    real = candidates[:, : 1 if around else 4]
    assert torch.equal(targets == -1, candidates == 1)
    assert (targets[:, : real.shape[1]] != 0).all()
    assert (targets[:, real.shape[1] :] != 1).all()
    assert (candidates[targets == 0] >= 5).all()
    for row, right in zip(candidates[:, real.shape[1] :], real, strict=True):  # noise is none of the text's words
        assert not set(row.tolist()) & set(right.tolist()) - {1}
    centres, found = (real, inputs) if around else (inputs, real)
    assert centres[:, 0].tolist() == [5, 6, 7, 8, 9, 5, 6, 9, 7]
    assert set(found[4].tolist()) == {1, 5}
    assert words.sizes.tolist() == (targets >= 0).sum(1).tolist()
    again = ContextWords(lines, counts, 2, 3, 0, 1, around)
    again.draw(torch.Generator().manual_seed(0))
    assert torch.equal(again[torch.arange(9)][0][1], candidates)


def test_neighbours_by_hand():
    vectors = torch.tensor([[1.0, 0], [1, 0.1], [2, 0], [0, 3], [0.1, 1], [-1, 0]])
    numbers, cosines = neighbours(vectors, 2, 2, 1)  # number 0 is no word
    assert numbers == [1, 4]
    assert cosines == pytest.approx([1 / 1.01**0.5, 0.1 / 1.01**0.5])
    assert len(neighbours(vectors, 2, 10, 1)[0]) == 4

    class Vocabulary(dict):
        pass

    vocab = Vocabulary(a=1, b=2, c=3, d=4, e=5)
    assert found(vectors, vocab, [("a", "b"), ("c", "d"), ("a", "e"), ("a", "unheard")], 1, count=1) == (2 / 3, 3)
    assert found(vectors, vocab, [], 1) == (0, 0)


def test_the_listed_pairs_are_forty_of_proses():
    vocab = data.sentences("prose", least=5).vocab
    assert len(PAIRS) == len({frozenset(pair) for pair in PAIRS}) == 40
    assert sum(all(word in vocab for word in pair) for pair in PAIRS) >= 36  # Python's versions differ


def test_principal_directions():
    torch.manual_seed(0)
    plane = torch.randn(50, 2, dtype=torch.float64) * torch.tensor([5.0, 1.0])
    turned, _ = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64))
    places, shares = principal(plane @ turned[:2] + 3)
    torch.testing.assert_close(torch.cdist(places, places), torch.cdist(plane, plane))
    assert shares.sum().item() == pytest.approx(1)
    assert shares[0] > 0.9


def test_sentences_of_texts(tmp_path):
    prose = data.sentences("prose", least=2)
    assert {name for name, _ in prose.train}.isdisjoint(name for name, _ in prose.test)
    lines = [" ".join(line) for part in (prose.train, prose.test) for _, lines in part for line in lines]
    assert len(lines) == len(set(lines))
    assert prose.classes[:5] == ("<unk>", "<pad>", "<mask>", "<cls>", "<sep>")
    (tmp_path / "some.txt").write_text("One, two. Three two one!\n" * 20)
    own = data.sentences("text", tmp_path / "some.txt")
    assert own.train[0][1][:2] == [["one", "two"], ["three", "two", "one"]]
    with pytest.raises(OptionError, match="a text, prose, documentation, wiki or text, got 'digits'"):
        data.sentences("digits")
