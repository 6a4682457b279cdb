"""MNIST and Fashion-MNIST from their IDX files, gzipped or not."""

from pathlib import Path

import torch

from pydl.data.dataset import Dataset, Split
from pydl.data.files import find, read
from pydl.errors import DataError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def mnist(root="data", seed=0):
    """60,000 + 10,000 handwritten digits, grey, 28×28, from the four IDX files in ``root/mnist`` or ``root``.

    Source: LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 1998.
    """
    return _load("mnist", root, "MNIST", tuple(str(digit) for digit in range(10)))


def fashion_mnist(root="data", seed=0):
    """60,000 + 10,000 pictures of clothes, grey, 28×28, from the four IDX files in ``root/fashion-mnist`` or ``root``.

    Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST", arXiv:1708.07747; d2l chapter "The Image Classification Dataset".
    """
    return _load("fashion-mnist", root, "FashionMNIST", FASHION)


def _load(name, root, torchvision_name, classes):
    # our own layout, torchvision's, and the folder that holds nothing else
    folders = [Path(root, name), Path(root, torchvision_name, "raw"), Path(root)]
    _, paths = find(name, folders, [(file, f"{file}.gz", file.replace("-idx", ".idx")) for file in FILES])
    splits = []
    for images_path, labels_path in (paths[:2], paths[2:]):
        images, labels = read_idx(images_path, rank=3), read_idx(labels_path, rank=1)
        if len(images) != len(labels):
            raise DataError(f"{labels_path}: expected {len(images)} labels as there are images, got {len(labels)}")
        if len(labels) and int(labels.max()) >= len(classes):
            raise DataError(f"{labels_path}: expected labels from 0 to {len(classes) - 1}, got {int(labels.max())}")
        splits.append(Split(images.unsqueeze(1), labels.long()))
    return Dataset(name, *splits, classes)


def read_idx(path, rank):
    """The uint8 array of ``rank`` dimensions in an IDX file.

    The format: two zero bytes, the type (8 is uint8), the rank, each size as a big-endian 32-bit number, the values.
    """
    raw = read(path)
    if len(raw) < 4 or raw[:4] != bytes((0, 0, 8, rank)):
        raise DataError(f"{path}: expected an IDX file of {rank} dimensions of bytes, got one that starts {raw[:4]!r}")
    header = 4 + 4 * rank
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, header, 4)]
    expected = header + int(torch.tensor(shape, dtype=torch.float64).prod()) if len(raw) >= header else header
    if len(raw) != expected:
        raise DataError(f"{path}: truncated or foreign: expected {expected:,} bytes, got {len(raw):,}; fetch it again")
    if 0 in shape:
        raise DataError(f"{path}: expected examples, got an empty array of shape {tuple(shape)}")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=header).view(shape)
