"""What a data set is: two splits of raw images with targets; and the preprocessing to a model's input."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pydl._brief import Brief

# Above this many bytes a preprocessed split is not kept: each batch is then resized and normalised when it is taken.
KEEP_BYTES = 1 << 30
# Up to this many bytes, files of images are kept as bytes after they are decoded; beyond it each batch decodes its own.
KEEP_DECODED = 4 << 30
# Mean and std are taken from at most this many images, evenly spaced: more do not change them in their third digit.
FIT_IMAGES = 20_000
CHUNK = 2048


@dataclass(repr=False)
class Split(Brief):
    """Images and targets of one split.

    Attributes:
        images: (N, C, H, W), uint8 in [0, 255] or float32 in [0, 1]; or :class:`pydl.data.folder.ImageFiles`.
        targets: (N,) int64 class indices.
    """

    images: torch.Tensor
    targets: torch.Tensor

    def __len__(self):
        return len(self.targets)


@dataclass(repr=False)
class Dataset(Brief):
    """A train and a test split, and the names of the classes that the targets index.

    A regression has no classes; its "images" are (N, features) and its targets (N, 1), both float32.
    """

    name: str
    train: Split
    test: Split
    classes: tuple

    @property
    def regression(self):
        return not self.classes

    @property
    def kind(self):
        """``regression`` or ``classification``, whichever is learnt from it."""
        return "regression" if self.regression else "classification"


def folds(dataset, count, seed=0):
    """Yields ``count`` data sets: each has one part of the training split for its test split, and trains on the rest.

    The parts are drawn with ``seed``; every example is in one of them, and their sizes differ by one at most.
    """
    parts = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed)).tensor_split(count)
    for i, held in enumerate(parts):
        rest = torch.cat([part for j, part in enumerate(parts) if j != i])
        train, test = (Split(dataset.train.images[p], dataset.train.targets[p]) for p in (rest, held))
        yield Dataset(dataset.name, train, test, dataset.classes)


@dataclass(frozen=True)
class Preprocessing:
    """From raw images to a model's input: to float, to the model's channels, bilinear resize, ``(x - mean) / std``.

    A checkpoint keeps it, so that a prediction sees images exactly as training did.

    Attributes:
        size: (height, width) of the model's input.
        mean, std: one number per channel, of the resized training images in [0, 1].
        edge: mean and standard deviation, over the training images, of the brightness at an image's edge: what the
            background looks like. Empty in checkpoints from before it was kept.
    """

    size: tuple
    mean: tuple
    std: tuple
    edge: tuple = ()

    @property
    def channels(self):
        return len(self.mean)

    @property
    def numel(self):
        """Numbers in one input of the model."""
        return self.channels * math.prod(self.size)

    @classmethod
    def fit(cls, images, size):
        """The preprocessing whose mean and std make ``images`` (N, C, H, W) zero mean and unit variance per channel."""
        count, total, squares, edges = 0, 0.0, 0.0, []
        stride = -(-images.shape[0] // FIT_IMAGES)
        for chunk in torch.arange(0, images.shape[0], stride).split(CHUNK):  # a large set does not fit as one tensor
            resized = resize(as_float(images.index_select(0, chunk)), size).double()
            count += resized.shape[0] * resized.shape[2] * resized.shape[3]
            total = total + resized.sum((0, 2, 3))
            squares = squares + resized.square().sum((0, 2, 3))
            edges.append(edge(resized))
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        std = torch.where(std > 0, std, torch.ones_like(std))  # a constant channel carries nothing to scale
        edges = torch.cat(edges)
        around = (edges.mean().item(), edges.std(correction=0).item())
        return cls(tuple(size), tuple(mean.tolist()), tuple(std.tolist()), around)

    def __call__(self, images):
        """(N, C, H, W) raw images to (N, channels, *size) float32."""
        images = resize(to_channels(as_float(images), self.channels), self.size)
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return (images - mean) / std

    def foreign_edge(self, images):
        """(N,) for raw images: the brightness at the edge where no training image's is near it, else nan.

        That is dark ink on light paper after training on light strokes on black, which are classified at random.
        """
        bright = edge(resize(to_channels(as_float(images), self.channels), self.size).double())
        if not self.edge:
            return torch.full_like(bright, math.nan)
        mean, std = self.edge
        far = (bright - mean).abs() > max(4 * std, 0.25)
        return torch.where(far, bright, math.nan)

    def undo(self, images):
        """Normalised images back to [0, 1], for pictures of them."""
        mean, std = (images.new_tensor(value).view(-1, 1, 1) for value in (self.mean, self.std))
        return images * std + mean


def as_float(images):
    """uint8 images in [0, 255] to float32 in [0, 1]; floats as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def edge(images):
    """(N,): the mean over the outermost pixels and all channels of (N, C, H, W)."""
    inner = images[..., 1:-1, 1:-1]
    pixels = images[0].numel() - inner[0].numel()
    return (images.sum((1, 2, 3)) - inner.sum((1, 2, 3))) / pixels


def to_channels(images, channels):
    """Grey to colour by repetition, colour to grey by the luma weights of ITU-R BT.601."""
    have = images.shape[1]
    if have == channels:
        return images
    if have == 1:
        return images.expand(-1, channels, -1, -1)
    if have == 3 and channels == 1:
        return (images * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    raise ValueError(f"images: expected the number of channels to be 1, 3 or {channels}, got {have}")


def resize(images, size):
    """Bilinear; antialiased where it shrinks, so that thin strokes do not fall between the samples."""
    if images.shape[-2:] == torch.Size(size):
        return images
    shrinks = images.shape[-2] > size[0] or images.shape[-1] > size[1]
    return F.interpolate(images, tuple(size), mode="bilinear", align_corners=False, antialias=shrinks)


class Batches:
    """Batches of a split as a model takes them: preprocessed once and kept where it fits, else batch by batch.

    What fits stays in memory on ``device`` and a batch is one ``index_select``: on sets of that size a loader with
    worker processes costs more than the step. What does not fit is decoded and preprocessed when it is taken, for which
    :func:`pydl.data.in_order` has workers.
    """

    def __init__(self, split, preprocessing=None, device="cpu"):
        self.preprocessing = preprocessing
        images, every = split.images, torch.arange(len(split)).split(CHUNK)
        self.kept = preprocessing is None or len(split) * 4 * preprocessing.numel <= KEEP_BYTES
        if preprocessing is None:
            pass  # a model's input as it is
        elif self.kept:
            images = torch.cat([preprocessing(images.index_select(0, chunk)) for chunk in every])
        elif not torch.is_tensor(images) and math.prod(images.shape) <= KEEP_DECODED:
            images = torch.cat([images.index_select(0, chunk) for chunk in every])
        self.images = images.to(device) if torch.is_tensor(images) else images
        self.targets = split.targets.to(device)
        self.device = torch.device(device)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, indices):
        """(images, targets) at ``indices``, an int64 tensor on the device."""
        images = self.images.index_select(0, indices)
        if self.device.type == "cuda" and images.device.type == "cpu":
            images = images.pin_memory()  # the copy then runs beside the computation
        images = images.to(self.device, non_blocking=True)
        if not self.kept and len(indices):
            images = self.preprocessing(images)
        elif not self.kept:  # a process's part of a short batch
            images = images.new_empty(0, self.preprocessing.channels, *self.preprocessing.size, dtype=torch.float32)
        return images, self.targets.index_select(0, indices)
