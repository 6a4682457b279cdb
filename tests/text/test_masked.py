"""BERT's examples: rows of two sentences, masked tokens, and labelled sentences."""

import pytest
import torch

from pydl import data
from pydl.data.topics import GROUPS, SHORTEST
from pydl.errors import OptionError
from pydl.text.masked import IGNORED, Labelled, MaskedPairs, joined, masked

RESERVED = PAD, MASK, CLS, SEP = 1, 2, 3, 4


def test_joined():
    assert joined([5, 6], [7], 9, CLS, SEP) == ([CLS, 5, 6, SEP, 7, SEP], [0, 0, 0, 0, 1, 1])
    assert joined([5] * 9, [7, 8], 8, CLS, SEP) == ([CLS, 5, 5, 5, SEP, 7, 8, SEP], [0] * 5 + [1] * 3)
    assert joined([5] * 9, [7] * 9, 8, CLS, SEP)[0] == [CLS, 5, 5, 5, SEP, 7, 7, SEP]
    assert joined([5] * 9, None, 4, CLS, SEP) == ([CLS, 5, 5, SEP], [0] * 4)


def test_masked_shares():
    tokens = torch.randint(10, 1000, (2000, 40))
    tokens[:, 0], tokens[:, 20], tokens[:, 30:] = CLS, SEP, PAD
    tokens[:, 5] = 0  # <unk>
    replaced, places, answers = masked(tokens, RESERVED, 1000, torch.Generator().manual_seed(0))
    assert places.shape == (2000, 4)  # 15 % of 30 tokens, rounded down
    assert (answers != IGNORED).all()
    assert all(len(set(row)) == 4 for row in places.tolist())
    assert torch.equal(tokens.gather(1, places), answers)
    assert (answers >= 10).all()  # no <cls>, <sep>, <pad> or <unk>
    now = replaced.gather(1, places)
    shares = [(now == MASK).double().mean(), (now == answers).double().mean()]
    assert shares[0] == pytest.approx(0.8, abs=0.02)
    assert shares[1] == pytest.approx(0.1, abs=0.02)
    other = now[(now != MASK) & (now != answers)]
    assert other.min() >= 5
    assert len(other.unique()) > 300
    unchanged = torch.ones_like(tokens, dtype=torch.bool).scatter(1, places, False)
    assert torch.equal(replaced[unchanged], tokens[unchanged])


def test_short_rows_have_one_masked_token_or_none():
    tokens = torch.tensor([[CLS, 7, SEP, PAD, PAD], [CLS, 0, SEP, PAD, PAD]])
    replaced, places, answers = masked(tokens, RESERVED, 8)
    assert places.tolist() == [[1], [0]]
    assert answers.tolist() == [[7], [IGNORED]]
    assert replaced[1].tolist() == tokens[1].tolist()


def test_pairs_follow_or_not():
    documents = [[[10 * d + s, 10 * d + s] for s in range(1, 9)] for d in range(1, 40)]
    pairs = MaskedPairs(documents, 16, RESERVED, 1000)
    assert len(pairs) == 39 * 7
    pairs.draw(torch.Generator().manual_seed(0))
    (tokens, segments, lengths, places), (answers, follows) = pairs[torch.arange(len(pairs))]
    assert tokens.shape == segments.shape == (len(pairs), 7)
    assert (lengths == 7).all()
    whole = tokens.scatter(1, places, torch.where(answers == IGNORED, tokens.gather(1, places), answers))
    a, b = whole[:, 1], whole[:, 4]
    assert (b[follows == 0] == a[follows == 0] + 1).all()
    assert (b[follows == 1] != a[follows == 1] + 1).double().mean() > 0.95
    assert 0.4 < follows.double().mean() < 0.6
    assert segments[0].tolist() == [0, 0, 0, 0, 1, 1, 1]
    first = pairs._all
    pairs.draw(torch.Generator().manual_seed(0))
    assert all(torch.equal(x, y) for x, y in zip(first, pairs._all, strict=True))


def test_labelled_rows():
    rows = Labelled([[7, 8, 9], [5]], [1, 0], 4, RESERVED)
    (tokens, segments, lengths), targets = rows[torch.tensor([1, 0])]
    assert tokens.tolist() == [[CLS, 5, SEP, PAD], [CLS, 7, 8, SEP]]
    assert (lengths.tolist(), targets.tolist(), int(segments.sum())) == ([3, 4], [0, 1], 0)
    assert rows[torch.tensor([1])][0][0].shape == (1, 3)


def test_topics_are_of_six_groups_and_split_by_topic():
    found, whole = data.topics("prose", least=2), data.sentences("prose", least=2)
    assert found.classes == tuple(GROUPS)
    assert len(found.train) == 200
    assert found.classes[found.train[0][1]] == "classes"
    counts = torch.bincount(torch.tensor([k for _, k in found.train]))
    assert counts.min() >= 33
    assert all(len(words) >= SHORTEST for words, _ in found.train + found.test)
    for part, documents in ((found.train, whole.train), (found.test, whole.test)):
        group = {" ".join(line): topic for topic, lines in documents for line in lines}
        for words, k in part:
            assert group[" ".join(words)] in GROUPS[found.classes[k]].split()
    assert data.topics("prose", least=2, seed=1).train != found.train
    assert data.topics("prose", least=2, seed=1).test == found.test
    with pytest.raises(OptionError, match="--data: expected prose, whose topics have groups, got 'wiki'"):
        data.topics("wiki")
