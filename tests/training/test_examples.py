"""examples/: each script runs, and comes to what it promises."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from runs import no_pictures, one_thread  # noqa: F401  (fixtures)

EXAMPLES = Path(__file__).parents[2] / "examples"
# the last number that the script prints under this word, and the least it must be
PROMISES = {
    "softmax_regression": ("test accuracy", 0.93),
    "dropout_mlp": ("test accuracy", 0.7),
    "lenet_swapped": ("same on torch's kernels:", 0.9),
    "resnet_compared": ("pydl is", 0.1),
    "resume_and_predict": ("test accuracy", 0.95),
    "gru_from_scratch": ("outputs of pydl.nn.GRU agree:", 1),
    "attention_demo": ("with positions: they change by up to", 0.01),
    "translation_with_attention": ("right word for word:", 0.9),
    "word_vectors": ("near after training:", 0.5),
    "bert_fine_tuning": ("right after pretraining:", 0.25),
    "gpt_from_scratch": ("logits of pydl.models.gpt agree:", 1),
    "gradient_boosting": ("least accuracy of the three:", 0.95),
    "perceptron": ("XOR by a hidden layer of 8: right:", 1),
    "linear_regression": ("closed form: test loss", 0.00005),
    "reinforce": ("return at the end with a baseline:", 0.4),
    "rlhf": ("without the penalty the reward is higher by", 0.3),
}


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PROMISES)


@pytest.mark.parametrize("name", PROMISES)
def test_example(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    state = torch.get_rng_state()
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    torch.set_rng_state(state)
    out = capsys.readouterr().out
    words, least = PROMISES[name]
    assert float(re.findall(rf"{words} ([\d.]+)", out)[-1]) >= least
    if name == "lenet_swapped":
        assert re.search(r"pydl serves \d+ of 12 layers", out)
    if name == "dropout_mlp":
        without, with_dropout = map(float, re.findall(r"test loss ([\d.]+)", out))
        assert with_dropout < 0.9 * without
    if name == "resnet_compared":
        ours, theirs = re.search(r"losses: ([\d.]+) by pydl, ([\d.]+) by torch", out).groups()
        assert float(ours) == pytest.approx(float(theirs), rel=1e-2)
        assert ("They differ by" in out) == (ours != theirs)
    if name == "resume_and_predict":
        read = re.findall(r"\d\.png: (\d) with [\d.]+%, in truth (\d)", out)
        assert len(read) == 8
        assert sum(one == other for one, other in read) >= 7
    if name == "gpt_from_scratch":
        assert "from a cache it writes the same letters: 1" in out
    if name in ("gru_from_scratch", "gpt_from_scratch"):
        assert float(re.search(r"it chooses among ([\d.]+) letters where it began with 28", out)[1]) < 12
        assert "the value of " in out
    if name == "attention_demo":
        pictures = tmp_path / "attention_demo"
        names = {"heads", "masked_softmax", "nadaraya_watson", "one_hot", "positions"}
        assert {path.name for path in pictures.iterdir()} == {f"{each}.png" for each in names}
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures.iterdir())
        assert float(re.search(r"one-hot: largest cosine of two words ([\d.]+)", out)[1]) == 0
        assert float(re.search(r"shuffled words keep their vectors to ([\d.]+)", out)[1]) < 1e-5
        shutil.rmtree(pictures)
    if name == "perceptron":
        assert re.search(r"two clouds: without an error after \d+ epochs, right: 1.00", out)
        assert "XOR by the perceptron: an epoch without an error: None" in out
    if name == "linear_regression":
        assert float(re.search(r"largest difference: ([\d.]+)", out)[1]) < 0.005
    assert list(tmp_path.iterdir()) == []  # an example leaves nothing else behind
