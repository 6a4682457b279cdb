"""Dropout: whole channels, refusals, and torch's machinery around it."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from dropout_helpers import SEED, same_bits, seed_tensor
from philox import dropout_reference
from testing import DTYPES
from torch.utils.checkpoint import checkpoint

import pydl
import pydl.functional as PF

# ---- spatial dropout


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "function,shape,shared",
    [
        (PF.dropout1d, (5, 7, 33), 1),
        (PF.dropout1d, (7, 33), 1),
        (PF.dropout2d, (5, 7, 9, 11), 2),
        (PF.dropout2d, (70, 64, 1, 1), 2),  # one element per channel
        (PF.dropout2d, (1, 3, 64, 129), 2),  # a channel longer than one tile of a row
        (PF.dropout3d, (2, 5, 3, 4, 5), 3),
        (PF.dropout3d, (5, 3, 4, 5), 3),
    ],
)
def test_channels_live_or_die_together(device, function, shape, shared, dtype):
    x = torch.randn(shape, dtype=dtype, device=device, requires_grad=True)
    grad = torch.randn_like(x)
    y = function(x, 0.4, seed=seed_tensor(device=device))
    y.backward(grad)
    same_bits(y, dropout_reference(x, 0.4, SEED, shared))
    same_bits(x.grad, dropout_reference(grad, 0.4, SEED, shared))


@pytest.mark.parametrize("name", ["dropout1d", "dropout2d", "dropout3d"])
@pytest.mark.parametrize("dims", range(7))
def test_ranks_as_torch(device, name, dims):
    """Whatever rank torch warns about or refuses, ours warns about or refuses, and drops the same channels."""
    x = torch.ones((2, 3, 4, 5, 2, 3)[:dims], device=device)
    ours, theirs = getattr(PF, name), getattr(F, name)
    outcomes = []
    for function in (theirs, ours):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result, error = function(x, 0.5), None
            except Exception as e:
                result, error = None, type(e)
        outcomes.append((error, [w.category for w in caught]))
    assert outcomes[0] == outcomes[1]
    if result is not None:
        # all of a channel or nothing: which dimensions torch shares, seen where every element is kept or dropped alike
        torch.manual_seed(0)
        shared_by_torch = _shared_dims(theirs, x)
        assert _shared_dims(ours, x) == shared_by_torch


def _shared_dims(function, x):
    """How many trailing dimensions always live or die together, over many draws."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draws = torch.stack([function(x, 0.5) != 0 for _ in range(40)])
    shared = 0
    for d in range(x.dim() - 1, -1, -1):
        if not (draws == draws.select(d + 1, 0).unsqueeze(d + 1)).all():
            break
        shared += 1
    return shared


# ---- bad input


@pytest.mark.parametrize("name", ["dropout", "dropout1d", "dropout2d", "dropout3d"])
@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan, math.inf])
def test_p_out_of_range(device, name, p):
    x = torch.randn(2, 3, 4, device=device)
    with pytest.raises(ValueError, match=rf"{name}: expected p to be a probability in \[0, 1\], got {p}"):
        getattr(PF, name)(x, p)


def test_bad_seeds(device):
    x = torch.randn(4, device=device)
    with pytest.raises(
        RuntimeError, match=r"dropout: expected seed to be an int64 tensor of one element, got torch.int32"
    ):
        PF.dropout(x, seed=torch.zeros(1, dtype=torch.int32, device=device))
    with pytest.raises(RuntimeError, match=r"dropout: expected seed .* one element, got torch.int64 of shape \(2,\)"):
        PF.dropout(x, seed=torch.zeros(2, dtype=torch.int64, device=device))
    with pytest.raises(RuntimeError, match=r"dropout: expected seed to be on the input's device .*, got one on meta"):
        PF.dropout(x, seed=torch.zeros(1, dtype=torch.int64, device="meta"))
    with pytest.raises(TypeError, match="dropout: expected seed to be an int64 Tensor of one element, got int"):
        PF.dropout(x, seed=3)


def test_op_refuses_bad_arguments(device):
    x, seed = torch.randn(4, 5, device=device), seed_tensor(device=device)
    ops = pydl.backend.ops_for(x)
    with pytest.raises(ValueError, match=r"dropout: expected p to be a probability in \[0, 1\], got 2"):
        ops.dropout(x, 2.0, seed)
    with pytest.raises(RuntimeError, match=r"expected shared_dims to be in \[0, 2\], got 3"):
        ops.dropout(x, 0.5, seed, 3)
    with pytest.raises(RuntimeError, match="expected seed to be an int64 tensor of one element, got"):
        ops.dropout(x, 0.5, seed.double())
    with pytest.raises(RuntimeError, match="expected dtype to be float32, float64, bfloat16 or float16"):
        ops.dropout(x.long(), 0.5, seed)


def test_input_that_is_no_tensor():
    with pytest.raises(TypeError, match="dropout: expected input to be a Tensor, got list"):
        PF.dropout([1.0, 2.0])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool])
def test_other_dtypes_go_to_torch(dtype):
    """torch refuses these, but for complex numbers from 2.15 on; what it makes of them is what the user gets."""

    def outcome(dropout):
        torch.manual_seed(0)
        try:
            return dropout(torch.ones(10).to(dtype), 0.5).tolist()
        except RuntimeError as error:
            return type(error), str(error)

    assert outcome(PF.dropout) == outcome(F.dropout)
    with pytest.raises(ValueError, match="expected seed to be None where torch's own kernel runs"):
        PF.dropout(torch.ones(10).to(dtype), 0.5, seed=seed_tensor())


def test_backend_torch_uses_torch(device):
    x = torch.randn(1000, device=device)
    with pydl.backend.use("torch"):
        torch.manual_seed(3)
        ours = PF.dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(ours, F.dropout(x, 0.5))


# ---- autograd, transforms, tracing


def test_gradcheck_and_double_backward(device):
    x = torch.randn(3, 5, dtype=torch.float64, device=device, requires_grad=True)
    seed = seed_tensor(device=device)

    def cubed(x):
        return PF.dropout(x, 0.4, seed=seed) ** 3

    torch.autograd.gradcheck(cubed, (x,))
    torch.autograd.gradgradcheck(cubed, (x,))


def test_no_graph_without_gradient(device):
    assert not PF.dropout(torch.randn(4, device=device), 0.5).requires_grad
    with torch.no_grad():
        assert PF.dropout(torch.randn(4, device=device, requires_grad=True), 0.5).grad_fn is None


@pytest.mark.best_isa
@pytest.mark.parametrize("shared_dims", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(device, dtype, shared_dims):
    x = torch.randn(3, 4, dtype=dtype, device=device, requires_grad=True)
    op = pydl.backend.ops_for(x).dropout
    torch.library.opcheck(op, (x, 0.5, seed_tensor(device=device), shared_dims))
    torch.library.opcheck(op, (x.t(), 0.5, seed_tensor(device=device), shared_dims))


def test_autocast_follows_the_input(device):
    with torch.autocast(device.type, dtype=torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(8, 8, dtype=dtype, device=device, requires_grad=True)
            y = PF.dropout(x, 0.5)
            assert y.dtype == F.dropout(x, 0.5).dtype == dtype
            y.sum().backward()
            assert x.grad.dtype == dtype


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint_draws_the_same_mask_again(device, use_reentrant):
    x = torch.randn(1000, device=device, requires_grad=True)
    seen = []

    def block(x):
        y = PF.dropout(x, 0.5)
        seen.append(y.detach())
        return y.sin()

    checkpoint(block, x, use_reentrant=use_reentrant).sum().backward()
    assert len(seen) == 2
    assert torch.equal(*seen)
    assert torch.equal(x.grad != 0, seen[0] != 0)


@pytest.mark.best_isa
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(device, dynamic):
    @torch.compile(fullgraph=True, dynamic=dynamic)
    def three(x):
        return PF.dropout(x, 0.5), PF.dropout(x, 0.5), PF.dropout2d(x, 0.5)

    for n in (64, 96) if dynamic else (64,):  # static: a second one compiles the same once more
        x = torch.randn(n, n, 3, 1, device=device, requires_grad=True)
        weights = [torch.rand_like(x) + k for k in (1, 10, 100)]  # sums of them tell the three masks apart
        outputs = three(x)
        sum((w * y).sum() for w, y in zip(weights, outputs, strict=True)).backward()
        assert not torch.equal(outputs[0] != 0, outputs[1] != 0)
        masks = [(y != 0).float() for y in outputs]  # backward has the mask of the forward
        expected = sum(2 * w * m for w, m in zip(weights, masks, strict=True))
        torch.testing.assert_close(x.grad, expected)
        assert abs(masks[0].mean() - 0.5) < 5 * 0.5 / math.sqrt(x.numel())
        assert not torch.equal(three(x)[0] != 0, outputs[0] != 0)  # a new mask at each call


@pytest.mark.best_isa
def test_compile_with_seed_and_inplace_equals_eager(device):
    def function(x, seed):
        y = x * 1.0
        PF.dropout(y, 0.3, inplace=True, seed=seed)
        return y

    x, seed = torch.randn(1000, device=device), seed_tensor(device=device)
    same_bits(torch.compile(function, fullgraph=True)(x, seed), function(x, seed))


def test_func_grad(device):
    x = torch.randn(100, device=device)
    seed = seed_tensor(device=device)
    grad = torch.func.grad(lambda x: PF.dropout(x, 0.4, seed=seed).sum())(x)
    same_bits(grad, dropout_reference(torch.ones(100), 0.4, SEED))


def test_vmap_same_and_different(device):
    x = torch.ones(6, 50, 3, device=device)

    def run(function, randomness, in_dims=0, **kwargs):
        return torch.vmap(lambda x: function(x, 0.5, **kwargs), in_dims=in_dims, randomness=randomness)(x)

    for function in (PF.dropout, PF.dropout1d):
        same = run(function, "same") != 0
        assert (same == same[:1]).all()
        different = run(function, "different") != 0
        assert not (different == different[:1]).all()
        assert abs(different.double().mean() - 0.5) < 5 * 0.5 / math.sqrt(300)
    with pytest.raises(RuntimeError, match="randomness"):
        run(PF.dropout, "error")
    given = run(PF.dropout, "error", in_dims=1, seed=seed_tensor(device=device))  # nothing random is left
    same_bits(given, dropout_reference(torch.ones(6, 3), 0.5, SEED).expand(50, 6, 3))


def test_vmap_over_seeds_and_per_sample_gradients(device):
    x = torch.randn(40, device=device)
    seeds = torch.arange(5, device=device).unsqueeze(1)

    def loss(x, seed):
        return PF.dropout(x, 0.5, seed=seed).sum()

    masks = torch.vmap(lambda s: PF.dropout(x, 0.5, seed=s))(seeds)
    for s in range(5):
        same_bits(masks[s], dropout_reference(x, 0.5, s))
    grads = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(x, seeds)
    assert torch.equal(grads != 0, masks != 0)


def test_forward_mode(device):
    x, tangent = torch.randn(100, device=device), torch.randn(100, device=device)
    seed = seed_tensor(device=device)
    expected = dropout_reference(tangent, 0.4, SEED)
    _, by_func = torch.func.jvp(lambda x: PF.dropout(x, 0.4, seed=seed), (x,), (tangent,))
    same_bits(by_func, expected)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        _, by_dual = torch.autograd.forward_ad.unpack_dual(PF.dropout(dual, 0.4, seed=seed))
        same_bits(by_dual, expected)


def test_hessian_through_transforms(device):
    x = torch.randn(6, dtype=torch.float64, device=device)
    seed = seed_tensor(device=device)
    kept = dropout_reference(torch.ones(6, dtype=torch.float64), 0.4, SEED)
    hessian = torch.func.hessian(lambda x: (PF.dropout(x, 0.4, seed=seed) ** 3).sum())(x)
    torch.testing.assert_close(hessian.cpu(), torch.diag(6 * x.cpu() * kept**3))
