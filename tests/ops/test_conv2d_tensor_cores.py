"""conv2d in the layout and channel counts that tensor cores take: channels_last, half types, multiples of 8.

Every backend has to get these right; the ones with tensor cores compute them in another way than the shapes of
test_conv2d.py.
"""

import pytest
import torch
import torch.nn.functional as F
from test_conv2d import check, passes

from pydl import backend
from pydl.functional import conv2d

# (N, C, H, W), (O, kernel height, kernel width), options
SHAPES = {
    "one slice, one tile": ((1, 16, 8, 8), (16, 1, 1), {}),
    "several tiles each way, with remainders": ((2, 32, 12, 13), (72, 3, 3), {"padding": 1}),
    "more slices than the ring holds": ((1, 72, 5, 5), (8, 3, 3), {"padding": 1}),
    "stride 2": ((2, 8, 11, 10), (24, 3, 3), {"padding": 1, "stride": 2}),
    "dilation, stride 3": ((1, 8, 15, 16), (16, 3, 2), {"padding": (2, 1), "stride": 3, "dilation": 2}),
    "groups": ((1, 32, 6, 7), (48, 3, 3), {"padding": 1, "groups": 2}),
    "sum over pixels in parts": ((3, 8, 24, 24), (8, 1, 1), {}),
}


@pytest.mark.parametrize("weight_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SHAPES)
def test_all_passes(device, name, dtype, weight_last):
    size, (outputs, *kernel), options = SHAPES[name]
    channels = size[1] // options.get("groups", 1)
    x = torch.randn(size, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    w = (torch.randn(outputs, channels, *kernel, device=device) * (channels * kernel[0] * kernel[1]) ** -0.5).to(dtype)
    if weight_last:
        w = w.contiguous(memory_format=torch.channels_last)
    b = torch.randn(outputs, device=device).to(dtype)
    expected = passes(F.conv2d, *(t.cpu().double() for t in (x, w, b)), options)
    actual = passes(conv2d, x, w, b, options)
    assert actual[0].is_contiguous(memory_format=torch.channels_last)
    check([t.cpu() for t in actual], expected, dtype, size)


@pytest.fixture
def exact():
    """So that the CPU's kernels, too, multiply each pair once."""
    with backend.exact():
        yield


def test_fused_activation_and_nan(device, exact):
    x = torch.randn(1, 16, 9, 9, device=device).bfloat16().contiguous(memory_format=torch.channels_last)
    w = torch.randn(24, 16, 3, 3, device=device).bfloat16().contiguous(memory_format=torch.channels_last)
    b = torch.randn(24, device=device).bfloat16()
    x[0, 3, 4, 4] = float("nan")
    y = conv2d(x, w, b, padding=1, activation="relu")
    expected = F.conv2d(x.cpu().double(), w.cpu().double(), b.cpu().double(), padding=1).relu()
    assert torch.equal(y.isnan().cpu(), expected.isnan())
    torch.testing.assert_close(y.cpu().double(), expected, rtol=2e-2, atol=4e-2, equal_nan=True)


def test_same_bits_on_every_run(device):
    x = torch.randn(2, 16, 20, 20, device=device).bfloat16().contiguous(memory_format=torch.channels_last)
    w = torch.randn(16, 16, 3, 3, device=device).bfloat16().contiguous(memory_format=torch.channels_last)
    first, second = (passes(conv2d, x, w, None, {"padding": 1}) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
