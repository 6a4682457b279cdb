"""Pascal VOC's folders and YOLO's labels: what is read, and that what is broken is named by file and line."""

import numpy
import pytest
import torch
from object_files import XML, write_voc, write_yolo
from PIL import Image

from pydl import data
from pydl.errors import DataError


@pytest.fixture
def voc(tmp_path):
    return write_voc(tmp_path)


def test_voc_boxes(voc):
    found = data.get("voc", root=voc)
    assert (found.classes, len(found.train), len(found.test), found.masks) == (("cat", "dog"), 2, 1, False)
    pictures = found.train.take(torch.tensor([1, 0]), (32, 32))
    assert pictures.images.shape == (2, 3, 32, 32)
    assert pictures.images[0, :, :, :14].max() < 60
    assert pictures.masks is None
    # pixels are counted from 1 and the last one belongs to the box; what is difficult is left out
    expected = torch.tensor([[1, 0, 5 / 20, 20 / 40, 1], [0, 30 / 40, 0, 1, 10 / 20]])
    torch.testing.assert_close(pictures.labels[0], expected)


def test_voc_masks(voc):
    found = data.get("voc", root=voc, masks=True)
    pictures = found.test.take(torch.tensor([0]), (20, 40))
    assert pictures.masks.unique().tolist() == [0, 2, 255]
    assert (pictures.masks[0, :, :18] == 2).all()
    assert (pictures.masks[0, :, 18:20] == 255).all()
    half = found.test.take(torch.tensor([0]), (10, 20)).masks  # the nearest pixel, never a mean of numbers
    assert half.unique().tolist() == [0, 2, 255]
    (voc / "classes.txt").unlink()
    assert data.get("voc", root=voc, masks=True).classes[:2] == ("aeroplane", "bicycle")


BROKEN_XML = [
    ("<name>dog</name>", "<name>dug</name>", 5, "expected <name> to be one of cat, dog, got 'dug'"),
    ("<xmax>20</xmax>", "<xmax>41</xmax>", 7, "expected a box inside the picture of 40×20.*got 1, 6, 41, 20"),
    ("<xmin>1</xmin>", "<xmin>21</xmin>", 7, "expected a box inside the picture"),
    ("<ymin>6</ymin>", "<ymin>six</ymin>", 8, "expected <ymin> to be a number, got 'six'"),
    ("<ymin>6</ymin>", "<ymin>nan</ymin>", 8, "expected <ymin> to be a number, got 'nan'"),
    ("<ymin>6</ymin>", "", 7, "expected <bndbox> to have <ymin>, got none"),
    ("<width>40</width>", "", 3, "expected <size> to have <width>, got none"),
    ("<width>40</width>", "<width>0</width>", 3, "expected <width> to be at least 1, got 0"),
    ("<name>dog</name>", "", 4, "expected <object> to have <name>, got none"),
    ("  </object>\n  <object>\n    <name>cat</name><diff", "  <object>\n    <name>cat</name><diff", 19, "not XML"),
]


@pytest.mark.parametrize("text, changed, line, message", BROKEN_XML)
def test_broken_annotations_are_named_by_file_and_line(voc, text, changed, line, message):
    path = voc / "Annotations/b.xml"
    path.write_text(XML.replace(text, changed, 1))
    with pytest.raises(DataError, match=rf"Annotations/b\.xml, line {line}: {message}"):
        data.get("voc", root=voc)


def test_what_is_missing_in_voc_is_named(voc):
    with pytest.raises(DataError, match=r"nowhere/JPEGImages is no folder"):
        data.get("voc", root=voc / "nowhere")
    (voc / "SegmentationClass/c.png").unlink()
    masks = data.get("voc", root=voc, masks=True)
    with pytest.raises(DataError, match=r"SegmentationClass/c\.png: there is no such mask"):
        masks.test.take(torch.tensor([0]), (8, 8))
    for name, mask, message in (
        ("a", numpy.full((20, 40), 3, numpy.uint8), "from 0 to 2, or 255, got 3 in row 0, column 0"),
        ("b", numpy.zeros((20, 39), numpy.uint8), r"the picture's size \(20, 40\), got \(20, 39\)"),
    ):
        Image.fromarray(mask).save(voc / f"SegmentationClass/{name}.png")
        with pytest.raises(DataError, match=rf"SegmentationClass/{name}\.png: expected .*{message}"):
            masks.train.take(torch.tensor(["ab".index(name)]), (8, 8))
    (voc / "Annotations/c.xml").unlink()
    with pytest.raises(DataError, match=r"Annotations/c\.xml: there is no such annotation"):
        data.get("voc", root=voc)
    (voc / "ImageSets/Main/val.txt").write_text("\n")
    with pytest.raises(DataError, match=r"Main/val\.txt: expected names of pictures, one a line, got none"):
        data.get("voc", root=voc)
    (voc / "ImageSets/Main/val.txt").unlink()
    with pytest.raises(DataError, match=r"Main/val\.txt: there is no such list"):
        data.get("voc", root=voc)


@pytest.fixture
def yolo(tmp_path):
    return write_yolo(tmp_path)


def test_yolo_labels(yolo):
    found = data.get("yolo", root=yolo)
    assert (found.classes, len(found.train), len(found.test), found.masks) == (("0", "1", "2"), 2, 1, False)
    pictures = found.train.take(torch.tensor([0, 1]), (10, 10))
    assert (pictures.images == 90).all()
    expected = torch.tensor([[1, 0.4, 0.3, 0.6, 0.7], [0, 0, 0.5, 0.2, 1]])
    torch.testing.assert_close(pictures.labels[0], expected)
    assert (pictures.labels[1] == -1).all()  # a picture without a file has no object
    torch.testing.assert_close(found.test.take(torch.tensor([0]), (8, 8)).labels[0], torch.tensor([[2, 0, 0, 1.0, 1]]))
    (yolo / "classes.txt").write_text("cat\ndog\nmug\n")
    assert data.get("yolo", root=yolo).classes == ("cat", "dog", "mug")


BROKEN_LINES = [
    ("1 0.5 0.5 0.2", "expected a class and four numbers"),
    ("1 0.5 0.5 0.2 0.2 0.9", "expected a class and four numbers"),
    ("dog 0.5 0.5 0.2 0.2", "expected a class and four numbers"),
    ("1 0.5 0.5 0.2 wide", "expected a class and four numbers"),
    ("3 0.5 0.5 0.2 0.2", "expected the class to be a number from 0 to 2, got 3"),
    ("-1 0.5 0.5 0.2 0.2", "expected the class to be a number from 0 to 2, got -1"),
    ("1 0.5 0.5 0 0.2", "expected a box inside the picture, as shares"),
    ("1 0.95 0.5 0.2 0.2", "expected a box inside the picture, as shares"),
    ("1 nan 0.5 0.2 0.2", "expected a box inside the picture, as shares"),
    ("1 15 10 6 8", "expected a box inside the picture, as shares"),
]


@pytest.mark.parametrize("line, message", BROKEN_LINES)
def test_broken_lines_are_named_by_file_and_line(yolo, line, message):
    (yolo / "obj.names").write_text("cat\ndog\nmug\n")
    (yolo / "labels/train/b.txt").write_text(f"0 0.5 0.5 0.2 0.2\n\n{line}\n")
    with pytest.raises(DataError, match=rf"labels/train/b\.txt, line 3: {message}"):
        data.get("yolo", root=yolo)


def test_what_is_missing_in_yolo_is_named(yolo):
    (yolo / "labels/train/a.txt").unlink()
    (yolo / "labels/val/c.txt").unlink()
    with pytest.raises(DataError, match="labels: expected objects, got none in 3 pictures"):
        data.get("yolo", root=yolo)
    (yolo / "classes.txt").write_text("\n")
    with pytest.raises(DataError, match=r"classes\.txt: expected names of classes, one a line, got none"):
        data.get("yolo", root=yolo)
    (yolo / "images/val/c.png").unlink()
    (yolo / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match=r"images/val: expected images .*, got none"):
        data.get("yolo", root=yolo)
    with pytest.raises(DataError, match=r"nowhere/images/train is no folder"):
        data.get("yolo", root=yolo / "nowhere")
