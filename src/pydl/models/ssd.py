"""Single-shot detection: the book's TinySSD."""

from itertools import pairwise

import torch
from torch.nn import Module, Sequential

from pydl.models._registry import register
from pydl.nn import AdaptiveMaxPool2d, BatchNorm2d, Conv2d, MaxPool2d, ReLU
from pydl.vision.boxes import multibox_prior

WIDTHS = (16, 32, 64)  # of the body
SIZES = (0.2, 0.272, 0.37, 0.447, 0.54, 0.619, 0.71, 0.79, 0.88, 0.961)
RATIOS = (1, 2, 0.5)
SCALES = 5


def down_sample(in_channels, out_channels):
    """Two 3×3 convolutions, each with batch norm and ReLU, then half the height and width."""
    layers = []
    for channels in (in_channels, out_channels):
        layers += [Conv2d(channels, out_channels, kernel_size=3, padding=1), BatchNorm2d(out_channels), ReLU()]
    return Sequential(*layers, MaxPool2d(2))


class TinySSD(Module):
    """Five blocks, each of which puts out a map of features, and two convolutions over each map: classes and offsets.

    The anchors around a pixel of a map have two sizes of their own, and three ratios of width to height.
    """

    def __init__(self, num_classes, in_channels, sizes):
        super().__init__()
        if len(sizes) != 2 * SCALES:
            raise ValueError(f"ssd: expected sizes to be {2 * SCALES} numbers, two for each map, got {len(sizes)}")
        if not all(0 < size <= 1 for size in sizes):
            raise ValueError(f"ssd: expected sizes to be shares of the image above 0 and up to 1, got {sizes}")
        self.num_classes = num_classes
        self.sizes = [tuple(sizes[i : i + 2]) for i in range(0, 2 * SCALES, 2)]
        anchors = 2 + len(RATIOS) - 1  # around a pixel
        channels = (in_channels, *WIDTHS)
        body = Sequential(*(down_sample(a, b) for a, b in pairwise(channels)))
        blocks = body, down_sample(64, 128), down_sample(128, 128), down_sample(128, 128), AdaptiveMaxPool2d((1, 1))
        for i, (block, width) in enumerate(zip(blocks, (64, 128, 128, 128, 128), strict=True)):
            self.add_module(f"blk_{i}", block)
            self.add_module(f"cls_{i}", Conv2d(width, anchors * (num_classes + 1), kernel_size=3, padding=1))
            self.add_module(f"bbox_{i}", Conv2d(width, anchors * 4, kernel_size=3, padding=1))
        self._anchors = None, None  # the sizes of the maps, and their anchors

    def forward(self, x):
        maps, classes, offsets = [], [], []
        for i in range(SCALES):
            x = getattr(self, f"blk_{i}")(x)
            maps.append(x)
            classes.append(getattr(self, f"cls_{i}")(x).permute(0, 2, 3, 1).flatten(1))
            offsets.append(getattr(self, f"bbox_{i}")(x).permute(0, 2, 3, 1).flatten(1))
        anchors = self.anchors(maps)
        classes = torch.cat(classes, dim=1).view(len(x), anchors.shape[1], self.num_classes + 1)
        return anchors, classes, torch.cat(offsets, dim=1)

    def anchors(self, maps):
        """(1, A, 4): made once for maps of one size and device."""
        traced = torch.jit.is_tracing()  # a program of another input size is to make others
        key = [(*m.shape[2:], m.device) for m in maps]
        if not traced and self._anchors[0] == key:
            return self._anchors[1]
        made = torch.cat([multibox_prior(m, sizes, RATIOS) for m, sizes in zip(maps, self.sizes, strict=True)], dim=1)
        if not traced:
            self._anchors = key, made
        return made


@register("detector")
def ssd(num_classes=10, in_channels=3, input_size=256, sizes=SIZES):
    """TinySSD: a detector of objects in one pass.

    Source: d2l section "Single Shot Multibox Detection"; Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016.
    ``sizes`` are those of the anchors, two for each of the five maps from the finest on, as shares of the image; the
    book's are for one large object, the recipe's for digits.
    Input: (N, 3, 256, 256), or (N, in_channels, H, W).
    Output: anchors (1, A, 4) as corners, class scores (N, A, num_classes + 1) with the ground first, and offsets (N,
    4·A); A is 5,444 at 256×256.
    Parameters: 1,197,180.
    FLOPs: 2,023,676,928.

    Raises:
        ValueError: for sizes that are not ten shares, or too small an input.
    """
    if input_size < 64:
        raise ValueError(f"ssd: expected input_size to be at least 64, got {input_size}")
    return TinySSD(num_classes, in_channels, sizes)
