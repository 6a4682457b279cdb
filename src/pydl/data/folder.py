"""A folder of images, one class per subfolder."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from pydl.data.dataset import Dataset, Split, as_float, resize
from pydl.data.digits import TEST_SHARE, stratified
from pydl.errors import DataError, MissingExtra

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
GREY = {"1", "L", "I;16", "I", "F"}


def read_image(path, channels=None):
    """A picture as uint8 (C, H, W): one channel for grey ones and three for the rest, or as many as asked for.

    Raises:
        DataError: for a file that is absent or no image; the message names it.
        MissingExtra: without Pillow.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise MissingExtra(f"reading {path}", "Pillow") from None
    import numpy

    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)  # a phone's portrait picture stands upright
            if image.mode in ("I;16", "I"):  # 16 bits, which Pillow itself would clip at 255
                array = (numpy.asarray(image, dtype=numpy.float32) / 257).round().clip(0, 255).astype(numpy.uint8)
                array = array if channels in (None, 1) else numpy.repeat(array[..., None], 3, 2)
            else:
                if "A" in image.getbands() or "transparency" in image.info:  # what shows through is white, as on paper
                    image = image.convert("RGBA")
                    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
                wanted = channels or (1 if image.mode in GREY else 3)
                array = numpy.array(image.convert("L" if wanted == 1 else "RGB"))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({error})") from None
    tensor = torch.from_numpy(array)
    return tensor.unsqueeze(0) if tensor.dim() == 2 else tensor.permute(2, 0, 1).contiguous()


class ImageFiles:
    """Images that are decoded when they are asked for, by threads; it stands where a :class:`Split` has its tensor.

    Attributes:
        shape: (N, C, H, W) of what indexing gives.
    """

    def __init__(self, paths, channels, size, workers=None):
        self.paths = [str(path) for path in paths]
        self.shape = (len(paths), channels, *size)
        self.workers = workers
        self._pool = None, None  # the process that made it, and the pool

    def __getstate__(self):  # for the workers of a loader
        return {**self.__dict__, "_pool": (None, None)}

    def _map(self, function, indices):
        if torch.utils.data.get_worker_info() is not None:  # one of several processes: no threads besides
            return map(function, indices)
        if self._pool[0] != os.getpid():  # a forked process has the object, but not its threads
            self._pool = os.getpid(), ThreadPoolExecutor(self.workers)
        return self._pool[1].map(function, indices)  # Pillow decodes outside the interpreter's lock

    def _read(self, index):
        image = read_image(self.paths[index], self.shape[1]).unsqueeze(0)
        return (resize(as_float(image), self.shape[2:]) * 255).round().clamp_(0, 255).to(torch.uint8)

    def index_select(self, dim, indices):
        """As torch's, along the first dimension."""
        if not len(indices):  # a process's part of a short last batch
            return torch.empty(0, *self.shape[1:], dtype=torch.uint8)
        return torch.cat(list(self._map(self._read, indices.tolist())))

    def __getitem__(self, index):
        return self.index_select(0, torch.arange(len(self.paths))[index])


def folder(root="data", seed=0, size=None, workers=None):
    """The images under ``root``, one class per subfolder, the classes in alphabetical order.

    ``root/train`` and ``root/test`` (or ``val``) are the splits where both exist; otherwise a fifth of every class is
    the test split. Images are brought to ``size``, by default that of the first one; grey ones stay grey if all are.

    Raises:
        DataError: for a folder without classes or images, and for files that are no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"data set 'folder': {root} is no folder; give --root the one that holds a folder per class")
    test_root = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if test_root is not None and (root / "train").is_dir():
        classes, train_paths, train_targets = _scan(root / "train")
        _, test_paths, test_targets = _scan(test_root, classes)
    else:
        classes, paths, targets = _scan(root)
        train, test = stratified(targets, TEST_SHARE, seed)
        if len(test) == 0:
            raise DataError(f"{root}: expected at least 3 images in a class, to set some aside for the test, got fewer")
        train_paths, test_paths = ([paths[i] for i in part.tolist()] for part in (train, test))
        train_targets, test_targets = targets[train], targets[test]
    first = read_image(train_paths[0])
    with ThreadPoolExecutor(workers) as pool:
        channels = 1 if all(list(pool.map(_is_grey, train_paths + test_paths))) else 3
    size = tuple(size or first.shape[-2:])
    return Dataset(
        "folder",
        Split(ImageFiles(train_paths, channels, size, workers), train_targets),
        Split(ImageFiles(test_paths, channels, size, workers), test_targets),
        classes,
    )


def _scan(root, classes=None):
    """(classes, paths, targets) of the class folders under ``root``."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if classes is None:
        classes = tuple(path.name for path in folders)
        if len(classes) < 2:
            raise DataError(f"{root}: expected at least two folders, one per class, got {len(classes)}")
    elif unknown := [path.name for path in folders if path.name not in classes]:
        raise DataError(f"{root}: expected the classes of the training set, got {', '.join(unknown)} too")
    paths, targets = [], []
    for path in folders:
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise DataError(f"{path}: expected images ({', '.join(sorted(SUFFIXES))}), got none")
        paths += files
        targets += [classes.index(path.name)] * len(files)
    if not paths:
        raise DataError(f"{root}: expected images in a folder per class, got none")
    return classes, paths, torch.tensor(targets)


def _is_grey(path):
    """Whether a file holds a grey image; only its header is read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.mode in GREY and "transparency" not in image.info
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({error})") from None
