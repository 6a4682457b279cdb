"""``pydl predict`` for detectors and segmenters: boxes with classes and confidences, or classes of pixels."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from pydl import backend, data
from pydl._brief import Brief
from pydl.errors import MissingExtra
from pydl.predict import BATCH, Predictor
from pydl.training.object_pictures import CONFIDENT, overlaid
from pydl.vision.detection import detections

BOX, TEXT = "#ff3030", "white"


@dataclass(repr=False)
class Found(Brief):
    """What is found in one picture.

    Attributes:
        image: (3, H, W) uint8, as it was read.
        objects: a list of (class, confidence, (left, top, right, bottom) in pixels), the surest first; of a segmenter
            (class, share of the picture's pixels), the largest first.
        mask: (H, W) of class + 1, of a segmenter.
    """

    path: Path
    image: torch.Tensor
    objects: list
    mask: torch.Tensor | None = None


class ObjectPredictor(Predictor):
    """A trained detector or segmenter with the classes and the preprocessing of its training.

    Args:
        path: the run's folder, or a checkpoint.
        kind: ``detector`` or ``segmenter``.

    Raises:
        CheckpointError: for what is no checkpoint of one.
    """

    def __init__(self, path, kind, device=None, backend_name=None):
        self.kind = kind
        super().__init__(path, device, backend_name)

    @torch.no_grad()
    def __call__(self, paths, invert=False, top=None):
        """A list of :class:`Found`; ``top`` is the most objects, or classes, of each picture, None for no limit."""
        out = []
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            images = [data.read_image(path, channels=3) for path in batch]
            images = [255 - image if invert else image for image in images]
            inputs = torch.cat([self.preprocessing(image.unsqueeze(0)) for image in images]).to(self.device)
            with backend.use(self.backend):
                outputs = self.model(inputs)
            see = self._boxes if self.kind == "detector" else self._pixels
            out += [see(Path(p), i, o, top) for p, i, o in zip(batch, images, self._each(outputs), strict=True)]
        return out

    def _each(self, outputs):
        return detections(*outputs) if self.kind == "detector" else outputs.float().cpu().unsqueeze(1)

    def _boxes(self, path, image, found, top):
        height, width = image.shape[1:]
        scale = torch.tensor([width, height, width, height])
        rows = found[found[:, 1] >= CONFIDENT][:top]
        boxes = (rows[:, 2:] * scale).round().int().tolist()
        names = [self.classes[int(kind)] for kind in rows[:, 0]]
        return Found(path, image, list(zip(names, rows[:, 1].tolist(), map(tuple, boxes), strict=True)))

    def _pixels(self, path, image, scores, top):
        # scores are enlarged, not classes: edges are smooth then
        mask = F.interpolate(scores, image.shape[1:], mode="bilinear", align_corners=False)[0].argmax(0)
        shares = torch.bincount(mask.flatten(), minlength=len(self.classes) + 1)[1:] / mask.numel()
        order = [i for i in shares.argsort(descending=True).tolist() if shares[i] > 0][:top]
        return Found(path, image, [(self.classes[i], shares[i].item()) for i in order], mask)


def table(found):
    """A rich table: picture, class, and its confidence and box, or its share of the pixels."""
    from rich.table import Table

    masks = any(one.mask is not None for one in found)
    out = Table("image", "class")
    out.add_column("share of pixels" if masks else "confidence", justify="right")
    if not masks:
        out.add_column("left, top, right, bottom", justify="right")
    for one in found:
        for number, (name, value, *box) in enumerate(one.objects):
            cells = [", ".join(map(str, corners)) for corners in box]
            out.add_row("" if number else str(one.path), name, f"{value:.1%}" if masks else f"{value:.4f}", *cells)
        if not one.objects:
            out.add_row(str(one.path), "nothing", "")
    return out


def save_pictures(found, folder):
    """Saves each picture with its boxes, or beside its overlay; returns the paths."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise MissingExtra("saving pictures", "Pillow") from None
    folder, paths = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(found, 1):
        pixels = one.image
        if one.mask is not None:
            covered = (overlaid(one.image / 255, one.mask) * 255).round().to(torch.uint8)
            pixels = torch.cat((one.image, covered), dim=2)
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        if one.mask is None:
            pen, font = ImageDraw.Draw(image), ImageFont.load_default(12)
            for name, confidence, box in one.objects:
                pen.rectangle(box, outline=BOX, width=2)
                text = f"{name} {confidence:.2f}"
                at = box[0], max(0, box[1] - 13)
                pen.rectangle(pen.textbbox(at, text, font=font), fill=BOX)
                pen.text(at, text, fill=TEXT, font=font)
        # numbered: images of the same name may come from several folders
        path = folder / f"{number:04d}-{one.path.stem}-{'boxes' if one.mask is None else 'overlay'}.png"
        image.save(path)
        paths.append(path)
    return paths
