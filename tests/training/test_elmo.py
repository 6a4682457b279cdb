"""pydl train elmo: the model, its training, and pseudo-words told apart."""

import json
import os

import pytest
import torch
from runs import (  # noqa: F401  (fixtures)
    assert_same_state,
    no_pictures,
    numbers,
    one_thread,
    pictures,
    run,
)

from pydl import models, train
from pydl.errors import CheckpointError, OptionError
from pydl.generate import Writer
from pydl.models.elmo import LayerMix
from pydl.training.config import Config
from pydl.training.senses import Senses

SMALL = {"hidden": 16, "dropout": 0.0}


def small(novel, **options):
    options = {"options": {**SMALL, **options.pop("options", {})}, **options}
    return {"data": "text", "root": novel, "batch_size": 8, "num_steps": 16, **options}


def test_parameters_and_flops_are_those_of_the_docstring():
    net, text = models.get("elmo"), models.builder("elmo").__doc__
    lstms = sum(p.numel() for name, p in net.named_parameters() if "weight_" in name)
    assert f"Parameters: {sum(p.numel() for p in net.parameters()):,}." in text
    assert f"FLOPs: {2 * lstms:,} a token in the LSTMs, {4 * net.output.weight.numel():,} in the output layer." in text


def by_cells(net, tokens):
    """(vectors, logits) step by step, in plain torch."""

    def stack(layers, rows):
        outputs = [rows]
        for number, layer in enumerate(layers):
            hidden = cell = rows.new_zeros(rows.shape[1:])
            found = []
            for x in outputs[-1]:
                hidden, cell = torch.lstm_cell(x, (hidden, cell), *layer._flat_weights)
                found.append(hidden + x if number else hidden)
            outputs.append(torch.stack(found))
        return outputs

    x = net.embedding.weight[tokens.T]
    ahead, back = stack(net.ahead, x), [layer.flip(0) for layer in stack(net.back, x.flip(0))]
    vectors = torch.stack([torch.cat(pair, 2).transpose(0, 1) for pair in zip(ahead, back, strict=True)])
    top = torch.stack([ahead[-1].transpose(0, 1), back[-1].transpose(0, 1)], 1)
    return vectors, top @ net.output.weight.T + net.output.bias


def test_outputs_are_those_of_its_cells():
    net = models.get("elmo", vocab_size=11, hidden=6, layers=3).double().eval()
    tokens = torch.randint(0, 11, (4, 7))
    vectors, logits = by_cells(net, tokens)
    assert vectors.shape == (4, 4, 7, 12)
    torch.testing.assert_close(net.vectors(tokens), vectors)
    torch.testing.assert_close(net(tokens), logits)


def test_neither_direction_sees_what_it_predicts():
    net = models.get("elmo", vocab_size=11, hidden=6).eval()
    tokens = torch.randint(0, 11, (1, 9))
    before = net(tokens)
    tokens[0, 4] = (tokens[0, 4] + 1) % 11
    changed = ((net(tokens) - before).abs().amax((0, 3)) > 0).tolist()
    assert changed == [[t >= 4 for t in range(9)], [t <= 4 for t in range(9)]]


def test_mix_of_layers():
    mix = LayerMix(3)
    vectors = torch.randn(3, 5, 4)
    torch.testing.assert_close(mix(vectors), vectors.mean(0))
    with torch.no_grad():
        mix.weights.copy_(torch.tensor([0.0, 2.0, 1.0]).log())
        mix.scale.fill_(3.0)
    torch.testing.assert_close(mix(vectors), 2 * vectors[1] + vectors[2])


def test_senses_are_told_by_the_layer_that_knows_them():
    torch.manual_seed(0)
    numbers, meanings = torch.arange(400) % 2, torch.arange(400) // 2 % 2
    vectors = torch.randn(2, 400, 6, dtype=torch.float64)
    vectors[1, :, 3] += 6.0 * (meanings ^ numbers) - 3.0  # the two pairs by opposite signs
    classifier = Senses(vectors[:, :200], numbers[:200], meanings[:200], 2)
    right = classifier.right(vectors[:, 200:], numbers[200:], meanings[200:])
    assert right.double().mean() > 0.95
    assert classifier.mix.weights[1] > classifier.mix.weights[0] + 1
    constant = vectors[:1, numbers]  # one vector a pair, as static ones are
    classifier = Senses(constant[:, :200], numbers[:200], meanings[:200], 2)
    assert classifier.right(constant[:, 200:], numbers[200:], meanings[200:]).double().mean() == 0.5


def test_twenty_steps_agree_with_torchs(novel):
    options = small(novel, optimizer="sgd", lr=2.0, schedule="constant", clip=1.0)
    ours, torchs = train.learners(Config("elmo", **options).resolved(), ["cpu", "torch"])
    first = ours.model.embedding.weight.detach().clone()
    for one in (ours, torchs):
        one.run(min(20, one.epoch_steps))
        one.end_epoch() if one.step_in_epoch == one.epoch_steps else None
        one.run(20 - one.step)
    assert ours.step == 20
    assert (ours.model.embedding.weight - first).abs().max() > 1e-2
    for p, q in zip(ours.model.parameters(), torchs.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    assert ours.evaluate()[0] == pytest.approx(torchs.evaluate()[0], rel=1e-5)


def test_losses_are_means_over_words_and_directions(novel):
    whole, parts = (
        train.learners(Config("elmo", **small(novel, optimizer="sgd", accumulate=a)).resolved(), ["torch"])[0]
        for a in (1, 3)
    )
    inputs, targets = whole.train[whole._batches[0]]
    model = whole.model.double()
    expected = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 2), targets.flatten()).item()
    model.float()
    for one in (whole, parts):
        one.run(1)
        assert one._losses[0].item() == pytest.approx(expected, rel=1e-5)
    for p, q in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    inputs, targets = whole.test[whole._test_starts]
    expected = torch.nn.functional.cross_entropy(whole.model(inputs).flatten(0, 2), targets.flatten())
    assert whole.evaluate()[0] == pytest.approx(expected.item(), rel=1e-5)


def test_contexts_are_of_the_word_in_its_text(novel):
    (one,) = train.learners(Config("elmo", **small(novel)).resolved(), ["torch"])
    found = one.contexts(one.train, torch.tensor([0, 40]))
    corpus = torch.cat([torch.full((8,), one.vocab["<sep>"]), one.train.corpus])
    rows = torch.stack([corpus[:16], corpus[40:56]])
    expected = one.model.vectors(rows)[:, :, 8].detach()
    torch.testing.assert_close(found.float(), expected)


# an epoch of the text has 27 steps: inside the first one, inside the second one
@pytest.mark.parametrize("stop", [10, 35])
def test_resumed_equals_unbroken_bit_for_bit(tmp_path, novel, stop):
    options = small(novel, epochs=2, options={"dropout": 0.3}, accumulate=2)
    unbroken, _ = run(tmp_path / "unbroken", "elmo", **options)
    assert unbroken.history[0]["step"] in range(11, 35)
    run(tmp_path / "parts", "elmo", max_steps=stop, **options)
    result, _ = run(None, resume=tmp_path / "parts", max_steps=None)
    assert numbers(result.history) == numbers(unbroken.history)
    assert_same_state(tmp_path / "unbroken", tmp_path / "parts")


@pytest.mark.usefixtures("pictures")
def test_short_training_on_prose(tmp_path):
    """The short form of the recipe's proof; beside torch."""
    options = {"hidden": 32, "dropout": 0.0}
    result, text = run(tmp_path / "run", "elmo", options=options, epochs=1, max_steps=30, lr=5e-3, compare=True)
    last = result.history[-1]
    assert last["senses_told"] > 0.75
    assert last["static_told"] == 0.5
    assert last["senses_told"] == pytest.approx(last["torch_senses_told"], abs=0.03)
    assert last["test_loss"] < 6.8
    assert last["test_loss"] == pytest.approx(last["torch_test_loss"], rel=1e-3)
    for words in ("meanings told apart", "by static vectors", "tokens/s", "of 40 told apart", "mix of the layers"):
        assert words in text
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"curves.png", "senses.png", "samples.txt", "checkpoint.pt"} <= names
    assert (tmp_path / "run/senses.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(CheckpointError, match="expected the checkpoint of a language model, got one of elmo"):
        Writer(tmp_path / "run")


@pytest.mark.usefixtures("pictures")
def test_a_text_without_pseudo_words(tmp_path, novel):
    result, text = run(tmp_path / "run", "elmo", max_steps=2, **small(novel))
    assert "senses_told" not in result.history[-1]
    assert "test perplexity" in text
    assert "no pseudo-words: expected a text with the listed words 100 times" in text
    assert not (tmp_path / "run/senses.png").exists()


def test_what_does_not_fit_is_said_in_a_sentence(tmp_path, novel):
    (tmp_path / "short.txt").write_text("a short text. " * 3)
    fits = small(novel)
    for options, message in (
        ({**fits, "options": {"hidden": 0}}, "expected hidden to be at least 1, got 0"),
        ({**fits, "options": {"dropout": 2}}, "--option dropout=2: "),
        ({**fits, "size": 28}, "--size: expected a model of images to take it, got elmo"),
        ({**fits, "tokens": "char"}, "--tokens: expected a language model to take it, got elmo"),
        ({**fits, "batch_size": 4000}, "expected a text longer than 4000 rows of 16 words"),
        ({**fits, "num_steps": 4000}, "expected a text longer than a row of 4000 words"),
        ({"data": "digits"}, "expected a set that fits elmo, got 'digits', which is a classification"),
        ({**fits, "root": f"{tmp_path}/short.txt"}, "expected a text longer than a row of 16 words"),
    ):
        with pytest.raises(OptionError, match=message):
            run(tmp_path / "out", "elmo", **options)
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_recipe_tells_nine_tenths_of_the_meanings(tmp_path):
    torch.set_num_threads(os.cpu_count())
    run(tmp_path, "elmo")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["senses_told"] >= 0.9
    assert rows[-1]["static_told"] == 0.5
    assert rows[-1]["test_perplexity"] < 0.6 * rows[0]["test_perplexity"]
