"""Boxes: non-maximum suppression beside a loop and torchvision's, labels of anchors beside the book's, detections."""

import pytest
import torch

from pydl.d2l.boxes import multibox_target
from pydl.vision import boxes as module
from pydl.vision.boxes import box_iou, multibox_prior, nms, offset_boxes, offset_inverse
from pydl.vision.detection import detections
from pydl.vision.matching import hardest, matched


def some(count, seed=0, side=0.3):
    generator = torch.Generator().manual_seed(seed)
    at = torch.rand(count, 2, generator=generator) * (1 - side)
    return torch.cat((at, at + side * (0.2 + 0.8 * torch.rand(count, 2, generator=generator))), dim=1)


def one_by_one(boxes, scores, threshold, kinds):
    order, kept = scores.argsort(descending=True, stable=True).tolist(), []
    for i in order:
        if all(kinds[i] != kinds[j] or box_iou(boxes[[i]], boxes[[j]]).item() <= threshold for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("block", [7, 512])  # many blocks, and one
@pytest.mark.parametrize("kinds", [1, 3])
@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_suppression_is_that_of_a_loop(monkeypatch, block, kinds, threshold):
    monkeypatch.setattr(module, "BLOCK", block)
    for seed in range(5):
        boxes, scores = some(120, seed), torch.rand(120).round(decimals=1)  # with equal scores
        kind = torch.randint(kinds, (120,))
        kept = nms(boxes, scores, threshold, kind if kinds > 1 else None)
        assert kept.tolist() == one_by_one(boxes, scores, threshold, kind.tolist())
        assert len(kept) < 120


def test_a_chain_of_boxes_that_drop_each_other():
    """Every second one stays: what is dropped drops nothing."""
    left = torch.arange(40) * 0.02
    boxes = torch.stack((left, torch.zeros(40), left + 0.05, torch.ones(40)), dim=1)
    assert nms(boxes, torch.linspace(1, 0, 40), 0.4).tolist() == list(range(0, 40, 2))
    assert nms(boxes[:0], torch.empty(0), 0.4).tolist() == []


def test_suppression_is_torchvisions():
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    for seed in range(5):
        boxes, scores, kinds = some(300, seed), torch.rand(300), torch.randint(3, (300,))
        assert torch.equal(nms(boxes, scores, 0.5), torchvision.ops.nms(boxes, scores, 0.5))
        assert torch.equal(nms(boxes, scores, 0.5, kinds), torchvision.ops.batched_nms(boxes, scores, kinds, 0.5))


def test_overlaps_and_offsets_of_batches():
    a, b = some(24).double().view(2, 3, 4, 4), some(30, 1).double().view(2, 3, 5, 4)
    together = box_iou(a, b)
    assert together.shape == (2, 3, 4, 5)
    torch.testing.assert_close(together[1, 2], box_iou(a[1, 2], b[1, 2]))
    x, y = a[0, 0, 1], b[0, 0, 3]
    shared = max(0, min(x[2], y[2]) - max(x[0], y[0])) * max(0, min(x[3], y[3]) - max(x[1], y[1]))
    area = (x[2] - x[0]) * (x[3] - x[1]) + (y[2] - y[0]) * (y[3] - y[1])
    assert together[0, 0, 1, 3].item() == pytest.approx(float(shared / (area - shared)))
    torch.testing.assert_close(offset_inverse(a, offset_boxes(a, a.flip(2), eps=0)), a.flip(2))


@pytest.mark.parametrize("threshold", [0.5])
def test_labels_of_anchors_are_the_books(threshold):
    anchors = multibox_prior(torch.empty(1, 1, 9, 9), (0.1, 0.25), (1, 2, 0.5))
    rows = []
    for seed, count in enumerate((6, 0, 1, 4)):  # objects of a picture
        label = torch.full((6, 5), -1.0)
        label[:count, 0], label[:count, 1:] = torch.arange(count) % 3, some(6, seed)[:count]
        rows.append(label)
    rows[3] = rows[3].flip(0)  # what is no object may come first
    labels = torch.stack(rows)
    offsets, classes = matched(anchors[0], labels, threshold)
    expected, mask, kinds = multibox_target(anchors, labels)
    assert torch.equal(classes, kinds)
    torch.testing.assert_close(offsets, expected.view_as(offsets))
    assert torch.equal((classes > 0).repeat_interleave(4, 1), mask > 0)
    assert (classes > 0).sum(1).tolist()[1] == 0
    assert (classes > 0).sum(1)[0] >= 6


def test_objects_that_want_the_same_anchors_take_turns():
    """The largest overlap of all first, the first of equals, whatever the others then have to take."""
    anchors = multibox_prior(torch.empty(1, 1, 4, 4), (0.2, 0.3), (1, 2, 0.5))[0]
    for seed in range(8):
        boxes = some(7, seed)
        boxes = torch.cat((boxes[:3], boxes[:3], boxes[2:3] + 1e-3, torch.tensor([[2.0, 2.0, 2.1, 2.1]] * 2)))
        label = torch.cat((torch.arange(9.0).unsqueeze(1), boxes), dim=1)
        overlap = box_iou(boxes, anchors)
        expected = torch.where(overlap.max(0).values >= 0.5, overlap.argmax(0), -1)
        for _ in range(9):
            number, anchor = divmod(int(overlap.flatten().argmax()), len(anchors))
            expected[anchor] = number
            overlap[number], overlap[:, anchor] = -1, -1
        offsets, classes = matched(anchors, label.unsqueeze(0))
        assert torch.equal(classes[0], expected + 1)
        found = expected >= 0
        torch.testing.assert_close(offsets[0, found], offset_boxes(anchors[found], boxes[expected[found]]))
        assert not offsets[0, ~found].any()


def test_an_object_far_from_every_anchor_takes_one():
    anchors = torch.tensor([[0.0, 0.0, 0.1, 0.1], [0.5, 0.5, 0.6, 0.6]])
    _, classes = matched(anchors, torch.tensor([[[2, 0.8, 0.8, 0.9, 0.9]]]))
    assert classes.tolist() == [[3, 0]]


def test_the_hardest_of_the_ground():
    losses = torch.tensor([[5.0, 1.0, 4.0, 3.0, 2.0, 0.5], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
    positive = torch.tensor([[True] + [False] * 5, [False] * 6])
    chosen = hardest(losses, positive, ratio=2)
    assert chosen.nonzero().tolist() == [[0, 2], [0, 3], [1, 0], [1, 1]]  # none positive: as for one
    assert hardest(losses, positive, ratio=9).sum(1).tolist() == [5, 6]


def test_detections():
    anchors = torch.tensor([[0.1, 0.1, 0.3, 0.3], [0.12, 0.1, 0.32, 0.3], [0.6, 0.6, 1.0, 1.2]])
    logits = torch.tensor([[[3.0, 4.0, -9.0], [0.0, 5.0, 3.0], [0.0, -9.0, 6.0]], [[9.0, -9.0, -9.0]] * 3])
    offsets = torch.zeros(2, 12)
    first, second = detections(anchors.unsqueeze(0), logits, offsets)
    assert len(second) == 0  # all ground
    p = logits[0].softmax(1)
    # the second anchor drops the first one's class 0; as class 1, of which it is less sure, it stays
    rows = [(1, p[2, 2], *anchors[2].clamp(0, 1)), (0, p[1, 1], *anchors[1]), (1, p[1, 2], *anchors[1])]
    torch.testing.assert_close(first, torch.tensor([[float(v) for v in row] for row in rows]))
    assert len(detections(anchors.unsqueeze(0), logits, offsets, most=1)[0]) == 1
