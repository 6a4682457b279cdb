"""conv2d of NCHW tensors: forward and input gradient from planes in shared memory, where a GPU's plain cores compute.

Sizes leave remainders in every way that the kernel cuts the work: images, rows and columns of a tile, channels of the
source in slices and among groups of threads, channels of the result.
"""

import pytest
import torch
import torch.nn.functional as F
from test_conv2d import check, passes

from pydl.functional import conv2d

pytestmark = pytest.mark.twin_alone

# (N, C, H, W), (O, kernel height, kernel width), options
SHAPES = {
    "LeNet's first: several images a tile": ((7, 1, 12, 12), (6, 5, 5), {"padding": 2}),
    "LeNet's second: groups of threads": ((5, 6, 14, 14), (16, 5, 5), {}),
    "slices of channels": ((2, 70, 9, 8), (5, 3, 3), {"padding": 1}),
    "blocks of channels": ((2, 3, 9, 10), (37, 3, 3), {"padding": 1}),
    "tiles across and down": ((1, 2, 45, 135), (3, 3, 2), {"padding": (1, 0)}),
    "stride and dilation": ((2, 5, 23, 20), (9, 3, 2), {"stride": (2, 3), "dilation": (2, 1), "padding": (2, 1)}),
    "dilation": ((2, 5, 13, 12), (9, 3, 2), {"dilation": (3, 2), "padding": (1, 2)}),
    "one tap, few channels": ((3, 33, 6, 7), (10, 1, 1), {}),
    "padding beyond the kernel": ((1, 3, 5, 4), (4, 2, 3), {"padding": (3, 4)}),
    "a large kernel": ((1, 2, 20, 21), (3, 11, 13), {"padding": (5, 6)}),
    "one channel, one pixel": ((2, 1, 1, 1), (1, 3, 3), {"padding": 1}),
    "no band fits shared memory": ((1, 2, 70, 300), (3, 2, 2), {"dilation": (60, 250)}),
}
CASES = [(name, torch.float32) for name in SHAPES]
CASES += [(name, dtype) for name in list(SHAPES)[1:4] for dtype in (torch.float64, torch.bfloat16, torch.float16)]


@pytest.mark.parametrize("name,dtype", CASES)
def test_all_passes(device, name, dtype):
    size, (outputs, *kernel), options = SHAPES[name]
    x = torch.randn(size, device=device).to(dtype)
    w = (torch.randn(outputs, size[1], *kernel, device=device) * (size[1] * kernel[0] * kernel[1]) ** -0.5).to(dtype)
    b = torch.randn(outputs, device=device).to(dtype)
    expected = passes(F.conv2d, *(t.cpu().double() for t in (x, w, b)), options)
    actual, again = (passes(conv2d, x, w, b, options) for _ in range(2))
    check([t.cpu() for t in actual], expected, dtype, size)
    assert all(torch.equal(*pair) for pair in zip(actual, again, strict=True))


def test_rows_of_a_wider_tensor_and_activation(device):
    x = torch.randn(3, 4, 9, 14, device=device)[:, 1:, :, 2:11]
    w, b = torch.randn(6, 3, 3, 3, device=device).transpose(2, 3), torch.randn(6, device=device)
    actual = conv2d(x, w, b, padding=1, activation="relu")
    expected = F.conv2d(x.cpu().double(), w.cpu().double(), b.cpu().double(), padding=1).relu()
    check([actual.cpu()], [expected], torch.float32, x.shape)
