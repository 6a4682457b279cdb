"""Under autocast large arguments are cast into recycled memory, with the values and gradients of torch's casts."""

import pytest
import torch
import torch.nn.functional as F

import pydl
import pydl.functional as PF
from pydl.ops import _activations, _nodes
from pydl.ops._autocast import lowered

LARGE = 1 << 20


@pytest.fixture(autouse=True)
def _quick_again():
    yield
    _nodes.use(True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_large_tensors_are_as_torch_casts_them(dtype):
    x = torch.randn(8, 64, 64, 32).to(memory_format=torch.channels_last).requires_grad_()
    transposed = torch.randn(1024, 1024).t()
    small, double, number, none = torch.randn(3), torch.randn(LARGE).double(), torch.arange(LARGE), None
    with torch.autocast("cpu", dtype):
        found = lowered("cpu", x, transposed, small, double, number, none)
    for ours, theirs in zip(found, (x.to(dtype), transposed.to(dtype), small.to(dtype), double, number), strict=False):
        assert ours.dtype == theirs.dtype
        assert ours.stride() == theirs.stride()
        assert torch.equal(ours, theirs)
    assert found[5] is None
    assert found[3] is double


def test_gradients_of_a_large_tensor():
    x = torch.randn(LARGE, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        (y,) = lowered("cpu", x)
        g = torch.randn(LARGE).bfloat16().requires_grad_()
        (found,) = torch.autograd.grad(y * y, x, g, create_graph=True)
    assert found.dtype == torch.float32
    assert torch.equal(found, (2 * y * g).float())
    (second,) = torch.autograd.grad(found.sum(), g)
    torch.testing.assert_close(second, 2 * y)


def test_the_tangent_of_a_large_tensor_is_kept():
    x, tangent = torch.randn(LARGE), torch.randn(LARGE)
    with torch.autograd.forward_ad.dual_level(), torch.autocast("cpu", torch.bfloat16):
        (y,) = lowered("cpu", torch.autograd.forward_ad.make_dual(x, tangent))
        found = torch.autograd.forward_ad.unpack_dual(y).tangent
    assert torch.equal(found, tangent.bfloat16())


@pytest.mark.parametrize("count", [0, 1, 7, 16, 33, 20_001])
def test_casts_round_as_torchs(count):
    special = [0.0, -0.0, torch.inf, -torch.inf, 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, 1e-40, -1e-45, 2**-126, 65504.0]
    x = torch.randn(count) * torch.logspace(-44, 38, count)
    x[: len(special)] = torch.tensor(special)[:count]
    low = torch.ops.pydl.cast(x, "bfloat16")
    assert torch.equal(low, x.bfloat16())
    assert torch.equal(low.signbit(), x.signbit())
    assert torch.equal(torch.ops.pydl.cast(low, "float32"), low.float())
    assert torch.ops.pydl.cast(torch.full((count,), torch.nan), "bfloat16").isnan().all()


@pytest.mark.parametrize("offset", [0, 1, 13])  # where a result's first line begins moves with the threads' shares
def test_casts_that_the_caches_do_not_hold(offset):
    x = torch.randn((17 << 20) + 5)[offset:]
    low = torch.ops.pydl.cast(x, "bfloat16")
    assert torch.equal(low, x.bfloat16())
    assert torch.equal(torch.ops.pydl.cast(low, "float32"), low.float())


def test_op():
    torch.library.opcheck(torch.ops.pydl.cast, (torch.randn(3, 4, requires_grad=True), "bfloat16"))
    with pytest.raises(ValueError, match=r"^cast: expected dtype to be float32, bfloat16 or float16, got int8$"):
        torch.ops.pydl.cast(torch.randn(3), "int8")


def test_a_step_of_a_wide_layer_maps_no_memory_anew():
    """float32 weights, their casts and the gradients of both are the pool's, which hands them out again."""
    layer = pydl.nn.Linear(1500, 1500)
    x = torch.randn(64, 1500)

    def step():
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        y.sum().backward()

    step()
    step()
    before = pydl.memory.stats()
    step()
    after = pydl.memory.stats()
    assert after["reused"] >= before["reused"] + 2  # the cast weight and the parameter's gradient
    assert after["fresh"] == before["fresh"]
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("op", ["linear", "conv2d"])
@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("in_python", [False, True])
def test_the_activation_of_a_large_output_has_torchs_gradient(activation, op, cast, in_python, monkeypatch):
    monkeypatch.setattr(_activations, "RECYCLED", 0)
    x = torch.randn(*((600, 8) if op == "linear" else (2, 8, 40, 40))).requires_grad_()
    w = torch.randn(*((500, 8) if op == "linear" else (100, 8, 1, 1))).requires_grad_()
    leaves = x, w

    def step(library, context):
        with context:
            if library is F:
                y = getattr(torch, activation)(getattr(F, op)(x, w))
            else:
                y = getattr(PF, op)(x, w, activation=activation)
        grad = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        first = torch.autograd.grad(y, leaves, grad, create_graph=True)
        return *first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    _nodes.use(not in_python)
    context = torch.autocast("cpu", torch.bfloat16, enabled=cast)
    for ours, theirs in zip(step(PF, context), step(F, context), strict=True):
        size = theirs.abs().max()
        torch.testing.assert_close(ours / size, theirs / size, rtol=0, atol=3e-2 if cast else 1e-5)
