"""Anchors, overlaps, labels and predictions, by values that are known."""

import math

import pytest
import torch

from pydl import d2l


def test_corners_and_centres():
    corners = torch.tensor([[60.0, 45.0, 378.0, 516.0], [400.0, 112.0, 655.0, 493.0]])
    centres = d2l.box_corner_to_center(corners)
    assert centres[0].tolist() == [219, 280.5, 318, 471]
    assert torch.equal(d2l.box_center_to_corner(centres), corners)


def test_overlap():
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3], [2, 2, 3, 3], [0, 0, 1, 2]])
    expected = torch.tensor([[1, 1 / 7, 0, 1 / 2], [1 / 7, 1, 1 / 4, 0]])
    torch.testing.assert_close(d2l.box_iou(boxes[:2], boxes), expected)


def test_anchors_around_pixels():
    height, width, sizes, ratios = 4, 6, [0.75, 0.5, 0.25], [1, 2, 0.5]
    anchors = d2l.multibox_prior(torch.zeros(1, 3, height, width), sizes, ratios)
    assert anchors.shape == (1, height * width * 5, 4)
    grid = anchors.reshape(height, width, 5, 4)
    pairs = [(0.75, 1), (0.5, 1), (0.25, 1), (0.75, 2), (0.75, 0.5)]
    for (y, x), (number, (size, ratio)) in zip([(0, 0), (2, 3), (3, 5), (1, 4), (2, 0)], enumerate(pairs), strict=True):
        wide, high = size * math.sqrt(ratio) * height / width, size / math.sqrt(ratio)
        expected = torch.tensor([(x + 0.5) / width, (y + 0.5) / height, wide, high])
        torch.testing.assert_close(d2l.box_corner_to_center(grid[y, x, number]), expected)


def test_objects_take_anchors():
    objects = torch.tensor([[0.0, 0, 1, 1], [0.0, 0, 1, 0.6]])
    anchors = torch.tensor([[0.0, 0, 1, 0.9], [0.0, 0, 1, 0.8], [0.5, 0.5, 0.6, 0.6], [0.0, 0.0, 1, 1.2]])
    # the first object takes anchor 0 (0.9), the second anchor 1 (0.75); anchor 3 overlaps the first by 0.83
    assert d2l.assign_anchor_to_bbox(objects, anchors, "cpu").tolist() == [0, 1, -1, 0]
    assert d2l.assign_anchor_to_bbox(objects, anchors, "cpu", iou_threshold=0.9).tolist() == [0, 1, -1, -1]
    # an object that overlaps little has an anchor all the same
    far = torch.tensor([[0.55, 0.55, 0.9, 0.9]])
    assert d2l.assign_anchor_to_bbox(far, anchors[2:3], "cpu").tolist() == [0]


def test_offsets_and_back():
    anchors, boxes = torch.tensor([[0.1, 0.2, 0.5, 0.4]]), torch.tensor([[0.2, 0.2, 0.6, 0.6]])
    offsets = d2l.offset_boxes(anchors, boxes)
    torch.testing.assert_close(
        offsets, torch.tensor([[10 * 0.1 / 0.4, 10 * 0.1 / 0.2, 0, 5 * math.log(2)]]), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(d2l.offset_inverse(anchors, offsets), boxes, atol=1e-5, rtol=0)


def test_targets():
    anchors = torch.tensor([[[0.0, 0, 1, 0.9], [0.5, 0.5, 0.6, 0.6], [0.0, 0, 0.4, 0.4]]])
    labels = torch.tensor(
        [[[3.0, 0, 0, 1, 1], [-1, 0, 0, 0, 0]], [[-1.0, 0, 0, 0, 0]] * 2, [[0.0, 0, 0, 1, 1], [1, 0, 0, 0.4, 0.4]]]
    )
    offsets, masks, classes = d2l.multibox_target(anchors, labels)
    assert classes.tolist() == [[4, 0, 0], [0, 0, 0], [1, 0, 2]]
    assert masks.tolist() == [[1] * 4 + [0] * 8, [0] * 12, [1] * 4 + [0] * 4 + [1] * 4]
    expected = d2l.offset_boxes(anchors[0, :1], torch.tensor([[0.0, 0, 1, 1]]))[0]
    torch.testing.assert_close(offsets[0, :4], expected)
    assert not (offsets * (1 - masks)).any()
    assert classes.dtype == torch.int64


def test_boxes_that_overlap_are_dropped():
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 0.9], [0.5, 0.5, 1, 1], [0, 0, 1, 1.1]])
    scores = torch.tensor([0.6, 0.9, 0.7, 0.8])
    assert d2l.nms(boxes, scores, 0.5).tolist() == [1, 2]
    assert d2l.nms(boxes, scores, 0.95).tolist() == [1, 3, 2, 0]
    assert d2l.nms(boxes[:0], scores[:0], 0.5).tolist() == []


@pytest.mark.parametrize("threshold", [0.009999999, 0.85])
def test_predictions(threshold):
    anchors = torch.tensor(
        [[[0.1, 0.08, 0.52, 0.92], [0.08, 0.2, 0.56, 0.95], [0.15, 0.3, 0.62, 0.91], [0.55, 0.2, 0.9, 0.88]]]
    )
    probabilities = torch.tensor([[[0.0] * 4, [0.95, 0.8, 0.7, 0.1], [0.1, 0.2, 0.3, 0.8]]])
    found = d2l.multibox_detection(probabilities, torch.zeros(1, 16), anchors, 0.5, threshold)
    assert found.shape == (1, 4, 6)
    low = threshold > 0.5
    confidences = [0.95, 0.2, 0.2, 0.3] if low else [0.95, 0.8, 0.8, 0.7]
    assert found[0, :, 0].tolist() == [0, -1 if low else 1, -1, -1]
    torch.testing.assert_close(found[0, :, 1], torch.tensor(confidences))
    torch.testing.assert_close(found[0, :, 2:], anchors[0, [0, 3, 1, 2]])
