"""Fine-tuning: files of torchvision's names, a new or an added last layer, what is frozen, rates, the table."""

import json
import os
import statistics

import pytest
import torch
from runs import (  # noqa: F401  (fixtures)
    assert_same_state,
    command_line,
    learner,
    no_pictures,
    numbers,
    one_thread,
    run,
)
from torch import nn

from pydl import data, models
from pydl.errors import CheckpointError, OptionError
from pydl.finetune import finetune
from pydl.predict import Predictor
from pydl.training import checkpoint, tuning, weights
from pydl.training.config import Config


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A short run of lenet_bn on the digits 0 to 4."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    threads = torch.get_num_threads()
    run(folder, "lenet_bn", data="digits-0-4", epochs=1, batch_size=32, threads=1)
    torch.set_num_threads(threads)
    return str(folder)


def test_the_data_sets_of_few_digits():
    whole, low, high = (data.get(name) for name in ("digits", "digits-0-4", "digits-5-9"))
    assert low.classes == ("0", "1", "2", "3", "4")
    assert high.classes == ("5", "6", "7", "8", "9")
    assert len(low.test) + len(high.test) == len(whole.test)
    assert torch.bincount(high.train.targets).tolist() == [10] * 5
    assert low.train.targets.max() == high.train.targets.max() == 4
    digit = high.train.images[(high.train.targets == 2).nonzero()[0]]
    at = (whole.train.images == digit).flatten(1).all(1).nonzero().flatten()
    assert whole.train.targets[at].unique().tolist() == [7]
    other = data.get("digits-5-9", seed=1)
    assert not torch.equal(other.train.images, high.train.images)
    assert torch.equal(other.test.images, high.test.images)


@pytest.mark.parametrize("model", ["vgg16", "resnet18", "resnet50"])
def test_a_file_of_torchvisions_names_but_for_the_last_layer(tmp_path, model):
    """1,000 classes in the file, ten in the run; the body is the file's, the last layer is new."""
    options = {"variant": "torchvision"} if model != "resnet50" else {}
    options |= {"ratio": 16} if model == "vgg16" else {}
    source = models.get(model, num_classes=1000, in_channels=1, input_size=64, **options)
    torch.save(source.state_dict(), tmp_path / "file.pt")
    net = models.get(model, num_classes=10, in_channels=1, input_size=32, **options)
    config = Config(model, weights=str(tmp_path / "file.pt"), replace_head=10, freeze=["body"]).resolved()
    last = tuning.head(net)
    assert last == {"vgg16": "classifier.6"}.get(model, "fc")
    new = net.state_dict()[f"{last}.weight"].clone()
    weights.load(net, tmp_path / "file.pt", config=config)
    for name, tensor in source.state_dict().items():
        if not name.startswith(f"{last}."):
            assert torch.equal(net.state_dict()[name], tensor), name
    assert torch.equal(net.state_dict()[f"{last}.weight"], new)
    with pytest.raises(CheckpointError, match=rf"expected {last}.weight to be of shape \(10, "):
        weights.load(net, tmp_path / "file.pt")
    state = source.state_dict()
    first = next(iter(state))
    state["layer9.weight"] = state.pop(first)
    torch.save(state, tmp_path / "file.pt")
    message = rf"it lacks {first}; it has layer9\.weight, which the model does not know"
    with pytest.raises(CheckpointError, match=message):
        weights.load(net, tmp_path / "file.pt", config=config)


def test_frozen_body(tmp_path, pretrained):
    """Neither weights nor statistics of the body move, with weight decay and L1 either; the last layer's do."""
    before = checkpoint.load(pretrained)["model"]
    options = {"data": "digits-5-9", "weights": pretrained, "replace_head": 5, "freeze": ["body"], "l1": 1e-3}
    result, _ = run(tmp_path / "out", "lenet_bn", max_steps=5, weight_decay=0.1, batch_size=10, **options)
    after = result.model.state_dict()
    for name, tensor in before.items():
        if not name.startswith("15."):
            assert torch.equal(after[name], tensor), name
    assert not torch.equal(after["15.weight"], before["15.weight"])
    predictor = Predictor(tmp_path / "out")
    assert predictor.classes == ("5", "6", "7", "8", "9")


def test_batch_norm_in_part():
    """A frozen batch norm evaluates in training, one that is trained does not."""
    one = learner("lenet_bn", freeze=["0.*", "1.*"], batch_size=16)
    one.run(1)
    assert [layer.training for layer in (one.model[1], one.model[5])] == [False, True]
    assert one.model[1].num_batches_tracked == 0
    assert one.model[5].num_batches_tracked == 1
    assert one.model[0].weight.grad is None


def test_learning_rate_of_the_last_layer():
    """One step of SGD on the same gradient: ten times as far in the last layer, and no other layer differs."""
    plain, tuned = (learner("lenet", "torch", optimizer="sgd", lr=0.01, head_lr_factor=f) for f in (1.0, 10.0))
    begin = [p.detach().clone() for p in plain.model.parameters()]
    plain.run(1), tuned.run(1)
    for (name, p), q, b in zip(plain.model.named_parameters(), tuned.model.parameters(), begin, strict=True):
        factor = 10 if name.startswith(tuning.head(plain.model) + ".") else 1
        torch.testing.assert_close(q - b, factor * (p - b), rtol=1e-3, atol=1e-6)
    tuned = learner("lenet", "torch", optimizer="sgd", schedule="cosine", warmup=2, lr=0.01, head_lr_factor=10.0)
    tuned.run(1)
    assert [group["lr"] for group in tuned.stepper.optimizer.param_groups] == pytest.approx([0.005, 0.05])


@pytest.mark.parametrize("form", [{"replace_head": 5}, {"add_layer": True}], ids=["replaced", "added"])
def test_twenty_steps_agree_with_torchs_and_resume(tmp_path, pretrained, form):
    options = {"data": "digits-5-9", "weights": pretrained, "batch_size": 10, "epochs": 4, "head_lr_factor": 10.0}
    options |= {"optimizer": "sgd", "lr": 0.01, "freeze": ["0.*", "1.*"], **form}
    unbroken, _ = run(tmp_path / "unbroken", "lenet_bn", compare=True, **options)
    assert unbroken.history[-1]["step"] == 20
    for row in unbroken.history:
        assert row["loss"] == pytest.approx(row["torch_loss"], rel=1e-3)
    run(tmp_path / "parts", "lenet_bn", compare=True, max_steps=7, **options)
    result, _ = run(None, resume=tmp_path / "parts", max_steps=None)
    assert numbers(result.history) == numbers(unbroken.history)
    assert_same_state(tmp_path / "unbroken", tmp_path / "parts")
    if "add_layer" in form:
        assert result.model[15][0].weight.shape == (5, 84)
        assert result.model[15][2].weight.shape == (5, 5)
        assert Predictor(tmp_path / "parts").classes == ("5", "6", "7", "8", "9")


def test_an_added_layer_begins_on_the_kept_one(pretrained):
    state = checkpoint.load(pretrained)["model"]
    net = models.get("lenet_bn", num_classes=5)
    tuning.extend(net, 3)
    config = Config("lenet_bn", weights=pretrained, add_layer=True).resolved()
    weights.load(net, pretrained, config=config)
    assert torch.equal(net[15][0].weight, state["15.weight"])
    assert isinstance(net[15][1], nn.ReLU)
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 3)
    assert weights.outputs(pretrained, "15") == 5


@pytest.mark.parametrize(
    "options, message",
    [
        ({"replace_head": 5}, "--replace-head: expected --weights to begin with, got none"),
        ({"add_layer": True}, "--add-layer: expected --weights to begin with, got none"),
        ({"replace_head": 5, "add_layer": True, "weights": "x"}, "--add-layer: expected no --replace-head beside it"),
        ({"replace_head": 6, "weights": "x"}, "--replace-head: expected the 5 classes of 'digits-0-4', got 6"),
        ({"freeze": ["conv9.*"]}, r"--freeze: expected body or a pattern of parameters' names \(0.weight, .*'conv9"),
        ({"freeze": ["*"]}, "--freeze: expected something to be left to train, got"),
        ({"head_lr_factor": 0.0}, "--head-lr-factor: expected a finite number above 0, got 0.0"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(tmp_path, options, message):
    with pytest.raises(OptionError, match=message):
        run(tmp_path / "out", "lenet_bn", data="digits-0-4", **options)
    assert not (tmp_path / "out").exists()


def test_other_models_refuse_in_words(tmp_path):
    for model, options, message in (
        (
            "linear_regression",
            {"freeze": ["*"]},
            "--freeze: expected a classifier of images to take it, got linear_reg",
        ),
        ("dcgan", {"head_lr_factor": 2.0}, "--head-lr-factor: expected a classifier of images to take it, got dcgan"),
        ("nin", {"freeze": ["body"]}, "expected a model that ends in an affine layer, got one that ends in Conv2d"),
    ):
        with pytest.raises(OptionError, match=message):
            run(tmp_path / "out", model, **options)


def test_from_the_command_line(pydl, tmp_path, pretrained):
    words = ["--data=digits-5-9", f"--weights={pretrained}", "--replace-head=5", "--freeze=0.*", "--freeze=body"]
    code, out, err = pydl("train", "lenet_bn", *words, "--head-lr-factor=10", "--max-steps=2", "--out=run")
    assert (code, err) == (0, "")
    config = checkpoint.load(tmp_path / "run")["config"]
    assert config["freeze"] == ["0.*", "body"]
    assert (config["head_lr_factor"], config["replace_head"]) == (10.0, 5)
    code, out, err = pydl("train", "--resume", tmp_path / "run", "--freeze=1.*")
    assert (code, out) == (2, "")
    assert "--freeze: expected ['0.*', 'body'] as in the checkpoint that is resumed" in err


def test_the_table(pydl, tmp_path):
    code, out, err = pydl("finetune", "lenet_bn", "--seeds=1", "--each=2", "--out=runs", "--threads=1")
    assert (code, err) == (0, "")
    for words in ("pretrained on digits-0-4", "from scratch", "frozen body", "fine-tuned", "points"):
        assert words in out
    found = json.loads((tmp_path / "runs/table.json").read_text())
    assert {name: len(values) for name, values in found.items()} == {
        "from scratch": 1,
        "frozen body": 1,
        "fine-tuned": 1,
    }
    code, out, err = pydl("finetune", "resnet19")
    assert (code, out) == (2, "")
    assert err.endswith("got 'resnet19'; did you mean resnet18?\n")
    code, out, err = pydl("finetune", "nin")
    assert (code, out) == (2, "")
    assert "expected a model that ends in an affine layer, got one that ends in Conv2d" in err
    assert not (tmp_path / "runs/nin-finetune").exists()
    code, out, err = pydl("finetune", "--each=200", "--out=other")
    assert (code, out) == (2, "")
    assert err.startswith("pydl: --each: expected a number from 1 to the 1")


@pytest.mark.slow
def test_pretraining_is_worth_eight_points(tmp_path):
    torch.set_num_threads(os.cpu_count())
    means = {name: statistics.mean(values) for name, values in finetune("resnet18", out=tmp_path / "runs").items()}
    assert means["fine-tuned"] >= means["from scratch"] + 0.08
    assert means["fine-tuned"] >= means["frozen body"]
