"""How good detections are: average precision, as Pascal VOC and as COCO measure it."""

import numpy
import torch

from pydl.vision.boxes import box_iou

COCO = tuple(0.5 + 0.05 * i for i in range(10))


def mean_average_precision(found, truths, thresholds=COCO, points=101):
    """{threshold: mean over the classes of their average precision}; classes without an object do not count.

    Detections are looked at from the most confident to the least, over all pictures. One is right if it overlaps an
    object of its class by ``threshold`` or more that no earlier one has taken; it takes the one that it overlaps most.
    Precision at a recall is the largest at that recall or a higher one.

    Args:
        found: for each picture (detections, 6): class, confidence, corners.
        truths: for each picture (objects, 5): class, corners.
        thresholds: least overlaps (IoU).
        points: the recalls that precision is averaged over: ``None`` for all (the area under the curve, Pascal VOC
            since 2010), 11 for Pascal VOC 2007, 101 for COCO.

    Source: Everingham et al., "The Pascal Visual Object Classes Challenge", 2010; Lin et al., "Microsoft COCO", 2014,
    and its evaluation code, without its crowds and its ranges of sizes.
    """
    kinds = sorted({int(kind) for truth in truths for kind in truth[:, 0].tolist()})
    found = [one[one[:, 1].argsort(descending=True, stable=True)] for one in found]
    means = dict.fromkeys(thresholds, 0.0)
    for kind in kinds:
        objects = [truth[truth[:, 0] == kind, 1:] for truth in truths]
        detections = [one[one[:, 0] == kind, 1:] for one in found]
        order = torch.cat([one[:, 0] for one in detections]).argsort(descending=True, stable=True).numpy()
        overlaps = [box_iou(one[:, 1:], truth).tolist() for one, truth in zip(detections, objects, strict=True)]
        for threshold in thresholds:
            right = numpy.array([flag for rows in overlaps for flag in _right(rows, threshold)], dtype=bool)
            means[threshold] += average_precision(right[order], sum(map(len, objects)), points) / len(kinds)
    return means


def _right(overlaps, threshold):
    """Whether each detection of a picture, the most confident first, takes an object: from its row of overlaps."""
    taken, right = set(), []
    for row in overlaps:
        best, place = max(((value, i) for i, value in enumerate(row) if i not in taken), default=(0.0, -1))
        right.append(place >= 0 and best >= threshold)
        if right[-1]:
            taken.add(place)
    return right


def average_precision(right, total, points=None):
    """The average precision of detections of one class, the most confident first.

    Args:
        right: (detections) booleans.
        total: objects that there are.
        points: as for :func:`mean_average_precision`.
    """
    hits = numpy.cumsum(right)
    precision = hits / numpy.arange(1, len(hits) + 1)
    precision = numpy.maximum.accumulate(precision[::-1])[::-1]
    recall = hits / total
    if points is None:
        return float(numpy.sum(numpy.diff(recall, prepend=0.0) * precision))
    places = numpy.searchsorted(recall, numpy.linspace(0, 1, points), side="left")
    return float(numpy.append(precision, 0.0)[places].mean())
