"""pydl train and pydl generate with language models."""

import json
import math
import os

import pytest
import torch
from runs import assert_same_state, command_line, no_pictures, numbers, one_thread, pictures, run  # noqa: F401  (fixtures)

import pydl as package
from pydl import models, train
from pydl.errors import CheckpointError, OptionError
from pydl.training import language
from pydl.training.config import Config
from pydl.training.processes import Processes

MODELS = models.names("language")
# options that keep a step short
SMALL = {"nnlm": {"hidden": 16, "embedding": 4}, **{name: {"hidden": 16} for name in ("rnn_lm", "gru_lm", "lstm_lm")}}
SMALL["gpt"] = {"hidden": 16, "layers": 2, "dropout": 0.0}  # its own tests: test_gpt.py


def small(model, novel, **options):
    options = {"batch_size": 8, "num_steps": 10, **options}
    return {"data": "text", "root": novel, "options": SMALL.get(model, {}), **options}


def learners(model, novel, backends=("cpu", "torch"), **options):
    return train.learners(Config(model, **small(model, novel, **options)).resolved(), backends)


def test_names():
    assert MODELS == ["gpt", "gru_lm", "lstm_lm", "ngram", "nnlm", "rnn_lm"]
    assert models.kind("gru_lm") == "language"


def documented(name, label):
    lines = models.builder(name).__doc__.splitlines()
    return next(line.split(":")[1].split()[0].strip(".,") for line in lines if line.strip().startswith(label))


@pytest.mark.parametrize("model", [*MODELS, *models.names("translation")])
def test_parameters_and_flops_are_those_of_the_docstring(model):
    net = models.get(model)
    assert f"{sum(p.numel() for p in net.parameters()):,}" == documented(model, "Parameters")
    matrices = sum(p.numel() for name, p in net.named_parameters() if p.dim() == 2 and "embedding" not in name)
    assert f"{2 * matrices:,}" == documented(model, "FLOPs")
    assert "Source: " in models.builder(model).__doc__


@pytest.mark.parametrize("model", MODELS)
def test_a_carried_state_is_the_text_before(model):
    """Two halves of a text, one after the other, give what the whole gives; rows do not see each other."""
    net = models.get(model, vocab_size=9, **SMALL.get(model, {})).eval()
    tokens = torch.randint(1, 9, (3, 20))
    if model == "ngram":
        net.count(torch.randint(1, 9, (300,)))
    whole, end = net(tokens)
    assert whole.shape == (3, 20, 9)
    first, state = net(tokens[:, :7])
    second, state = net(tokens[:, 7:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(state, end)
    torch.testing.assert_close(net(tokens[1:2])[0], whole[1:2])
    later = tokens.clone()
    later[:, 10:] = 1  # what comes later is not seen
    torch.testing.assert_close(net(later)[0][:, :10], whole[:, :10])


def test_ngram_by_hand():
    net = models.get("ngram", vocab_size=4, order=2)
    rest = net.count(torch.tensor([1, 2, 1, 2, 1, 3, 1, 2, 3, 3, 2, 1]))  # all but the last are counted
    assert rest.tolist() == [1]
    with torch.no_grad():
        net.weights.copy_(torch.tensor([0.5, 0.3, 0.2]).log())  # of 1 token, of 2, of the uniform distribution
        p = net(torch.tensor([[1, 3, 0]]))[0][0].exp()
    alone = torch.tensor([0, 4, 4, 3]) / 11
    after_1, after_3 = torch.tensor([0, 0, 3, 1]) / 4, torch.tensor([0, 1, 1, 1]) / 3
    uniform = torch.full((4,), 0.25)
    torch.testing.assert_close(p[0], 0.5 * alone + 0.3 * after_1 + 0.2 * uniform)
    torch.testing.assert_close(p[1], 0.5 * alone + 0.3 * after_3 + 0.2 * uniform)
    torch.testing.assert_close(p[2], (0.5 * alone + 0.2 * uniform) / 0.7)  # nothing came after 0
    torch.testing.assert_close(p.sum(1), torch.ones(3))


@pytest.mark.parametrize(
    "model, options, message",
    [
        (
            "rnn_lm",
            {"bidirectional": 1},
            "expected bidirectional to be 0, got 1: a language model that reads backwards",
        ),
        ("gru_lm", {"hidden": 0}, "expected hidden to be at least 1, got 0"),
        ("lstm_lm", {"layers": 0}, "expected layers to be at least 1, got 0"),
        ("lstm_lm", {"embedding": -1}, "expected embedding to be at least 0"),
        ("nnlm", {"window": 0}, "expected window to be at least 1, got 0"),
        ("ngram", {"order": 0}, "expected order to be at least 1, got 0"),
        ("ngram", {"order": 14}, "expected at most 22 tokens, got 28"),
    ],
)
def test_bad_options(model, options, message, tmp_path, novel):
    with pytest.raises(ValueError, match=f"{model}: {message}"):
        models.get(model, **options)
    with pytest.raises(OptionError, match=f"--option .*: {model}: {message}"):
        run(tmp_path / "out", model, data="text", root=novel, options=options)


@pytest.mark.parametrize("options", [{}, {"layers": 2, "embedding": 5}])
@pytest.mark.parametrize("model", MODELS)
def test_twenty_steps_agree_with_torchs(model, options, novel):
    if options and not model.endswith("_lm"):
        options = {"ngram": {"order": 3}, "nnlm": {"window": 3}, "gpt": {"layers": 1}}[model]
    # the weights of the counts have a tenth of the text
    options = {"options": {**SMALL.get(model, {}), **options}, "batch_size": 4, "num_steps": 6}
    ours, torchs = learners(model, novel, clip=0.1, optimizer="sgd", lr=1.0, **options)
    assert ours.backend == "cpu"
    for one in (ours, torchs):
        one.run(20)
    torch.testing.assert_close(ours._losses[:20], torchs._losses[:20], rtol=1e-5, atol=1e-5)
    assert ours._losses[15:20].mean() < ours._losses[:5].mean()
    for p, q in zip(ours.model.parameters(), torchs.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    assert ours.evaluate()[0] == pytest.approx(torchs.evaluate()[0], rel=1e-5)


def test_the_state_goes_on_in_an_epoch_and_only_there(novel):
    one, _ = learners("gru_lm", novel, partition="sequential")
    one.run(1)
    X, _ = one.train[one._batches[0]]
    weights = [p.clone() for p in one.model.parameters()]
    assert one._state.shape == (1, 8, 16)
    assert not one._state.requires_grad
    one.run(1)
    with torch.no_grad():
        for p, w in zip(one.model.parameters(), weights, strict=True):
            p.copy_(w)
    assert not torch.equal(one._state, torch.zeros_like(one._state))
    one.run(one.epoch_steps)
    one.end_epoch()
    assert one._state is None
    other, _ = learners("gru_lm", novel, partition="random")
    other.run(2)
    assert other._state is None
    assert X.shape == (8, 10)


@pytest.mark.parametrize("shape", [(5, 7), (2, 5, 16)])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_states_of_several_processes_are_one(shape, world):
    """A checkpoint holds the state of all rows, whose parts other processes than those that wrote it may take."""
    whole = torch.randn(shape), torch.randn(shape)
    for state in (whole, whole[0]):
        parts = []
        for rank in range(world):
            one = object.__new__(language.LanguageLearner)
            one.processes = Processes(rank, world)
            parts.append(language._map(one._own_rows, state))
            first = parts[-1][0] if isinstance(state, tuple) else parts[-1]
            assert first.shape[-2] == len(one.processes.shard(torch.arange(5)))
        torch.testing.assert_close(language._joined(parts), state)
    assert language._joined([]) is language._map(torch.Tensor.detach, None) is None


def test_losses_are_means_over_tokens(tmp_path, novel):
    options = small("lstm_lm", novel, lr=1e-12, optimizer="sgd", epochs=1, schedule="constant", partition="random")
    result, _ = run(tmp_path, "lstm_lm", **options)
    row, (one,) = result.history[0], learners("lstm_lm", novel, ["torch"], partition="random")
    X, Y = (torch.cat(parts) for parts in zip(*(one.train[batch] for batch in one._batches), strict=True))
    loss = torch.nn.functional.cross_entropy(result.model(X)[0].flatten(0, 1).double(), Y.flatten()).item()
    assert row["loss"] == pytest.approx(loss, rel=1e-6)
    assert row["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    corpus = one.test.corpus
    length = (len(corpus) - 1) // 16
    rows = [corpus[i * length : (i + 1) * length + 1] for i in range(16)]
    losses = [torch.nn.functional.cross_entropy(result.model(r[None, :-1])[0][0].double(), r[1:]).item() for r in rows]
    assert row["test_loss"] == pytest.approx(sum(losses) / 16, rel=1e-6)
    assert row["test_perplexity"] == pytest.approx(math.exp(row["test_loss"]))


# an epoch has 66 or 67 steps, of the few weights of the counts 6: inside the first one, inside the second one
@pytest.mark.parametrize("model, stop", [("lstm_lm", 20), ("lstm_lm", 80), ("nnlm", 80), ("ngram", 9)])
def test_resumed_equals_unbroken_bit_for_bit(tmp_path, novel, model, stop):
    options = small(model, novel, epochs=2)
    unbroken, _ = run(tmp_path / "unbroken", model, **options)
    run(tmp_path / "parts", model, max_steps=stop, **options)
    result, _ = run(None, resume=tmp_path / "parts", max_steps=None)
    assert numbers(result.history) == numbers(unbroken.history)
    assert_same_state(tmp_path / "unbroken", tmp_path / "parts")
    samples = [(tmp_path / name / "samples.txt").read_text() for name in ("unbroken", "parts")]
    assert samples[0] == samples[1]


@pytest.mark.usefixtures("pictures")
def test_what_a_run_shows_and_keeps(tmp_path, novel):
    options = small("gru_lm", novel, compare=True, epochs=2, max_steps=70, tensorboard=True, monitor=True)
    result, text = run(tmp_path / "run", "gru_lm", report=True, **options)
    for words in ("test perplexity", "tokens/s", "× ", "epoch 1/2", f"{result.history[0]['perplexity']:.3f}"):
        assert words.strip() in text
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert row["test_perplexity"] == pytest.approx(row["torch_test_perplexity"], rel=1e-3)
    assert row["tokens_per_second"] > 0
    assert row["sample"] in (tmp_path / "run/samples.txt").read_text()
    assert row["sample"] in text
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"curves.png", "monitor.png", "samples.txt", "checkpoint.pt", "best.pt"} <= names
    assert "confusion.png" not in names
    layers = json.loads((tmp_path / "run/monitor.jsonl").read_text().splitlines()[0])["layers"]
    assert [layer["kind"] for layer in layers] == ["GRU", "Linear"]
    assert len(list((tmp_path / "run").glob("events.*"))) == 1


def test_what_does_not_fit_is_said_in_a_sentence(tmp_path, novel):
    (tmp_path / "short.txt").write_text("a short text " * 3)
    fits = small("gru_lm", novel)
    for model, options, message in (
        ("gru_lm", {**fits, "size": 28}, "--size: expected a model of images to take it, got gru_lm"),
        ("gru_lm", {**fits, "augment": ["flip"]}, "--augment: expected a model of images to take it, got gru_lm"),
        (
            "lenet",
            {"num_steps": 5},
            "--num-steps: expected a language model, a translator, BERT, ELMo, a reward model or a policy to take it",
        ),
        ("lenet", {"tokens": "char"}, "--tokens: expected a language model to take it, got lenet"),
        ("gru_lm", {**fits, "tokens": "line"}, "--tokens: expected one of letters, .* byte-bpe, got 'line'"),
        ("gru_lm", {**fits, "partition": "all"}, "--partition: expected one of sequential, random, got 'all'"),
        ("gru_lm", {"data": "digits"}, "expected a set that fits gru_lm, got 'digits', which is a classification"),
        ("lenet", {"data": "prose"}, "expected a set that fits lenet, got 'prose', which is a text"),
        ("gru_lm", {**fits, "root": f"{tmp_path}/short.txt"}, "expected a text longer than 8 rows of 10 tokens, got 3"),
    ):
        with pytest.raises(OptionError, match=message):
            run(tmp_path / "out", model, **options)
        assert not (tmp_path / "out").exists()
    with pytest.raises(OptionError, match="--folds: expected a data set of examples in memory, got 'text'"):
        train.cross_validate(Config("gru_lm", **fits), 3, out=tmp_path / "folds")


def test_resume_refuses_another_vocabulary(tmp_path, novel):
    run(tmp_path / "run", "ngram", **small("ngram", novel, max_steps=1))
    (tmp_path / "other.txt").write_text("abc " * 3000)
    with pytest.raises(
        CheckpointError, match=r"expected the vocabulary of the checkpoint, \d+ tokens, .* another of 5"
    ):
        run(None, resume=tmp_path / "run", root=str(tmp_path / "other.txt"))


@pytest.mark.parametrize(
    "model, tokens", [("ngram", "letters"), ("gru_lm", "word"), ("gru_lm", "bpe"), ("gpt", "byte-bpe")]
)
def test_generate(pydl, tmp_path, novel, model, tokens):
    words = [f"--option={name}={value}" for name, value in SMALL.get(model, {}).items()]
    words += ["--data=text", f"--root={novel}", "--batch-size=2", "--num-steps=5", "--max-steps=3"]
    code, out, err = pydl("train", model, f"--tokens={tokens}", f"--out={tmp_path}/run", *words)
    assert (code, err) == (0, "")
    assert "step 3 " in out

    def text(*more):
        code, out, err = pydl("generate", tmp_path / "run", "the object", "--length=30", *more)
        assert code == 0
        assert err.startswith("30 tokens, ")
        assert out.startswith("the object")
        return out

    assert text() == text("--seed=0") != text("--seed=1")
    assert text("--top-p=1e-9") == text("--top-k=1") == text("--temperature=0")
    assert text("--top-k=1") == text("--top-k=1", "--seed=5", "--backend=torch")
    for more, message in (
        (["--length=0"], "--length: expected a number of at least 1, got 0"),
        (["--top-k=0"], "--top-k: expected a number of at least 1, got 0"),
        (["--temperature=-1"], "--temperature: expected a finite number of at least 0, got -1.0"),
        (["--temperature=nan"], "--temperature: expected a finite number of at least 0, got nan"),
        (["--seed=-1"], "--seed: expected a number from 0 to"),
    ):
        code, out, err = pydl("generate", tmp_path / "run", "the", *more)
        assert (code, out) == (2, "")
        assert err.startswith(f"pydl: {message}")
        assert err.count("\n") == 1
    for prefix in ("",) if tokens == "byte-bpe" else ("", "ψ"):
        code, out, err = pydl("generate", tmp_path / "run", prefix)
        assert (code, out) == (2, "")
        assert err.startswith("pydl: PREFIX: expected ")


def test_generate_and_predict_refuse_each_others_runs(pydl, tmp_path, novel):
    run(tmp_path / "images", "softmax_regression", max_steps=1)
    run(tmp_path / "text", "ngram", **small("ngram", novel, max_steps=1))
    code, _, err = pydl("generate", tmp_path / "images", "the")
    assert code == 1
    assert "expected the checkpoint of a language model, got one of softmax_regression" in err
    code, _, err = pydl("predict", tmp_path / "text", "x.png")
    assert code == 1
    assert "expected the checkpoint of a classifier, got one of ngram" in err


def test_layers_that_pydl_has_are_pydls():
    for model in MODELS:
        for row in package.report(models.get(model)).rows:
            assert row.reason == "" or row.reason.startswith("pydl has no kernel"), (model, row)


@pytest.mark.slow
def test_recipes_come_below_the_counts(tmp_path):
    torch.set_num_threads(os.cpu_count())
    found = {model: run(tmp_path / model, model)[0].history[-1]["test_perplexity"] for model in MODELS}
    for model in ("nnlm", "rnn_lm", "gru_lm", "lstm_lm", "gpt"):
        assert found[model] < 0.97 * found["ngram"], found
    assert max(found["gru_lm"], found["lstm_lm"]) < found["rnn_lm"], found
    assert found["gpt"] < found["lstm_lm"], found
