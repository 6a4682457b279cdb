"""Tokens of texts: prose, files, vocabularies, windows, continuations."""

import bz2
import importlib.util
import itertools
import math
import sys
import types

import pytest
import torch

from pydl import data
from pydl.errors import DataError, MissingExtra, OptionError
from pydl.text import Tokenizer, Windows, continued, perplexity, prose, random_starts, sequential_starts


def test_prose_has_the_books_28_tokens_and_says_nothing_twice():
    found = data.get("prose")
    assert found.kind == "text"
    assert sorted(found.classes) == sorted(["<unk>", " ", *"abcdefghijklmnopqrstuvwxyz"])
    assert 0.03 < len(found.test) / len(found.train) < 0.3
    assert len(found.train) > 100_000
    assert not (found.test == 0).any()
    again = data.get("prose")
    assert torch.equal(found.train, again.train)


def test_a_sentence_stays_once_and_the_test_part_is_whole_topics():
    said = "Topic {} says this. All say this.\n\nAll say\nthis! {}q? 1"
    many = {f"topic {i}": said.format(chr(i), chr(i)) for i in range(97, 117)}
    train, test = prose.split(many)
    both = f"{train} {test}"
    assert both.count("all say this") == 1
    assert "all say this" in test
    for i in range(97, 117):
        own = f"topic {i:c} says this", f"{i:c}q"
        assert both.count(own[0]) == 1
        assert (own[0] in test) == (own[1] in test)  # a topic is not cut
    assert 1 <= test.count("says this") <= 2  # a tenth


@pytest.mark.parametrize("names", [("ptb.train.txt", "ptb.test.txt"), ("wiki.train.tokens", "wiki.valid.tokens")])
def test_a_test_file_beside_the_text_is_its_test_part(tmp_path, names):
    (tmp_path / names[0]).write_text("a b a <unk> c a b\n")
    (tmp_path / names[1]).write_text("b a c\n")
    found = data.get("text", tmp_path / names[0], tokens="word")
    assert found.classes == ("<unk>", "a", "b")  # c comes once
    assert found.train.tolist() == [1, 2, 1, 0, 0, 1, 2]
    assert found.test.tolist() == [2, 1, 0]


def test_without_a_test_file_the_last_tenth_of_the_lines_is_it(tmp_path):
    path = tmp_path / "novel.txt"
    path.write_text("".join(f"Line {i}, é\n" for i in range(10, 30)), encoding="utf-8")
    found = data.get("text", path, tokens="char")
    assert found.tokenizer.decode(found.test.tolist()) == "Line 28, é\nLine 29, é\n"
    found = data.get("text", path)  # small letters and blanks
    assert found.tokenizer.decode(found.train.tolist()[:9]) == "line line"
    path.write_text("abcdefghij" * 5)  # one line
    assert data.get("text", path).test.numel() == 5


def test_files_that_are_no_text_are_refused_in_a_sentence(tmp_path):
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary"
    empty.write_text(" \n")
    binary.write_bytes(b"abc\xff\xfe")
    for path, message in (
        (tmp_path, "data set 'text': expected --root to be a file of text, got '.*'"),
        (empty, r"empty.txt: expected text, got an empty file"),
        (binary, r"binary: expected text in UTF-8, got byte 0xff"),
    ):
        with pytest.raises(DataError, match=message):
            data.get("text", path)


def test_what_is_typed_must_be_in_the_vocabulary():
    for kind, text, typed, lacks in (
        ("letters", "the time machine", "time!", "'!'"),
        ("char", "the time", "Time", "'T'"),
        ("word", "the time the time", "the hour", "'hour'"),
        ("word", "the time the time", "<unk>", "'<unk>'"),
        ("bpe", "the time the time", "the hour", "a piece"),
    ):
        tokenizer = Tokenizer.fit(kind, text)
        with pytest.raises(
            OptionError, match=f"PREFIX: expected tokens .* of kind {kind}.*, got {lacks} that it lacks"
        ):
            tokenizer.encode_known(typed)
        with pytest.raises(OptionError, match="PREFIX: expected at least one token, got none"):
            tokenizer.encode_known("")
        assert tokenizer.decode(tokenizer.encode_known("the time")) == "the time"
    assert Tokenizer.fit("letters", "ab").encode_known("AB") == [1, 2]


@pytest.mark.parametrize("starts", [random_starts, sequential_starts])
@pytest.mark.parametrize(
    "length, batch_size, num_steps", [(101, 4, 5), (44, 4, 5), (41, 4, 5), (35, 2, 5), (12, 4, 3), (3, 2, 5)]
)
def test_windows_do_not_overlap_and_end_before_the_text(starts, length, batch_size, num_steps):
    generator = torch.Generator().manual_seed(1)
    windows, seen, last = Windows(torch.arange(length), num_steps), [], None
    batches = starts(length, batch_size, num_steps, generator)
    assert (len(batches) > 0) == (length > 20)
    for batch in batches:
        X, Y = windows[batch]
        assert X.shape == (batch_size, num_steps)
        assert torch.equal(X + 1, Y)
        seen += X.flatten().tolist()
        if starts is sequential_starts and last is not None:
            assert torch.equal(X[:, 0], last)
        last = Y[:, -1]
    assert len(seen) == len(set(seen))
    again = starts(length, batch_size, num_steps, generator.manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))
    assert {len(starts(length, batch_size, num_steps, generator)) for _ in range(40)} == {len(batches)}


class Successor(torch.nn.Module):
    """After n comes n + 1 with logit 3, 0 (unknown) with logit 9, the rest with 0; it counts its tokens."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, tokens, state=None):
        logits = 3 * torch.nn.functional.one_hot((tokens + 1) % 10, 10).float() * self.weight
        logits[..., 0] = 9
        return logits, (0 if state is None else state) + tokens.shape[1]


def test_continuations():
    model = Successor()
    assert continued(model, [3, 4], 4, temperature=0) == [5, 6, 7, 8]
    assert continued(model, [4], 4, top_k=1) == [5, 6, 7, 8]
    assert continued(model, [4], 4, temperature=1e-3) == [5, 6, 7, 8]
    generator = torch.Generator()
    drawn = continued(model, [4], 200, generator=generator.manual_seed(0))
    assert drawn == continued(model, [4], 200, generator=generator.manual_seed(0))
    assert drawn != continued(model, [4], 200, generator=generator.manual_seed(1))
    assert set(drawn) == set(range(1, 10))  # never <unk>
    follows = sum(b == a + 1 for a, b in itertools.pairwise(drawn)) / 199
    assert follows == pytest.approx(math.e**3 / (math.e**3 + 8), abs=0.12)
    for top_p, most in ((0.6, 1), (0.72, 2), (0.76, 3)):  # 0.715 for the successor, 0.036 for each other
        some = set(itertools.pairwise(continued(model, [4], 300, generator=generator, top_p=top_p)))
        assert max(sum((a, b) in some for b in range(10)) for a in range(5, 9)) == most
        assert {(a, a + 1) for a in range(5, 9)} <= some
    few = set(itertools.pairwise(continued(model, [4], 300, top_k=2, generator=generator)))
    assert all(1 <= sum((a, b) in few for b in range(10)) <= 2 for a, _ in few)
    assert {(a, a + 1) for a in range(5, 9)} <= few


def test_perplexity():
    assert perplexity(math.log(28)) == pytest.approx(28)
    assert perplexity(1e4) == math.inf


PAGE = "<page><title>{0}</title><ns>{1}</ns><id>{2}</id><revision><id>1</id><text>{3}</text></revision></page>"
MEDIAWIKI = "http://www.mediawiki.org/xml/export-0.4/"


def test_wiki_is_gensims_sample(monkeypatch, tmp_path):
    """Of a gensim with a small sample; where it is not installed, of a parser that gives that sample's pages."""
    pages = [("Aa", "Aa is a [[river]]. All rivers flow."), ("Ab", "#REDIRECT [[Aa]]")]
    pages += [(f"River {i:c}", f"River {i:c} is wide. All rivers flow.") for i in range(97, 117)]
    sample = tmp_path / "sample.xml.bz2"
    xml = "".join(PAGE.format(title, 0, i, text) for i, (title, text) in enumerate(pages))
    sample.write_bytes(bz2.compress(f'<mediawiki xmlns="{MEDIAWIKI}">{xml}</mediawiki>'.encode()))
    if importlib.util.find_spec("gensim") is None:
        parser, where = types.ModuleType("gensim.corpora.wikicorpus"), types.ModuleType("gensim.test.utils")
        parser.extract_pages = lambda file, filter_namespaces: [(*page, "1") for page in pages if file.read(1)]
        parser.filter_wiki = lambda text: text.replace("[[", "").replace("]]", "")
        for name in ("gensim", "gensim.corpora", "gensim.test"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setitem(sys.modules, "gensim.corpora.wikicorpus", parser)
        monkeypatch.setitem(sys.modules, "gensim.test.utils", where)
    else:
        where = importlib.import_module("gensim.test.utils")
    monkeypatch.setattr(where, "datapath", lambda name: str(sample), raising=False)
    found = data.get("wiki")
    both = " ".join(found.tokenizer.decode(part.tolist()) for part in (found.train, found.test))
    assert "aa is a river" in both
    assert both.count("all rivers flow") == 1
    assert "redirect" not in both
    assert 0 < len(found.test) < len(found.train) / 3
    sample.unlink()
    with pytest.raises(DataError, match="the sample of gensim cannot be read: No such file"):
        data.get("wiki")
    monkeypatch.setitem(sys.modules, "gensim.corpora.wikicorpus", None)
    with pytest.raises(MissingExtra, match=r"data set 'wiki' needs gensim, .*\[wiki\]"):
        data.get("wiki")
