"""Programs in the book's style run with one import changed: warnings are errors, each animator leaves a picture.

All of them run in one process (run_programs.py), since importing torch takes longer than most of them.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# name (a plus: on files of Fashion-MNIST's format) -> pictures that its animators leave
PICTURES = {
    "linear_scratch": 0,
    "linear_concise": 0,
    "softmax_scratch": 1,
    "softmax_concise": 1,
    "mlp_scratch": 1,
    "mlp_concise": 1,
    "polynomial": 2,
    "weight_decay": 4,
    "dropout": 2,
    "custom_layers": 1,
    "saving": 1,
    "conv_layer": 0,
    "alexnet+": 1,
    "vgg+": 1,
    "nin+": 1,
    "googlenet+": 1,
    "batch_norm+": 2,
    "resnet+": 1,
    "devices+": 1,
    "rnn_scratch": 2,
    "rnn_concise": 3,
    "seq2seq": 2,
    "attention": 0,
    "anchors": 0,
    "linear_objects": 3,
    "classifiers_objects": 3,
    "language_objects": 3,
    "transformer": 1,
}
HERE = Path(__file__).parent


def run(folder, *names):
    words = [sys.executable, "-W", "error", str(HERE / "run_programs.py"), str(folder), *names]
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    pytest.importorskip("matplotlib", reason="the programs draw")
    return run(tmp_path_factory.mktemp("programs"), *PICTURES)


def last(pattern, text):
    """The number in the last line of this form."""
    return float(re.findall(pattern.replace("#", r"(-?[\d.]+)"), text)[-1])


def test_each_program_is_run():
    assert {path.stem for path in (HERE / "programs").glob("*.py")} == {n.rstrip("+") for n in PICTURES} | {"lenet"}


@pytest.mark.parametrize("name", PICTURES)
def test_program(name, ran):
    found = ran[name]
    assert found["error"] == ""
    stem = name.rstrip("+")
    assert sorted(found["pictures"]) == [f"{stem}-{number}.png" for number in range(1, PICTURES[name] + 1)]
    assert all(size > 10_000 for size in found["pictures"].values())
    for picture in found["pictures"]:
        assert found["out"].count(f"the curves are in {picture}\n") == 1
    if name.endswith("+"):
        assert "Fashion-MNIST" not in found["out"]
        served, ratio = r"pydl serves # of # layers: a step takes", r"by torch \(#×\)"
        assert re.search(served.replace("#", r"\d+"), found["out"])
        assert last(ratio, found["out"]) > 0


@pytest.mark.parametrize("name", ["linear_scratch", "linear_concise"])
def test_linear_regression_finds_the_truth(name, ran):
    assert last("epoch 3, loss #", ran[name]["out"]) < 3e-4
    if name == "linear_scratch":
        values = ran[name]["values"]
        assert [w for (w,) in values["w"]] == pytest.approx([2, -3.4], abs=0.01)
        assert values["b"] == pytest.approx([4.2], abs=0.02)


@pytest.mark.parametrize("name", ["softmax_scratch", "softmax_concise", "mlp_scratch", "mlp_concise"])
def test_classifiers_learn(name, ran):
    out = ran[name]["out"]
    assert out.count("these are scikit-learn's digits") == 1
    assert last("test acc #", out) > 0.75
    assert ("pydl serves" in out) == name.endswith("concise")  # functions are no layers


def test_the_later_editions_frame(ran):
    values = ran["linear_objects"]["values"]
    assert values["said"] == 'Class attribute "b" is 1'
    assert values["kept"] == [1, 2, 0]
    assert values["error_in_w"] == pytest.approx([0, 0], abs=0.3)
    assert values["concise_error"] == pytest.approx([0, 0], abs=0.05)
    out = ran["classifiers_objects"]["out"]
    assert len(re.findall(r"pydl serves \d+ of \d+ layers: a step takes", out)) == 2
    assert out.count("these are scikit-learn's digits") == 1


def test_regularisation(ran):
    scratch, scratch_decayed, concise, concise_decayed = ran["weight_decay"]["values"]["norms"]
    assert scratch_decayed < scratch / 2
    assert concise_decayed < concise / 2


def test_a_polynomial_is_found(ran):
    weights = re.search(r"weight: \[\[(.*)\]\]", ran["polynomial"]["out"]).group(1).split()
    assert [float(w) for w in weights] == pytest.approx([5, 1.2, -3.4, 5.6], abs=0.5)


def test_what_is_saved_is_what_was_trained(ran):
    first, second = ran["saving"]["values"]["accuracies"]
    assert first == second > 0.5


def test_swap_is_left_out_where_it_is_unwanted(ran):
    assert "pydl serves" not in ran["custom_layers"]["out"]


def test_edges(ran):
    values = ran["conv_layer"]["values"]
    assert values["Y"] == [[0, 1, 0, 0, 0, -1, 0]] * 6
    assert values["many"] == [[0, 2, 0, 0, 0, -2, 0]] * 6
    assert last("loss #", ran["conv_layer"]["out"]) < 0.1


def test_batch_norm_learns(ran):
    assert last("loss #", ran["batch_norm+"]["out"]) < 1


def test_language_models_learn(ran):
    assert last("perplexity #,", ran["rnn_scratch"]["out"]) < 18  # of 28 characters
    assert len(ran["rnn_scratch"]["values"]["before"]) == len("time traveller ") + 10
    assert ran["rnn_scratch"]["out"].count("\ntime traveller") == 2
    assert "pydl serves" not in ran["rnn_scratch"]["out"]
    assert ran["rnn_concise"]["out"].count("pydl serves 2 of 2 layers") == 3


def test_translation_learns(ran):
    found = ran["seq2seq"]["out"]
    assert found.count("bleu") == 3
    assert last("loss #,", found) < 0.25  # of the second net; 0.4 at first


def test_the_later_editions_sequences(ran):
    values = ran["language_objects"]["values"]
    assert values["perplexities"][-1] < 20  # of 28 characters
    assert len(values["before"]) == len(values["after"]) == len("it has") + 20
    assert ran["language_objects"]["out"].count("pydl serves 2 of 2 layers") == 2
    values = ran["transformer"]["values"]
    assert values["losses"][-1] < values["losses"][0] / 1.5
    assert values["steps"] == 9
    assert re.search("pydl serves 67 of 67 layers", ran["transformer"]["out"])
    assert ran["transformer"]["out"].count("bleu") == 2


def test_values_of_attention_and_boxes(ran):
    assert ran["attention"]["values"]["shape"] == [2, 4, 100]
    assert ran["anchors"]["values"]["classes"] == [0, 1, 2, 0, 2]
    rows = ran["anchors"]["values"]["output"][0]
    assert [row[0] for row in rows] == [0, 1, -1, -1]


@pytest.mark.slow
def test_lenet_reaches_the_accuracy_of_the_command(tmp_path):
    """``pydl train lenet`` ends at 0.9916 of the same digits (README)."""
    found = run(tmp_path, "lenet")["lenet"]
    assert found["error"] == ""
    assert found["values"]["accuracy"] > 0.985
