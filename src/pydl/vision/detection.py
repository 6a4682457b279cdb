"""From a detector's outputs to boxes with classes and confidences."""

import torch

from pydl.vision.boxes import nms, offset_inverse

LEAST, MOST, OVERLAP = 0.01, 300, 0.45


def detections(anchors, scores, offsets, least=LEAST, most=MOST, overlap=OVERLAP):
    """For each picture (detections, 6) on the CPU: class, confidence, corners inside the picture; the surest first.

    Every anchor proposes each class that it gives a probability of ``least`` or more; of the ``most`` surest proposals
    of a picture non-maximum suppression drops those that overlap a surer one of their class by more than ``overlap``.

    Args:
        anchors: (1, A, 4).
        scores: (N, A, classes + 1), the ground first.
        offsets: (N, 4·A).

    Source: Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016, section 3.1.
    """
    probabilities = scores.float().softmax(-1)[..., 1:]
    classes = probabilities.shape[-1]
    confidence, place = probabilities.flatten(1).topk(min(most, probabilities[0].numel()), dim=1)
    offsets = offsets.float().view(len(scores), -1, 4)
    out = []
    for sure, where, offset in zip(confidence, place, offsets, strict=True):
        where = where[sure >= least]
        sure, kind, anchor = sure[: len(where)], where % classes, where // classes
        boxes = offset_inverse(anchors[0][anchor], offset[anchor]).clamp(0, 1)
        kept = nms(boxes, sure, overlap, kind)
        out.append(torch.cat((kind[kept, None], sure[kept, None], boxes[kept]), dim=1).cpu())
    return out
