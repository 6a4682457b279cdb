"""Byte pair encoding: what it merges, how it cuts words, and that a text comes back."""

import itertools
import random
import sys

import pytest

from pydl.errors import MissingExtra
from pydl.text import BytePairEncoding, BytePairs, Tokenizer, letters, prose

BOOK = {"low": 5, "lower": 2, "newest": 6, "widest": 3}


def test_the_most_frequent_pair_is_merged_first():
    merges = BytePairEncoding.train(BOOK, 3).merges
    assert merges == [("e", "s"), ("es", "t"), ("est", "</w>")]
    merges = BytePairEncoding.train(BOOK, 100).merges
    assert merges[3:5] == [("l", "o"), ("lo", "w")]  # 7 times each, where n e has 6
    assert {a + b for a, b in merges} >= {"low</w>", "lower</w>", "newest</w>", "widest</w>"}


def test_one_word_is_compressed_until_no_pair_comes_twice():
    encoding = BytePairEncoding.train({"abbabyabya": 1}, 100)
    assert encoding.merges == [("a", "b"), ("ab", "y")]
    assert encoding.pieces == ["a", "b", "y", "</w>", "ab", "aby"]
    assert encoding.encode("abbabyabya") == ["ab", "b", "aby", "aby", "a", "</w>"]


def naive(counts, merges, least=2):
    """All pairs counted anew for each merge."""
    words, done = {word: [*word, "</w>"] for word in counts}, []
    for _ in range(merges):
        count = {}
        for word, pieces in words.items():
            for pair in itertools.pairwise(pieces):
                count[pair] = count.get(pair, 0) + counts[word]
        best = max(count, key=count.get, default=None)  # of equals the first
        if best is None or count[best] < least:
            break
        done.append(best)
        for pieces in words.values():
            place = 0
            while place < len(pieces) - 1:
                if (pieces[place], pieces[place + 1]) == best:
                    pieces[place : place + 2] = ["".join(best)]
                place += 1
    return done


@pytest.mark.parametrize("seed", range(20))
def test_merges_are_those_of_counting_anew(seed):
    draw = random.Random(seed)
    words = ("".join(draw.choice("abc") for _ in range(draw.randint(1, 9))) for _ in range(30))
    counts = {word: draw.randint(1, 5) for word in words}
    assert BytePairEncoding.train(counts, 40).merges == naive(counts, 40)


def test_longest_pieces_come_first():
    pieces = ["errrr</w>", "tain</w>", "moun", "est</w>", "high", "the</w>", "a</w>"]
    encoding = BytePairEncoding(pieces)
    assert encoding.encode("mountain highest the a") == ["moun", "tain</w>", "high", "est</w>", "the</w>", "a</w>"]
    assert encoding.encode("xyz") == ["<unk>"]
    assert encoding.encode("mounxtain") == ["moun", "<unk>", "tain</w>"]
    assert BytePairEncoding(["ab", "bcd", "a", "</w>"]).encode("abcd") == ["a", "bcd", "</w>"]  # not ab first


def test_decoding_joins_up_to_the_end_of_a_word():
    assert BytePairEncoding.decode(["moun", "tain</w>", "high", "est</w>"]) == "mountain highest"
    assert BytePairEncoding.decode(["moun"]) == "moun"
    assert BytePairEncoding.decode([]) == ""


@pytest.mark.parametrize("kind", ["bpe", "byte-bpe"])
def test_prose_comes_back(kind):
    text = " ".join(prose.sentences(prose.topics()["naming"]))
    tokenizer = Tokenizer.fit(kind, text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) < 0.5 * len(text)
    assert tokenizer.decode(tokenizer.encode("unheard of words")) == "unheard of words"
    again = Tokenizer(kind, tokenizer.vocab.idx_to_token, tokenizer.state)  # as from a checkpoint
    assert (again.state is None) == (kind == "bpe")  # of ours the pieces are enough
    assert again.encode(text) == tokenizer.encode(text)
    assert letters("A, b!") == "a b"


def test_bytes_give_every_text_back():
    text = prose.topics()["naming"]
    pairs = BytePairs.train(text, 300)
    assert pairs.pieces[0] == "<unk>"
    assert len(pairs.pieces) == 1 + 256 + 300 == len(set(pairs.pieces))
    for each in (text, "\n  two blanks, naïve ☃\t\r\n", "<unk>", ""):
        assert pairs.decode(pairs.encode(each)) == each
    assert len(pairs.encode(text)) < 0.5 * len(text)
    snowman = pairs.encode("☃")
    assert len(snowman) == 3
    assert pairs.decode(snowman[:2]) == "\ufffd"


def test_without_the_library_a_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtra, match=r"--tokens byte-bpe needs tokenizers, .*\[train\]"):
        Tokenizer.fit("byte-bpe", "text")
