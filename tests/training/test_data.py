"""pydl.data: the sets, the split, the preprocessing, batches."""

import sys

import pytest
import torch
from torch.nn import functional as F

from pydl import data
from pydl.data import dataset
from pydl.data.digits import stratified
from pydl.errors import MissingExtra


@pytest.fixture(scope="module")
def digits():
    return data.get("digits")


def test_digits_are_the_1797_real_ones(digits):
    from sklearn.datasets import load_digits

    assert len(digits.train) + len(digits.test) == 1797
    assert digits.train.images.shape[1:] == (1, 8, 8)
    assert digits.train.images.dtype == torch.float32
    assert digits.train.targets.dtype == torch.int64
    assert digits.classes == tuple("0123456789")
    every = torch.cat([digits.train.images, digits.test.images]).flatten(1)
    real = torch.from_numpy(load_digits().images).float().flatten(1) / 16
    # no two images are equal, so sorted rows show that each is there once
    assert torch.equal(torch.unique(every, dim=0), torch.unique(real, dim=0))
    assert len(torch.unique(every, dim=0)) == 1797


def test_digits_are_split_by_class_and_always_alike(digits):
    for label in range(10):
        train, test = ((split.targets == label).sum().item() for split in (digits.train, digits.test))
        assert test == round(0.2 * (train + test))
    again = data.get("digits")
    assert torch.equal(again.test.images, digits.test.images)
    assert not torch.equal(data.get("digits", seed=1).test.images, digits.test.images)


def test_stratified_split_is_a_partition():
    targets = torch.tensor([0] * 10 + [1] * 5 + [2])  # a class of one image stays in the training set
    train, test = stratified(targets, 0.2, seed=3)
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(16))
    assert targets[test].tolist() == [0, 0, 1]


def test_synthetic_is_reproducible_and_separable():
    one, two = data.get("synthetic"), data.get("synthetic")
    assert torch.equal(one.train.images, two.train.images)
    assert one.train.images.min() >= 0
    assert one.train.images.max() <= 1
    means = torch.stack([one.train.images[one.train.targets == c].mean(0) for c in range(10)]).flatten(1)
    nearest = torch.cdist(one.test.images.flatten(1), means).argmin(1)
    assert (nearest == one.test.targets).float().mean() > 0.95


def test_regression_sets_are_made_by_their_formulas():
    linear = data.get("linear")
    x, y = linear.train.images.double(), linear.train.targets.double()
    assert linear.regression
    assert (len(linear.train), len(linear.test)) == (1000, 1000)
    noise = y - (x @ torch.tensor([[2.0], [-3.4]], dtype=torch.float64) + 4.2)
    assert noise.std() == pytest.approx(0.01, rel=0.1)
    polynomial = data.get("polynomial")
    x, y = polynomial.test.images.double(), polynomial.test.targets.double()
    noise = y - (5 + 1.2 * x - 3.4 * x**2 / 2 + 5.6 * x**3 / 6)
    assert noise.std() == pytest.approx(0.1, rel=0.3)
    decay = data.get("weight-decay")
    assert decay.train.images.shape == (20, 200)
    noise = decay.test.targets.double() - (0.05 + 0.01 * decay.test.images.double().sum(1, keepdim=True))
    assert noise.std() == pytest.approx(0.01, rel=0.3)


def test_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match=r"data: expected the name to be one of digits, .*synthetic, .*got 'digit'"):
        data.get("digit")


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(
        MissingExtra, match=r'scikit-learn, which is not installed; run pip install "pydl-kernels\[train'
    ):
        data.get("digits")


@pytest.mark.parametrize("size", [(28, 28), (8, 8), (5, 7)])  # larger, as it is, smaller and not square
def test_preprocessing_normalises_the_training_set(digits, size):
    preprocessing = data.Preprocessing.fit(digits.train.images, size)
    images = preprocessing(digits.train.images).double()
    assert images.shape[1:] == (1, *size)
    assert images.mean().abs() < 1e-5
    assert (images.std(correction=0) - 1).abs() < 1e-5


def test_preprocessing_resizes_bilinearly(digits):
    image = digits.train.images[:3]
    preprocessing = data.Preprocessing((28, 28), mean=(0.25,), std=(0.5,))
    expected = (F.interpolate(image.double(), (28, 28), mode="bilinear", align_corners=False) - 0.25) / 0.5
    torch.testing.assert_close(preprocessing(image).double(), expected, rtol=1e-5, atol=1e-6)


def test_preprocessing_takes_bytes_and_other_channels():
    grey = torch.randint(256, (4, 1, 6, 6), dtype=torch.uint8)
    plain = data.Preprocessing((6, 6), mean=(0.0,), std=(1.0,))
    assert torch.equal(plain(grey), grey.float() / 255)
    colour = data.Preprocessing((6, 6), mean=(0.0,) * 3, std=(1.0,) * 3)
    assert torch.equal(colour(grey), (grey.float() / 255).expand(4, 3, 6, 6))
    white = torch.full((1, 3, 6, 6), 255, dtype=torch.uint8)
    torch.testing.assert_close(plain(white), torch.ones(1, 1, 6, 6))
    with pytest.raises(ValueError, match="expected the number of channels to be 1, 3 or 1, got 2"):
        plain(torch.zeros(1, 2, 6, 6))


def test_constant_channel_is_not_divided_by_zero():
    preprocessing = data.Preprocessing.fit(torch.full((5, 1, 4, 4), 0.5), (4, 4))
    assert torch.equal(preprocessing(torch.full((1, 1, 4, 4), 0.5)), torch.zeros(1, 1, 4, 4))


def test_batches_are_the_same_kept_or_made_each_time(digits, monkeypatch):
    preprocessing = data.Preprocessing.fit(digits.train.images, (12, 12))
    indices = torch.tensor([5, 1400, 5, 0])
    kept = data.Batches(digits.train, preprocessing)
    monkeypatch.setattr(dataset, "KEEP_BYTES", 0)
    each = data.Batches(digits.train, preprocessing)
    assert kept.images.shape[-1] == 12
    assert each.images.shape[-1] == 8
    for one, other in zip(kept[indices], each[indices], strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(kept[indices][1], digits.train.targets[indices])
