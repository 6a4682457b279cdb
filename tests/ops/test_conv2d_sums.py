"""Gradients of conv2d that are long sums with few results: of the bias, and of depthwise and grouped weights.

GPU backends cut such sums across blocks and join the pieces; sizes here leave remainders everywhere.
"""

import pytest
import torch
from test_conv2d import check
from testing import BACKENDS, assert_close

from pydl import backend

pytestmark = pytest.mark.twin_alone

FORMATS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.bfloat16]  # float64 and float16 in one shape

# (N, C, H, W), (O, kernel height, kernel width), stride, padding, dilation, groups
SHAPES = {
    "several bands": ((2, 9, 41, 27), (9, 3, 3), 1, (1, 1), (1, 1), 9),
    "bands across": ((1, 2, 3, 2800), (2, 3, 3), 1, (1, 1), (1, 1), 2),
    "stride and dilation": ((2, 8, 23, 19), (8, 3, 2), 3, (0, 0), (2, 2), 8),
    "taps in parts": ((2, 5, 13, 14), (5, 7, 5), 1, (3, 2), (1, 1), 5),
    "two filters a channel": ((2, 6, 9, 8), (12, 5, 3), 1, (2, 2), (1, 1), 6),
    "groups": ((2, 15, 9, 7), (25, 3, 3), 1, (1, 1), (1, 1), 5),
    "windows larger than shared memory": ((1, 2, 101, 102), (2, 2, 2), 1, (0, 0), (99, 98), 2),
}
CASES = [(name, dtype) for name in SHAPES for dtype in DTYPES]
CASES += [("groups", torch.float64), ("groups", torch.float16)]


def weight_gradient(grad, x, weight_size, options):
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return backend.ops_for(x).conv2d_backward_weight(grad, x, weight_size, *options, channels_last)


def arguments(name, dtype, device, memory_format):
    """The gradient of the output, the input, the weight's size, and the options of our op and of torch's."""
    size, (outputs, *kernel), stride, padding, dilation, groups = SHAPES[name]
    out = [
        (n + 2 * p - d * (k - 1) - 1) // stride + 1
        for n, p, d, k in zip(size[2:], padding, dilation, kernel, strict=True)
    ]
    x, grad = (
        torch.randn(s, device=device).to(dtype).contiguous(memory_format=memory_format)
        for s in (size, (size[0], outputs, *out))
    )
    ours = ((stride, stride), (padding[0], padding[0], padding[1], padding[1]), dilation, groups)
    torchs = ((stride, stride), padding, dilation, False, (0, 0), groups, (False, True, False))
    return grad, x, (outputs, size[1] // groups, *kernel), ours, torchs


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name,dtype", CASES)
def test_weights_of_few_channels_a_group(device, name, dtype, memory_format):
    grad, x, weight_size, ours, torchs = arguments(name, dtype, device, memory_format)
    w = torch.empty(weight_size, dtype=torch.float64)
    expected = torch.ops.aten.convolution_backward(grad.cpu().double(), x.cpu().double(), w, None, *torchs)[1]
    first, second = (weight_gradient(grad, x, weight_size, ours) for _ in range(2))
    check([first.cpu()], [expected], dtype, x.shape)
    assert torch.equal(first, second)


@pytest.mark.parametrize("device", [b for b in BACKENDS if not b.values[0].startswith("cpu")], indirect=True)
def test_an_infinity_outside_every_window_is_multiplied_with_nothing(device):
    grad, x, weight_size, ours, _ = arguments("stride and dilation", torch.float32, device, torch.contiguous_format)
    x[:, :, :, 18] = torch.inf  # taps reach columns 0 to 17 alone
    assert weight_gradient(grad, x, weight_size, ours).isfinite().all()


# channels of whole packs and not, planes of whole packs and not, one piece and several
BIASES = [(5, 6, 28, 28), (3, 8, 7, 7), (8, 24, 12, 13), (2, 70, 5, 4), (6, 33, 1, 1), (9, 1, 30, 31)]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("size", BIASES, ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_bias(device, size, dtype, memory_format):
    grad = torch.randn(size, device=device).to(dtype).contiguous(memory_format=memory_format)
    check_bias(grad)
    check_bias(grad[:, :, :, : max(size[3] // 2, 1)])  # a part of each row
    check_bias(grad[:, size[1] // 2 :])


def test_bias_of_every_few_channels(device):
    """Pixels of few channels are summed several side by side: rests of them, pieces of 16,384 numbers and a rest."""
    for channels in (*range(2, 19), 24, 31, 32, 33, 48, 63, 64, 65, 100):
        for pixels in ((1, 1, 1), (1, 3, 5), (3, 37, 23), (1, 1, 70_000 // channels)):
            check_bias(torch.randn(*pixels, channels, device=device).permute(0, 3, 1, 2))


def check_bias(grad):
    first, second = (backend.ops_for(grad).conv2d_backward_bias(grad) for _ in range(2))
    terms = grad.numel() // grad.shape[1]
    assert_close(first, grad.cpu().double().sum((0, 2, 3)), scale=max(terms**0.5, 1))
    assert torch.equal(first, second)
