"""The book's functions of boxes: what an anchor should say of an image's objects, and what a detector predicts.

A box is (left, top, right, bottom) as shares of the image's width and height. What there is to compute of boxes alone
stands in :mod:`pydl.vision.boxes`, and labels of whole batches in :mod:`pydl.vision.matching`.
"""

import torch

from pydl.live import pyplot
from pydl.vision.boxes import (
    box_center_to_corner,
    box_corner_to_center,
    box_iou,
    multibox_prior,
    nms,
    offset_boxes,
    offset_inverse,
)

__all__ = [
    "assign_anchor_to_bbox",
    "bbox_to_rect",
    "box_center_to_corner",
    "box_corner_to_center",
    "box_iou",
    "multibox_detection",
    "multibox_prior",
    "multibox_target",
    "nms",
    "offset_boxes",
    "offset_inverse",
    "show_bboxes",
]


def assign_anchor_to_bbox(ground_truth, anchors, device, iou_threshold=0.5):
    """(anchors): the number of the object of each anchor, or -1.

    Each object takes the anchor that overlaps it most, the largest overlap of all first; of the others an anchor
    belongs to the object that it overlaps most, where that is ``iou_threshold`` or more.
    """
    overlap = box_iou(anchors, ground_truth)
    largest, objects = overlap.max(dim=1)
    assigned = torch.where(largest >= iou_threshold, objects, -1).to(device)
    overlap = overlap.clone()
    for _ in range(min(overlap.shape)):
        anchor, number = divmod(int(overlap.argmax()), overlap.shape[1])
        assigned[anchor] = number
        overlap[anchor], overlap[:, number] = -1, -1
    return assigned


def multibox_target(anchors, labels):
    """What a detector should say of each anchor: (offsets (N, 4·A), mask (N, 4·A), classes (N, A)).

    Args:
        anchors: (1, A, 4).
        labels: (N, objects, 5): class and corners; a class of -1 is no object.

    Returns:
        Offsets to the object of an anchor, 1 where there is one, and its class + 1; all 0 for the background.
    """
    anchors = anchors.squeeze(0)
    offsets, masks, classes = [], [], []
    for label in labels:
        label = label[label[:, 0] >= 0]
        if len(label):
            assigned = assign_anchor_to_bbox(label[:, 1:], anchors, anchors.device)
        else:
            assigned = torch.full((len(anchors),), -1, device=anchors.device)
        found = assigned >= 0
        offset, kind = torch.zeros_like(anchors), torch.zeros_like(assigned)
        objects = label[assigned[found]]
        offset[found] = offset_boxes(anchors[found], objects[:, 1:])
        kind[found] = objects[:, 0].long() + 1
        offsets.append(offset.reshape(-1))
        masks.append(found.to(anchors.dtype).repeat_interleave(4))
        classes.append(kind)
    return torch.stack(offsets), torch.stack(masks), torch.stack(classes)


def multibox_detection(cls_probs, offset_preds, anchors, nms_threshold=0.5, pos_threshold=0.009999999):
    """Predicted boxes: (N, A, 6) of class, confidence, corners; -1 is the class of background and of what is dropped.

    Args:
        cls_probs: (N, classes + 1, A); the first is the background.
        offset_preds: (N, 4·A).
        anchors: (1, A, 4).
        nms_threshold: of :func:`pydl.vision.boxes.nms`, over the boxes of all classes together.
        pos_threshold: a box of a lower confidence is background, with 1 minus that.

    Returns:
        The boxes that stay first, the most confident first of them.
    """
    anchors, found = anchors.squeeze(0), []
    for probability, offset in zip(cls_probs, offset_preds, strict=True):
        confidence, kind = probability[1:].max(dim=0)
        boxes = offset_inverse(anchors, offset.reshape(-1, 4))
        kept = nms(boxes, confidence, nms_threshold)
        stays = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
        stays[kept] = True
        order = torch.cat((kept, (~stays).nonzero().flatten()))
        positive = confidence >= pos_threshold
        kind = torch.where(stays & positive, kind, -1).to(confidence.dtype)
        confidence = torch.where(positive, confidence, 1 - confidence)
        found.append(torch.cat((kind[:, None], confidence[:, None], boxes), dim=1)[order])
    return torch.stack(found)


def bbox_to_rect(bbox, color):
    """A box as matplotlib's rectangle without a filling."""
    left, top, right, bottom = (float(value) for value in bbox)
    return pyplot().Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=2)


def show_bboxes(axes, bboxes, labels=None, colors=None):
    """Draws boxes into ``axes``, each with its text; colours are taken by turns."""
    labels = [labels] if isinstance(labels, str) else labels
    colors = ["b", "g", "r", "m", "c"] if colors is None else [colors] if isinstance(colors, str) else colors
    for number, bbox in enumerate(bboxes):
        color = colors[number % len(colors)]
        rectangle = bbox_to_rect(bbox, color)
        axes.add_patch(rectangle)
        if labels and number < len(labels):
            ink = "k" if color == "w" else "w"
            axes.text(
                *rectangle.xy, labels[number], va="center", ha="center", fontsize=9, color=ink,
                bbox={"facecolor": color, "linewidth": 0},
            )  # fmt: skip
