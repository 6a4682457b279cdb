"""Losses against torch in float64: every pass, reduction, weight, dtype and instruction set."""

import copy
import inspect
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from testing import ALL_DTYPES, assert_close
from torch import nn
from torch.func import grad, vmap

import pydl
import pydl.functional as PF
import pydl.ops.losses

pytestmark = pytest.mark.cpu_kernels

# name -> the loss by a library of input, target, reduction
LOSSES = {
    "mse_loss": lambda f, x, t, r: f.mse_loss(x, t, reduction=r),
    "l1_loss": lambda f, x, t, r: f.l1_loss(x, t, reduction=r),
    "smooth_l1_loss": lambda f, x, t, r: f.smooth_l1_loss(x, t, reduction=r, beta=0.7),
    "huber_loss": lambda f, x, t, r: f.huber_loss(x, t, reduction=r, delta=1.5),
    "binary_cross_entropy_with_logits": lambda f, x, t, r: f.binary_cross_entropy_with_logits(x, t, reduction=r),
}
REDUCTIONS = ["none", "mean", "sum"]


def ours(function):
    """Whether an op of ours ran."""
    with torch.profiler.profile() as profiler:
        function()
    return any(event.key.startswith("pydl::") for event in profiler.key_averages())


def passes(call, library, x, *rest):
    leaf = x.detach().requires_grad_()
    y = call(library, leaf, *rest)
    upstream = (torch.arange(y.numel()) * 0.7 + 0.3).sin().reshape(y.shape).to(y.dtype)
    return y, torch.autograd.grad(y, leaf, upstream)[0]


def compare(call, x, *rest):
    exact = [t.double() if t.is_floating_point() else t for t in (x, *rest)]
    for actual, expected in zip(passes(call, PF, x, *rest), passes(call, F, *exact), strict=True):
        assert (actual.dtype, actual.shape) == (x.dtype, expected.shape)
        # a sum that float16 has no number for is inf; sums of both signs are held to the size of what is summed
        assert_close(actual, expected.to(x.dtype) if x.dtype == torch.float16 else expected, scale=4)


def pair(name, size, dtype=torch.float32):
    target = torch.rand(size) if name.startswith("binary") else torch.randn(size)
    return (torch.randn(size) * 3).to(dtype), target.to(dtype)


@pytest.mark.best_isa
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_all_passes(name, reduction, device):
    # one number, a part of a step, steps; more than one block, and a part of one
    for dtype, size in itertools.product(ALL_DTYPES, [(), (1,), (3, 5), (2, 3, 4, 17), (0, 5), (3, 8195)]):
        compare(lambda f, x, t: LOSSES[name](f, x, t, reduction), *pair(name, size, dtype))


@pytest.mark.parametrize("name", ["smooth_l1_loss", "binary_cross_entropy_with_logits"])
def test_remainders(name, device):
    for size, reduction in itertools.product((1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33), ("none", "mean")):
        compare(lambda f, x, t, r=reduction: LOSSES[name](f, x, t, r), *pair(name, size))


@pytest.mark.parametrize("name", LOSSES)
def test_not_finite_and_large(name, device):
    special = torch.tensor([0.0, -0.0, 1.5, -1.5, 0.7, 1e30, -1e30, float("inf"), float("-inf"), float("nan"), 104.5])
    for dtype, at in itertools.product(ALL_DTYPES, (0.0, 0.5, 1.0)):
        x = special.to(dtype)
        found = (passes(lambda f, x, t: LOSSES[name](f, x, t, "none"), f, x, torch.full_like(x, at)) for f in (PF, F))
        for actual, expected in zip(*found, strict=True):
            assert_close(actual, expected, dtype)


def test_tails_of_the_cross_entropy_keep_their_digits(device):
    """Of confident logits: loss and gradient are small, and no difference of large numbers."""
    x = torch.linspace(5, 60, 200)
    for sign, target in ((1, 1.0), (-1, 0.0)):
        found = (
            passes(
                lambda f, x, t: LOSSES["binary_cross_entropy_with_logits"](f, x, t, "none"),
                f,
                z,
                torch.full_like(z, target),
            )
            for f, z in ((PF, sign * x), (F, sign * x.double()))
        )
        (loss, gradient), (exact, _) = found
        if target == 1:
            torch.testing.assert_close(loss.double(), exact, rtol=2e-6, atol=0)
        else:  # torch's formula, and ours, is a difference of two numbers of the size of the logit
            assert ((loss.double() - exact).abs() <= x * 2**-22).all()
        slope = -sign * torch.sigmoid(-x.double()) * (torch.arange(200) * 0.7 + 0.3).sin()
        torch.testing.assert_close(gradient.double(), slope, rtol=2e-6, atol=0)


WEIGHTS = {
    "of each number": lambda n, c, d: (n, c, d),
    "of columns": lambda n, c, d: (d,),
    "of channels": lambda n, c, d: (c, 1),
    "of the last two": lambda n, c, d: (1, c, d),
    "of rows": lambda n, c, d: (n, 1, 1),
    "one": lambda n, c, d: (1,),
    "a scalar": lambda n, c, d: (),
}


@pytest.mark.best_isa
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("positive", [None, *WEIGHTS])
def test_weights(positive, reduction, device):
    sizes = [
        (7, 3, 5),
        (900, 3, 5),
        (2, 3, 3001),
        (3, 1, 1),
    ]  # a block of several rows, several blocks, no block of rows
    for of, size, dtype in itertools.product([None, *WEIGHTS], sizes, ALL_DTYPES):
        if dtype not in (torch.float32, torch.bfloat16) and size != sizes[0]:
            continue
        x, t = pair("binary", size, dtype)
        weights = [None if w is None else torch.rand(WEIGHTS[w](*size)).to(dtype) + 0.5 for w in (of, positive)]
        given = [w for w in weights if w is not None]

        def call(f, x, t, *given, weights=weights):
            held = iter(given)
            weight, pos_weight = (None if w is None else next(held) for w in weights)
            return f.binary_cross_entropy_with_logits(x, t, weight, pos_weight=pos_weight, reduction=reduction)

        compare(call, x, t, *given)


@pytest.mark.parametrize("name", LOSSES)
def test_sums_keep_their_digits(name, device):
    """Of many equal numbers, whose roundings all point the same way; torch's errors are up to 5e-7."""
    target = torch.zeros(1 << 17)
    for number in torch.linspace(0.1, 2.9, 9):
        x = number.expand(target.shape).contiguous()
        actual, exact = (
            LOSSES[name](PF, x, target, "mean"),
            LOSSES[name](F, x[:1].double(), target[:1].double(), "mean"),
        )
        torch.testing.assert_close(actual.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.best_isa
@pytest.mark.parametrize("name", LOSSES)
def test_thread_count_changes_no_bit(name, device):
    before, size = torch.get_num_threads(), (7001, 10)
    for dtype, reduction in itertools.product((torch.float32, torch.bfloat16), ("none", "mean")):
        x, t = torch.randn(size).to(dtype), torch.rand(size).to(dtype)
        results = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(passes(lambda f, x, t, r=reduction: getattr(f, name)(x, t, reduction=r), PF, x, t))
        finally:
            torch.set_num_threads(before)
        for result in results[1:]:
            assert all(map(torch.equal, result, results[0]))


@pytest.mark.best_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_past_the_caches(dtype, device):
    """Of a gradient that no cache holds; with blocks that begin where vectors do, and others."""
    before = pydl._C.cpu_caches()
    pydl._C.set_cpu_caches(1 << 12, 1 << 13, 1 << 14)
    try:
        for reduction in ("none", "mean"):
            compare(lambda f, x, t, r=reduction: f.mse_loss(x, t, reduction=r), *pair("", 20011, dtype))
            x, t = pair("binary", (3001, 7), dtype)
            weight = torch.rand(7).to(dtype)
            compare(
                lambda f, x, t, w, r=reduction: f.binary_cross_entropy_with_logits(x, t, w, reduction=r), x, t, weight
            )
    finally:
        pydl._C.set_cpu_caches(*before)


# ---- beside torch


def test_small_ones_are_left_to_torch(monkeypatch):
    """A call of ours costs more than torch's loss of a few numbers."""
    monkeypatch.undo()
    for name, worth in pydl.ops.losses.WORTH_A_CALL.items():
        for count in (worth - 1, worth):
            x = torch.zeros(count)
            assert ours(lambda: getattr(PF, name)(x, x)) is (count == worth)  # noqa: B023  (called at once)


X, T = torch.randn(4, 5), torch.rand(4, 5)
TORCHS = {
    "a target that learns": lambda f: f.mse_loss(X, T.clone().requires_grad_()),
    "two dtypes": lambda f: f.mse_loss(X, T.double()),
    "integers": lambda f: f.l1_loss(X.int(), T.int()),
    "a target of another shape": lambda f: f.smooth_l1_loss(X, T[:1]),
    "a target that does not fit": lambda f: f.mse_loss(X, T[:, :3]),
    "transposed": lambda f: f.huber_loss(X.t(), T.t(), reduction="none"),
    "a list": lambda f: f.mse_loss(X, [1.0]),
    "a weight of each number": lambda f: f.mse_loss(X, T, weight=T),
    "an unknown reduction": lambda f: f.l1_loss(X, T, reduction="some"),
    "a reduction that is a number": lambda f: f.mse_loss(X, T, reduction=1),
    "the deprecated spelling": lambda f: f.mse_loss(X, T, size_average=False),
    "a beta of 0": lambda f: f.smooth_l1_loss(X, T, beta=0),
    "a negative beta": lambda f: f.smooth_l1_loss(X, T, beta=-1.0),
    "a delta of 0": lambda f: f.huber_loss(X, T, delta=0.0),
    "a beta that is infinite": lambda f: f.smooth_l1_loss(X, T, beta=float("inf")),
    "a weight that learns": lambda f: f.binary_cross_entropy_with_logits(X, T, torch.ones(5, requires_grad=True)),
    "a weight that does not fit": lambda f: f.binary_cross_entropy_with_logits(X, T, torch.ones(4)),
    "a weight that is wider": lambda f: f.binary_cross_entropy_with_logits(X, T, torch.ones(2, 1, 1)),
    "a weight of another dtype": lambda f: f.binary_cross_entropy_with_logits(X, T, torch.ones(5).double()),
    "logits and one target": lambda f: f.binary_cross_entropy_with_logits(X, T[0]),
    "on the meta device": lambda f: f.mse_loss(X.to("meta"), T.to("meta")),
}


def outcome(call, library):
    try:
        return call(library)
    except Exception as error:
        return type(error)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", TORCHS)
def test_torchs_to_serve(case):
    actual, expected = (outcome(TORCHS[case], f) for f in (PF, F))
    if isinstance(expected, type):
        assert actual is expected
        return
    assert not ours(lambda: TORCHS[case](PF))
    assert (actual.stride(), actual.dtype, actual.device) == (expected.stride(), expected.dtype, expected.device)
    assert actual.is_meta or torch.equal(actual, expected)


def test_what_does_not_fit_is_refused_by_the_ops():
    ops, options = torch.ops.pydl, (math.inf, 1.0, 1.0, 0.0)
    grad = torch.ones(4, 5)
    for call, message in (
        (lambda: ops.difference_loss_forward(X, T[:2], 0, *options), r"target to be of shape \(4, 5\), got \(2, 5\)"),
        (lambda: ops.difference_loss_forward(X, T.double(), 0, *options), "target to be of the dtype of input, got"),
        (lambda: ops.difference_loss_backward(grad, X, T, 1, *options), r"grad_output to be of shape \(\), got"),
        (lambda: ops.binary_cross_entropy_with_logits_forward(X, T, 0, torch.ones(4), None), "weight to broadcast to"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
    with pytest.raises(ValueError, match="difference_loss: expected reduction to be 0, 1 or 2, got 3"):
        ops.difference_loss_forward(X, T, 3, *options)
    with pytest.raises(RuntimeError, match="difference_loss: expected input alone to need a gradient"):
        ops.difference_loss_forward(X, T.clone().requires_grad_(), 1, *options).backward()


DIFFERENTIABLE = LOSSES | {
    "with weights": lambda f, x, t, r: f.binary_cross_entropy_with_logits(
        x, t, torch.rand(3).to(x), pos_weight=torch.full((4, 3), 1.7).to(x), reduction=r
    ),
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradcheck(name, reduction):
    x = torch.tensor([-3, -0.5, 0.1, 2, 0.4, -1.3, 0.25, 5, -0.9, 3, 1.1, -2]).double().view(4, 3).requires_grad_()
    target = torch.linspace(0.02, 0.9, 12).double().view(4, 3)

    def call(x):
        torch.manual_seed(3)
        return DIFFERENTIABLE[name](PF, x, target, reduction)

    assert torch.autograd.gradcheck(call, (x,))
    assert torch.autograd.gradgradcheck(call, (x,))


@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_opcheck(reduction):
    ops = torch.ops.pydl
    # a mean of nothing is nan, which opcheck takes for unequal to itself
    for size in ((6, 5),) if reduction == 1 else ((0, 5), (6, 5)):
        x, t = torch.randn(size, requires_grad=True), torch.rand(size)
        grad = torch.randn(size if reduction == 0 else (), requires_grad=True)
        weight = torch.rand(5)
        for op, of_grad, args in (
            ("difference_loss", grad, (x, t, reduction, 0.5, 1.0, 1.0, 0.25)),
            ("binary_cross_entropy_with_logits", grad, (x, t, reduction, weight, None)),
        ):
            torch.library.opcheck(getattr(ops, f"{op}_forward"), args)
            torch.library.opcheck(getattr(ops, f"{op}_backward"), (of_grad, *args))


@pytest.mark.parametrize("by, dynamic", [("inductor", True), ("aot_eager", False)])
def test_compile(by, dynamic):
    def step(x, t):
        losses = [LOSSES[name](PF, x, t, r) for name in LOSSES for r in REDUCTIONS]
        return sum(loss.sum() for loss in losses)

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=by)
    for rows in (4, 6):
        x, t = torch.randn(rows, 7), torch.rand(rows, 7)
        found = []
        for function in (step, compiled):
            leaf = x.detach().requires_grad_()
            y = function(leaf, t)
            found.append((y, *torch.autograd.grad(y, leaf)))
        for a, e in zip(*found, strict=True):
            torch.testing.assert_close(a, e)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", LOSSES)
def test_autocast(name, dtype):
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = (getattr(f, name)(X.to(dtype), T.to(dtype)) for f in (F, PF))
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", LOSSES)
def test_transforms(name):
    for of in (grad, lambda f: vmap(grad(lambda x, t: f(x[None], t[None])))):
        found = [of(lambda x, t, f=f: getattr(f, name)(x, t))(X.double(), T.double()) for f in (PF, F)]
        assert_close(*found)


# ---- layers

LAYERS = {
    "MSELoss": {},
    "L1Loss": {"reduction": "sum"},
    "SmoothL1Loss": {"beta": 0.3},
    "HuberLoss": {"delta": 2.0, "reduction": "none"},
    "BCEWithLogitsLoss": {"weight": torch.rand(5), "pos_weight": torch.rand(5)},
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, monkeypatch):
    options = LAYERS[name]
    theirs, layer = getattr(nn, name)(**options), getattr(pydl.nn, name)(**options)
    assert isinstance(layer, getattr(nn, name))
    assert inspect.signature(type(layer)) == inspect.signature(type(theirs))
    assert repr(layer) == repr(theirs)
    assert layer.state_dict().keys() == theirs.state_dict().keys()
    expected = passes(lambda f, x: theirs(x, T), F, X)
    swapped = pydl.swap(copy.deepcopy(theirs))
    for net in (layer, swapped, copy.deepcopy(swapped)):
        assert ours(lambda: net(X, T))  # noqa: B023  (called at once)
        for a, e in zip(passes(lambda f, x: net(x, T), F, X), expected, strict=True):  # noqa: B023
            torch.testing.assert_close(a, e)
    assert pydl.report(nn.Sequential(swapped)).rows[0].reason == ""
    with pydl.backend.use("torch"):
        assert not ours(lambda: layer(X, T))
    name = type(layer).own.name
    function, seen = getattr(F, name), []

    def replaced(*args, **kwargs):
        seen.append(name)
        return function(*args, **kwargs)

    monkeypatch.setattr(F, name, replaced)
    swapped(X, T)
    assert seen


@pytest.mark.parametrize("name", LOSSES)
def test_swapped_block(name):
    with pydl.swapped():
        assert ours(lambda: getattr(F, name)(X, T))
