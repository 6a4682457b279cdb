"""The handwritten digits that come with scikit-learn: 1,797 real images of 8×8 pixels, no download."""

import torch

from pydl.data.dataset import Dataset, Split
from pydl.errors import MissingExtra

# Of every class this share goes to the test split.
TEST_SHARE = 0.2


def digits(root=None, seed=0):
    """1,797 grey images (1, 8, 8) of ten classes, split 80/20 with the same shares of every class in both.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test set), as bundled
    with scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtra("data set 'digits'", "scikit-learn") from None
    bundle = load_digits()
    images = torch.from_numpy(bundle.images).float().unsqueeze(1) / 16  # grey levels are 0 … 16
    targets = torch.from_numpy(bundle.target).long()
    train, test = stratified(targets, TEST_SHARE, seed)
    return Dataset(
        name="digits",
        train=Split(images[train], targets[train]),
        test=Split(images[test], targets[test]),
        classes=tuple(str(digit) for digit in range(10)),
    )


def low_digits(root=None, seed=0):
    """The digits 0 to 4 of :func:`digits`, to pretrain on."""
    return _some("digits-0-4", range(5), None, seed)


def high_digits(root=None, seed=0, each=10):
    """The digits 5 to 9 of :func:`digits`: ``each`` of every class to train on, all test images."""
    return _some("digits-5-9", range(5, 10), each, seed)


def _some(name, numbers, each, seed):
    """The classes ``numbers`` alone, from 0 anew; ``each`` training images of one, drawn with ``seed``, or all."""
    whole, splits, first = digits(seed=0), [], numbers[0]
    generator = torch.Generator().manual_seed(seed)
    for split, most in ((whole.train, each), (whole.test, None)):
        kept = []
        for label in numbers:
            members = (split.targets == label).nonzero().flatten()
            members = members[torch.randperm(len(members), generator=generator)] if most else members
            kept.append(members[:most])
        kept = torch.cat(kept).sort().values
        splits.append(Split(split.images[kept], split.targets[kept] - first))
    return Dataset(name, *splits, tuple(str(number) for number in numbers))


def stratified(targets, share, seed):
    """(train, test) indices: ``share`` of every class goes to test, drawn with ``seed``, both in ascending order."""
    generator = torch.Generator().manual_seed(seed)
    train, test = [], []
    for label in targets.unique():
        members = (targets == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        count = round(len(members) * share)
        test.append(members[:count])
        train.append(members[count:])
    return torch.cat(train).sort().values, torch.cat(test).sort().values
