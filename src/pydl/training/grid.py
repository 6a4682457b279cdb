"""Images side by side in one picture file."""

import torch

SHOWN = 64  # pixels that small images are enlarged to, at least
GAP = 2


def grid(images, columns):
    """One (C, H, W) picture of ``images`` (N, C, h, w) in [0, 1], row by row, on white; a short last row ends in white.

    Small images are enlarged by whole factors, so that pixels stay what they are.
    """
    scale = max(1, SHOWN // max(images.shape[-2:]))
    images = images.clamp(0, 1).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    page = torch.ones(channels, rows * (height + GAP) + GAP, columns * (width + GAP) + GAP)
    for i, image in enumerate(images):
        top, left = GAP + i // columns * (height + GAP), GAP + i % columns * (width + GAP)
        page[:, top : top + height, left : left + width] = image
    return page


def save(path, picture):
    """Writes a (1 or 3, H, W) picture in [0, 1] as PNG.

    Raises:
        MissingExtra: without Pillow.
    """
    from pydl.errors import MissingExtra

    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("saving pictures", "Pillow") from None
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).save(path)
