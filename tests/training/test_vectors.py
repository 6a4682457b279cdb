"""pydl train skipgram and cbow, and pydl neighbours."""

import json
import os
import re

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
from pydl.errors import OptionError
from pydl.training.config import Config

MODELS = models.names("vectors")


def small(novel, **options):
    options = {"options": {"width": 8, **options.pop("options", {})}, **options}
    return {"data": "text", "root": novel, "batch_size": 64, **options}


def learners(model, novel, backends=("cpu", "torch"), **options):
    return train.learners(Config(model, **small(novel, **options)).resolved(), backends)


def test_names_and_parameters():
    assert MODELS == ["cbow", "skipgram"]
    for model in MODELS:
        assert sum(p.numel() for p in models.get(model).parameters()) == 200_000


@pytest.mark.parametrize("model", MODELS)
def test_logits_are_products_of_the_means(model):
    net = models.get(model, vocab_size=20, width=4)
    torch.nn.init.normal_(net.outputs.weight)
    inputs, candidates = torch.tensor([[5, 6, 1, 1], [7, 1, 1, 1]]), torch.randint(5, 20, (2, 9))
    seen = torch.stack([net.inputs.weight[[5, 6]].mean(0), net.inputs.weight[7]])
    expected = torch.stack([net.outputs.weight[c] @ s for c, s in zip(candidates, seen, strict=True)])
    torch.testing.assert_close(net(inputs, candidates), expected)


@pytest.mark.parametrize("options", [{}, {"sparse": 1}])
@pytest.mark.parametrize("model", MODELS)
def test_twenty_steps_agree_with_torchs(model, options, novel):
    # not Adam, whose first steps are signs of gradients, which rounding decides where they are nearly zero
    plain = {"optimizer": "sgd", "lr": 20.0, "schedule": "constant"}
    sides = learners(model, novel, options=options, **plain)
    if options:
        sides += learners(model, novel, ["torch"], **plain)  # with dense gradients
    for one in sides:
        torch.manual_seed(0)
        for weight in one.model.parameters():
            torch.nn.init.normal_(weight, std=0.5)
        first = one.model.inputs.weight.detach().clone()
        one.run(20)
    ours = sides[0]
    assert ours.model.inputs.weight.grad.is_sparse == bool(options)
    assert (ours.model.inputs.weight - first).abs().max() > 0.1
    for other in sides[1:]:
        torch.testing.assert_close(ours._losses[:20], other._losses[:20], rtol=1e-5, atol=1e-6)
        for p, q in zip(ours.model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    assert ours.evaluate()[0] == pytest.approx(sides[1].evaluate()[0], rel=1e-5)


def test_losses_are_means_over_candidates(tmp_path, novel):
    result, _ = run(tmp_path, "skipgram", **small(novel, lr=1e-12, epochs=1, optimizer="sgd"))
    row, (one,) = result.history[0], learners("skipgram", novel, ["torch"], optimizer="sgd")
    assert row["loss"] == pytest.approx(0.6931472, rel=1e-6)  # the vectors that are predicted begin at 0
    torch.nn.init.normal_(one.model.outputs.weight)
    torch.nn.init.normal_(one.model.inputs.weight)
    (inputs, candidates), targets = one.test[torch.arange(len(one.test.sizes))]
    logits = one.model(inputs, candidates).double()[targets >= 0]
    targets = targets[targets >= 0].double()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
    assert one.evaluate()[0] == pytest.approx(expected.item(), rel=1e-6)
    assert one._units(one._batches[0]) == int((one.train[one._batches[0]][1] >= 0).sum())


# an epoch has about 30 steps: inside the first one, inside the second one
@pytest.mark.parametrize(
    "model, stop, options",
    [
        ("skipgram", 10, {}),
        ("skipgram", 50, {}),
        ("cbow", 50, {}),
        ("skipgram", 50, {"sparse": 1}),
        ("cbow", 50, {"sparse": 1}),
    ],
)
def test_resumed_equals_unbroken_bit_for_bit(tmp_path, novel, model, stop, options):
    options = small(novel, batch_size=32, epochs=2, options=options)
    unbroken, _ = run(tmp_path / "unbroken", model, **options)
    first, second = unbroken.history  # of as many steps, whatever words are left out
    assert second["step"] == 2 * first["step"]
    assert first["step"] in range(20, 50)
    run(tmp_path / "parts", model, max_steps=stop, **options)
    result, _ = run(None, resume=tmp_path / "parts", max_steps=None)
    assert numbers(result.history) == numbers(unbroken.history)
    assert_same_state(tmp_path / "unbroken", tmp_path / "parts")


@pytest.mark.usefixtures("pictures")
def test_short_training_on_prose(tmp_path):
    """The short form of the recipe's proof; beside torch."""
    result, text = run(tmp_path / "run", "cbow", epochs=4, compare=True, tensorboard=True, monitor=True)
    last = result.history[-1]
    assert last["pairs_found"] >= 0.5
    assert last["test_loss"] < result.history[0]["test_loss"] < 0.6
    assert last["test_loss"] == pytest.approx(last["torch_test_loss"], rel=1e-2)
    for words in ("pairs found", "examples/s", "left: "):
        assert words in text
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"curves.png", "map.png", "samples.txt", "checkpoint.pt", "monitor.png"} <= names
    assert (tmp_path / "run/map.png").read_bytes().startswith(b"\x89PNG")
    (untrained,) = train.learners(Config("cbow").resolved(), ["torch"])
    assert untrained.scores()["pairs_found"] <= 0.05


def test_neighbours(pydl, tmp_path, novel):
    words = ["--data=text", f"--root={novel}", "--option=width=8", "--max-steps=3", f"--out={tmp_path}/run"]
    code, out, err = pydl("train", "skipgram", *words)
    assert (code, err) == (0, "")
    assert "pairs found" not in out  # which are of another text
    code, out, err = pydl("neighbours", tmp_path / "run", "Object", "--top=3")
    assert (code, err, len(out.splitlines())) == (0, "", 3)
    cosines = [float(line.split("  ")[1]) for line in out.splitlines()]
    assert cosines == sorted(cosines, reverse=True)
    for arguments, code, message in (
        (["objekt"], 2, "WORD: expected one of the run's .* words, got 'objekt'; did you mean object"),
        (["<unk>"], 2, "WORD: expected one of the run's"),
        (["object", "--top=0"], 2, "--top: expected a number of at least 1, got 0"),
    ):
        found, out, err = pydl("neighbours", tmp_path / "run", *arguments)
        assert (found, out) == (code, "")
        assert err.count("\n") == 1
        assert re.match(f"pydl: {message}", err)
    run(tmp_path / "other", "ngram", data="text", root=novel, max_steps=1, batch_size=2, num_steps=5)
    found, _, err = pydl("neighbours", tmp_path / "other", "object")
    assert found == 1
    assert "expected the checkpoint of word vectors, got one of ngram" in err


def test_what_does_not_fit_is_said_in_a_sentence(tmp_path, novel):
    (tmp_path / "short.txt").write_text("a short text. " * 3)
    fits = small(novel)
    for options, message in (
        ({**fits, "options": {"width": 0}}, "expected width to be at least 1, got 0"),
        ({**fits, "options": {"rate": 1}}, "expected rate to be from 0 to below 1, got 1"),
        ({**fits, "size": 28}, "--size: expected a model of images to take it, got skipgram"),
        ({**fits, "tokens": "char"}, "--tokens: expected a language model to take it, got skipgram"),
        ({**fits, "label_smoothing": 0.1}, "--label-smoothing: expected a model that chooses"),
        ({"data": "digits"}, "expected a set that fits skipgram, got 'digits', which is a classification"),
        ({**fits, "root": f"{tmp_path}/short.txt"}, "expected a text with sentences of two known words"),
        ({**fits, "options": {"sparse": 1}, "clip": 1.0}, "--option sparse=1: expected none of --amp, --clip"),
        ({**fits, "options": {"sparse": 1}, "optimizer": "adamw"}, "expected --optimizer to be sgd or adam, got adamw"),
    ):
        with pytest.raises(OptionError, match=message):
            run(tmp_path / "out", "skipgram", **options)
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_recipes_find_the_pairs(tmp_path, model):
    torch.set_num_threads(os.cpu_count())
    run(tmp_path, model)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["pairs_found"] >= 0.75
    assert rows[-1]["test_loss"] < rows[0]["test_loss"] - 0.02
