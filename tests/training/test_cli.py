"""The command line: what it prints, and its exit codes."""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from runs import command_line  # noqa: F401  (fixtures)


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


def test_options_of_the_model_may_be_several_numbers(pydl):
    words = ("--option", "hidden=32,16,8", "--option", "dropout=0,0,0.1", "--max-steps", 1, "--out", "run")
    assert pydl("train", "mlp", *words)[0] == 0
    options = torch.load("run/checkpoint.pt", weights_only=True)["config"]["options"]
    assert options == {"hidden": (32, 16, 8), "dropout": (0, 0, 0.1)}
    assert pydl("train", "--resume", "run", "--max-steps", 2)[0] == 0
    assert pydl("train", "mlp", "--option", "hidden=32", "--option", "dropout=0.5", "--max-steps", 1)[0] == 0


def test_help_and_version(pydl):
    from pydl import __version__

    assert pydl("--version")[:2] == (0, f"pydl {__version__}\n")
    # README's words for what is to be given
    for words, given in ((("-h",), "COMMAND"), (("train", "-h"), "MODEL"), (("predict", "--help"), "RUN IMAGE...")):
        code, out, err = pydl(*words)
        assert (code, err) == (0, "")
        (usage,) = re.findall(r"Usage: pydl.*", out)
        assert given in re.sub(r"[{}\[\]]", "", usage)


def test_info(pydl):
    code, out, _ = pydl("info")
    assert code == 0
    assert re.search(r"compiled by (g\+\+|clang|Apple clang) \d+\.\d+", out)
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
        (
            "train vgg11 --option rate=1",
            2,
            "pydl: --option: expected one of vgg11's (ratio=1), got 'rate'; did you mean ratio?",
        ),
        ("train mlp --option dropout=1.5", 2, "pydl: --option dropout=1.5: "),
        ("train mlp --option dropout=a,b", 2, "the form is that of mlp's default, dropout=0.2,0.5"),
        ("train leent", 2, "got 'leent'; did you mean lenet?"),
        ("train lenet --wings", 2, "--wings"),
        ("train lenet --schedule wavy", 2, "pydl: --schedule: expected one of constant, step, cosine, got 'wavy'"),
        ("train lenet --augment crop,spin", 2, "pydl: --augment: expected one of crop, flip, jitter, got 'spin'"),
        ("train lenet --init zeros", 2, "pydl: --init: expected one of torch, xavier, kaiming, got 'zeros'"),
        (
            "train lenet --download",
            2,
            "pydl: --download: expected a data set out of mnist, fashion-mnist, ",
        ),
        ("train lenet --download --resume run", 2, "pydl: --download: expected a new run, got --resume"),
        ("train lenet --patience 0", 2, "pydl: --patience: expected a number of at least 1, got 0"),
        ("train lenet --workers -1", 2, "pydl: --workers: expected a finite number of at least 0, got -1"),
        ("train lenet --l1 nan", 2, "pydl: --l1: expected a finite number of at least 0, got nan"),
        ("train linear_regression --folds 1", 2, "pydl: --folds: expected a number from 2 to the 1000 examples, got 1"),
        ("train leenet --folds 3", 2, "pydl: model: expected the name to be one of alexnet, "),
        ("train lenet --folds 3 --resume run", 2, "pydl: --folds: expected a new run, got --resume"),
        ("train lenet --option num_classes=7", 2, "pydl: --option: expected one of lenet's (none), got 'num_classes'"),
        ("train linear_regression --option variant=magic", 2, "variant to be one of concise, scratch, got 'magic'"),
        ("train lenet --data folder --root nowhere", 1, "pydl: data set 'folder': nowhere is no folder"),
        ("train lenet --data mnist --root nowhere", 1, "pydl: data set 'mnist': nowhere/mnist lacks train-images"),
        (
            "train lenet --data mnist",
            1,
            "t10k-labels-idx1-ubyte; --download fetches them (by torchvision), or put the ",
        ),
        ("train lenet --out /dev/full", 1, "pydl: /dev/full: the run's folder cannot be made"),
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


def test_loss_that_is_not_finite_names_step_and_layer_and_keeps_the_last_epoch(pydl, tmp_path, monkeypatch):
    from pydl.training.learner import Learner

    assert pydl("train", "mlp", "--epochs", 1, "--out", "run")[0] == 0
    before = (tmp_path / "run/checkpoint.pt").read_bytes()
    step = Learner._one

    def leap(self, batch):  # as too large a learning rate would
        if self.step == 25:
            with torch.no_grad():
                self.model[4].weight.mul_(1e38)
        step(self, batch)

    monkeypatch.setattr(Learner, "_one", leap)
    code, _, err = pydl("train", "--resume", "run", "--epochs", 3)
    assert code == 1
    assert err.startswith("pydl: the loss became ")
    assert "in step 26; 4 (Linear) is the first layer whose output is not finite; a smaller --lr may help; " in err
    assert err.endswith("run keeps epoch 1 " + err.split("run keeps epoch 1 ")[1])
    assert len(err.splitlines()) == 1
    assert (tmp_path / "run/checkpoint.pt").read_bytes() == before


def test_a_learning_rate_that_is_far_too_large(pydl, tmp_path):
    code, _, err = pydl("train", "mlp", "--lr", "1e30", "--optimizer", "sgd")
    assert code == 1
    assert "the loss became" in err
    assert "in step 2; 4 (Linear) is the first layer" in err
    assert "no epoch was finished, so nothing was kept" in err
    assert not (tmp_path / "runs/mlp").exists()


@pytest.mark.parametrize("file", ["checkpoint.pt", "metrics.jsonl", "curves.png"])
def test_a_full_disk_is_a_sentence_and_loses_nothing(pydl, tmp_path, monkeypatch, file):
    assert pydl("train", "softmax_regression", "--epochs", 1, "--out", "run")[0] == 0
    before = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["epoch"]
    full = OSError(28, "No space left on device")
    if file == "checkpoint.pt":
        monkeypatch.setattr(torch, "save", lambda content, file: (_ for _ in ()).throw(full))
    elif file == "metrics.jsonl":
        (tmp_path / "run/metrics.jsonl").unlink()
        (tmp_path / "run/metrics.tmp").symlink_to("/dev/full")
    else:
        (tmp_path / "run/curves.png").unlink()
        (tmp_path / "run/curves.png").symlink_to("/dev/full")
    code, out, err = pydl("train", "--resume", "run", "--epochs", 2)
    assert code == 1
    assert err.startswith("pydl: ")
    assert "No space left on device" in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in out + err
    assert torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["epoch"] == before + (file == "curves.png")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_absent_gpu_is_said(pydl):
    for words in (("--device", "cuda"), ("--device", "cuda:1")):
        code, _, err = pydl("train", "lenet", *words)
        assert code == 2
        assert f"pydl: --device: expected a device of this machine, got '{words[1]}'; it has no such GPU" in err


def save_folder(root, classes):
    from PIL import Image

    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (8, 8), 60 * number + i).save(root / name / f"{i}.png")


def test_images_that_are_none_and_classes_that_do_not_fit(pydl, tmp_path):
    save_folder(tmp_path / "two", ("a", "b"))
    words = ("train", "softmax_regression", "--data", "folder", "--max-steps", 1)
    assert pydl(*words, "--root", "two", "--out", "run")[0] == 0
    save_folder(tmp_path / "three", ("a", "b", "c"))
    code, _, err = pydl("train", "--resume", "run", "--root", "three", "--max-steps", 2)
    assert code == 1
    assert "run: expected the 4 training examples and 2 classes of the checkpoint in data set 'folder', got 6" in err
    (tmp_path / "two/b/1.png").write_text("no image")
    code, _, err = pydl(*words, "--root", "two")
    assert code == 1
    assert err.startswith("pydl: two/b/1.png: not a readable image")
    content = torch.load("run/checkpoint.pt", weights_only=True)
    content["classes"].append("c")
    torch.save(content, "run/checkpoint.pt")
    code, _, err = pydl("predict", "run", "three/a/0.png")
    assert code == 1
    assert "pydl: run: the checkpoint does not fit softmax_regression" in err


def test_ctrl_c_exits_with_130_and_the_run_can_be_resumed(tmp_path):
    command = [sys.executable, "-m", "pydl", "train", "softmax_regression", "--epochs", "100000", "--threads", "1"]
    command += ["--out", "run"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def listen():  # a shell starts background jobs, this test run perhaps, with SIGINT ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, cwd=tmp_path, preexec_fn=listen, **pipes) as process:
        for _ in range(2):
            assert process.stdout.readline().startswith("epoch ")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.startswith("pydl: interrupted in epoch ")
    assert "`pydl train --resume run` goes on from there" in err
    assert len(err.splitlines()) == 1
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoint.pt", "metrics.jsonl", "curves.png"}


def test_of_several_processes_the_first_one_speaks(pydl, monkeypatch):
    monkeypatch.setenv("RANK", "1")  # without WORLD_SIZE it decides nothing else
    assert pydl("train", "leenet") == (2, "", "")
    monkeypatch.setenv("RANK", "0")
    assert "model: expected the name" in pydl("train", "leenet")[2]
