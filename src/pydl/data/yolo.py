"""Pictures with the text labels of YOLO: a file beside each picture, a line for each object."""

from pathlib import Path

import torch

from pydl.data.folder import SUFFIXES, read_image
from pydl.data.objects import ObjectDataset, ObjectFiles
from pydl.errors import DataError

NAMES = "classes.txt", "obj.names"  # of labelImg and of Darknet
SLACK = 1e-3  # programs that write labels round them


def yolo(root="data", seed=0):
    """The pictures of ``root/images/train``, tested on those of ``root/images/val`` (or ``test``).

    The labels of ``images/train/NAME.jpg`` are in ``labels/train/NAME.txt``, a line for each object: class, and centre
    x, centre y, width and height of its box as shares of the picture. A picture without a file, or with an empty one,
    has no object. Names of the classes are the lines of ``root/classes.txt`` or ``root/obj.names``; without one of them
    they are the numbers that occur.

    Raises:
        DataError: for a folder that is not so, and for lines that are broken; the message names file and line.
        MissingExtra: without Pillow.
    """
    root = Path(root)
    names = next((path for path in (root / name for name in NAMES) if path.is_file()), None)
    classes = None
    if names is not None:
        classes = [line.strip() for line in names.read_text().splitlines() if line.strip()]
        if not classes:
            raise DataError(f"{names}: expected names of classes, one a line, got none")
    held = "val" if (root / "images" / "val").is_dir() else "test"
    parts = [_part(root, name, classes) for name in ("train", held)]
    if classes is None:
        last = max((int(row[0]) for _, labels in parts for label in labels for row in label), default=-1)
        if last < 0:
            raise DataError(f"{root}/labels: expected objects, got none in {sum(len(p) for p, _ in parts)} pictures")
        classes = [str(number) for number in range(last + 1)]
    splits = [ObjectFiles(_Reader(*part), len(part[0])) for part in parts]
    return ObjectDataset("yolo", *splits, tuple(classes), masks=False)


class _Reader:
    def __init__(self, paths, labels):
        self.paths, self.labels = paths, labels

    def __call__(self, index):
        return read_image(self.paths[index], 3), self.labels[index], None


def _part(root, name, classes):
    """(paths, labels) of one split."""
    folder = root / "images" / name
    if not folder.is_dir():
        raise DataError(f"data set 'yolo': {folder} is no folder; give --root the one that holds images and labels")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise DataError(f"{folder}: expected images ({', '.join(sorted(SUFFIXES))}), got none")
    count = None if classes is None else len(classes)
    return paths, [read_labels(root / "labels" / name / f"{path.stem}.txt", count) for path in paths]


def read_labels(path, count=None):
    """Labels (objects, 5) of a file: class, corners as shares; none where there is no file.

    Args:
        count: how many classes there are, or None.

    Raises:
        DataError: that names the file and the line.
    """
    if not path.is_file():
        return torch.empty(0, 5)
    labels = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        where = f"{path}, line {number}"
        try:
            kind, x, y, width, height = int(words[0]), *map(float, words[1:])
        except ValueError:
            raise DataError(
                f"{where}: expected a class and four numbers (centre x, centre y, width, height), got {line!r}"
            ) from None
        if kind < 0 or (count is not None and kind >= count):
            rule = "a number from 0 on" if count is None else f"a number from 0 to {count - 1}"
            raise DataError(f"{where}: expected the class to be {rule}, got {kind}")
        corners = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        inside = all(-SLACK <= corner <= 1 + SLACK for corner in corners)
        if not (width > 0 and height > 0 and inside):
            raise DataError(
                f"{where}: expected a box inside the picture, as shares of it from 0 to 1, got {' '.join(words[1:])}"
            )
        labels.append((kind, *(min(1.0, max(0.0, corner)) for corner in corners)))
    return torch.tensor(labels, dtype=torch.float32).view(-1, 5)
