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
