"""Average precision on examples that were computed by hand, and the shares of pixels."""

import pytest
import torch

from pydl.training.objects import pixels, shares
from pydl.vision.precision import COCO, average_precision, mean_average_precision


def test_a_curve_by_hand():
    """Right, wrong, right, right, wrong, of 4: recalls 1/4, 1/4, 2/4, 3/4, 3/4 at 1, 1/2, 2/3, 3/4, 3/5."""
    right = [True, False, True, True, False]
    assert average_precision(right, 4) == pytest.approx(0.25 * 1 + 0.25 * 0.75 + 0.25 * 0.75)
    # 11 points: 0, 0.1, 0.2 at 1; 0.3 to 0.7 at 3/4; 0.8 to 1 at 0
    assert average_precision(right, 4, 11) == pytest.approx((3 * 1 + 5 * 0.75) / 11)
    # 101 points: 0 to 0.25 are 26; 0.26 to 0.75 are 50
    assert average_precision(right, 4, 101) == pytest.approx((26 * 1 + 50 * 0.75) / 101)
    for points in (None, 11, 101):
        assert average_precision([True, True], 2, points) == pytest.approx(1)
        assert average_precision([], 2, points) == 0


def shifted(x, width=10.0):
    """A box of height 10 at x; two of them, 10 wide, that lie d apart overlap by (10 - d) / (10 + d)."""
    return (x, 0.0, x + width, 10.0)


def test_pictures_by_hand():
    truths = [
        torch.tensor([(0, *shifted(0)), (0, *shifted(100)), (1, *shifted(200))]),
        torch.tensor([(0, *shifted(0))]),
        torch.empty(0, 5),
    ]
    found = [
        torch.tensor([
            (0, 0.9, *shifted(1)),  # overlap 9/11 = 0.818 with the first: right up to 0.8
            (0, 0.8, *shifted(0)),  # the first again, which is taken: wrong, though it overlaps more, up to 0.8
            (0, 0.6, *shifted(102)),  # 8/12 = 0.667: right up to 0.65
            (1, 0.5, *shifted(200)),  # exact
        ]),
        torch.tensor([(1, 0.7, *shifted(0))]),  # another class: a wrong one of class 1, before the right one
        torch.tensor([(0, 0.7, *shifted(0))]),  # nothing there
    ]  # fmt: skip
    means = mean_average_precision(found, truths, points=None)
    # class 0, three objects: right, wrong, wrong, right: recalls 1/3, 2/3 at precisions 1, 1/2
    # class 1, one object: wrong, right: recall 1 at precision 1/2
    for threshold in COCO[:4]:
        assert means[threshold] == pytest.approx(((1 / 3) * 1 + (1 / 3) * 0.5 + 0.5) / 2), threshold
    # from 0.7 on the third is wrong: class 0 has 1/3
    assert means[COCO[5]] == pytest.approx((1 / 3 + 0.5) / 2)
    # from 0.85 on the first is wrong and the second is right: recall 1/3 at precision 1/2
    assert means[COCO[8]] == pytest.approx((1 / 3 * 0.5 + 0.5) / 2)
    coco = mean_average_precision(found, truths)
    # 101 points: recalls up to 1/3 are 34 (0 to 0.33), from there to 2/3 33; class 1 has all at 1/2
    assert coco[0.5] == pytest.approx(((34 * 1 + 33 * 0.5) / 101 + 0.5) / 2)
    assert list(coco) == [0.5 + 0.05 * i for i in range(10)]
    order = [2, 0, 1]  # the order of the pictures, and of the rows of one, does not matter
    again = mean_average_precision([found[i].flip(0) for i in order], [truths[i] for i in order], points=None)
    assert again == pytest.approx(means)


def test_nothing_found_and_nothing_there():
    nothing = torch.empty(0, 6)
    truth = torch.tensor([(0, *shifted(0))])
    assert mean_average_precision([nothing], [truth], (0.5,)) == {0.5: 0}
    assert mean_average_precision([nothing], [truth[:0]], (0.5,)) == {0.5: 0}


def test_shares_of_pixels_by_hand():
    truth = torch.tensor([[[0, 0, 1, 1], [0, 255, 1, 2]]])
    found = torch.tensor([[[0, 1, 1, 1], [0, 2, 0, 1]]])
    table = pixels(found, truth, 4)
    assert table.tolist() == [[2, 1, 0, 0], [1, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    # class 1: 2 shared of 3 and 4, class 2: none, class 3 is not there
    assert shares(table) == pytest.approx({"pixel_accuracy": 4 / 7, "mean_iou": (2 / 5 + 0) / 2})
