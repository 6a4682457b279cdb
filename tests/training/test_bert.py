"""pydl train bert and bert_classifier: pretraining, BERT's own names, fine-tuning, pydl predict of sentences."""

import os
import statistics

import bert_torch
import pytest
import torch
from runs import (  # noqa: F401  (fixtures)
    assert_same_state,
    command_line,
    no_pictures,
    numbers,
    one_thread,
    pictures,
    run,
)

from pydl import models, train
from pydl.errors import CheckpointError, OptionError
from pydl.text.masked import IGNORED
from pydl.training import weights
from pydl.training.config import Config

SMALL = {"hidden": 16, "dropout": 0.0}


def small(novel, **options):
    options = {"options": {**SMALL, **options.pop("options", {})}, **options}
    return {"data": "text", "root": novel, "batch_size": 16, **options}


def documented(name, label):
    lines = models.builder(name).__doc__.splitlines()
    return next(line.split(":")[1].split()[0].strip(".,") for line in lines if line.strip().startswith(label))


@pytest.mark.parametrize("name", ["bert", "bert_classifier"])
def test_parameters_and_flops_are_those_of_the_docstring(name):
    net = models.get(name)
    assert f"{sum(p.numel() for p in net.parameters()):,}" == documented(name, "Parameters")
    layers = sum(p.numel() for key, p in net.named_parameters() if p.dim() == 2 and ".layer." in key)
    assert f"{2 * layers:,}" == documented(name, "FLOPs")
    if name == "bert":
        head = net.cls.predictions.transform.dense.weight.numel() + net.bert.embeddings.word_embeddings.weight.numel()
        assert f"{2 * head:,} a masked token" in models.builder(name).__doc__


def published(layers=2, heads=2):
    state = bert_torch.published(30, 8, layers, 12)
    net = models.get("bert", vocab_size=30, hidden=8, layers=layers, heads=heads, positions=12)
    return state, net


@pytest.mark.parametrize("form", ["published", "old names", "body alone"])
def test_published_weights_give_berts_outputs(tmp_path, form):
    state, net = published()
    file = state
    if form == "old names":  # of TensorFlow's layer norms
        change = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        file = {}
        for name, tensor in state.items():
            for ours, theirs in change.items():
                name = name.replace(ours, theirs)
            file[name] = tensor
    if form == "body alone":
        net = models.get("bert_classifier", vocab_size=30, hidden=8, positions=12)
        file = {name.removeprefix("bert."): tensor for name, tensor in state.items() if name.startswith("bert.")}
    torch.save(file, tmp_path / "weights.pt")
    weights.load(net, tmp_path / "weights.pt")
    net.eval()
    tokens, segments = torch.randint(0, 30, (3, 11)), torch.tensor([[0] * 5 + [1] * 6]).expand(3, -1)
    lengths, places = torch.tensor([11, 7, 1]), torch.tensor([[3, 10, 0], [6, 1, 2], [0, 0, 0]])
    if form == "body alone":
        _, pooled = net.bert(tokens, segments, lengths)
        expected = bert_torch.outputs(state, 2, tokens, segments, lengths)[1]
        follows = torch.nn.functional.linear(
            pooled, state["cls.seq_relationship.weight"], state["cls.seq_relationship.bias"]
        )
        torch.testing.assert_close(follows, expected)
        return
    logits, follows = net(tokens, segments, lengths, places)
    words, expected = bert_torch.outputs(state, 2, tokens, segments, lengths)
    torch.testing.assert_close(follows, expected, rtol=1e-4, atol=1e-4)
    at = words.gather(1, places.unsqueeze(2).expand(-1, -1, 30))
    torch.testing.assert_close(logits, at, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="bert: expected at most 12 tokens, one a position, got 13"):
        net(torch.zeros(1, 13, dtype=torch.int64), torch.zeros(1, 13, dtype=torch.int64), lengths[:1], places[:1])


def test_weights_that_do_not_fit(tmp_path):
    state, net = published()
    state.pop("bert.pooler.dense.bias")
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"do not fit the model: it lacks bert\.pooler\.dense\.bias"):
        weights.load(net, tmp_path / "weights.pt")


@pytest.mark.parametrize("model", ["bert", "bert_classifier"])
def test_twenty_steps_agree_with_torchs(model, novel):
    options = small(novel, optimizer="sgd", lr=0.1, schedule="constant", clip=1.0)
    if model == "bert_classifier":
        options = {**options, "data": "prose", "options": SMALL}
    ours, torchs = train.learners(Config(model, **options).resolved(), ["cpu", "torch"])
    assert ours.backend == "cpu"
    for one in (ours, torchs):
        one.run(min(20, one.epoch_steps))
        one.end_epoch() if one.step_in_epoch == one.epoch_steps else None
        one.run(20 - one.step)
    assert ours.step == 20
    for p, q in zip(ours.model.parameters(), torchs.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    assert ours.evaluate()[0] == pytest.approx(torchs.evaluate()[0], rel=1e-5)


def test_losses_are_means_over_masked_words_and_pairs(novel):
    options = small(novel, optimizer="sgd", accumulate=3)
    one, whole = (
        train.learners(Config("bert", **{**options, "accumulate": a}).resolved(), ["torch"])[0] for a in (3, 1)
    )
    (inputs, (answers, follows)), model = one.train[one._batches[0]], one.model
    logits, pairs = model(*inputs)
    counted = answers != IGNORED
    words = torch.nn.functional.cross_entropy(logits[counted].double(), answers[counted])
    expected = words + torch.nn.functional.cross_entropy(pairs.double(), follows)
    one.run(1), whole.run(1)
    assert one._losses[0].item() == pytest.approx(expected.item(), rel=1e-5)
    assert whole._losses[0].item() == pytest.approx(expected.item(), rel=1e-5)
    for p, q in zip(one.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    total, _ = one.evaluate()
    scores = one.scores()
    assert total == pytest.approx(scores["masked_loss"] + scores["pair_loss"])
    assert 0 <= scores["masked_right"] <= 1


# an epoch of the text has 17 steps: inside the first one, inside the second one
@pytest.mark.parametrize("model, stop", [("bert", 5), ("bert", 22), ("bert_classifier", 8)])
def test_resumed_equals_unbroken_bit_for_bit(tmp_path, novel, model, stop):
    options = small(novel, epochs=2, options={"dropout": 0.1}, accumulate=2)
    if model == "bert_classifier":
        options = {**options, "data": "prose", "batch_size": 40}
    unbroken, _ = run(tmp_path / "unbroken", model, **options)
    run(tmp_path / "parts", model, max_steps=stop, **options)
    result, _ = run(None, resume=tmp_path / "parts", max_steps=None)
    assert numbers(result.history) == numbers(unbroken.history)
    assert_same_state(tmp_path / "unbroken", tmp_path / "parts")


@pytest.mark.usefixtures("pictures")
def test_pretraining_then_a_classifier(pydl, tmp_path):
    """The short form of both recipes, beside torch; what they keep; pydl predict of sentences."""
    small = {"options": SMALL, "compare": True, "data": "prose"}
    result, text = run(tmp_path / "bert", "bert", batch_size=128, max_steps=30, epochs=2, lr=5e-3, warmup=5, **small)
    first, last = result.history
    assert last["masked_loss"] < first["masked_loss"] - 0.05
    assert last["test_loss"] == pytest.approx(last["torch_test_loss"], rel=1e-3)
    for words in ("masked words right", "next sentence right", "[", "? "):
        assert words in text
    names = {path.name for path in (tmp_path / "bert").iterdir()}
    assert {"curves.png", "samples.txt", "checkpoint.pt"} <= names
    result, text = run(
        tmp_path / "topics", "bert_classifier", weights=str(tmp_path / "bert"), epochs=2, tensorboard=True, **small
    )
    assert result.history[-1]["test_accuracy"] == pytest.approx(result.history[-1]["torch_test_accuracy"], abs=0.03)
    names = {path.name for path in (tmp_path / "topics").iterdir()}
    assert {"curves.png", "confusion.png"} <= names
    assert "mistakes.png" not in names
    code, out, err = pydl("predict", tmp_path / "topics", "An integer is a number.", "the class statement", "--top=2")
    assert (code, err) == (0, "")
    assert [line.count("0.") for line in out.splitlines()] == [2, 2]
    for arguments, message in (
        (["qwxyz"], "SENTENCE: expected words out of the run's vocabulary"),
        (["the class", "--invert"], "--invert: expected a run of a model of images to take it, got one of sentences"),
    ):
        code, out, err = pydl("predict", tmp_path / "topics", *arguments)
        assert (code, out) == (2, "")
        assert err.startswith(f"pydl: {message}")
        assert err.count("\n") == 1


def test_the_classifier_begins_with_the_body_of_the_run(tmp_path, novel):
    options = small(novel, max_steps=1, data="prose")
    result, _ = run(tmp_path / "bert", "bert", **options)
    (one,) = train.learners(Config("bert_classifier", data="prose", options=SMALL).resolved(), ["torch"])
    last = one.model.classifier.weight.clone()
    weights.load(one.model, tmp_path / "bert", one.vocab.idx_to_token)
    for name, tensor in result.model.bert.state_dict().items():
        assert torch.equal(one.model.bert.state_dict()[name], tensor)
    assert torch.equal(one.model.classifier.weight, last)
    with pytest.raises(CheckpointError, match="expected a run with the text's vocabulary of 3 tokens, got another of"):
        weights.load(one.model, tmp_path / "bert", ["<unk>", "a", "b"])


def test_what_does_not_fit_is_said_in_a_sentence(tmp_path, novel):
    (tmp_path / "short.txt").write_text("a short text\n" * 3)
    fits = small(novel)
    for model, options, message in (
        ("bert", {**fits, "options": {"heads": 3}}, "bert: expected heads to divide hidden, 128, got 3"),
        ("bert", {**fits, "num_steps": 65}, "--num-steps: expected at most bert's 64 positions, got 65"),
        ("bert", {**fits, "num_steps": 4}, "--num-steps: expected at least 5 tokens, for two sentences, got 4"),
        ("bert", {**fits, "size": 28}, "--size: expected a model of images to take it, got bert"),
        ("bert", {**fits, "root": f"{tmp_path}/short.txt"}, "expected a text of several sentences, got"),
        ("bert_classifier", fits, "--data: expected prose or documentation, whose topics have groups, got 'text'"),
        ("bert_classifier", {"data": "digits"}, "expected a set that fits bert_classifier, got 'digits'"),
    ):
        with pytest.raises(OptionError, match=message):
            run(tmp_path / "out", model, **options)
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_recipes_learn_and_fine_tuning_is_worth_it(tmp_path):
    torch.set_num_threads(os.cpu_count())
    result, _ = run(tmp_path / "bert", "bert")
    first, last = result.history[0], result.history[-1]
    assert last["masked_loss"] < first["masked_loss"] - 0.3
    assert last["pair_loss"] < first["pair_loss"] - 0.03
    assert last["pairs_right"] > 0.6
    accuracy = {}
    for name in (None, str(tmp_path / "bert")):
        runs = [
            run(tmp_path / f"{seed}-{name is None}", "bert_classifier", weights=name, seed=seed)[0] for seed in range(3)
        ]
        accuracy[name is None] = statistics.mean(one.history[-1]["test_accuracy"] for one in runs)
    assert accuracy[False] >= accuracy[True] + 0.05
