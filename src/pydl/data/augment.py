"""Augmentation: small changes that leave the class as it is, drawn anew each time an image is seen."""

import torch
import torch.nn.functional as F

KINDS = ("crop", "flip")


class Augment:
    """Random crops and horizontal flips of a batch, as a function of the seed and the step alone.

    ``crop`` pads each side by an eighth of the image with the mean colour and cuts out the image's size at a random
    place; ``flip`` mirrors left and right with probability ½. What is drawn does not depend on the process that draws
    it or on what ran before, so resumed runs, comparisons and several processes all see the same images.

    Source: d2l section "Image Augmentation"; He et al., CVPR 2016, section 4.2, for the crop of padded CIFAR images.
    """

    def __init__(self, kinds, seed):
        self.kinds, self.seed = tuple(kinds), seed

    def __call__(self, images, step, size=None, start=0):
        """Changed copies of ``images`` (N, C, H, W), normalised, which are ``start …`` of a batch of ``size``."""
        count = len(images)
        size = count if size is None else size
        # steps lie a large odd number apart, so that no two seeds that are near share a sequence
        generator = torch.Generator().manual_seed((self.seed + step * 0x9E3779B97F4A7C15) % 2**63)
        part = slice(start, start + count)
        if "crop" in self.kinds:
            height, width = images.shape[2:]
            pad = max(1, min(height, width) // 8)
            offsets = torch.randint(2 * pad + 1, (2, size), generator=generator)[:, part].to(images.device)
            images = crop(F.pad(images, (pad,) * 4), *offsets, height, width)
        if "flip" in self.kinds:
            mirrored = (torch.rand(size, generator=generator)[part] < 0.5).to(images.device)
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
        return images


def crop(images, top, left, height, width):
    """The window of (height, width) at (top, left) of each image; ``top`` and ``left`` are (N)."""
    rows = top.view(-1, 1) + torch.arange(height, device=images.device)
    columns = left.view(-1, 1) + torch.arange(width, device=images.device)
    every = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    # indices on both sides of a slice put the channels last
    return images[every, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2).contiguous()
