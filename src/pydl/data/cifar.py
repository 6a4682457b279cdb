"""CIFAR-10 from its Python batches, in their folder or in the archive they come in."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy
import torch

from pydl.data.dataset import Dataset, Split
from pydl.data.files import find
from pydl.errors import DataError

FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10(root="data", seed=0):
    """50,000 + 10,000 colour pictures (3, 32, 32) of ten classes, from ``root/cifar10`` or ``root``.

    Read are the six batch files of the folder ``cifar-10-batches-py``, or ``cifar-10-python.tar.gz`` as it comes.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    parents = [Path(root, "cifar10"), Path(root)]
    archive = next((parent / ARCHIVE for parent in parents if (parent / ARCHIVE).is_file()), None)
    folders = [parent / FOLDER for parent in parents] + parents
    try:
        _, paths = find("cifar10", folders, [(name,) for name in BATCHES])
    except DataError:
        if archive is None:
            raise
        batches = _from_archive(archive)
    else:
        batches = [_parse(path, path.read_bytes()) for path in paths]
    train = Split(torch.cat([images for images, _ in batches[:-1]]), torch.cat([labels for _, labels in batches[:-1]]))
    return Dataset("cifar10", train, Split(*batches[-1]), CLASSES)


def _from_archive(path):
    try:
        with tarfile.open(path) as tar:
            return [_parse(f"{path}:{name}", tar.extractfile(f"{FOLDER}/{name}").read()) for name in BATCHES]
    except (tarfile.TarError, EOFError, KeyError, OSError) as error:
        raise DataError(f"{path}: truncated, or not CIFAR-10's archive ({error})") from None


class _Unpickler(pickle.Unpickler):
    """Builds NumPy arrays of plain numbers and nothing else: a pickle from elsewhere could run any code."""

    ALLOWED = (  # (module, name) in the files of 2009, in NumPy 2's own, and for bytes written by protocol 2
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _parse(path, raw):
    """(images, labels) of one batch."""
    try:
        batch = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
    except Exception as error:  # damaged pickles raise a dozen types
        raise DataError(f"{path}: truncated, or not a batch of CIFAR-10 ({error})") from None
    images = batch.get(b"data") if isinstance(batch, dict) else None
    labels = batch.get(b"labels") if isinstance(batch, dict) else None
    if not isinstance(images, numpy.ndarray) or images.dtype != numpy.uint8 or images.shape[1:] != (3072,):
        raise DataError(f"{path}: expected rows of 3,072 bytes under 'data', got something else")
    if not isinstance(labels, list) or len(labels) != len(images) or not set(labels) <= set(range(10)):
        raise DataError(f"{path}: expected {len(images)} labels from 0 to 9, got something else")
    return torch.from_numpy(images).view(-1, 3, 32, 32), torch.tensor(labels)
