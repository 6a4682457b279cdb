"""pydl train reward and ppo: the three commands in short, beside torch, resumed, and told what is wrong."""

import json
import os

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

from pydl import train
from pydl.errors import CheckpointError, DataError, OptionError
from pydl.text import prose
from pydl.training import checkpoint, feedback, policy, ppo
from pydl.training.config import Config

SMALL = {"hidden": 16, "layers": 1, "heads": 2, "positions": 40, "dropout": 0.0}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Less of everything than the recipes take."""
    for module, name, value in (
        (feedback, "TRAINED_ON", 60),
        (feedback, "HELD_OUT", 24),
        (policy, "JUDGED", 16),
        (ppo, "ROUND_PROMPTS", 16),
        (ppo, "ROUND_HELD_OUT", 8),
        (ppo, "STEPS", 3),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A small run of gpt on a file, in letters."""
    path = tmp_path_factory.mktemp("stage")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    (path / "novel.txt").write_text("\n".join(prose.sentences(prose.topics()["types"]))[:12_000])
    options = {"data": "text", "root": str(path / "novel.txt"), "options": SMALL, "num_steps": 40}
    run(path / "gpt", "gpt", epochs=2, lr=5e-3, warmup=0, **options)
    run(path / "word", "gpt", max_steps=1, tokens="word", batch_size=2, **options)
    torch.set_num_threads(threads)
    return path


@pytest.fixture(scope="module")
def judge(one):
    """A short run of reward."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feedback, "TRAINED_ON", 300)
        patch.setattr(feedback, "HELD_OUT", 40)
        patch.setattr("pydl.training.curves.available", lambda: False)
        run(one / "reward", "reward", from_=str(one / "gpt"), num_steps=16, epochs=8, lr=5e-3)
    return one / "reward"


def rewarded(one, **options):
    return {"from_": str(one / "gpt"), "num_steps": 16, "batch_size": 16, **options}


def policed(one, **options):
    return {"from_": str(one / "gpt"), "reward": str(one / "reward"), "num_steps": 16, "batch_size": 16, **options}


@pytest.mark.usefixtures("pictures")
def test_the_three_commands(one, judge, pydl, tmp_path):
    code, out, err = pydl(
        *("train", "reward", f"--from={one}/gpt", "--num-steps=16", "--epochs=2", "--lr=3e-3", "--out=r", "--compare")
    )
    assert (code, err) == (0, "")
    names = {path.name for path in (tmp_path / "r").iterdir()}
    assert names >= {"curves.png", "scores.png", "samples.txt", "pairs.jsonl", "checkpoint.pt"}
    assert "confusion.png" not in names
    lines = (tmp_path / "r/pairs.jsonl").read_text().splitlines()
    pair = json.loads(lines[0])
    assert all(pair[key].startswith(pair["prompt"]) for key in ("better", "worse"))
    row = json.loads((tmp_path / "r/metrics.jsonl").read_text().splitlines()[-1])
    assert row["test_loss"] == pytest.approx(row["torch_test_loss"], rel=1e-3)
    arguments = f"--from={one}/gpt", "--reward=r", "--num-steps=16", "--max-steps=4", "--batch-size=16"
    code, out, err = pydl("train", "ppo", *arguments, "--out=p", "--compare", "--report", "--tensorboard")
    assert (code, err) == (0, "")
    assert "Linear" in out
    names = {path.name for path in (tmp_path / "p").iterdir()}
    assert names >= {"curves.png", "samples.txt", "checkpoint.pt"}
    rows = [json.loads(line) for line in (tmp_path / "p/metrics.jsonl").read_text().splitlines()]
    wanted = {"reward", "kl", "entropy", "clip_share", "length", "known", "distinct_words", "letters_per_word", "rule"}
    assert rows[-1].keys() >= wanted | {"train_reward", "train_kl", "train_entropy", "train_length", "kl_coefficient"}
    assert rows[-1]["kl"] > 0
    assert rows[-1]["length"] == 16
    sample = (tmp_path / "p/samples.txt").read_text().splitlines()
    assert sample[1].split() == ["stage", "one", "│", "now"]
    assert sample[2].startswith("after '")
    assert all(len(line) == 16 + 3 + 16 for line in sample[3:10:2])
    code, out, err = pydl("generate", "p", "the value ", "--length=8")
    assert (code, len(out)) == (0, 10 + 8 + 1)
    code, out, err = pydl("train", "ppo", *arguments, "--method=dpo", "--out=d", "--compare", "--tensorboard")
    assert (code, err) == (0, "")
    row = json.loads((tmp_path / "d/metrics.jsonl").read_text().splitlines()[-1])
    assert row["test_loss"] == pytest.approx(row["torch_test_loss"], rel=1e-3)
    assert 0 <= row["pair_accuracy"] <= 1
    assert (tmp_path / "d/curves.png").exists()


def test_pairs_are_learnt_and_lie_in_the_rules_order(one, judge):
    history = checkpoint.load(judge)["history"]
    assert history[-1]["test_accuracy"] > 0.75
    assert history[-1]["test_loss"] < 0.9 * history[0]["test_loss"]
    (learner,) = train.learners(Config("reward", **rewarded(one)).resolved(), ["torch"])
    rule = learner.dataset.rule()
    train_pairs, test_pairs = learner.dataset.pairs
    assert len(train_pairs) > 45
    assert len(test_pairs) > 15
    assert all(rule(pair.better) > rule(pair.worse) for pair in test_pairs)
    in_order = sum(rule(pair.better) > rule(pair.worse) for pair in train_pairs)
    assert 0.9 * len(train_pairs) < in_order < len(train_pairs)  # ranked by someone who is not always sure


def steps(learner, count):
    while learner.step < count:
        learner.run(min(learner.epoch_steps - learner.step_in_epoch, count - learner.step))
        if learner.step_in_epoch == learner.epoch_steps:
            learner.end_epoch()


def test_judge(one, judge, pydl):
    code, out, err = pydl("judge", judge, "the value of ", "a b c d e f g h", "representatio", "a list of the x ")
    assert (code, err) == (0, "")
    assert [line.split(maxsplit=1)[1] for line in out.splitlines()] == [
        "representatio",
        "a list of the x ",
        "a b c d e f g h",
    ]
    scores = [float(line.split()[0]) for line in out.splitlines()]
    assert scores == sorted(scores, reverse=True)
    for arguments, message in (
        ((judge, "the ", "é"), "TEXT: expected tokens out of the run's vocabulary"),
        ((judge, "", "a"), "PROMPT: expected at least one token, got none"),
        ((judge, "the ", "a" * 50), "pairs: expected texts of at most 40 tokens with their prompts, got 54"),
        ((one / "gpt", "the ", "a"), f"{one}/gpt: expected the checkpoint of a reward model, got one of gpt"),
    ):
        code, out, err = pydl("judge", *arguments)
        assert (code > 0, out) == (True, "")
        assert err.startswith(f"pydl: {message}")


@pytest.mark.parametrize("model, method", [("reward", None), ("ppo", "ppo"), ("ppo", "dpo")])
def test_twenty_steps_agree_with_torchs(one, judge, model, method):
    options = {"optimizer": "sgd", "lr": 0.02, "schedule": "constant", "epochs": 20}
    make = policed if model == "ppo" else rewarded
    ours, torchs = train.learners(
        Config(model, method=method, **make(one, batch_size=4, **options)).resolved(), ["cpu", "torch"]
    )
    for learner in (ours, torchs):
        steps(learner, 20)
    assert ours.step == 20
    before = torchs.dataset.kept["start"]["embedding.weight"]
    assert (torchs.model.body.embedding.weight - before).abs().max() > 1e-3
    for p, q in zip(ours.model.parameters(), torchs.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


# an epoch of PPO has 3 steps here: inside the first one, inside the second one, at its end; the second round is from 3
@pytest.mark.parametrize(
    "model, stop, options",
    [
        ("reward", 5, {}),
        ("ppo", 2, {}),
        ("ppo", 4, {"rounds": 2}),
        ("ppo", 3, {"rounds": 2}),
        ("ppo", 5, {"method": "dpo"}),
    ],
)
def test_resumed_equals_unbroken_bit_for_bit(tmp_path, one, judge, model, stop, options):
    options = (policed if model == "ppo" else rewarded)(one, epochs=2, schedule="cosine", **options)
    unbroken, _ = run(tmp_path / "unbroken", model, **options)
    run(tmp_path / "parts", model, max_steps=stop, **options)
    away = one / "away"
    (one / "gpt").rename(away)  # a checkpoint holds all it needs
    try:
        result, _ = run(None, resume=tmp_path / "parts", max_steps=None)
    finally:
        away.rename(one / "gpt")
    assert numbers(result.history) == numbers(unbroken.history)
    assert_same_state(tmp_path / "unbroken", tmp_path / "parts")
    if options.get("rounds") == 2:
        assert 0 <= result.history[-1]["pairs_before"] <= 1
        assert 0 <= result.history[-1]["pairs_after"] <= 1
        assert "pairs_before" not in result.history[0]


@pytest.mark.parametrize("model, method", [("reward", None), ("ppo", "ppo"), ("ppo", "dpo")])
def test_mixed_precision(tmp_path, one, judge, model, method):
    options = (policed if model == "ppo" else rewarded)(one, method=method, max_steps=2)
    rows = [run(tmp_path / f"{amp}", model, amp=amp, **options)[0].history[-1] for amp in (False, True)]
    assert rows[0]["loss"] != rows[1]["loss"]
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], abs=0.15)


def test_a_reward_rises_and_the_penalty_holds(tmp_path, one, judge):
    options = policed(one, epochs=10, lr=3e-3, batch_size=32)
    held, _ = run(tmp_path / "held", "ppo", kl=1.0, **options)
    free, _ = run(tmp_path / "free", "ppo", kl=0.0, **options)
    assert free.history[-1]["kl_coefficient"] == 0
    assert free.history[-1]["reward"] > 0.5
    assert free.history[-1]["kl"] > 2 * held.history[-1]["kl"]


def test_pairs_of_a_file(tmp_path, one, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["a", "an", "the", "of", "is", "and", "to", "in", "or", "for"]
    pairs = [
        {"prompt": f"the {word} ", "better": f"the {word} value", "worse": f"the {word} {other}"}
        for word in words
        for other in ("x", "list of")
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    run(tmp_path / "own", "reward", **rewarded(one, pairs="pairs.jsonl", epochs=1, batch_size=4))
    content = checkpoint.load(tmp_path / "own")
    assert [len(part) for part in content["feedback"]["pairs"]] == [18, 2]
    assert content["feedback"]["rule"] is None
    result, _ = run(tmp_path / "ppo", "ppo", **policed(one, reward="own", max_steps=1))
    assert "rule" not in result.history[-1]
    with pytest.raises(OptionError, match=r"--rounds: expected a reward model of a built-in rule, .* got own, whose"):
        run(tmp_path / "out", "ppo", **policed(one, reward="own", rounds=2))


def test_responses_end_with_a_full_stop(tmp_path, one):
    text = prose.topics()["types"][:12_000]
    (tmp_path / "novel.txt").write_text(text)
    options = {"data": "text", "root": str(tmp_path / "novel.txt"), "tokens": "char"}
    run(tmp_path / "gpt", "gpt", num_steps=40, options=SMALL, max_steps=30, **options)
    stage = {"from_": str(tmp_path / "gpt"), "num_steps": 16, "batch_size": 16}
    run(tmp_path / "reward", "reward", epochs=1, **stage)
    pairs = checkpoint.load(tmp_path / "reward")["feedback"]["pairs"]
    texts = [text for part in pairs for pair in part for text in pair[1:]]
    assert all("." not in text[:-1] for text in texts)
    assert len({len(text) for text in texts}) > 3
    result, _ = run(tmp_path / "ppo", "ppo", max_steps=2, reward=str(tmp_path / "reward"), **stage)
    assert 1 < result.history[-1]["length"] < 16
    result, _ = run(tmp_path / "dpo", "ppo", max_steps=2, method="dpo", reward=str(tmp_path / "reward"), **stage)
    assert 1 < result.history[-1]["length"] < 16


@pytest.mark.parametrize(
    "line, message",
    [
        (
            '{"prompt": "the ", "better": "the value", "worse": "a list"}',
            "begin with the prompt 'the ', got worse 'a l",
        ),
        ('{"prompt": "the ", "better": "the value", "worse": "the "}', "expected worse to go on from the prompt"),
        ('{"prompt": "the ", "better": "the x", "worse": "the x"}', "expected two texts that differ"),
        ('{"prompt": "", "better": "the x", "worse": "the y"}', "expected a prompt, got an empty one"),
        ('{"prompt": "the ", "better": "the x"}', "expected a JSON object with the texts prompt, better, worse, got"),
        ("the value", "expected a JSON object with the texts prompt, better, worse, got 'the value'"),
    ],
)
def test_bad_pairs_are_told_by_their_line(tmp_path, one, line, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a ", "better": "a b", "worse": "a c"}\n\n' + line)
    with pytest.raises(DataError, match=f"pairs.jsonl: line 3: .*{message}"):
        run(tmp_path / "out", "reward", **rewarded(one, pairs=str(path)))
    assert not (tmp_path / "out").exists()


def test_pairs_that_do_not_fit_are_told(tmp_path, one):
    for rows, message in (
        ([], "expected pairs, got an empty file"),
        ([("a ", "a b", "a c")], "expected pairs of at least 10 prompts, a tenth of which is held out, got 1"),
        ([(f"a {c} ", f"a {c} é", f"a {c} c") for c in "abcdefghij"], "pairs: better of the prompt 'a a ': expected"),
        ([(f"a {c} ", f"a {c} {'b' * 50}", f"a {c} c") for c in "abcdefghij"], "at most 40 tokens .* got 54"),
    ):
        path = tmp_path / "pairs.jsonl"
        lines = [json.dumps(dict(zip(("prompt", "better", "worse"), row, strict=True))) for row in rows]
        path.write_text("\n".join(lines))
        with pytest.raises(DataError, match=message):
            run(tmp_path / "out", "reward", **rewarded(one, pairs=str(path)))
    with pytest.raises(DataError, match=r"none.jsonl: expected a file of pairs: No such file"):
        run(tmp_path / "out", "reward", **rewarded(one, pairs=str(tmp_path / "none.jsonl")))


def test_what_does_not_fit_is_said_in_a_sentence(tmp_path, one, judge, pydl):
    run(one / "other", "rnn_lm", data="text", root=str(one / "novel.txt"), max_steps=1, options={"hidden": 8})
    word = str(one / "word")
    run(one / "words", "reward", from_=word, num_steps=8, max_steps=1)
    fits = policed(one)
    for model, options, error, message in (
        ("ppo", {}, OptionError, "ppo: expected --from RUN, the run of `pydl train gpt` that it needs, got none"),
        ("reward", {}, OptionError, "reward: expected --from RUN, the run of `pydl train gpt`"),
        ("ppo", {"from_": fits["from_"]}, OptionError, "ppo: expected --reward RUN, the run of `pydl train reward`"),
        (
            "ppo",
            {**fits, "reward": str(one / "words")},
            CheckpointError,
            "--reward: expected a reward model of the voc",
        ),
        (
            "ppo",
            {**fits, "reward": fits["from_"]},
            CheckpointError,
            "expected the checkpoint of a reward model, got one",
        ),
        ("ppo", {**fits, "from_": fits["reward"]}, CheckpointError, "expected the checkpoint of a language model, got"),
        (
            "ppo",
            {**fits, "from_": str(one / "other")},
            CheckpointError,
            "--from: expected a run of gpt, got one of rnn",
        ),
        ("ppo", {**fits, "from_": str(one / "none")}, CheckpointError, "none: there is no such checkpoint"),
        ("ppo", {**fits, "num_steps": 17}, OptionError, "--num-steps: expected at most 16, the 40 positions of"),
        ("ppo", {**fits, "data": "prose"}, OptionError, "--data: expected none for ppo, whose --from decides that"),
        ("ppo", {**fits, "options": {"hidden": 8}}, OptionError, "--option: expected none for ppo"),
        ("ppo", {**fits, "weights": "w.pt"}, OptionError, "--weights: expected none for ppo"),
        ("ppo", {**fits, "accumulate": 2}, OptionError, "--accumulate: expected none for ppo"),
        ("ppo", {**fits, "monitor": True}, OptionError, "--monitor: expected a model whose step is one forward"),
        ("ppo", {**fits, "rule": "long"}, OptionError, "--rule: expected a reward model to take it, got ppo"),
        ("ppo", {**fits, "method": "grpo"}, OptionError, "--method: expected one of ppo, dpo, got 'grpo'"),
        ("ppo", {**fits, "method": "dpo", "rounds": 2}, OptionError, "--rounds: expected --method ppo to take it"),
        ("ppo", {**fits, "method": "dpo", "kl": 2.0}, OptionError, "--kl: expected --method ppo to take it"),
        ("ppo", {**fits, "kl": -1.0}, OptionError, "--kl: expected a finite number of nats of at least 0, got -1.0"),
        ("ppo", {**fits, "rounds": 0}, OptionError, "--rounds: expected a number of at least 1, got 0"),
        ("ppo", {**fits, "label_smoothing": 0.1}, OptionError, "--label-smoothing: expected a model that chooses"),
        ("reward", {**rewarded(one), "rule": "lnog"}, OptionError, "--rule: .* got 'lnog'; did you mean long"),
        ("reward", {**rewarded(one), "rule": "long", "pairs": "p"}, OptionError, "--rule: expected --pairs or --rule"),
        ("gpt", {"from_": "x"}, OptionError, "--from: expected a reward model or a policy to take it, got gpt"),
        ("lenet", {"kl": 1.0}, OptionError, "--kl: expected a policy to take it, got lenet"),
    ):
        with pytest.raises(error, match=message):
            run(tmp_path / "out", model, **options)
        assert not (tmp_path / "out").exists()
    code, out, err = pydl("train", "ppo")
    assert (code, out) == (2, "")
    assert err == "pydl: ppo: expected --from RUN, the run of `pydl train gpt` that it needs, got none\n"


@pytest.mark.slow
def test_recipes_come_to_what_readme_says(tmp_path, monkeypatch):
    monkeypatch.undo()  # what is few above
    torch.set_num_threads(os.cpu_count())
    stage = {"from_": str(tmp_path / "gpt")}
    run(tmp_path / "gpt", "gpt")
    for rule in ("known", "sentiment", "long"):
        result, _ = run(tmp_path / rule, "reward", rule=rule, **stage)
        assert result.history[-1]["test_accuracy"] >= {"long": 0.95, "sentiment": 0.83, "known": 0.7}[rule]
    result, _ = run(tmp_path / "ppo", "ppo", reward=str(tmp_path / "long"), **stage)
    last = result.history[-1]
    assert last["reward"] >= 2
    assert last["kl"] < 10
    free, _ = run(tmp_path / "free", "ppo", reward=str(tmp_path / "long"), kl=0.0, **stage)
    assert free.history[-1]["kl"] > 2 * last["kl"]
    assert free.history[-1]["known"] < last["known"] - 0.1
