"""Small folders of pictures of objects, as Pascal VOC and YOLO have them."""

import numpy
from PIL import Image

XML = """<annotation>
  <filename>{name}.jpg</filename>
  <size><width>40</width><height>20</height><depth>3</depth></size>
  <object>
    <name>dog</name>
    <difficult>0</difficult>
    <bndbox>
      <xmin>1</xmin><ymin>6</ymin>
      <xmax>20</xmax><ymax>20</ymax>
    </bndbox>
  </object>
  <object>
    <name>cat</name><difficult>1</difficult>
    <bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>
  </object>
  <object>
    <name>cat</name>
    <bndbox><xmin>31</xmin><ymin>1</ymin><xmax>40</xmax><ymax>10.0</ymax></bndbox>
  </object>
</annotation>
"""


def write_voc(folder):
    """Two pictures to train on, one to test on, of 40×20, the left half dark; masks of the left half."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main", "ImageSets/Segmentation", "SegmentationClass"):
        (folder / name).mkdir(parents=True)
    pixels = numpy.full((20, 40, 3), 200, numpy.uint8)
    pixels[:, :20] = 40
    mask = numpy.zeros((20, 40), numpy.uint8)
    mask[:, :18], mask[:, 18:20] = 2, 255
    for name in ("a", "b", "c"):
        Image.fromarray(pixels).save(folder / f"JPEGImages/{name}.jpg", quality=100)
        (folder / f"Annotations/{name}.xml").write_text(XML.format(name=name))
        picture = Image.fromarray(mask, "P")
        picture.putpalette([value for i in range(256) for value in (i, 7 * i % 256, 11 * i % 256)])
        picture.save(folder / f"SegmentationClass/{name}.png")
    for kind in ("Main", "Segmentation"):
        (folder / f"ImageSets/{kind}/train.txt").write_text("a  1\nb -1\n" if kind == "Main" else "a\nb\n")
        (folder / f"ImageSets/{kind}/val.txt").write_text("c\n")
    (folder / "classes.txt").write_text("cat\ndog\n")
    return folder


def write_yolo(folder):
    """Two pictures to train on, one to test on, of 30×20, all grey; one without labels."""
    for part, names in (("train", "ab"), ("val", "c")):
        (folder / "images" / part).mkdir(parents=True)
        (folder / "labels" / part).mkdir(parents=True)
        for name in names:
            Image.new("L", (30, 20), 90).save(folder / f"images/{part}/{name}.png")
    (folder / "labels/train/a.txt").write_text("1 0.5 0.5 0.2 0.4\n\n0 0.1 0.75 0.2 0.5\n")
    (folder / "labels/val/c.txt").write_text("2 0.5 0.5 1.0001 1\n")
    return folder
