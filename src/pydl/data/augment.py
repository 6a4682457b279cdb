"""Augmentation: small changes that leave the class as it is, drawn anew each time an image is seen."""

import torch
import torch.nn.functional as F

KINDS = ("crop", "flip", "jitter")
JITTER = 0.3  # brightness moves by up to so many standard deviations, contrast and saturation by that share


class Augment:
    """Random crops, horizontal flips and colours of a batch, as a function of the seed and the step alone.

    ``crop`` pads each side by an eighth of the image with the mean colour and cuts out the image's size at a random
    place; ``flip`` mirrors left and right with probability ½; ``jitter`` changes brightness, contrast and, of colour
    images, saturation. What is drawn does not depend on the process that draws it or on what ran before, so resumed
    runs, comparisons and several processes all see the same images.

    Source: d2l section "Image Augmentation"; He et al., CVPR 2016, section 4.2, for the crop of padded CIFAR images.
    """

    def __init__(self, kinds, seed):
        self.kinds, self.seed = tuple(kinds), seed

    def __call__(self, images, step, size=None, start=0):
        """Changed copies of ``images`` (N, C, H, W), normalised, which are ``start …`` of a batch of ``size``."""
        return self.with_targets(images, None, step, size, start)[0]

    def with_targets(self, images, targets, step, size=None, start=0):
        """(images, targets) changed alike.

        Args:
            targets: labels (N, objects, 5) of class and corners as shares, or masks (N, H, W), or None. An object whose
                centre leaves the image is none any more (class -1), the box of another one ends at the image's edge.
                What a crop pads a mask with is 0, the ground.

        Source: for the centres, Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016, section 2.2.
        """
        count = len(images)
        size = count if size is None else size
        # steps lie a large odd number apart, so that no two seeds that are near share a sequence
        generator = torch.Generator().manual_seed((self.seed + step * 0x9E3779B97F4A7C15) % 2**63)
        part = slice(start, start + count)
        boxes = targets is not None and targets.dtype.is_floating_point
        if "crop" in self.kinds:
            height, width = images.shape[2:]
            pad = max(1, min(height, width) // 8)
            offsets = torch.randint(2 * pad + 1, (2, size), generator=generator)[:, part].to(images.device)
            images = crop(F.pad(images, (pad,) * 4), *offsets, height, width)
            if boxes:
                targets = shift_boxes(targets, (pad - offsets[1]) / width, (pad - offsets[0]) / height)
            elif targets is not None:
                targets = crop(F.pad(targets.unsqueeze(1), (pad,) * 4), *offsets, height, width).squeeze(1)
        if "flip" in self.kinds:
            mirrored = (torch.rand(size, generator=generator)[part] < 0.5).to(images.device)
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
            if boxes:
                targets = torch.where(mirrored.view(-1, 1, 1), flip_boxes(targets), targets)
            elif targets is not None:
                targets = torch.where(mirrored.view(-1, 1, 1), targets.flip(2), targets)
        if "jitter" in self.kinds:
            images = jitter(images, *(2 * torch.rand(3, size, generator=generator) - 1)[:, part].to(images.device))
        return images, targets


def shift_boxes(labels, right, down):
    """Labels (N, objects, 5) after their images moved by ``right`` and ``down`` (N), shares of width and height."""
    kind, boxes = labels[..., :1], labels[..., 1:] + torch.stack((right, down, right, down), 1).unsqueeze(1)
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    inside = ((centres > 0) & (centres < 1)).all(-1, keepdim=True)
    return torch.cat((torch.where(inside, kind, -1), boxes.clamp(0, 1)), dim=-1)


def flip_boxes(labels):
    """Labels (N, objects, 5) of mirrored images."""
    kind, left, top, right, bottom = labels.unbind(-1)
    return torch.stack((kind, 1 - right, top, 1 - left, bottom), dim=-1)


def jitter(images, brightness, contrast, saturation):
    """Normalised images (N, C, H, W) of other colours; the factors (N) are from -1 to 1, 0 leaves an image as it is."""
    brightness, contrast, saturation = (JITTER * each.view(-1, 1, 1, 1) for each in (brightness, contrast, saturation))
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * (1 + contrast) + mean + brightness
    if images.shape[1] == 3:
        grey = images.mean(1, keepdim=True)
        images = grey + (images - grey) * (1 + saturation)
    return images


def crop(images, top, left, height, width):
    """The window of (height, width) at (top, left) of each image; ``top`` and ``left`` are (N)."""
    rows = top.view(-1, 1) + torch.arange(height, device=images.device)
    columns = left.view(-1, 1) + torch.arange(width, device=images.device)
    every = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    # indices on both sides of a slice put the channels last
    return images[every, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2).contiguous()
