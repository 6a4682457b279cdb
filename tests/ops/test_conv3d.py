"""conv3d and its layer beside torch: options, layouts, gradients of both orders, what is torch's, errors."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from testing import DTYPES, assert_close, assert_transforms
from torch.utils.flop_counter import FlopCounterMode

import pydl
import pydl.functional as PF

pytestmark = pytest.mark.cpu_kernels
LAST = torch.channels_last_3d

# (input, weight, options)
CASES = {
    "plain": ((2, 4, 5, 7, 9), (6, 4, 3, 3, 3), {}),
    "padded, one image": ((1, 3, 6, 8, 8), (5, 3, 3, 3, 3), {"padding": 1}),
    "more depths than images": ((2, 8, 9, 6, 6), (4, 8, 3, 3, 3), {"padding": 1}),
    "more images than depths": ((5, 8, 3, 6, 6), (4, 8, 3, 3, 3), {"padding": 1}),
    "odd everything": ((2, 3, 7, 9, 8), (5, 3, 2, 3, 4), {"stride": (2, 1, 3), "padding": (1, 2, 0)}),
    "stride 2": ((2, 16, 6, 8, 8), (32, 16, 3, 3, 3), {"stride": 2, "padding": 1}),
    "stride 3 of depth": ((2, 4, 8, 5, 5), (3, 4, 4, 3, 3), {"stride": (3, 1, 1), "padding": (2, 1, 1)}),
    "dilated": ((2, 3, 9, 9, 9), (4, 3, 3, 2, 3), {"dilation": (2, 3, 1), "padding": (2, 1, 1)}),
    "dilation and stride share a factor": (
        (2, 3, 9, 7, 7),
        (4, 3, 3, 3, 3),
        {"dilation": 2, "stride": 2, "padding": 2},
    ),
    "dilation 2, stride 3": (
        (2, 3, 9, 7, 7),
        (4, 3, 4, 3, 3),
        {"dilation": (2, 1, 1), "stride": (3, 1, 1), "padding": 2},
    ),
    "windows of padding alone": ((2, 3, 3, 5, 5), (4, 3, 1, 3, 3), {"padding": (2, 1, 1)}),
    "depths that no window reads": ((2, 3, 6, 5, 5), (4, 3, 1, 3, 3), {"stride": (3, 1, 1)}),
    "taps that only meet padding": ((3, 4, 1, 5, 5), (4, 4, 3, 3, 3), {"padding": 1}),
    "1x1x1": ((2, 6, 3, 5, 4), (7, 6, 1, 1, 1), {}),
    "1x1x1 stride 2": ((2, 6, 4, 6, 5), (7, 6, 1, 1, 1), {"stride": 2}),
    "1x3x3": ((2, 6, 4, 6, 5), (7, 6, 1, 3, 3), {"padding": (0, 1, 1)}),
    "3x1x1": ((2, 6, 4, 6, 5), (7, 6, 3, 1, 1), {"padding": (1, 0, 0)}),
    "3x1x1, groups": ((2, 6, 4, 6, 5), (4, 3, 3, 1, 1), {"padding": (1, 0, 0), "groups": 2}),
    "groups": ((3, 6, 5, 6, 5), (4, 3, 3, 3, 3), {"groups": 2, "padding": 1}),
    "groups, 1x3x3": ((3, 6, 5, 6, 5), (4, 3, 1, 3, 3), {"groups": 2}),
    "depthwise": ((2, 5, 4, 6, 5), (10, 1, 3, 3, 3), {"groups": 5, "stride": (1, 2, 1), "padding": 1}),
    "one channel": ((3, 1, 6, 9, 9), (8, 1, 3, 5, 5), {"padding": (1, 2, 2)}),
    "first layer": ((2, 3, 4, 20, 20), (32, 3, 3, 7, 7), {"stride": (1, 2, 2), "padding": (1, 3, 3)}),
    "same": ((2, 3, 5, 6, 7), (4, 3, 3, 1, 5), {"padding": "same", "dilation": (2, 1, 1)}),
    "valid": ((2, 3, 5, 6, 7), (4, 3, 3, 1, 5), {"padding": "valid"}),
    "unbatched": ((3, 5, 6, 7), (4, 3, 3, 3, 3), {"padding": 1}),
    "wide": ((2, 40, 4, 12, 12), (48, 40, 3, 3, 3), {"padding": 1}),
}


def tensors(case, dtype=torch.float64, last=(False, False)):
    size, weight, options = CASES[case]
    x, w, b = torch.randn(size), torch.randn(weight) / weight[1] ** 0.5, torch.randn(weight[0])
    x, w = (t.to(memory_format=LAST) if of and t.dim() == 5 else t for t, of in zip((x, w), last, strict=True))
    return [t.to(dtype) for t in (x, w, b)], options


def step(f, made, options):
    leaves = [t.detach().requires_grad_() for t in made]
    output = f.conv3d(*leaves, **options)
    grad = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


@pytest.mark.parametrize("last", list(itertools.product((False, True), repeat=2)), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_as_torch(device, case, dtype, last):
    made, options = tensors(case, dtype, last)
    exact = step(F, [t.double() for t in made], options)
    ours, theirs = (step(f, made, options) for f in (PF, F))
    for a, e, t in zip(ours, exact, theirs, strict=True):
        size = max(1.0, e.abs().max().item())
        assert_close(a.double() / size, e / size, dtype, 4.0)
        assert (a.dtype, a.stride()) == (dtype, t.stride())


def test_as_torch_in_random_calls(device):
    """Options drawn together, in float64, where a wrong tap cannot hide in rounding."""
    random = torch.Generator().manual_seed(3)

    def draw(*numbers):
        return numbers[torch.randint(len(numbers), (), generator=random)]

    served = 0
    for _ in range(60):
        groups = draw(1, 1, 2, 3)
        kernel, size = [draw(1, 2, 3) for _ in range(3)], [draw(3, 5, 8) for _ in range(3)]
        options = {name: tuple(draw(*of) for _ in range(3)) for name, of in
                   {"stride": (1, 1, 2, 3), "padding": (0, 1, 2), "dilation": (1, 1, 2, 3)}.items()}  # fmt: skip
        reach = [d * (k - 1) + 1 for d, k in zip(options["dilation"], kernel, strict=True)]
        if any(s + 2 * p < r for s, p, r in zip(size, options["padding"], reach, strict=True)):
            continue
        made = [
            torch.randn(draw(1, 2, 5), 2 * groups, *size, generator=random).double(),
            torch.randn(draw(1, 3) * groups, 2, *kernel, generator=random).double(),
            None,
        ]
        leaves = [t.requires_grad_() for t in made[:2]]
        ours, theirs = (f.conv3d(*made, **options, groups=groups) for f in (PF, F))
        for a, e in zip(
            (ours, *torch.autograd.grad(ours.square().sum(), leaves)),
            (theirs, *torch.autograd.grad(theirs.square().sum(), leaves)),
            strict=True,
        ):
            torch.testing.assert_close(a, e)
        served += 1
    assert served > 30


@pytest.mark.parametrize("case", ["odd everything", "dilation and stride share a factor", "groups", "3x1x1"])
def test_differentiated_twice(case):
    made, options = tensors(case)
    leaves = [
        t[:2, :, :6, :5, :5].contiguous().requires_grad_() if t.dim() == 5 and i == 0 else t.requires_grad_()
        for i, t in enumerate(made)
    ]
    assert torch.autograd.gradcheck(lambda *t: PF.conv3d(*t, **options), leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *t: PF.conv3d(*t, **options), leaves, fast_mode=True)


@pytest.mark.parametrize("case", ["odd everything", "groups"])
def test_transforms(case):
    (x, w, b), options = tensors(case)
    assert_transforms(*(lambda *t, f=f: f.conv3d(*t, **options) for f in (PF, F)), x, w, b)


@pytest.mark.parametrize("case", ["stride 2", "groups"])
def test_compile(case):
    made, options = tensors(case, torch.float32)
    compiled = torch.compile(PF.conv3d, fullgraph=True, dynamic=True, backend="aot_eager")
    for _ in range(2):
        leaves = [t.clone().requires_grad_() for t in made]
        output = compiled(*leaves, **options)
        expected = step(PF, made, options)
        grad = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape).float()
        for a, e in zip((output, *torch.autograd.grad(output, leaves, grad)), expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)
        made[0] = torch.cat([made[0], made[0]], 2)


def test_opcheck():
    (x, w, b), _ = tensors("stride 2", torch.float32)
    options = [2, 2, 2], [1] * 6, [1, 1, 1], 1, False
    output = torch.ops.pydl.conv3d_forward(x, w, b, *options)
    for op, args in (
        ("conv3d_forward", (x, w, b)),
        ("conv3d_backward_input", (output, w, x.shape)),
        ("conv3d_backward_weight", (output, x, w.shape)),
    ):
        tensors_of = [t.clone().requires_grad_() if isinstance(t, torch.Tensor) and t.is_leaf else t for t in args]
        torch.library.opcheck(getattr(torch.ops.pydl, op).default, (*tensors_of, *options))


def test_autocast():
    made, options = tensors("wide", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (f.conv3d(*made, **options) for f in (PF, F))
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=3e-2, atol=6e-2)


def test_not_finite():
    """An inf spoils what its windows reach and nothing else, in depth too."""
    (x, w, b), options = tensors("wide", torch.float32)
    x[1, 3, 2, 5, 6] = torch.inf
    ours, theirs = (f.conv3d(x, w, b, **options) for f in (PF, F))
    assert torch.equal(ours.isfinite(), theirs.isfinite())


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_layer(mode):
    options = {"kernel_size": (3, 2, 3), "padding": 1, "padding_mode": mode}
    theirs = torch.nn.Conv3d(4, 6, **options).double()
    ours = pydl.nn.Conv3d(4, 6, **options).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 4, 5, 6).double()
    torch.testing.assert_close(ours(x), theirs(x))
    assert repr(ours) == repr(theirs)
    torch.testing.assert_close(pydl.swap(theirs)(x), ours(x))


def test_no_elements():
    for shape in ((0, 4, 3, 5, 5), (2, 4, 3, 5, 5)):
        x = torch.randn(shape, requires_grad=True)
        w = torch.randn(6, 4, 3, 3, 3, requires_grad=True)
        output = PF.conv3d(x, w)
        assert output.shape == F.conv3d(x, w).shape
        ours, theirs = (torch.autograd.grad(f.conv3d(x, w).sum(), (x, w)) for f in (PF, F))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_flops():
    made, options = tensors("stride 2", torch.float32)
    counts = []
    for f in (PF, F):
        with FlopCounterMode(display=False) as counter:
            step(f, made, options)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_few_channels_and_little_work_are_torchs(monkeypatch):
    monkeypatch.undo()  # of the fixture that makes small calls ours
    from pydl.ops.conv3d import is_left, is_strided_left

    def left(input, weight, stride=(1, 1, 1), groups=1, last=False):
        x = torch.empty(input, device="meta", memory_format=LAST if last else torch.contiguous_format)
        w = torch.empty(weight, device="meta")
        return is_left(x, w, groups) or is_strided_left(x, w, stride)

    assert left((4, 8, 16, 32, 32), (16, 8, 3, 3, 3))
    assert left((4, 64, 16, 32, 32), (64, 1, 3, 3, 3), groups=64)
    assert left((2, 32, 4, 4, 4), (32, 32, 3, 3, 3))
    assert left((4, 16, 8, 28, 28), (64, 16, 3, 3, 3))
    assert left((4, 64, 8, 28, 28), (64, 64, 3, 3, 3), (1, 2, 2), last=True)
    assert not left((4, 64, 8, 28, 28), (64, 64, 3, 3, 3), (2, 1, 1), last=True)
    assert not left((4, 64, 8, 28, 28), (64, 64, 3, 3, 3), (1, 2, 2))
    assert not left((4, 3, 16, 112, 112), (64, 3, 3, 7, 7), (1, 2, 2), last=True)
    assert not left((4, 64, 8, 28, 28), (64, 64, 3, 3, 3), last=True)
    assert not left((4, 64, 8, 28, 28), (64, 32, 3, 3, 3), groups=2)


@pytest.mark.parametrize("last", [False, True], ids=["NCDHW", "NDHWC"])
@pytest.mark.parametrize("stride", [1, 2, np.int64(2), [1, 2, 2]], ids=str)
def test_options_with_torchs_share(monkeypatch, stride, last):
    monkeypatch.undo()
    x, w = torch.randn(2, 32, 5, 12, 12), torch.randn(32, 32, 3, 3, 3) / 30
    x = x.to(memory_format=LAST) if last else x
    with torch.no_grad():
        ours, theirs = (f.conv3d(x, w, stride=stride) for f in (PF, F))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert ours.stride() == theirs.stride()


def test_report_of_few_channels(monkeypatch):
    monkeypatch.undo()
    net = torch.nn.Sequential(
        torch.nn.Conv3d(3, 64, 3), torch.nn.Conv3d(64, 64, 3, groups=64), torch.nn.Conv3d(64, 8, 3)
    )
    reasons = [row.reason for row in pydl.report(pydl.swap(net)).rows]
    assert reasons == ["", *["of few channels, which torch convolves faster"] * 2]


X, W = torch.randn(2, 4, 5, 6, 6), torch.randn(6, 4, 3, 3, 3)
ERRORS = {
    "input": ((X[0, 0], W), {}, "expected input to be 4-D (unbatched) or 5-D (batched), got shape (5, 6, 6)"),
    "weight": ((X, W[0]), {}, "expected weight to be 5-D, got shape (4, 3, 3, 3)"),
    "channels": ((X[:, :3], W), {}, "expected input to be of 4 channels"),
    "stride": ((X, W), {"stride": 0}, "expected stride to be positive"),
    "padding": ((X, W), {"padding": -1}, "expected padding to be at least 0"),
    "dilation": ((X, W), {"dilation": 3}, "expected the kernel to be no larger than the padded input (5), got 7"),
    "groups": ((X, W), {"groups": -1}, "expected groups to be positive, got -1"),
    "same": ((X, W), {"padding": "same", "stride": 2}, "expected stride to be 1 with padding 'same'"),
    "word": ((X, W), {"padding": "all"}, "expected padding to be numbers, 'same' or 'valid', got 'all'"),
    "dtype": ((X, W.double()), {}, "expected weight to be of the dtype of input"),
    "bias": ((X, W, torch.randn(5)), {}, "expected bias to be of shape (6)"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    args, options, message = ERRORS[case]
    with pytest.raises((RuntimeError, ValueError)) as theirs:
        F.conv3d(*args, **options)
    with pytest.raises(RuntimeError) as ours:
        PF.conv3d(*args, **options)
    assert message in str(ours.value)
    assert isinstance(ours.value, type(theirs.value)) or isinstance(theirs.value, type(ours.value))
