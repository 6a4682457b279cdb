"""Pictures in the folders of Pascal VOC: boxes in XML, masks as PNG with a palette."""

import xml.etree.ElementTree as ET
from pathlib import Path
from xml.parsers import expat

import numpy
import torch

from pydl.data.folder import read_image
from pydl.data.objects import ObjectDataset, ObjectFiles
from pydl.errors import DataError, MissingExtra

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def voc(root="data", seed=0, masks=False):
    """The pictures of a folder as Pascal VOC has them: those of its ``train`` list, tested on those of ``val``.

    ``root`` (or ``root/VOCdevkit/VOC2012``) holds ``JPEGImages/NAME.jpg``, ``ImageSets/Main/train.txt`` and ``val.txt``
    (names, one a line) and ``Annotations/NAME.xml``; with ``masks`` the lists are those of ``ImageSets/Segmentation``,
    and there is ``SegmentationClass/NAME.png``, whose pixels are 0 for the ground, a class's number, or 255 for what
    counts neither way. Classes are VOC's 20, or the lines of ``root/classes.txt``. Objects marked as difficult are left
    out.

    Raises:
        DataError: for a folder that is not so, and for annotations that are broken; the message names file and line.
        MissingExtra: without Pillow.
    """
    root = Path(root)
    inner = root / "VOCdevkit" / "VOC2012"
    root = inner if inner.is_dir() else root
    if not (root / "JPEGImages").is_dir():
        raise DataError(f"data set 'voc': {root}/JPEGImages is no folder; give --root the one that holds it")
    listed = root / "classes.txt"
    classes = tuple(listed.read_text().split()) if listed.is_file() else CLASSES  # a name has no blank
    parts = [
        _Part(root, root / "ImageSets" / ("Segmentation" if masks else "Main") / f"{name}.txt", classes, masks)
        for name in ("train", "val")
    ]
    return ObjectDataset("voc", *(ObjectFiles(part, len(part.names)) for part in parts), classes, masks)


class _Part:
    """Reads the pictures of one list."""

    def __init__(self, root, path, classes, masks):
        self.root, self.classes, self.masks = root, classes, masks
        try:
            lines = path.read_text().splitlines()
        except OSError:
            raise DataError(f"{path}: there is no such list of pictures") from None
        # the lists of a single class have a second column
        self.names = [line.split()[0] for line in lines if line.strip()]
        if not self.names:
            raise DataError(f"{path}: expected names of pictures, one a line, got none")
        self.labels = [] if masks else [read_xml(root / "Annotations" / f"{name}.xml", classes) for name in self.names]

    def __call__(self, index):
        name = self.names[index]
        image = read_image(self.root / "JPEGImages" / f"{name}.jpg", 3)
        if not self.masks:
            return image, self.labels[index], None
        path = self.root / "SegmentationClass" / f"{name}.png"
        mask = read_mask(path, len(self.classes))
        if mask.shape != image.shape[1:]:
            raise DataError(
                f"{path}: expected a mask of the picture's size {tuple(image.shape[1:])}, got {tuple(mask.shape)}"
            )
        return image, torch.empty(0, 5), mask


def read_xml(path, classes):
    """Labels (objects, 5) of an annotation: class, corners as shares of the picture.

    VOC counts pixels from 1, and a box's last one belongs to it.

    Raises:
        DataError: that names the file and the line.
    """
    tree, lines = _tree(path)

    def number(parent, name, below=None):
        element = parent.find(name)
        if element is None:
            raise DataError(f"{path}, line {lines[parent]}: expected <{parent.tag}> to have <{name}>, got none")
        try:
            value = float(element.text or "")
        except ValueError:
            value = float("nan")
        if not 0 <= value < float("inf"):
            raise DataError(f"{path}, line {lines[element]}: expected <{name}> to be a number, got {element.text!r}")
        return value, element

    def part(parent, name):
        element = parent.find(name)
        if element is None:
            raise DataError(f"{path}, line {lines[parent]}: expected <{parent.tag}> to have <{name}>, got none")
        return element

    size, labels = part(tree, "size"), []
    (width, at_width), (height, at_height) = number(size, "width"), number(size, "height")
    for value, at in ((width, at_width), (height, at_height)):
        if value < 1:
            raise DataError(f"{path}, line {lines[at]}: expected <{at.tag}> to be at least 1, got {value:g}")
    for thing in tree.findall("object"):
        name, box = part(thing, "name"), part(thing, "bndbox")
        kind = (name.text or "").strip()
        if kind not in classes:
            known = f"one of {', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}"
            raise DataError(f"{path}, line {lines[name]}: expected <name> to be {known}, got {kind!r}")
        corners = [number(box, key)[0] for key in ("xmin", "ymin", "xmax", "ymax")]
        left, top, right, bottom = corners[0] - 1, corners[1] - 1, corners[2], corners[3]
        if not (left < right <= width and top < bottom <= height and left >= 0 and top >= 0):
            raise DataError(
                f"{path}, line {lines[box]}: expected a box inside the picture of {width:g}×{height:g}, pixels counted "
                f"from 1, got {', '.join(f'{corner:g}' for corner in corners)}"
            )
        difficult = thing.find("difficult")
        if difficult is not None and (difficult.text or "").strip() == "1":
            continue
        labels.append((classes.index(kind), left / width, top / height, right / width, bottom / height))
    return torch.tensor(labels, dtype=torch.float32).view(-1, 5)


def _tree(path):
    """(root element, {element: line}) of an XML file; the standard library's own tree keeps no lines."""
    builder, lines, parser = ET.TreeBuilder(), {}, expat.ParserCreate()

    def start(tag, attributes):
        lines[builder.start(tag, attributes)] = parser.CurrentLineNumber

    parser.StartElementHandler, parser.EndElementHandler = start, builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(path.read_bytes(), True)
    except OSError:
        raise DataError(f"{path}: there is no such annotation") from None
    except expat.ExpatError as error:
        raise DataError(f"{path}, line {error.lineno}: not XML ({expat.ErrorString(error.code)})") from None
    return builder.close(), lines


def read_mask(path, classes):
    """(H, W) uint8 of a PNG whose pixels are numbers of classes, 0 to ``classes``, or 255."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra(f"reading {path}", "Pillow") from None
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise DataError(f"{path}: expected a picture of numbers (a palette or grey), got mode {image.mode}")
            mask = torch.from_numpy(numpy.array(image))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such mask") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({error})") from None
    bad = (mask > classes) & (mask != 255)
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        raise DataError(
            f"{path}: expected pixels from 0 to {classes}, or 255, got {int(mask[row, column])} in row {row}, column "
            f"{column}"
        )
    return mask
