"""Made-up images for timings and smoke tests: any size of set, no file, no package."""

import torch

from pydl.data.dataset import Dataset, Split

CLASSES, TRAIN, TEST, SIDE = 10, 2048, 512, 28


def synthetic(root=None, seed=0):
    """2,048 + 512 grey images (1, 28, 28) of ten classes: a smooth random pattern per class under noise of its size."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(CLASSES, 1, 7, 7, generator=generator)
    patterns = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear", align_corners=False)

    def split(count):
        targets = torch.randint(CLASSES, (count,), generator=generator)
        noise = torch.rand(count, 1, SIDE, SIDE, generator=generator)
        return Split((patterns[targets] + noise) / 2, targets)

    return Dataset("synthetic", split(TRAIN), split(TEST), tuple(f"class {i}" for i in range(CLASSES)))
