"""Two pictures, one whose content and one whose style a third is to have: scikit-learn's photographs, or files."""

from dataclasses import dataclass
from pathlib import Path

import torch

from pydl._brief import Brief
from pydl.data.folder import SUFFIXES, read_image
from pydl.errors import DataError, MissingExtra


@dataclass(repr=False)
class StylePictures(Brief):
    """A content picture and a style picture, uint8 (3, H, W) each, of any sizes."""

    name: str
    content: torch.Tensor
    style: torch.Tensor
    kind = "pictures"
    classes = ()

    @property
    def train(self):
        """Both, which a run learns from."""
        return self.content, self.style


def photographs(root=None, seed=0):
    """A temple in China and a flower, 427×640 each, as bundled with scikit-learn.

    Source: ``china.jpg`` and ``flower.jpg`` of ``sklearn.datasets.load_sample_images``.
    """
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        raise MissingExtra("data set 'photographs'", "scikit-learn") from None
    china, flower = (torch.tensor(image).permute(2, 0, 1).contiguous() for image in load_sample_images().images)
    return StylePictures("photographs", china, flower)


def pictures(root="data", seed=0):
    """The files ``content`` and ``style`` of the folder ``root``, with any suffix of an image.

    Raises:
        DataError: where one is missing, there twice, or no image.
    """
    found = []
    for name in ("content", "style"):
        folder = Path(root)
        paths = sorted(p for p in folder.glob(f"{name}.*") if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
        if len(paths) != 1:
            got = ", ".join(path.name for path in paths) or "none"
            raise DataError(f"data set 'pictures': expected {root} to hold one image called {name}, got {got}")
        found.append(read_image(paths[0], channels=3))
    return StylePictures("pictures", *found)
