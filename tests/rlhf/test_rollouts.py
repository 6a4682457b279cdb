"""Prompts, what is written after them, the rules that judge it, and files of pairs."""

import pytest
import torch

from pydl import models
from pydl.rlhf import RULES, Preference, Prompts, log_probs, make_rule, ranked, read_pairs, rollout, write_pairs
from pydl.text import Tokenizer, continued

SMALL = {"vocab_size": 7, "hidden": 16, "layers": 2, "heads": 4, "positions": 24, "dropout": 0.0}
TEXT = "the value of a name is the object that it is bound to and the name itself is no object at all"


def net():
    torch.manual_seed(0)
    model = models.get("gpt", **SMALL).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def written(model, lengths, length, end=None, seed=0):
    prompts = torch.randint(1, 7, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(5))
    lengths = torch.tensor(lengths)
    prompts[torch.arange(prompts.shape[1]) >= lengths.unsqueeze(1)] = 0
    return prompts, rollout(model, prompts, lengths, length, end, torch.Generator().manual_seed(seed))


def test_rows_keep_their_prompts_and_write_as_much_each():
    prompts, found = written(net(), [2, 5, 3], 6)
    assert found.tokens.shape == (3, 11)
    assert found.lengths.tolist() == [8, 11, 9]
    for row, length in enumerate([2, 5, 3]):
        assert torch.equal(found.tokens[row, :length], prompts[row, :length])
        assert (found.tokens[row, length : length + 6] > 0).all()  # <unk> is never written
        assert (found.tokens[row, length + 6 :] == 0).all()
    assert found.mask.sum(1).tolist() == [6, 6, 6]
    assert found[torch.tensor([1])].tokens.tolist() == found.tokens[1:2].tolist()


def test_the_cache_writes_what_the_whole_window_would():
    """With logits so sharp that chance has no say, each token is the likeliest by a model that reads all anew."""
    model = net()

    def sharp(tokens, state):
        logits, state = model(tokens, state)
        return 1e4 * logits, state

    sharp.training = False
    prompts, found = written(sharp, [2, 4], 8)
    for row, length in enumerate([2, 4]):
        expected = continued(model, prompts[row, :length].tolist(), 8, temperature=0)
        assert found.tokens[row, length : length + 8].tolist() == expected


def test_draws_follow_the_models_distribution():
    model, count = net(), 4000
    prompts = torch.tensor([[3, 1]]).expand(count, -1)
    found = rollout(model, prompts, torch.full((count,), 2), 1, generator=torch.Generator().manual_seed(1))
    shares = found.tokens[:, 2].bincount(minlength=7)[1:].double() / count
    mask = torch.tensor([[False, False, True]])
    expected = [log_probs(model, torch.tensor([[3, 1, n]]), mask)[0, 2].exp().item() for n in range(1, 7)]
    assert sum(expected) == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(shares, torch.tensor(expected).double(), rtol=0, atol=4 * 0.5 / count**0.5)


def test_a_response_ends_with_its_end():
    _, endless = written(net(), [2, 4, 3, 2], 15)
    end = endless.tokens[endless.mask].mode().values.item()  # what it writes most
    _, found = written(net(), [2, 4, 3, 2], 15, end)
    ended = 0
    for row, (first, length) in enumerate(zip([2, 4, 3, 2], found.lengths.tolist(), strict=True)):
        response = found.tokens[row, first:length].tolist()
        assert end not in response[:-1]
        assert response[-1] == end or length == first + 15
        assert (found.tokens[row, length:] == 0).all()
        ended += response[-1] == end
    assert ended >= 2
    assert found.tokens.shape[1] == found.lengths.max()


@pytest.mark.parametrize("kind, tokens", [("letters", None), ("word", None)])
def test_prompts_are_whole_words_out_of_the_text(kind, tokens):
    tokenizer = Tokenizer.fit(kind, f"{TEXT} {TEXT} once")
    corpus = torch.tensor(tokenizer.encode(f"{TEXT} once {TEXT}"))
    prompts = Prompts(corpus, tokenizer.vocab, 12 if kind == "letters" else 3)
    assert len(prompts) > 20
    rows, lengths = prompts[torch.arange(len(prompts))]
    for row, length in zip(rows.tolist(), lengths.tolist(), strict=True):
        text = tokenizer.decode(row[:length])
        assert text.strip() in f"{TEXT} once {TEXT}"
        assert set(row[length:]) <= {0}
        assert 0 not in row[:length]
        if kind == "letters":
            assert text.endswith(" ")
            assert set(text.split()) <= {*TEXT.split(), "once"}
            assert 4 <= length <= 12
        else:
            assert length == 3
            assert "once" not in text  # which occurs once, and is unknown


@pytest.mark.parametrize(
    "name, response, value",
    [
        ("known", "the object zzz na", 3 / 4),  # the last one may still become a word
        ("known", "the object zzz na ", 2 / 4),
        ("known", "", 0.0),
        ("long", "the object is", 4.5),  # the last one may not have ended
        ("long", "the object is ", 11 / 3),
        ("long", "representa", 10.0),
        ("sentiment", "an error is invalid but simple ", -1.0),
        ("sentiment", "a valid simple use", 2.0),
    ],
)
def test_rules(name, response, value):
    assert make_rule(name, TEXT)(response) == pytest.approx(value)
    assert set(RULES) == {"known", "long", "sentiment"}


def test_ranked_takes_the_best_and_the_worst_of_each_prompt():
    prompts = ["a ", "a ", "a ", "b ", "b ", "b "]
    responses = ["xx", "x", "xxx", "same", "same", "same"]
    assert ranked(prompts, responses, len, 3) == [Preference("a ", "xxx", "x")]


def test_doubt_turns_pairs_round_as_often_as_it_says():
    count = 2000
    responses = ["x", "xxx"] * count  # 2 apart, and 1 is their standard deviation
    found = ranked(["a "] * 2 * count, responses, len, 2, 1.5, torch.Generator().manual_seed(0))
    wrong = sum(pair.better == "x" for pair in found) / count
    assert wrong == pytest.approx(1 / (1 + 2.718281828 ** (2 / 1.5)), abs=0.03)


def test_a_file_of_pairs_comes_back(tmp_path):
    pairs = [Preference("the ", "value", "vaule"), Preference('a "', "b", "c d")]
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    assert read_pairs(tmp_path / "pairs.jsonl") == pairs
