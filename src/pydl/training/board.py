"""``--tensorboard``: scalars, pictures and the model's graph, through TensorBoard's own writer."""

import copy
import warnings

import torch

from pydl import backend
from pydl.errors import MissingExtra
from pydl.swapping import unswap
from pydl.training.display import SIDES

EXAMPLES = 32  # training images that are shown


def check():
    """Refuses ``--tensorboard`` where its package is not installed, before anything is trained."""
    try:
        import torch.utils.tensorboard  # noqa: F401  (only to see whether it can be)
    except ImportError:
        raise MissingExtra("--tensorboard", "tensorboard", extra="tensorboard") from None


class Board:
    """The event file of a run, in the run's folder: ``tensorboard --logdir runs`` shows all runs."""

    def __init__(self, folder):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), flush_secs=10)

    def begin(self, learner):
        """The model's graph, and some of the images it is trained on."""
        if not learner.shows_images:
            self._graph(learner.model, learner.example())
            return
        images = learner.train[torch.arange(min(EXAMPLES, len(learner.train)), device=learner.train.device)][0]
        if learner.train.preprocessing is not None:
            pictures = learner.train.preprocessing.undo(images).clamp(0, 1)
            self.writer.add_images("examples", pictures.cpu(), learner.step)
        self._graph(learner.model, images[:2])

    def _graph(self, model, example):
        # The graph is made by tracing, which refuses our ops: on torch's, a layer is the same node. A copy, since
        # tracing runs the model.
        model = unswap(copy.deepcopy(model)).cpu().eval()
        with backend.use("torch"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing is deprecated, and still what TensorBoard draws
            self.writer.add_graph(
                model, tuple(t.cpu() for t in example) if isinstance(example, tuple) else example.cpu()
            )

    def epoch(self, row):
        for key, value in row.items():
            if key == "sample":
                self.writer.add_text("sample", value, row["step"])
            elif key not in ("epoch", "step"):
                self.writer.add_scalar(_tag(key), value, row["step"])
        self.writer.flush()

    def monitor(self, rows, step):
        for row in rows:
            for key in ("activation", "gradient", "weight_gradient"):
                if row.get(key) is not None:
                    self.writer.add_scalar(f"{key}/{row['name']}", row[key], step)

    def picture(self, step, tag, path):
        """Adds the picture in the file at ``path``."""
        import numpy
        from PIL import Image

        with Image.open(path) as image:
            self.writer.add_image(tag, numpy.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self):
        self.writer.close()


def _tag(key):
    """``test_loss`` as ``loss/test``, so that TensorBoard draws what belongs together in one group."""
    side = next((side for side in SIDES if key.startswith(f"{side}_")), None)
    prefix, name = (f"{side} ", key.removeprefix(f"{side}_")) if side else ("", key)
    groups = {
        "loss": "loss/{}train",
        "test_loss": "loss/{}test",
        "perplexity": "perplexity/{}train",
        "test_perplexity": "perplexity/{}test",
        "train_accuracy": "accuracy/{}train",
        "test_accuracy": "accuracy/{}test",
    }
    return groups.get(name, f"run/{{}}{name}").format(prefix)
