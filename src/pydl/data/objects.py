"""Pictures of objects: boxes with classes, and masks where there are any; what detectors and segmenters learn from."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pydl._brief import Brief
from pydl.data.dataset import resize

IGNORED = 255  # in a mask: a pixel that counts neither way, such as the outlines of Pascal VOC's objects


@dataclass(repr=False)
class Pictures(Brief):
    """A batch of pictures of one size.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N, objects, 5) float32: class, then (left, top, right, bottom) as shares of width and height; rows of a
            class of -1 fill up pictures of fewer objects.
        masks: (N, H, W) uint8: 0 for the ground, class + 1, or :data:`IGNORED`; None where the set has none.
    """

    images: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor | None


@dataclass(repr=False)
class ObjectDataset(Brief):
    """A train and a test split of pictures, and the names of the classes that labels and masks index.

    Attributes:
        train, test: each has a length, ``take(indices, size)``, which gives :class:`Pictures` of ``size`` (height,
            width), and ``order(generator)``, the indices of an epoch.
        masks: whether there are masks.
        source: what else tells this set from another of its name, for a run that is resumed.
    """

    name: str
    train: object
    test: object
    classes: tuple
    masks: bool
    source: tuple = ()
    kind = "objects"


class ObjectFiles:
    """A split of pictures in files, decoded when they are asked for.

    Args:
        read: ``read(index)`` gives (image (C, H, W) uint8, labels (objects, 5), mask (H, W) or None).
        count: how many there are.
    """

    def __init__(self, read, count):
        self.read, self.count = read, count

    def __len__(self):
        return self.count

    def order(self, generator):
        """The indices of an epoch: each picture once."""
        return torch.randperm(self.count, generator=generator)

    def take(self, indices, size):
        """:class:`Pictures`, brought to ``size``: images bilinearly, masks to the nearest pixel."""
        rows = [self.read(index) for index in indices.tolist()]
        images = [resize(image.unsqueeze(0).float(), size).round().clamp(0, 255).byte() for image, _, _ in rows]
        masks = [mask[None, None] for _, _, mask in rows if mask is not None]
        return Pictures(
            torch.cat(images) if rows else torch.empty(0, 3, *size, dtype=torch.uint8),
            stacked([labels for _, labels, _ in rows]),
            torch.cat([F.interpolate(mask, tuple(size)) for mask in masks])[:, 0] if masks else None,
        )


def stacked(labels):
    """Labels (objects, 5) of each picture as (N, most objects, 5)."""
    most = max((len(label) for label in labels), default=0)
    out = torch.full((len(labels), max(1, most), 5), -1.0)
    for row, label in zip(out, labels, strict=True):
        row[: len(label)] = label
    return out


class ObjectBatches:
    """Batches of a split as a model takes them: (images normalised, labels), or (images, masks) for a segmenter.

    Args:
        split: of an :class:`ObjectDataset`.
        preprocessing: a :class:`pydl.data.Preprocessing`.
        masks: whether the targets are masks (N, H, W) int64, or labels as in :class:`Pictures`.
    """

    def __init__(self, split, preprocessing, masks, device="cpu"):
        self.split, self.preprocessing, self.masks = split, preprocessing, masks
        self.device = torch.device(device)

    def __len__(self):
        return len(self.split)

    def order(self, generator):
        return self.split.order(generator)

    def __getitem__(self, indices):
        pictures = self.split.take(indices.cpu(), self.preprocessing.size)
        targets = pictures.masks.long() if self.masks else pictures.labels
        return self.preprocessing(pictures.images.to(self.device)), targets.to(self.device)
