"""The command line: what it prints, and its exit codes."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from pydl import cli


@pytest.fixture
def pydl(monkeypatch, capsys, tmp_path):
    """Runs ``pydl ...`` in this process, in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a busy second core would slow models this small down, not speed them up

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pydl", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out = capsys.readouterr()
        return end.value.code or 0, out.out, out.err

    yield call
    torch.set_num_threads(threads)


def test_train_needs_no_option(pydl, tmp_path):
    code, out, err = pydl("train", "softmax_regression", "--max-steps", 3)
    assert (code, err) == (0, "")
    assert "runs/softmax_regression/ holds checkpoint.pt, metrics.jsonl, curves.png" in out
    assert (tmp_path / "runs/softmax_regression/checkpoint.pt").is_file()


def test_resume_needs_no_model_and_may_change_how_far(pydl):
    pydl("train", "mlp", "--max-steps", 3, "--out", "run")
    code, out, err = pydl("train", "--resume", "run", "--max-steps", 5)
    assert (code, err) == (0, "")
    assert "step 5 " in out


def test_model_options_are_kept_for_a_resumed_run(pydl, tmp_path):
    code, _, _ = pydl("train", "polynomial_regression", "--option", "degree=5", "--max-steps", 2, "--out", "run")
    assert code == 0
    assert torch.load("run/checkpoint.pt", weights_only=True)["config"]["options"] == {"degree": 5}
    code, _, err = pydl("train", "--resume", "run", "--option", "degree=6")
    assert code == 2
    assert "--option: expected {'degree': 5} as in the checkpoint" in err
    assert pydl("train", "--resume", "run", "--max-steps", 3)[0] == 0


def test_compare_prints_both(pydl):
    code, out, _ = pydl("train", "softmax_regression", "--max-steps", 4, "--compare")
    assert code == 0
    assert "pydl / torch" in out


def test_info(pydl):
    code, out, _ = pydl("info")
    assert code == 0
    words = ("pydl", torch.__version__, "instruction set", "backend cuda", "backend triton", "lenet_bn", "digits")
    for word in (*words, f"1 of {os.cpu_count()} CPUs", "GPU architectures compiled"):
        assert word in out


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        ("train", 2, "pydl: train: expected the name of a model, got none"),
        ("train leenet", 2, "pydl: model: expected the name to be one of alexnet, "),
        ("train lenet --data imagenet", 2, "pydl: data: expected the name to be one of digits, "),
        ("train lenet --lr 0", 2, "pydl: --lr: expected a finite number above 0"),
        ("train lenet --lr fast", 2, "--lr"),
        ("train lenet --epochs 0", 2, "pydl: --epochs: expected a number of at least 1"),
        ("train lenet --threads 0", 2, "pydl: --threads: expected a number of at least 1"),
        ("train lenet --optimizer lion", 2, "pydl: --optimizer: expected one of sgd, "),
        ("train lenet --backend metal", 2, "pydl: --backend: expected one of torch, cpu, cuda, triton"),
        ("train lenet --device cuda:77", 2, "pydl: --device: expected a device of this machine"),
        ("train lenet --resume nowhere", 1, "pydl: nowhere: there is no such checkpoint"),
        ("train vgg11 --option ratio", 2, "pydl: --option: expected NAME=VALUE, got 'ratio'"),
        ("train vgg11 --option rate=1", 2, "pydl: --option: expected one of vgg11's (ratio), got 'rate'"),
        ("train lenet --wings", 2, "--wings"),
        ("fly", 2, "fly"),
    ],
)
def test_errors_are_a_sentence_and_an_exit_code(pydl, tmp_path, arguments, code, message):
    got, out, err = pydl(*arguments.split())
    assert got == code
    assert message in err
    assert "Traceback" not in out + err
    assert list(tmp_path.iterdir()) == []


def test_resume_refuses_what_would_change_the_numbers(pydl, tmp_path):
    pydl("train", "mlp", "--max-steps", 2, "--out", "run")
    before = (tmp_path / "run/checkpoint.pt").read_bytes()
    for arguments, message in (
        (("lenet",), "MODEL: expected 'mlp' as in the checkpoint that is resumed, got 'lenet'"),
        (("mlp", "--lr", "0.5"), "--lr: expected 0.001 as in the checkpoint that is resumed, got 0.5"),
        (("--seed", "1"), "--seed: expected 0 as in the checkpoint that is resumed, got 1"),
    ):
        code, _, err = pydl("train", *arguments, "--resume", "run")
        assert code == 2
        assert message in err
    assert (tmp_path / "run/checkpoint.pt").read_bytes() == before


def test_loss_that_is_not_finite_exits_with_1(pydl):
    code, _, err = pydl("train", "mlp", "--lr", "1e30", "--optimizer", "sgd")
    assert code == 1
    assert "the loss became" in err
    assert "in step 2" in err


def test_ctrl_c_exits_with_130_and_the_run_can_be_resumed(tmp_path):
    command = [sys.executable, "-m", "pydl", "train", "softmax_regression", "--epochs", "100000", "--threads", "1"]
    command += ["--out", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(2):
            assert process.stdout.readline().startswith("epoch ")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.startswith("pydl: interrupted in epoch ")
    assert "`pydl train --resume run` goes on from there" in err
    assert len(err.splitlines()) == 1
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoint.pt", "metrics.jsonl", "curves.png"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A LeNet that has seen the digits for a few epochs."""
    from pydl import train

    folder = tmp_path_factory.mktemp("trained") / "lenet"
    train.train(train.Config("lenet", epochs=8, threads=1), out=folder)
    return folder


def save_digits(folder, count=12):
    """Test digits as picture files; returns their paths and classes."""
    from PIL import Image

    from pydl import data

    digits, paths = data.get("digits"), []
    for index in range(count):
        paths.append(folder / f"{index}.png")
        Image.fromarray((digits.test.images[index, 0] * 255).byte().numpy()).save(paths[-1])
    return paths, digits.test.targets[:count].tolist()


def test_predict_labels_saved_digits(pydl, tmp_path, trained):
    from pydl.predict import Predictor

    paths, classes = save_digits(tmp_path)
    code, out, err = pydl("predict", trained, *paths, "--out", "labelled", "--top", 2)
    assert (code, err) == (0, "")
    predictions = Predictor(trained)(paths, top=10)
    right = [p.ranking[0][0] == str(label) for p, label in zip(predictions, classes, strict=True)]
    assert sum(right) >= 10
    for prediction in predictions:
        probabilities = [probability for _, probability in prediction.ranking]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert probabilities == sorted(probabilities, reverse=True)
        name, probability = prediction.ranking[0]
        assert f"{probability:.4f}" in out
        assert len(list((tmp_path / "labelled").glob(f"*-{prediction.path.stem}-{name}.png"))) == 1
    assert len(list((tmp_path / "labelled").iterdir())) == len(paths)


def test_predict_sees_what_evaluation_sees(tmp_path, trained):
    from pydl import data
    from pydl.predict import Predictor

    predictor = Predictor(trained, backend_name="torch")
    paths, _ = save_digits(tmp_path, 5)
    images = data.get("digits").test.images[:5]
    expected = predictor.model(predictor.preprocessing((images * 255).byte())).softmax(1)
    got = predictor.probabilities([data.read_image(path) for path in paths])
    torch.testing.assert_close(got, expected)
    inverted = predictor([paths[0]], invert=True, top=10)[0].ranking
    assert inverted != predictor([paths[0]], top=10)[0].ranking


def test_predict_errors(pydl, tmp_path, trained):
    (path,), _ = save_digits(tmp_path, 1)
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for arguments, code, message in (
        ((trained, text), 1, f"pydl: {text}: not a readable image"),
        ((trained, tmp_path / "none.png"), 1, "none.png: there is no such file"),
        ((text, path), 1, f"pydl: {text}: not a readable checkpoint"),
        ((trained, path, "--backend", "metal"), 2, "pydl: --backend: expected one of"),
        ((trained,), 2, "IMAGE"),
    ):
        got, out, err = pydl("predict", *arguments)
        assert got == code
        assert message in err.replace("\n", "")
        assert "Traceback" not in out + err


def test_predict_refuses_weights_of_another_model(pydl, tmp_path, trained):
    content = torch.load(trained / "checkpoint.pt", weights_only=True)
    content["config"]["model"] = "mlp"
    torch.save(content, "mixed.pt")
    (path,), _ = save_digits(tmp_path, 1)
    code, _, err = pydl("predict", "mixed.pt", path)
    assert code == 1
    assert "mixed.pt: the checkpoint does not fit mlp" in err
