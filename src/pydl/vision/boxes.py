"""Boxes of objects: anchors, overlaps, offsets of anchors, and which of overlapping boxes stay.

A box is (left, top, right, bottom) as shares of the image's width and height; (centre x, centre y, width, height) where
that is said.

Source: d2l sections "Anchor Boxes" and "Single Shot Multibox Detection".
"""

import torch

BLOCK = 512  # boxes that non-maximum suppression looks at together: its largest table is this wide


def box_corner_to_center(boxes):
    """(N, 4) corners to centre, width and height.

    >>> boxes.box_corner_to_center(torch.tensor([[0.0, 0.0, 4.0, 2.0]]))
    tensor([[2., 1., 4., 2.]])
    """
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top), dim=-1)


def box_center_to_corner(boxes):
    """(N, 4) centre, width and height to corners.

    >>> boxes.box_center_to_corner(torch.tensor([[2.0, 1.0, 4.0, 2.0]]))
    tensor([[0., 0., 4., 2.]])
    """
    x, y, width, height = boxes.unbind(-1)
    return torch.stack((x - width / 2, y - height / 2, x + width / 2, y + height / 2), dim=-1)


def multibox_prior(data, sizes, ratios):
    """Anchors around each pixel of ``data`` (..., H, W): (1, H·W·(sizes + ratios - 1), 4) corners.

    A pixel has one of each size s with the first ratio r, then one of the first size with each further ratio. On a
    square image it is s·√r wide and s/√r high.

    >>> boxes.multibox_prior(torch.zeros(1, 3, 8, 8), sizes=[0.5, 0.25], ratios=[1, 2]).shape
    torch.Size([1, 192, 4])
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
    """(..., N, M): the shared area of each pair of boxes (..., N, 4) and (..., M, 4) over that of both together.

    >>> boxes.box_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]]))
    tensor([[0.3333]])
    """
    left1, top1, right1, bottom1 = boxes1.unsqueeze(-2).unbind(-1)
    left2, top2, right2, bottom2 = boxes2.unsqueeze(-3).unbind(-1)
    # in place: these are large tables
    wide = torch.minimum(right1, right2).sub_(torch.maximum(left1, left2))
    high = torch.minimum(bottom1, bottom2).sub_(torch.maximum(top1, top2))
    shared = wide.clamp_(min=0).mul_(high.clamp_(min=0))
    area1, area2 = (right1 - left1) * (bottom1 - top1), (right2 - left2) * (bottom2 - top2)
    return shared / (area1 + area2 - shared)


def offset_boxes(anchors, assigned_bb, eps=1e-6):
    """(..., 4): where boxes lie from their anchors: 10 Δx/w, 10 Δy/h, 5 log(w'/w), 5 log(h'/h).

    >>> boxes.offset_boxes(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]]), eps=0.0)
    tensor([[5., 0., 0., 0.]])
    """
    own, other = box_corner_to_center(anchors), box_corner_to_center(assigned_bb)
    shift = 10 * (other[..., :2] - own[..., :2]) / own[..., 2:]
    return torch.cat((shift, 5 * torch.log(eps + other[..., 2:] / own[..., 2:])), dim=-1)


def offset_inverse(anchors, offset_preds):
    """The boxes (..., 4) that lie so from their anchors: undoes :func:`offset_boxes`.

    >>> boxes.offset_inverse(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[5.0, 0.0, 0.0, 0.0]]))
    tensor([[1., 0., 3., 2.]])
    """
    own = box_corner_to_center(anchors)
    centre = offset_preds[..., :2] * own[..., 2:] / 10 + own[..., :2]
    return box_center_to_corner(torch.cat((centre, torch.exp(offset_preds[..., 2:] / 5) * own[..., 2:]), dim=-1))


def nms(boxes, scores, iou_threshold, kinds=None):
    """The numbers of the boxes that stay, the highest score first: none overlaps a higher one by more than that.

    Args:
        boxes: (N, 4).
        scores: (N). Of equal ones the first box comes first.
        kinds: (N), such as classes: boxes of different kinds do not count as overlapping; None for one kind.

    Returns:
        (kept) int64, the same as torchvision's ``nms`` (``batched_nms`` with kinds) gives. A box stays if none that
        stays drops it: that is found for a block of boxes at once, by repeating the rule until nothing changes. The
        first k of them are right after k rounds, and boxes rarely hang on each other by more than a few.

    >>> three = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.1, 0.0, 2.1, 2.0], [5.0, 5.0, 6.0, 6.0]])
    >>> boxes.nms(three, torch.tensor([0.8, 0.9, 0.7]), 0.5)
    tensor([1, 2])
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    kinds = None if kinds is None else kinds[order]

    def drops(some, others):
        overlapping = box_iou(boxes[some], boxes[others]) > iou_threshold  # boxes without an area overlap nothing
        return overlapping if kinds is None else overlapping & (kinds[some, None] == kinds[others])

    left, kept = torch.arange(len(boxes), device=boxes.device), []
    while len(left):
        block, left = left[:BLOCK], left[BLOCK:]
        table = drops(block, block).triu(diagonal=1)
        stays, before = torch.ones_like(block, dtype=torch.bool), None
        while before is None or not torch.equal(stays, before):
            stays, before = ~(table & stays[:, None]).any(dim=0), stays
        kept.append(block[stays])
        if len(left):
            left = left[~drops(kept[-1], left).any(dim=0)]
    return order[torch.cat(kept)] if kept else order
