"""Augmentation of pictures of objects: boxes and masks move with their pixels."""

import pytest
import torch

from pydl.data import Augment
from pydl.data.augment import jitter

SIDE = 64


def pictures(count=40):
    """Ground of 0 with one box of 1, its label (and a row that is none) and its mask."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(count, 3, SIDE, SIDE)
    labels = torch.full((count, 2, 5), -1.0)
    for image, label in zip(images, labels, strict=True):
        left, top = torch.randint(0, SIDE - 8, (2,), generator=generator).tolist()
        right, bottom = left + 7, min(SIDE, top + 20)
        image[:, top:bottom, left:right] = 1
        label[0] = torch.tensor([4, left, top, right, bottom]) / torch.tensor([1, *[SIDE] * 4])
    return images, labels, 5 * images[:, 0].long()


@pytest.mark.parametrize("kinds", [["flip"], ["crop"], ["crop", "flip", "jitter"]])
def test_boxes_and_masks_follow_their_pixels(kinds):
    images, labels, masks = pictures()
    augment = Augment(kinds, seed=3)
    varied, moved = augment.with_targets(images, labels, step=7)
    also, painted = augment.with_targets(images, masks, step=7)
    assert torch.equal(varied, also)
    assert torch.equal(augment(images, 7), varied)
    assert not torch.equal(moved, labels)
    gone = 0
    for image, label, mask in zip(varied, moved, painted, strict=True):
        where = image[0] > image[0].min() + 0.5
        assert torch.equal(mask == 5, where)
        assert set(mask.unique().tolist()) <= {0, 5}
        assert label[1, 0] == -1
        if label[0, 0] == -1:  # its centre is outside: no more than half of it is left
            gone += 1
            assert where.sum() <= 4 * 20
            continue
        rows, columns = (where.any(axis).nonzero().flatten() for axis in (1, 0))
        box = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / SIDE
        torch.testing.assert_close(label[0], torch.cat((torch.tensor([4.0]), box)))
    assert (gone > 0) == ("crop" in kinds)


def test_what_is_drawn_is_a_function_of_seed_and_step_whatever_the_part():
    images, labels, _ = pictures(8)
    augment = Augment(["crop", "flip", "jitter"], seed=1)
    whole, moved = augment.with_targets(images, labels, step=5)
    parts = [augment.with_targets(images[i : i + 4], labels[i : i + 4], 5, size=8, start=i) for i in (0, 4)]
    assert torch.equal(torch.cat([part[0] for part in parts]), whole)
    assert torch.equal(torch.cat([part[1] for part in parts]), moved)
    assert not torch.equal(augment.with_targets(images, labels, step=6)[0], whole)


def test_jitter():
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(jitter(images, zero, zero, zero), images)
    torch.testing.assert_close(jitter(images, one, zero, zero), images + 0.3)
    mean = images.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(jitter(images, zero, -one, zero), mean + 0.7 * (images - mean))
    grey = images.mean(1, keepdim=True)
    torch.testing.assert_close(jitter(images, zero, zero, one), grey + 1.3 * (images - grey))
    single = images[:, :1]
    torch.testing.assert_close(jitter(single, zero, zero, one), single)  # grey has no saturation
