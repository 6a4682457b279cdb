"""``pydl sample``: images that a generator of ``pydl train`` makes of noise."""

import torch

from pydl import backend, data
from pydl.errors import OptionError
from pydl.predict import Predictor
from pydl.training import grid, trained

BATCH = 256


class Sampler:
    """A trained generator with the preprocessing of its training.

    Args:
        path: the run's folder, or a checkpoint.

    Raises:
        CheckpointError: for what is no checkpoint of one.
    """

    def __init__(self, path, device=None, backend_name=None):
        content, self.config = trained.read(path, "gan")
        self.preprocessing = data.Preprocessing(**{k: tuple(v) for k, v in content["preprocessing"].items()})
        sizes = len(content["classes"]), self.preprocessing
        self.model, self.backend, self.device = trained.load_model(
            path, content, self.config, device, backend_name, *sizes
        )

    @torch.no_grad()
    def __call__(self, count=100, seed=0):
        """(count, C, H, W) images in [0, 1], on the CPU; the same for the same seed.

        Raises:
            OptionError: for a count below 1, or a seed that is none.
        """
        if count < 1:
            raise OptionError(f"--count: expected a number of at least 1, got {count}")
        if not 0 <= seed < 2**63:
            raise OptionError(f"--seed: expected a number from 0 to 2**63 - 1, got {seed}")
        noise = self.model.noise(count, torch.Generator().manual_seed(seed)).to(self.device)
        with backend.use(self.backend):
            images = torch.cat([self.model.generator(part).cpu() for part in noise.split(BATCH)])
        return self.preprocessing.undo(images.float()).clamp(0, 1)


def judged(images, judge):
    """{class: share of ``images`` (N, C, H, W) in [0, 1]} by the classifier of the run ``judge``.

    Raises:
        CheckpointError: for what is no run of a classifier.
    """
    predictor = Predictor(judge)
    found = torch.cat([predictor.probabilities(list(part)).argmax(1) for part in images.split(BATCH)])
    counts = torch.bincount(found, minlength=len(predictor.classes))
    return {name: int(count) / len(images) for name, count in zip(predictor.classes, counts, strict=True)}


def save(images, path, columns):
    """Writes the images as one picture, ``columns`` in a row.

    Raises:
        OptionError: for less than one column.
        MissingExtra: without Pillow.
    """
    if columns < 1:
        raise OptionError(f"--columns: expected a number of at least 1, got {columns}")
    grid.save(path, grid.grid(images, columns))
