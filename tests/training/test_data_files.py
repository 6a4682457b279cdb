"""pydl.data: sets that come as files, read from small ones that the tests write, whole and damaged."""

import gzip
import pickle
import tarfile

import numpy
import pytest
import torch

from pydl import data
from pydl.errors import DataError

IDX = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def idx(array):
    header = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


def write_idx(folder, compressed=False, train=12, test=5):
    """The four files of a small set; returns their arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    random = numpy.random.default_rng(0)
    arrays = []
    for count in (train, test):
        arrays.append(random.integers(256, size=(count, 28, 28), dtype=numpy.uint8))
        arrays.append((numpy.arange(count) % 10).astype(numpy.uint8))
    for name, array in zip(IDX, arrays, strict=True):
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return arrays


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "name, under",
    [("mnist", "mnist"), ("mnist", "MNIST/raw"), ("mnist", "."), ("fashion-mnist", "FashionMNIST/raw")],
)
def test_idx_sets(tmp_path, name, under, compressed):
    arrays = write_idx(tmp_path / under, compressed)
    got = data.get(name, root=tmp_path)
    for split, images, labels in ((got.train, *arrays[:2]), (got.test, *arrays[2:])):
        assert torch.equal(split.images, torch.from_numpy(images).unsqueeze(1))
        assert torch.equal(split.targets, torch.from_numpy(labels).long())
    assert got.classes[9] == ("9" if name == "mnist" else "ankle boot")


def test_missing_files_are_named_with_their_folder(tmp_path):
    write_idx(tmp_path / "mnist")
    (tmp_path / "mnist" / IDX[3]).unlink()
    with pytest.raises(DataError, match=rf"data set 'mnist': {tmp_path}/mnist lacks {IDX[3]}; --download fetches them"):
        data.get("mnist", root=tmp_path)
    with pytest.raises(DataError, match=rf"{tmp_path}/cifar10/cifar-10-batches-py lacks data_batch_1, .*test_batch"):
        data.get("cifar10", root=tmp_path)


def damage(kind, raw, path):
    if kind == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    elif kind == "header only":
        path.write_bytes(raw[:6])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "longer":
        path.write_bytes(raw + b"more")
    elif kind == "foreign":
        path.write_bytes(b"<html>not found</html>" * 99)


@pytest.mark.parametrize("kind", ["truncated", "header only", "empty", "longer", "foreign"])
@pytest.mark.parametrize("file", IDX[:2])
@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_idx_files_are_named(tmp_path, kind, file, compressed):
    write_idx(tmp_path / "mnist", compressed)
    path = tmp_path / "mnist" / (f"{file}.gz" if compressed else file)
    damage(kind, path.read_bytes(), path)
    with pytest.raises(DataError) as error:
        data.get("mnist", root=tmp_path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_idx_files_that_do_not_fit_each_other(tmp_path):
    write_idx(tmp_path)
    (tmp_path / IDX[1]).write_bytes(idx(numpy.zeros(11, numpy.uint8)))
    with pytest.raises(DataError, match=rf"{IDX[1]}: expected 12 labels as there are images, got 11"):
        data.get("mnist", root=tmp_path)
    (tmp_path / IDX[1]).write_bytes(idx(numpy.full(12, 10, numpy.uint8)))
    with pytest.raises(DataError, match=rf"{IDX[1]}: expected labels from 0 to 9, got 10"):
        data.get("mnist", root=tmp_path)
    (tmp_path / IDX[1]).write_bytes(idx(numpy.zeros((12, 1), numpy.uint8)))  # images where labels belong
    with pytest.raises(DataError, match=rf"{IDX[1]}: expected an IDX file of 1 dimensions"):
        data.get("mnist", root=tmp_path)


def write_cifar(folder, protocol=2, count=4):
    folder.mkdir(parents=True)
    random, arrays = numpy.random.default_rng(0), []
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        images = random.integers(256, size=(count, 3072), dtype=numpy.uint8)
        labels = random.integers(10, size=count).tolist()
        (folder / name).write_bytes(pickle.dumps({b"data": images, b"labels": labels}, protocol=protocol))
        arrays.append((images, labels))
    return arrays


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("under", ["cifar10/cifar-10-batches-py", "cifar-10-batches-py", "cifar10"])
def test_cifar10(tmp_path, under, protocol):
    arrays = write_cifar(tmp_path / under, protocol)
    got = data.get("cifar10", root=tmp_path)
    assert got.train.images.shape == (20, 3, 32, 32)
    assert got.train.targets.tolist() == [label for _, labels in arrays[:5] for label in labels]
    assert torch.equal(got.test.images, torch.from_numpy(arrays[5][0]).view(-1, 3, 32, 32))


def test_cifar10_from_its_archive(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-py")
    expected = data.get("cifar10", root=tmp_path)
    (tmp_path / "cifar10").mkdir()
    archive = tmp_path / "cifar10/cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py/test_batch").unlink()
    got = data.get("cifar10", root=tmp_path)
    assert torch.equal(got.test.images, expected.test.images)
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz: truncated, or not CIFAR-10's archive"):
        data.get("cifar10", root=tmp_path)


class Harmful:
    def __reduce__(self):
        return (eval, ("1 + 1",))


@pytest.mark.parametrize(
    "raw, message",
    [
        (b"", "truncated, or not a batch of CIFAR-10"),
        (b"\x80\x02}q", "truncated, or not a batch of CIFAR-10"),
        (pickle.dumps([1, 2]), "expected rows of 3,072 bytes under 'data'"),
        (pickle.dumps({b"data": numpy.zeros((2, 7), numpy.uint8)}), "expected rows of 3,072 bytes under 'data'"),
        (pickle.dumps({b"data": numpy.zeros((2, 3072), numpy.uint8), b"labels": [1]}), "expected 2 labels from 0 to 9"),
        (
            pickle.dumps({b"data": numpy.zeros((1, 3072), numpy.uint8), b"labels": [10]}),
            "expected 1 labels from 0 to 9",
        ),
        (pickle.dumps(Harmful()), "it asks for builtins.eval"),
    ],
    ids=["empty", "truncated", "list", "short rows", "few labels", "label 10", "code"],
)
def test_damaged_cifar10_batches_are_named(tmp_path, raw, message):
    write_cifar(tmp_path / "cifar-10-batches-py")
    path = tmp_path / "cifar-10-batches-py/data_batch_3"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=message) as error:
        data.get("cifar10", root=tmp_path)
    assert str(error.value).startswith(f"{path}: ")


def write_images(folder, mode="RGB", classes=("cat", "dog"), count=5, suffix=".png", size=(12, 10)):
    """``count`` pictures of one colour per class; a class's red channel tells it."""
    from PIL import Image

    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            shade = 40 + 100 * number
            colour = shade if mode in ("L", "1") else (shade, 10 * i, 5)
            Image.new(mode, size, colour).save(folder / name / f"{i}{suffix}")


def test_folder_splits_every_class_and_keeps_it_so(tmp_path):
    write_images(tmp_path)
    got = data.get("folder", root=tmp_path)
    assert got.classes == ("cat", "dog")
    assert got.train.images.shape == (8, 3, 10, 12)
    assert got.test.targets.tolist() == [0, 1]
    for split in (got.train, got.test):
        images = split.images[:]
        assert images.dtype == torch.uint8
        assert torch.equal(images[:, 0, 0, 0], (40 + 100 * split.targets).byte())
    assert got.train.images.paths == data.get("folder", root=tmp_path).train.images.paths


def test_folder_with_splits_of_its_own_and_grey_images(tmp_path):
    write_images(tmp_path / "train", "L", suffix=".jpg")
    write_images(tmp_path / "val", "L", count=2)
    got = data.get("folder", root=tmp_path, size=(6, 6))
    assert got.train.images.shape == (10, 1, 6, 6)
    assert got.test.images.shape == (4, 1, 6, 6)
    write_images(tmp_path / "val/x", classes=("bird",))
    (tmp_path / "val/x").rename(tmp_path / "val/zebra")
    with pytest.raises(DataError, match="expected the classes of the training set, got zebra too"):
        data.get("folder", root=tmp_path)


def test_folder_batches_are_the_same_kept_or_decoded_each_time(tmp_path, monkeypatch):
    from pydl.data import dataset

    write_images(tmp_path)
    got = data.get("folder", root=tmp_path, workers=2)
    preprocessing = data.Preprocessing.fit(got.train.images, (8, 8))
    kept = data.Batches(got.train, preprocessing)
    monkeypatch.setattr(dataset, "KEEP_BYTES", 0)
    decoded = data.Batches(got.train, preprocessing)
    monkeypatch.setattr(dataset, "KEEP_DECODED", 0)
    files = data.Batches(got.train, preprocessing)
    assert (kept.images.dtype, decoded.images.dtype) == (torch.float32, torch.uint8)
    assert not torch.is_tensor(files.images)
    indices = torch.tensor([7, 0, 3])
    for batches in (decoded, files):
        torch.testing.assert_close(batches[indices][0], kept[indices][0])


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=f"data set 'folder': {tmp_path}/none is no folder"):
        data.get("folder", root=tmp_path / "none")
    with pytest.raises(DataError, match="expected at least two folders, one per class, got 0"):
        data.get("folder", root=tmp_path)
    write_images(tmp_path, count=2)
    with pytest.raises(DataError, match="expected at least 3 images in a class"):
        data.get("folder", root=tmp_path)
    (tmp_path / "emu").mkdir()
    with pytest.raises(DataError, match=r"emu: expected images \(.*\.png.*\), got none"):
        data.get("folder", root=tmp_path)


def test_a_file_that_is_no_image_is_named(tmp_path):
    from PIL import Image

    write_images(tmp_path)
    bad = tmp_path / "dog/2.png"
    noise = numpy.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=numpy.uint8)
    Image.fromarray(noise).save(bad)
    bad.write_bytes(bad.read_bytes()[:1000])  # header whole, pixels cut off
    got = data.get("folder", root=tmp_path)
    with pytest.raises(DataError, match=f"{bad}: not a readable image"):
        got.train.images[:], got.test.images[:]
    bad.write_text("no picture")
    with pytest.raises(DataError, match=f"{bad}: not a readable image"):
        data.get("folder", root=tmp_path)


def test_read_image_of_every_kind(tmp_path):
    from PIL import Image

    gradient = numpy.linspace(0, 255, 64, dtype=numpy.uint8).reshape(8, 8)
    path = tmp_path / "a.png"
    Image.fromarray(gradient).save(path)
    grey = data.read_image(path)
    assert torch.equal(grey, torch.from_numpy(gradient).unsqueeze(0))
    assert torch.equal(data.read_image(path, channels=3), grey.expand(3, 8, 8))
    Image.fromarray(gradient.astype(numpy.uint16) * 257).save(path)
    assert torch.equal(data.read_image(path), grey)
    rgba = numpy.zeros((4, 4, 4), numpy.uint8)  # black, but all of it transparent
    Image.fromarray(rgba).save(path)
    assert torch.equal(data.read_image(path), torch.full((3, 4, 4), 255, dtype=torch.uint8))
    Image.fromarray(gradient).convert("P").save(path)
    assert data.read_image(path).shape == (3, 8, 8)
    with pytest.raises(DataError, match=r"b\.png: there is no such file"):
        data.read_image(tmp_path / "b.png")


def test_download_is_torchvisions(tmp_path, monkeypatch):
    import sys
    import types

    from pydl.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingExtra, match=r'--download needs torchvision, .*"pydl-kernels\[download\]"'):
        data.download("mnist", tmp_path)
    calls = []

    def fetch(root, download):
        calls.append((root, download))
        write_idx(tmp_path / "MNIST/raw")  # torchvision's layout

    def fail(root, download):
        raise RuntimeError("File not found or corrupted.\nmore")

    torchvision = types.ModuleType("torchvision")
    torchvision.datasets = types.SimpleNamespace(MNIST=fetch, CIFAR10=fail)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    data.download("mnist", tmp_path)
    assert calls == [(str(tmp_path), True)]
    assert len(data.get("mnist", root=tmp_path).train) == 12
    with pytest.raises(DataError, match=f"'cifar10' could not be fetched to {tmp_path}: File not found or corrupted.$"):
        data.download("cifar10", tmp_path)
