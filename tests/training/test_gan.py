"""pydl train dcgan: the networks, a step by hand, torch beside ours, resuming, the pictures, pydl sample."""

import copy
import os

import pytest
import torch
from runs import (  # noqa: F401  (fixtures)
    assert_same_state,
    command_line,
    few,
    no_pictures,
    numbers,
    one_thread,
    pictures,
    run,
)
from test_models import number
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pydl import backend, models, train
from pydl.errors import CheckpointError, OptionError
from pydl.sample import Sampler, judged
from pydl.training import grid
from pydl.training.config import Config

SMALL = {"size": 8, "options": {"width": 4, "latent": 6}, "batch_size": 16}


def test_parameters_and_flops_are_those_of_the_docstring():
    net = models.get("dcgan").eval()
    assert sum(p.numel() for p in net.parameters()) == number("dcgan", "Parameters")
    with FlopCounterMode(display=False) as counter, backend.use("torch"), torch.no_grad():
        net(net.generator(net.noise(1)))
    assert counter.get_total_flops() == number("dcgan", "FLOPs")


def test_the_books_sizes():
    """d2l's net_G and net_D for 64×64 images of three channels: the shape that each block puts out."""
    net = models.get("dcgan", in_channels=3, input_size=64, width=64)
    x, shapes = net.noise(2), []
    for layer in net.generator:
        x = layer(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes[::3] == [(512, 4, 4), (256, 8, 8), (128, 16, 16), (64, 32, 32), (3, 64, 64)]
    shapes = []
    for layer in net.discriminator:
        x = layer(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes[::3] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (1, 1, 1)]
    assert net.generator(net.noise(2)).abs().max() <= 1
    weights = torch.cat([p.flatten() for name, p in net.named_parameters() if p.dim() == 4])
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)


@pytest.mark.parametrize("size", [4, 12, 28])
def test_sizes_that_cannot_be(size):
    with pytest.raises(
        ValueError, match=f"dcgan: expected input_size to be 4 times a power of 2, 8 at least, got {size}"
    ):
        models.get("dcgan", input_size=size)


def learners(*backends, **options):
    return train.learners(Config("dcgan", **{**SMALL, **options}).resolved(), backends)


def test_a_step_is_the_books():
    """update_D on the batch and detached images, then update_G, whose images are generated anew, in torch."""
    (one,) = learners("torch", optimizer="sgd", lr=0.1)
    net = copy.deepcopy(one.model)
    images, _ = one.train[one._batches[0]]
    with one._own_random():
        noise = net.noise(len(images))
    (other,) = learners("torch", optimizer="sgd", lr=0.1)
    other.run(1)
    loss = nn.BCEWithLogitsLoss()
    descent = [torch.optim.SGD(part.parameters(), 0.1) for part in (net.discriminator, net.generator)]
    ones, zeros = torch.ones(len(images)), torch.zeros(len(images))
    fake = net.generator(noise)
    of_discriminator = (loss(net(images), ones) + loss(net(fake.detach()), zeros)) / 2
    descent[0].zero_grad()
    of_discriminator.backward()
    descent[0].step()
    of_generator = loss(net(net.generator(noise)), ones)
    descent[1].zero_grad()
    of_generator.backward()
    descent[1].step()
    assert other._losses[0].item() == pytest.approx(of_discriminator.item())
    assert other._generator_losses[0].item() == pytest.approx(of_generator.item())
    for (name, p), q in zip(net.named_parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name)
        assert q.requires_grad


def test_twenty_steps_agree_with_torchs():
    ours, torchs = learners("cpu", "torch", optimizer="sgd", lr=0.02, size=16)
    assert ours.backend == "cpu"
    ours.run(20), torchs.run(20)
    torch.testing.assert_close(ours._losses[:20], torchs._losses[:20], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours._generator_losses[:20], torchs._generator_losses[:20], rtol=1e-4, atol=1e-5)
    for p, q in zip(ours.model.parameters(), torchs.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=2e-4)  # a hundredth of what weights begin with
    assert ours.evaluate()[0] == pytest.approx(torchs.evaluate()[0], rel=1e-4)


def test_adam_has_the_papers_momentum():
    (one,) = learners("cpu")
    for stepper in (one.stepper.discriminator, one.stepper.generator):
        assert [group["betas"] for group in stepper.optimizer.param_groups] == [(0.5, 0.999)]


# an epoch of 48 images has 3 steps: inside the first one, inside the second one
@pytest.mark.parametrize("stop", [2, 4])
def test_resumed_equals_unbroken_bit_for_bit(tmp_path, stop):
    options = {**SMALL, "epochs": 3, "dataset": few(train=48, test=16), "schedule": "cosine"}
    unbroken, _ = run(tmp_path / "unbroken", "dcgan", **options)
    run(tmp_path / "parts", "dcgan", max_steps=stop, **options)
    result, _ = run(None, resume=tmp_path / "parts", dataset=options["dataset"], max_steps=None)
    assert numbers(result.history) == numbers(unbroken.history)
    assert_same_state(tmp_path / "unbroken", tmp_path / "parts")


def test_grid():
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 40, 40) / 4
    page = grid.grid(images, 2)
    assert page.shape == (1, 2 * 42 + 2, 2 * 42 + 2)
    assert page[0, 2, 44] == 0.25
    assert page[0, 44, 2] == 0.5
    assert page[0, 44, 44] == 1
    assert grid.grid(images[:1, :, :8, :8], 1).shape == (1, 68, 68)


@pytest.mark.usefixtures("pictures")
def test_a_run_its_pictures_and_samples(pydl, tmp_path):
    """The short form of the recipe, beside torch; what it keeps; pydl sample with a judge."""
    from PIL import Image

    result, text = run(
        tmp_path / "gan", "dcgan", size=16, options={"width": 8}, epochs=2, max_steps=30, compare=True, report=True
    )
    for row in result.history:
        assert 0 < row["loss"] < 3
        assert 0 < row["generator_loss"] < 20
        assert row["torch_generator_loss"] > 0
    assert "generator's loss" in text
    names = {path.name for path in (tmp_path / "gan").iterdir()}
    assert {"curves.png", "samples.png", "samples", "checkpoint.pt"} <= names
    assert sorted(path.name for path in (tmp_path / "gan/samples").iterdir()) == ["001.png", "002.png"]
    assert Image.open(tmp_path / "gan/samples.png").size == (10 * 66 + 2,) * 2
    assert "samples.png" in text.splitlines()[-1]
    run(tmp_path / "judge", "softmax_regression", epochs=1)
    code, out, err = pydl("sample", tmp_path / "gan", "--count=12", "--columns=6", "--judge", tmp_path / "judge")
    assert (code, err) == (0, "")
    assert Image.open(tmp_path / "samples.png").size == (6 * 66 + 2, 2 * 66 + 2)
    shares = [float(line.split()[1]) for line in out.splitlines()[1:]]
    assert len(shares) == 10
    assert sum(shares) == pytest.approx(1, abs=0.01)
    sampler = Sampler(tmp_path / "gan")
    assert torch.equal(sampler(3, seed=1), sampler(3, seed=1))
    assert not torch.equal(sampler(3, seed=1), sampler(3, seed=2))
    for arguments, message in (
        ([tmp_path / "gan", "--count=0"], "--count: expected a number of at least 1, got 0"),
        ([tmp_path / "gan", "--columns=0"], "--columns: expected a number of at least 1, got 0"),
        ([tmp_path / "gan", "--seed=-1"], "--seed: expected a number from 0"),
    ):
        code, out, err = pydl("sample", *arguments)
        assert (code, out) == (2, "")
        assert err.startswith(f"pydl: {message}")
    with pytest.raises(CheckpointError, match="expected the checkpoint of a generator of images, got one of softmax"):
        Sampler(tmp_path / "judge")
    with pytest.raises(CheckpointError, match="expected the checkpoint of a classifier, got one of dcgan"):
        judged(sampler(2), tmp_path / "gan")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 28}, "dcgan cannot be built with --size 28: dcgan: expected input_size to be 4 times a power of 2"),
        ({"accumulate": 2}, "--accumulate: expected 1 for dcgan, whose two networks take steps by turns, got 2"),
        ({"label_smoothing": 0.1}, "--label-smoothing: expected a model that chooses to take it, got dcgan"),
        ({"data": "prose"}, "--data: expected a set that fits dcgan, got 'prose'"),
        (
            {"num_steps": 3},
            "--num-steps: expected a language model, a translator, BERT, ELMo, a reward model or a policy",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(tmp_path, options, message):
    with pytest.raises(OptionError, match=message):
        run(tmp_path / "out", "dcgan", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_every_digit_is_among_a_thousand_samples(tmp_path):
    torch.set_num_threads(os.cpu_count())
    run(tmp_path / "lenet", "lenet")
    run(tmp_path / "gan", "dcgan")
    shares = judged(Sampler(tmp_path / "gan")(1000), tmp_path / "lenet")
    assert min(shares.values()) >= 0.03, shares
