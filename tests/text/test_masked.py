"""BERT's examples: rows of two sentences, masked tokens, and labelled sentences."""

import pytest
import torch

from pydl import data
from pydl.data.topics import GROUPS, SHORTEST
from pydl.errors import OptionError
from pydl.text.masked import IGNORED, Labelled, MaskedPairs, masked

RESERVED = PAD, MASK, CLS, SEP = 1, 2, 3, 4


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


def unmasked(pairs):
    """(tokens as they stood, segments, lengths, follows) of all pairs."""
    (tokens, segments, lengths, places), (answers, follows) = pairs[torch.arange(len(pairs))]
    stood = torch.where(answers == IGNORED, tokens.gather(1, places), answers)
    return tokens.scatter(1, places, stood), segments, lengths, follows


def test_pairs_by_hand():
    """Two documents of sentences of two words; rows of 9 tokens have room for 6 words, 3 to each side at least."""
    documents = [[[10, 11], [12, 13], [14, 15], [16, 17]], [[20, 21], [22, 23]]]
    pairs = MaskedPairs(documents, 9, RESERVED, 100)
    assert len(pairs) == 4
    following = {
        (CLS, 10, 11, SEP, 12, 13, 14, 15, SEP): 2,
        (CLS, 11, 12, 13, SEP, 14, 15, 16, SEP): 3,
        (CLS, 12, 13, 14, 15, SEP, 16, 17, SEP): 4,
        (CLS, 20, 21, SEP, 22, 23, SEP, PAD, PAD): 2,
    }
    elsewhere = {  # of the first document what stands before a sentence, and a sentence of the second; or turned round
        (CLS, 10, 11, SEP, 20, 21, 22, 23, SEP),
        (CLS, 10, 11, SEP, 22, 23, SEP, PAD, PAD),
        (CLS, 11, 12, 13, SEP, 20, 21, 22, SEP),
        (CLS, 10, 11, 12, 13, SEP, 22, 23, SEP),
        (CLS, 13, 14, 15, SEP, 20, 21, 22, SEP),
        (CLS, 12, 13, 14, 15, SEP, 22, 23, SEP),
        (CLS, 20, 21, SEP, 10, 11, 12, 13, SEP),
        (CLS, 20, 21, SEP, 12, 13, 14, 15, SEP),
        (CLS, 20, 21, SEP, 14, 15, 16, 17, SEP),
        (CLS, 20, 21, SEP, 16, 17, SEP, PAD, PAD),
    }
    found = set(), set()
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        pairs.draw(generator)
        tokens, segments, lengths, follows = unmasked(pairs)
        for row, kinds, length, other in zip(*(x.tolist() for x in (tokens, segments, lengths, follows)), strict=True):
            row += [PAD] * (9 - len(row))
            found[other].add(tuple(row))
            first = row.index(SEP) + 1
            assert kinds[:length] == [0] * first + [1] * (length - first)
            assert length == 9 - row.count(PAD)
    assert found == (set(following), elsewhere)


def test_pairs_are_either_by_chance_and_drawn_anew():
    documents = [[[10 * d + s, 10 * d + s] for s in range(1, 9)] for d in range(1, 40)]
    pairs = MaskedPairs(documents, 16, RESERVED, 1000)
    assert len(pairs) == 39 * 7
    pairs.draw(torch.Generator().manual_seed(0))
    follows = unmasked(pairs)[3]
    assert 0.4 < follows.double().mean() < 0.6
    first = pairs._all
    pairs.draw(torch.Generator().manual_seed(1))
    assert not torch.equal(pairs.follows, follows)
    pairs.draw(torch.Generator().manual_seed(0))
    assert all(torch.equal(x, y) for x, y in zip(first, pairs._all, strict=True))


@pytest.mark.parametrize("collections", [(), (20, 19)])
def test_what_does_not_follow_is_of_another_document_of_the_collection(collections):
    documents = [[[100 * d + s] for s in range(8)] for d in range(1, 40)]
    pairs = MaskedPairs(documents, 5, RESERVED, 5000, collections=collections)
    generator, met = torch.Generator().manual_seed(0), set()
    for _ in range(20):
        pairs.draw(generator)
        tokens, _, _, follows = unmasked(pairs)
        a, b = tokens[:, 1], tokens[:, 3]
        assert (b[follows == 0] == a[follows == 0] + 1).all()
        a, b = a[follows == 1] // 100, b[follows == 1] // 100
        assert (a != b).all()
        met |= set(((a > 20) != (b > 20)).tolist())
    assert met == ({False} if collections else {False, True})


def test_a_single_document_is_its_own_other():
    pairs = MaskedPairs([[[10 + s] for s in range(50)]], 5, RESERVED, 100)
    pairs.draw(torch.Generator().manual_seed(0))
    tokens, _, _, follows = unmasked(pairs)
    assert len(tokens[follows == 1, 3].unique()) > 10


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
    same = data.topics("documentation", least=2)
    assert (same.train, same.test) == (found.train, found.test)
    assert set(found.vocab.idx_to_token) < set(same.vocab.idx_to_token)
    with pytest.raises(OptionError, match="--data: expected prose or documentation, whose topics have groups, got"):
        data.topics("wiki")
