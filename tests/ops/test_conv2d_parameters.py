"""The gradients of weight and bias together, through the activation where nothing else reads that: against torch in
float64, by what makes them in one pass and by what takes several.
"""

import pytest
import torch
import torch.nn.functional as F
from algorithms import asked
from testing import ALL_DTYPES, assert_close

from pydl import backend
from pydl import functional as PF

pytestmark = pytest.mark.cpu_kernels

# batch, channels in and out, image, kernel, options
CASES = {
    "LeNet, first": (32, 1, 6, (28, 28), (5, 5), {"padding": 2}),
    "LeNet, second": (33, 6, 16, (14, 14), (5, 5), {}),  # a single image in the last block
    "strided": (19, 3, 5, (9, 21), (3, 4), {"stride": 2, "padding": 1}),
    "three blocks of rows": (16, 3, 70, (17, 17), (3, 3), {"padding": 1}),
    "grouped": (4, 4, 6, (9, 9), (3, 3), {"groups": 2}),
}
LAYOUTS = {
    "NCHW": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "every second": lambda t: t.repeat_interleave(2, -1)[..., ::2],
}


def both(value):
    return (value, value) if isinstance(value, int) else tuple(value)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("activation", ["none", "relu", "sigmoid"])
@pytest.mark.parametrize("name", CASES)
def test_both_against_float64(device, name, activation, dtype):
    torch.manual_seed(0)
    n, c, o, size, kernel, options = CASES[name]
    groups = options.get("groups", 1)
    x, w = torch.randn(n, c, *size, dtype=dtype), torch.randn(o, c // groups, *kernel, dtype=dtype)
    top, left = both(options.get("padding", 0))
    rest = both(options.get("stride", 1)), (top, top, left, left), (1, 1), groups, activation, False
    y = F.conv2d(x.double(), w.double(), **options)
    y = {"none": y, "relu": y.relu(), "sigmoid": y.sigmoid()}[activation].to(dtype)
    g = torch.randn(y.shape, dtype=dtype)
    grad, of = g.double(), y.double()
    grad = {"none": grad, "relu": grad * (of > 0), "sigmoid": grad * of * (1 - of)}[activation]
    weight = torch.nn.grad.conv2d_weight(x.double(), w.shape, grad, **options)
    scale = grad[:, 0].numel() ** 0.5
    for lay in LAYOUTS.values():
        # what the activation gave lies as its gradient, and otherwise
        for output in (lay(y), y.transpose(2, 3).contiguous().transpose(2, 3)):
            given = None if activation == "none" else output
            found = torch.ops.pydl.conv2d_backward_parameters(lay(g), lay(x), given, w.shape, *rest)
            assert [t.dtype for t in found] == [dtype, dtype]
            assert_close(found[0], weight, scale=scale)
            assert_close(found[1], grad.sum((0, 2, 3)), scale=scale)


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("algorithm", ["direct.batch_weight", "implicit"])
@pytest.mark.parametrize("reads", [False, True], ids=["a first layer", "a later layer"])
def test_a_backward(device, activation, algorithm, reads):
    torch.manual_seed(0)
    x, w, b = torch.randn(35, 2, 12, 11, requires_grad=reads), torch.randn(6, 2, 3, 3), torch.randn(6)
    leaves = [t.requires_grad_() for t in (w, b)] + [x] * reads
    expected = getattr(torch, activation)(F.conv2d(x.double(), w.double(), b.double(), padding=1))
    g = torch.randn(expected.shape)
    with asked(algorithm, "backward_weight"):
        found = torch.autograd.grad(PF.conv2d(x, w, b, padding=1, activation=activation), leaves, g)
    for actual, value in zip(found, torch.autograd.grad(expected, leaves, g.double()), strict=True):
        assert_close(actual, value, scale=30)


def test_what_ran_and_a_dead_unit(device):
    """A gradient of inf or nan where ReLU gave nothing is nobody's; elsewhere it is the bias's and the weight's."""
    x, w = torch.randn(16, 1, 6, 6), torch.randn(3, 1, 3, 3)
    y = F.conv2d(x, w).relu()
    y[:, 2] = 0
    g = torch.randn(y.shape)
    g[3, 2, 1, 1] = torch.inf
    rest = ((1, 1), (0, 0, 0, 0), (1, 1), 1, "relu", False)
    with asked("direct.batch_weight", "backward_weight"):
        weight, bias = torch.ops.pydl.conv2d_backward_parameters(g, x, y, w.shape, *rest)
    assert torch.equal(weight[2], torch.zeros(1, 3, 3))
    assert bias[2] == 0
    g[3, 1, 1, 1], y[3, 1, 1, 1] = torch.inf, 1.0
    with asked("direct.batch_weight", "backward_weight"):
        weight, bias = torch.ops.pydl.conv2d_backward_parameters(g, x, y, w.shape, *rest)
    assert bias[1] == torch.inf
    assert not weight[1].isfinite().any()
    assert weight[0].isfinite().all()


def test_exact_and_refusals(device):
    x, g, shape = torch.randn(16, 1, 8, 8), torch.randn(16, 4, 6, 6), (4, 1, 3, 3)
    rest = ((1, 1), (0, 0, 0, 0), (1, 1), 1)
    call = torch.ops.pydl.conv2d_backward_parameters
    with backend.exact():
        weight, bias = call(g, x, None, shape, *rest, "none", False)
    assert_close(weight, torch.nn.grad.conv2d_weight(x.double(), shape, g.double()), scale=30)
    assert_close(bias, g.double().sum((0, 2, 3)), scale=30)
    with pytest.raises(RuntimeError, match="output"):
        call(g, x, torch.randn(16, 4, 6, 5), shape, *rest, "relu", False)
    with pytest.raises(RuntimeError, match="grad_output"):
        call(g[:, :3], x, None, shape, *rest, "none", False)
    empty = call(g[:0], x[:0], None, shape, *rest, "none", False)
    assert [t.abs().sum() for t in empty] == [0, 0]
