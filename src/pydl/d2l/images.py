"""The image set of the book's chapters 3 to 8, in batches."""

import os
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from pydl.data import Batches, Preprocessing, digits, fashion_mnist
from pydl.data.idx import FASHION
from pydl.errors import DataError

_said = set()  # what has been said once
_classes = tuple(name.lower() for name in FASHION)  # of the set that was loaded last


def say_once(sentence):
    if sentence not in _said:
        _said.add(sentence)
        print(sentence)


def folders(root=None):
    """Where files of data are looked for: ``root``; or the folder ``PYDL_DATA``, ``data``, the book's ``../data``."""
    if root is not None:
        return [Path(root)]
    named = os.environ.get("PYDL_DATA")
    return [*([Path(named)] if named else []), Path("data"), Path("../data")]


def load_data_fashion_mnist(batch_size, resize=None, *, root=None):
    """Batches of Fashion-MNIST: (train_iter, test_iter), as the book's.

    The four standard files are looked for in ``root``, or in the folder that ``PYDL_DATA`` names, ``data`` and
    ``../data``. Where none has them, scikit-learn's digits at 28×28 take their place, which is said once.

    Args:
        batch_size: images of a batch; the last one of an epoch may be smaller.
        resize: height and width of the images, one number or two; 28 if None.
        root: keyword-only: the folder of the files, which must be there then.

    Returns:
        Two ``DataLoader``, of (N, 1, H, W) float32 and (N,) int64; the first one in a new order each time. Images are
        in [0, 1]; the digits have mean 0 and variance 1, without which SGD does not get the book's LeNet off the ground
        on so few of them.

    Raises:
        DataError: no files in ``root``, or files that are damaged.
        MissingExtra: no files, and no scikit-learn.
    """
    global _classes
    dataset = _fashion_mnist(root) or _digits()
    _classes = tuple(name.lower() for name in dataset.classes)
    size = (28, 28) if resize is None else (resize, resize) if isinstance(resize, int) else tuple(resize)
    if dataset.name == "digits":
        preprocessing = Preprocessing.fit(dataset.train.images, size)
    else:
        preprocessing = Preprocessing(size, mean=(0.0,), std=(1.0,))
    return tuple(
        Loader(Images(Batches(split, preprocessing)), batch_size, shuffle)
        for split, shuffle in ((dataset.train, True), (dataset.test, False))
    )


def _fashion_mnist(root):
    for folder in folders(root):
        try:
            return fashion_mnist(folder)
        except DataError as error:
            if root is not None or " lacks " not in str(error):  # damaged files are no missing ones
                raise
    return None


def _digits():
    say_once(
        f"d2l: no files of Fashion-MNIST in {', '.join(map(str, folders()))}: these are scikit-learn's digits, "
        "normalised, at 28×28. With its four files in one of these folders, or PYDL_DATA naming theirs, it is "
        "Fashion-MNIST."
    )
    return digits()


class Loader(DataLoader):
    """A ``DataLoader`` of a data set that is indexed by tensors: a batch is one call, where torch's own makes N."""

    def __init__(self, dataset, batch_size, shuffle):
        super().__init__(dataset, batch_size, shuffle)
        self._shuffle = shuffle

    def __iter__(self):
        count = len(self.dataset)
        order = torch.randperm(count) if self._shuffle else torch.arange(count)
        for start in range(0, count, self.batch_size):
            yield list(self.dataset[order[start : start + self.batch_size]])


class Images(Dataset):
    """A data set of pictures: by number, or a batch by a tensor of numbers."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        if torch.is_tensor(index) and index.dim():
            return self.batches[index]
        images, labels = self.batches[torch.tensor([int(index) % len(self)])]
        return images[0], int(labels[0])


def get_dataloader_workers():
    """How many processes should read data: 0, since the sets here lie in memory, where a process costs more."""
    return 0


def get_fashion_mnist_labels(labels):
    """Names of the classes with these numbers, in the set that was loaded last."""
    return [_classes[int(label)] for label in labels]
