"""Detectors and segmenters in training: pictures of objects, measured by their boxes or their pixels."""

import torch

import pydl.nn
from pydl import data
from pydl.data.objects import IGNORED
from pydl.training import object_pictures
from pydl.training.build import build
from pydl.training.learner import Learner, called
from pydl.vision.detection import detections
from pydl.vision.matching import hardest, matched
from pydl.vision.precision import COCO, mean_average_precision

EVALUATION_BATCH = 16  # pictures are large
SHOWN = 8  # test pictures that are drawn


class ObjectLearner(Learner):
    """A :class:`pydl.training.learner.Learner` of pictures of objects.

    Args:
        dataset: a :class:`pydl.data.ObjectDataset`.
        preprocessing: its :class:`pydl.data.Preprocessing`.
        at: the device of the examples.
    """

    shows_images, masks = False, False

    def __init__(self, config, dataset, preprocessing, at, backend_name, device, processes=None):
        self.classes = dataset.classes
        parts = [data.ObjectBatches(part, preprocessing, self.masks, at) for part in (dataset.train, dataset.test)]
        super().__init__(config, *parts, len(dataset.classes), backend_name, device, processes)

    def _build(self, num_classes):
        return build(self.config, num_classes, self.train.preprocessing)

    def _draw(self):
        batches = list(self.train.order(self.order).split(self.config.batch_size))
        if len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2:] = [torch.cat(batches[-2:])]  # see Learner
        return batches

    def _loss(self, outputs, targets, size):
        if len(targets):
            return super()._loss(outputs, targets, size)
        several = outputs if isinstance(outputs, tuple) else (outputs,)  # see Learner; anchors have no picture
        return sum(each.sum() for each in several if not len(each))

    def _augmented(self, images, targets, size, start):
        return self.augment.with_targets(images, targets, self.step, size, start)

    def _test_batches(self, indices):
        batches = list(indices.split(EVALUATION_BATCH)) if len(indices) else []
        return data.in_order(self.test, batches, self.config.workers, self.device)

    def scores(self):
        return self._scores


class DetectionLearner(ObjectLearner):
    """Of anchors: the class of each, and the offsets of those that have an object.

    The loss of a picture is that of the classes of its positive anchors and of the three times as many hardest others,
    plus the absolute errors of the positive ones' offsets (smooth below 1), over the number of positive anchors.

    Source: d2l section "Single Shot Multibox Detection"; Liu et al., "SSD: Single Shot MultiBox Detector", 2016.
    """

    def _criteria(self):
        """(of classes, of offsets), each by itself; tests are without smoothing."""
        smoothing = self.config.label_smoothing
        return [
            (pydl.nn.CrossEntropyLoss(reduction="none", label_smoothing=s), pydl.nn.SmoothL1Loss(reduction="none"))
            for s in (smoothing, 0.0)
        ]

    def _criterion(self, outputs, labels):
        anchors, scores, offsets = outputs
        of_classes, of_offsets = self.criterion if self.model.training else self.measure
        with torch.no_grad():
            wanted, classes = matched(anchors[0], labels)
            positive = classes > 0
        losses = of_classes(scores.float().flatten(0, 1), classes.flatten()).view(classes.shape)
        with torch.no_grad():
            counted = (positive | hardest(losses, positive)).to(losses.dtype)
        errors = of_offsets(offsets.float().view(wanted.shape), wanted).sum(-1)
        sums = (losses * counted + errors * positive).sum(1)
        return (sums / positive.sum(1).clamp(min=1)).mean()

    @torch.no_grad()
    def evaluate(self):
        """(mean loss of a test picture, None); the precision is left to :meth:`scores`."""
        self.model.eval()
        total, pairs = torch.zeros((), dtype=torch.float64, device=self.device), []
        with self.use(), self.precision():
            for images, labels in self._test_batches(self.processes.shard(torch.arange(len(self.test)))):
                outputs = called(self.model, images)
                total += self._criterion(outputs, labels).double() * len(labels)
                pairs += zip(detections(*outputs), (label[label[:, 0] >= 0].cpu() for label in labels), strict=True)
        found, truths = zip(*(pair for part in self.processes.gather(pairs) for pair in part), strict=True)
        means = mean_average_precision(found, truths)
        self._scores = {"map50": means[COCO[0]], "map": sum(means.values()) / len(means)}
        return (self.processes.sum(total) / len(self.test)).item(), None

    @torch.no_grad()
    def draw_objects(self, folder, title):
        """Draws ``boxes.png``, test pictures with what is found in them; returns its name."""
        self.model.eval()
        images, labels = self.test[torch.arange(min(SHOWN, len(self.test)))]
        with self.use(), self.precision():
            found = detections(*called(self.model, images.to(self.device)))
        path = folder / "boxes.png"
        pictures = self.test.preprocessing.undo(images.cpu())
        object_pictures.draw_boxes(path, pictures, found, labels.cpu(), self.classes, title)
        return [path.name]


class SegmentationLearner(ObjectLearner):
    """Of pixels: the class of each. The loss is the mean over the pixels that count of a picture, then over pictures.

    Source: d2l section "Fully Convolutional Networks".
    """

    masks = True

    def _criteria(self):
        smoothing = self.config.label_smoothing
        return [
            pydl.nn.CrossEntropyLoss(ignore_index=IGNORED, reduction="none", label_smoothing=s)
            for s in (smoothing, 0.0)
        ]

    def _criterion(self, scores, masks):
        losses = (self.criterion if self.model.training else self.measure)(scores, masks)
        counted = (masks != IGNORED).flatten(1).sum(1).clamp(min=1)
        return (losses.flatten(1).sum(1) / counted).mean()

    @torch.no_grad()
    def evaluate(self):
        """(mean loss of a test picture, None); what is right is left to :meth:`scores`."""
        self.model.eval()
        count = len(self.classes) + 1
        total, table = torch.zeros((), dtype=torch.float64, device=self.device), torch.zeros(count, count).long()
        with self.use(), self.precision():
            for images, masks in self._test_batches(self.processes.shard(torch.arange(len(self.test)))):
                scores = called(self.model, images)
                total += self._criterion(scores, masks).double() * len(masks)
                table += pixels(likeliest(scores), masks, count).cpu()
        self._scores = shares(self.processes.sum(table.to(self.device)).cpu())
        return (self.processes.sum(total) / len(self.test)).item(), None

    @torch.no_grad()
    def draw_objects(self, folder, title):
        """Draws ``overlays.png``, test pictures under what is found in them, beside the truth; returns its name."""
        self.model.eval()
        images, masks = self.test[torch.arange(min(SHOWN, len(self.test)))]
        with self.use(), self.precision():
            found = likeliest(called(self.model, images.to(self.device))).cpu()
        path = folder / "overlays.png"
        pictures = self.test.preprocessing.undo(images.cpu())
        object_pictures.draw_overlays(path, pictures, found, masks.cpu(), self.classes, title)
        return [path.name]


def likeliest(scores):
    """(N, H, W): the class of each pixel, from (N, classes, H, W). On the CPU argmax takes forty times as long."""
    return scores.max(1).indices


def pixels(found, masks, count):
    """(count, count): pixels by their true class (row) and the one that was found (column)."""
    counted = masks != IGNORED
    return torch.bincount((masks * count + found)[counted], minlength=count * count).view(count, count)


def shares(table):
    """``pixel_accuracy``, and ``mean_iou`` over the classes but the ground of what is shared over what is either.

    Args:
        table: from :func:`pixels`. A class without a pixel in truth does not count.
    """
    shared, true, found = table.diagonal(), table.sum(1), table.sum(0)
    counted = true[1:] > 0
    iou = (shared / (true + found - shared))[1:][counted]
    return {
        "pixel_accuracy": (shared.sum() / table.sum()).item(),
        "mean_iou": iou.mean().item() if len(iou) else 0.0,
    }
