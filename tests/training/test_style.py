"""pydl train style: features and losses by hand, a VGG's weights, torch beside ours, resuming, the pictures."""

import json

import pytest
import torch
import torch.nn.functional as F
from runs import (  # noqa: F401  (fixtures)
    assert_same_state,
    command_line,
    no_pictures,
    numbers,
    one_thread,
    pictures,
    run,
)

from pydl import data, train
from pydl.errors import CheckpointError, DataError, OptionError
from pydl.training import style, weights
from pydl.training.config import Config

SMALL = {"size": 32, "options": {"body": "vgg16"}}
# (index, outputs, inputs) of the convolutions of torchvision's vgg16, written down from its architecture
VGG16 = [(0, 64, 3), (2, 64, 64), (5, 128, 64), (7, 128, 128), (10, 256, 128), (12, 256, 256), (14, 256, 256)]
VGG16 += [(17, 512, 256), (19, 512, 512), (21, 512, 512), (24, 512, 512), (26, 512, 512), (28, 512, 512)]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(style, "STEPS", 4)


@pytest.fixture(autouse=True)
def quick_random_body(monkeypatch, request):
    """Orthogonal filters take a second; what is not about them takes others."""
    if "random_body" not in request.node.name:
        monkeypatch.setattr(torch.nn.init, "orthogonal_", torch.nn.init.kaiming_normal_)


def published():
    """A state_dict of torchvision's names and shapes, with the affine layers cut down."""
    state = {}
    for i, out, channels in VGG16:
        state |= {
            f"features.{i}.weight": 0.05 * torch.randn(out, channels, 3, 3),
            f"features.{i}.bias": torch.randn(out),
        }
    return state | {"classifier.0.weight": torch.zeros(2, 3), "classifier.0.bias": torch.zeros(2)}


def features(state, x):
    """(content features, style features) in torch alone: Gatys' conv4_2 and conv1_1 … conv5_1, average pooling."""
    content, styles = None, []
    for i, _, _ in VGG16[:11]:
        if i in (5, 10, 17, 24):
            x = F.avg_pool2d(x, 2)
        x = F.relu(F.conv2d(x, state[f"features.{i}.weight"].double(), state[f"features.{i}.bias"].double(), padding=1))
        if i in (0, 5, 10, 17, 24):
            styles.append(x)
        if i == 19:
            content = x
    return content, styles


def test_published_weights_give_a_vggs_features_and_the_losses(tmp_path):
    state = published()
    torch.save(state, tmp_path / "vgg16.pt")
    (one,) = train.learners(Config("style", **SMALL).resolved(), ["cpu"])
    weights.load(one.model, tmp_path / "vgg16.pt")
    torch.manual_seed(1)
    with torch.no_grad():
        one.model.image.add_(0.3 * torch.randn_like(one.model.image))
    image = one.model.image.detach().double()
    found, found_styles = features(state, image)
    content, _ = features(state, one._content.double())
    _, styles = features(state, one._style.double())

    def gram(x):
        x = x.flatten(2)[0]
        return x @ x.T / x.numel()

    of_content = F.mse_loss(found, content) / content.square().mean()
    of_style = sum(
        F.mse_loss(gram(a), gram(b)) / gram(b).square().mean() for a, b in zip(found_styles, styles, strict=True)
    ) / len(styles)
    across, down = image.diff(dim=3).abs().mean(), image.diff(dim=2).abs().mean()
    total, accuracy = one.evaluate()
    scores = one.scores()
    assert accuracy is None
    assert scores["content_loss"] == pytest.approx(of_content.item(), rel=1e-4)
    assert scores["style_loss"] == pytest.approx(of_style.item(), rel=1e-4)
    assert scores["variation_loss"] == pytest.approx(((across + down) / 2).item(), rel=1e-5)
    model = one.model
    expected = model.content * of_content + model.style * of_style + model.variation * (across + down) / 2
    assert total == pytest.approx(expected.item(), rel=1e-4)


def test_weights_that_do_not_fit(tmp_path):
    (one,) = train.learners(Config("style", **SMALL).resolved(), ["torch"])
    state = published()
    for name, change, message in (
        ("lacks", lambda s: s.pop("features.5.bias"), r"it lacks features\.5\.bias"),
        ("more", lambda s: s.update({"features.1.weight": torch.zeros(3)}), r"it has features\.1\.weight, which the"),
        (
            "shape",
            lambda s: s.update({"features.0.bias": torch.zeros(3)}),
            r"expected features\.0\.bias to be of shape",
        ),
    ):
        changed = dict(state)
        change(changed)
        torch.save(changed, tmp_path / f"{name}.pt")
        with pytest.raises(CheckpointError, match=message):
            weights.load(one.model, tmp_path / f"{name}.pt")


def test_a_random_body_speaks_at_every_scale():
    (one,) = train.learners(Config("style", **SMALL).resolved(), ["torch"])
    conv = one.model.features[5]
    rows = conv.weight.flatten(1)
    rows = rows / rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), rtol=0, atol=1e-5)
    x = torch.cat([one._content, one._style])
    for layer in one.model.features[:6]:
        x = layer(x)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(128), rtol=0, atol=1e-4)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(128), rtol=0, atol=1e-4)


def test_twenty_steps_agree_with_torchs():
    config = Config("style", **SMALL, optimizer="sgd", lr=0.03, epochs=5).resolved()
    ours, torchs = train.learners(config, ["cpu", "torch"])
    assert ours.backend == "cpu"
    begin = ours.model.image.detach().clone()
    for one in (ours, torchs):
        for _ in range(5):
            one.run(4)
            one.end_epoch()
    assert ours.step == 20
    assert (ours.model.image - begin).abs().mean() > 0.01
    torch.testing.assert_close(ours.model.image, torchs.model.image, rtol=1e-3, atol=1e-3)
    assert ours.evaluate()[0] == pytest.approx(torchs.evaluate()[0], rel=1e-4)


@pytest.mark.parametrize("stop", [2, 6])
def test_resumed_equals_unbroken_bit_for_bit(tmp_path, stop):
    options = {**SMALL, "epochs": 2}
    unbroken, _ = run(tmp_path / "unbroken", "style", **options)
    run(tmp_path / "parts", "style", max_steps=stop, **options)
    result, _ = run(None, resume=tmp_path / "parts", max_steps=None)
    assert numbers(result.history) == numbers(unbroken.history)
    assert_same_state(tmp_path / "unbroken", tmp_path / "parts")


@pytest.mark.usefixtures("pictures")
def test_a_run_on_files_and_its_pictures(pydl, tmp_path):
    from PIL import Image

    (tmp_path / "two").mkdir()
    bundled = data.get("photographs")
    Image.fromarray(bundled.content.permute(1, 2, 0).numpy()).resize((90, 60)).save(tmp_path / "two/content.png")
    Image.fromarray(bundled.style.permute(1, 2, 0).numpy()).resize((50, 80)).save(tmp_path / "two/style.jpg")
    words = ["--size=32", "--option=body=vgg16", "--epochs=2", "--data=pictures", "--root=two", "--out=run"]
    words += ["--compare", "--report", "--monitor"]
    code, out, err = pydl("train", "style", *words)
    assert (code, err) == (0, "")
    assert "content" in out
    assert "MSELoss" in out
    layers = json.loads((tmp_path / "run/monitor.jsonl").read_text().splitlines()[0])["layers"]
    assert all(layer["gradient"] > 0 for layer in layers)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"curves.png", "transfer.png", "result.png", "steps", "checkpoint.pt"} <= names
    assert sorted(path.name for path in (tmp_path / "run/steps").iterdir()) == ["0004.png", "0008.png"]
    assert Image.open(tmp_path / "run/result.png").size == (48, 32)
    (tmp_path / "two/style.jpg").unlink()
    with pytest.raises(DataError, match="expected two to hold one image called style, got none"):
        data.get("pictures", root="two")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 2}, "--batch-size: expected a model that is trained on batches to take it, got style"),
        ({"workers": 1}, "--workers: expected a model that is trained on batches to take it, got style"),
        ({"init": "xavier"}, "--init: expected a model that is trained on batches"),
        ({"tensorboard": True}, "--tensorboard: expected a model that is trained on batches"),
        ({"size": 31}, "style: expected a picture of at least 32×32"),
        ({"options": {"body": "alexnet"}}, "style: expected body to be one of vgg16, vgg19, got 'alexnet'"),
        ({"options": {"style": -1}}, "style: expected style to be a weight of at least 0, got -1"),
        ({"augment": ["flip"]}, "--augment: expected a model that is trained on batches"),
        ({"data": "digits"}, "--data: expected a set that fits style, got 'digits'"),
        ({"freeze": ["body"]}, "--freeze: expected a classifier of images to take it, got style"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(tmp_path, options, message):
    with pytest.raises(OptionError, match=message):
        run(tmp_path / "out", "style", **{**SMALL, **options})
    assert not (tmp_path / "out").exists()
