"""``pydl predict``: what a checkpoint of ``pydl train`` sees in images."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from pydl import backend, data, models
from pydl._brief import Brief
from pydl.errors import CheckpointError, MissingExtra
from pydl.training import checkpoint, trained

BATCH = 64
CAPTION, SIDE = 22, 168  # pixels: the strip under a saved picture, and the least width it is enlarged to


@dataclass(repr=False)
class Prediction(Brief):
    """What the model says of one image.

    Attributes:
        ranking: classes with their probabilities, the likeliest first.
        edge: the brightness of the image's edge in [0, 1] where the training images' is another, else None.
    """

    path: Path
    ranking: list
    edge: float | None = None


class Predictor:
    """A trained model with the classes and the preprocessing of its training."""

    kind = "classifier"

    def __init__(self, path, device=None, backend_name=None):
        content, self.config = trained.read(path, self.kind)
        self.classes = tuple(content["classes"])
        try:
            self.preprocessing = data.Preprocessing(**{k: tuple(v) for k, v in content["preprocessing"].items()})
        except TypeError:
            raise CheckpointError(f"{path}: the checkpoint was written by another version of pydl") from None
        sizes = len(self.classes), self.preprocessing
        self.model, self.backend, self.device = trained.load_model(
            path, content, self.config, device, backend_name, *sizes
        )

    @torch.no_grad()
    def probabilities(self, images):
        """(N, classes) for raw images: a list of uint8 (C, H, W) tensors of any sizes."""
        inputs = torch.cat([self.preprocessing(image.unsqueeze(0)) for image in images]).to(self.device)
        with backend.use(self.backend):
            return self.model(inputs).float().softmax(1).cpu()

    def __call__(self, paths, invert=False, top=3):
        """A list of :class:`Prediction`; ``invert`` swaps dark and light, for ink on paper where light was on dark."""
        predictions = []
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            images = [data.read_image(path) for path in batch]
            if invert:
                images = [255 - image for image in images]
            values, indices = self.probabilities(images).topk(min(top, len(self.classes)), dim=1)
            for path, image, p, i in zip(batch, images, values.tolist(), indices.tolist(), strict=True):
                edge = self.preprocessing.foreign_edge(image.unsqueeze(0)).item()
                ranking = [(self.classes[k], q) for k, q in zip(i, p, strict=True)]
                predictions.append(Prediction(Path(path), ranking, None if math.isnan(edge) else edge))
        return predictions

    def warning(self, predictions, invert=False):
        """The sentence about images whose background is not that of the training images; None where there is none."""
        foreign = [prediction for prediction in predictions if prediction.edge is not None]
        if not foreign:
            return None
        usual, found = self.preprocessing.edge[0], foreign[0].edge
        which = str(foreign[0].path) + (f" and {len(foreign) - 1} more" if len(foreign) > 1 else "")
        # inverting helps if it brings the background nearer
        advice = "without --invert" if invert else "with --invert"
        advice = f"; try it {advice}" if abs(1 - found - usual) < abs(found - usual) else ""
        return (
            f"{which}: the background is not that of the training images (brightness {found:.2f} of 1 at the edge, "
            f"there {usual:.2f}), so the classes mean little{advice}"
        )


def kind_of(path):
    """What kind of model the run at ``path`` is of; the errors are those of :func:`pydl.training.trained.read`."""
    content = checkpoint.load(path)
    return models.kind(trained.config_of(path, content).model)


def table(predictions):
    """A rich table: image, class, probability, and what else it could be."""
    from rich.table import Table

    out = Table("image", "class")
    out.add_column("probability", justify="right")
    out.add_column("else")
    for prediction in predictions:
        (name, probability), *rest = prediction.ranking
        out.add_row(str(prediction.path), name, f"{probability:.4f}", ", ".join(f"{n} {p:.4f}" for n, p in rest))
    return out


def save_pictures(predictions, folder):
    """Saves each image with its class and probability written under it; returns the paths."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise MissingExtra("saving pictures", "Pillow") from None
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, prediction in enumerate(predictions, 1):
        tensor = data.read_image(prediction.path, channels=3)
        image = Image.fromarray(tensor.permute(1, 2, 0).numpy())
        scale = max(1, -(-SIDE // image.width))
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
        framed = Image.new("RGB", (image.width, image.height + CAPTION), "white")
        framed.paste(image)
        name, probability = prediction.ranking[0]
        text = f"{name}  {probability:.1%}"
        ImageDraw.Draw(framed).text((4, image.height + 3), text, fill="black", font=ImageFont.load_default(14))
        # numbered: images of the same name may come from several folders
        path = folder / f"{number:04d}-{prediction.path.stem}-{''.join(c if c.isalnum() else '_' for c in name)}.png"
        framed.save(path)
        paths.append(path)
    return paths
