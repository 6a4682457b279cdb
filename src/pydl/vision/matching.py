"""What a detector should say of each anchor, for a whole batch at once."""

import torch

from pydl.vision.boxes import box_iou, offset_boxes


def matched(anchors, labels, threshold=0.5):
    """(offsets (N, A, 4), classes (N, A)) that a detector should give.

    Each object takes the anchor that overlaps it most, the largest overlap of all first; of the others an anchor
    belongs to the object that it overlaps most, where that is ``threshold`` or more.

    Args:
        anchors: (A, 4) corners.
        labels: (N, objects, 5): class and corners; a class below 0 is no object.

    Returns:
        float32 offsets of :func:`pydl.vision.boxes.offset_boxes`, and int64 classes from 1 on; all 0 for the ground.

    Source: d2l section "Anchor Boxes".
    """
    count, objects, _ = labels.shape
    there = labels[..., 0] >= 0
    overlap = box_iou(labels[..., 1:], anchors).masked_fill_(~there.unsqueeze(-1), -1)  # (N, objects, A)
    largest, assigned = overlap.max(dim=1)
    assigned = torch.where(largest >= threshold, assigned, -1)
    best, place = overlap.max(dim=2)  # of each object
    every = torch.arange(count, device=labels.device)
    for _ in range(min(objects, len(anchors))):
        most, number = best.max(dim=1)
        anchor = place[every, number]
        # an object without any overlap takes an anchor, too; what is no object, or has one, is at -1
        assigned[every, anchor] = torch.where(most >= 0, number, assigned[every, anchor])
        best[every, number], overlap[every, :, anchor] = -1, -1
        again = (best >= 0) & (place == anchor.unsqueeze(1))  # those whose anchor was taken look for another
        if again.any():
            best[again], place[again] = overlap[again].max(dim=1)
    picture, anchor = (assigned >= 0).nonzero(as_tuple=True)
    rows = labels[picture, assigned[picture, anchor]]
    # what lies beside no object is told to stay where it is
    offsets, classes = labels.new_zeros(count, len(anchors), 4), assigned.new_zeros(assigned.shape)
    offsets[picture, anchor] = offset_boxes(anchors[anchor], rows[:, 1:]).to(offsets.dtype)
    classes[picture, anchor] = rows[:, 0].long() + 1
    return offsets, classes


def hardest(losses, positive, ratio=3):
    """(N, A) booleans: of the anchors that are ground, ``ratio`` for each positive one, those of the largest losses.

    A picture without a positive anchor takes ``ratio`` of them.

    Args:
        losses: (N, A), of the classes.
        positive: (N, A) booleans.

    Source: Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016, section 2.2.
    """
    wanted = ratio * positive.sum(dim=1).clamp(min=1)
    most = min(int(wanted.max()), losses.shape[1])
    values, places = losses.masked_fill(positive, -1).topk(most, dim=1)
    chosen = torch.arange(most, device=losses.device) < wanted.unsqueeze(1)
    return torch.zeros_like(positive).scatter_(1, places, chosen & (values >= 0))
