"""Pseudo-words: which words are paired, where they stand, and the text as it is written with them."""

import torch

from pydl import data
from pydl.text import pseudo_words
from pydl.text.windows import BothWays


def lines(**counts):
    return [[word] * count for word, count in counts.items()]


def test_pairs_are_of_two_parts_of_speech_and_of_one_rank():
    train = lines(name=100, value=130, type=130, list=99, object=500, used=110, that=300, will=100, cat=900)
    test = lines(name=20, value=20, type=33, list=40, object=19, used=20, that=40, will=20, cat=90)
    # list is too rare, object too rare in the test, cat is not listed; type and value have one count
    assert pseudo_words.chosen(train, test) == [("type", "that"), ("value", "used"), ("name", "will")]
    assert pseudo_words.chosen(train, lines(name=20, used=20)) == [("name", "used")]
    assert pseudo_words.chosen(train, lines(name=20)) == []


def test_occurrences_are_numbered_and_evenly_taken():
    words = ["b", "a", "x", "a", "b", "c", "a", "d", "a", "a", "a"]
    pairs = [("a", "b"), ("d", "c")]
    places, numbers, meanings = pseudo_words.occurrences(words, pairs)
    assert places.tolist() == [1, 3, 6, 8, 9, 10, 0, 4, 7, 5]
    assert numbers.tolist() == [0] * 8 + [1] * 2
    assert meanings.tolist() == [0] * 6 + [1, 1, 0, 1]
    places, _, _ = pseudo_words.occurrences(words, pairs, most=3)
    assert places.tolist() == [1, 6, 9, 0, 4, 7, 5]
    assert [part.shape for part in pseudo_words.occurrences(words, [])] == [(0,)] * 3


def test_prose_with_pseudo_words():
    whole = data.sentences("prose", least=2)
    dataset = data.with_pseudo_words(whole, least=2)
    flat = [[word for _, part in side for line in part for word in line] for side in (dataset.train, dataset.test)]
    assert len(dataset.pairs) >= 8
    for pair in dataset.pairs:
        one, other = dataset.numbers(list(pair))
        assert one == other == dataset.vocab["/".join(pair)] > 4
        assert not any(word in dataset.vocab for word in pair)
        assert all(flat[0].count(word) >= 100 and flat[1].count(word) >= 20 for word in pair)
    assert dataset.numbers(["the", "<sep>"]) == [dataset.vocab["the"], 4]
    places, _, _ = pseudo_words.occurrences(flat[1], dataset.pairs, 20)
    assert len(places) == 40 * len(dataset.pairs)


def test_windows_both_ways():
    windows = BothWays(torch.arange(10, 30), 4)
    x, y = windows[torch.tensor([0, 14])]
    assert x.tolist() == [[11, 12, 13, 14], [25, 26, 27, 28]]
    assert y.tolist() == [[[12, 13, 14, 15], [10, 11, 12, 13]], [[26, 27, 28, 29], [24, 25, 26, 27]]]
