"""Boxes of objects: anchors, overlaps, labels and offsets of anchors, and predictions from them.

A box is (left, top, right, bottom) as shares of the image's width and height; (centre x, centre y, width, height) where
that is said.
"""

import torch

from pydl.d2l.drawing import pyplot


def box_corner_to_center(boxes):
    """(N, 4) corners to centre, width and height."""
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top), dim=-1)


def box_center_to_corner(boxes):
    """(N, 4) centre, width and height to corners."""
    x, y, width, height = boxes.unbind(-1)
    return torch.stack((x - width / 2, y - height / 2, x + width / 2, y + height / 2), dim=-1)


def multibox_prior(data, sizes, ratios):
    """Anchors around each pixel of ``data`` (..., H, W): (1, H·W·(sizes + ratios - 1), 4) corners.

    A pixel has one of each size s with the first ratio r, then one of the first size with each further ratio. On a
    square image it is s·√r wide and s/√r high.
    """
    height, width = data.shape[-2:]
    sizes, ratios = (torch.as_tensor(values, device=data.device, dtype=torch.float32) for values in (sizes, ratios))
    pairs_s = torch.cat((sizes, sizes[:1].expand(len(ratios) - 1)))
    pairs_r = torch.cat((ratios[:1].expand(len(sizes)), ratios[1:]))
    wide = pairs_s * pairs_r.sqrt() * height / width  # shares of the width
    high = pairs_s / pairs_r.sqrt()
    y, x = ((torch.arange(count, device=data.device) + 0.5) / count for count in (height, width))
    y, x = (grid.reshape(-1, 1) for grid in torch.meshgrid(y, x, indexing="ij"))
    corners = torch.stack((x - wide / 2, y - high / 2, x + wide / 2, y + high / 2), dim=-1)
    return corners.reshape(1, -1, 4)


def box_iou(boxes1, boxes2):
    """(N, M): the shared area of each pair over the area of both together."""
    area1, area2 = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes1, boxes2))
    upper, lower = torch.maximum(boxes1[:, None, :2], boxes2[:, :2]), torch.minimum(boxes1[:, None, 2:], boxes2[:, 2:])
    shared = (lower - upper).clamp(min=0).prod(dim=-1)
    return shared / (area1[:, None] + area2 - shared)


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


def offset_boxes(anchors, assigned_bb, eps=1e-6):
    """(N, 4): where boxes lie from their anchors: 10 Δx/w, 10 Δy/h, 5 log(w'/w), 5 log(h'/h)."""
    own, other = box_corner_to_center(anchors), box_corner_to_center(assigned_bb)
    shift = 10 * (other[:, :2] - own[:, :2]) / own[:, 2:]
    return torch.cat((shift, 5 * torch.log(eps + other[:, 2:] / own[:, 2:])), dim=1)


def offset_inverse(anchors, offset_preds):
    """The boxes (N, 4) that lie so from their anchors: undoes :func:`offset_boxes`."""
    own = box_corner_to_center(anchors)
    centre = offset_preds[:, :2] * own[:, 2:] / 10 + own[:, :2]
    return box_center_to_corner(torch.cat((centre, torch.exp(offset_preds[:, 2:] / 5) * own[:, 2:]), dim=1))


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


def nms(boxes, scores, iou_threshold):
    """The numbers of the boxes that stay, the highest score first: none overlaps a higher one by more than that."""
    order, kept = scores.argsort(descending=True), []
    while len(order):
        first, order = order[0], order[1:]
        kept.append(first)
        overlap = box_iou(boxes[first].unsqueeze(0), boxes[order]).squeeze(0)
        order = order[~(overlap > iou_threshold)]  # boxes without an area overlap nothing
    return torch.stack(kept) if kept else order


def multibox_detection(cls_probs, offset_preds, anchors, nms_threshold=0.5, pos_threshold=0.009999999):
    """Predicted boxes: (N, A, 6) of class, confidence, corners; -1 is the class of background and of what is dropped.

    Args:
        cls_probs: (N, classes + 1, A); the first is the background.
        offset_preds: (N, 4·A).
        anchors: (1, A, 4).
        nms_threshold: of :func:`nms`, over the boxes of all classes together.
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
