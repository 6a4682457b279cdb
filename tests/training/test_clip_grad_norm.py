"""pydl.optim.clip_grad_norm_ beside torch's."""

import functools
import warnings

import pytest
import torch
from optimizers import parameters, set_grads
from testing import assert_close

import pydl
from pydl.ops import _nodes

pytestmark = pytest.mark.skipif(_nodes.why_not is not None, reason=f"pydl._torch is not loaded: {_nodes.why_not}")
TORCHS = torch.nn.utils.clip_grad_norm_


def grads(dtype=torch.float64, scale=1.0, **options):
    params = parameters(dtype, **options)
    set_grads(params, 0)
    for p in params:
        p.grad *= scale
    return params


def both(max_norm, make=grads, **options):
    """(norm, gradients) by ours and by torch's."""
    found = []
    for clip in (pydl.optim.clip_grad_norm_, TORCHS):
        params = make()
        found.append((clip(params, max_norm, **options), [p.grad for p in params]))
    return found


def compare(max_norm, make=grads, scale=1.0, **options):
    (norm, ours), (expected, torchs) = both(max_norm, make, **options)
    assert norm.dtype == expected.dtype
    assert norm.shape == ()
    assert not norm.requires_grad
    assert_close(norm, expected, scale=scale)
    for one, other in zip(ours, torchs, strict=True):
        assert_close(one, other, scale=scale)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("max_norm", [0.1, 1, 1e6, 0.0])
def test_values(device, max_norm):
    sizes = [(n,) for n in (*range(36), 4095, 4096, 4097, 8200)]
    for dtype in (torch.float64, torch.float32):
        compare(max_norm, functools.partial(grads, dtype))
        compare(max_norm, functools.partial(grads, dtype, shapes=sizes), scale=2.0)


def test_large_sums_are_as_exact_as_torchs():
    def make():
        return grads(torch.float32, shapes=((1000, 1000), (77,)))

    norm = pydl.optim.clip_grad_norm_(make(), 1e9)
    exact = torch.cat([p.grad.double().flatten() for p in make()]).norm()
    assert abs(norm.double() - exact) < 3e-7 * exact


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e20, 1e-23])
def test_what_is_not_finite(value):
    def make():
        params = grads(torch.float32, 0.0)
        params[4].grad[3, 2] = value
        return params

    compare(1.0, make)


def test_errors():
    params = grads(torch.float32)
    params[1].grad[:] = float("nan")
    before = [p.grad.clone() for p in params]
    with pytest.raises(RuntimeError, match="non-finite"):
        pydl.optim.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    for p, grad in zip(params, before, strict=True):
        assert torch.equal(p.grad, grad) or p is params[1]


def test_forms_of_parameters():
    for form in (lambda params: iter(params), tuple, lambda params: (p for p in params), lambda params: params[4]):
        results = []
        for clip in (pydl.optim.clip_grad_norm_, TORCHS):
            params = grads()
            params[0].grad = None
            results.append((clip(form(params), 0.1), params[4].grad))
        assert_close(results[0][0], results[1][0])
        assert_close(results[0][1], results[1][1])
    assert pydl.optim.clip_grad_norm_([], 1.0) == 0
    assert pydl.optim.clip_grad_norm_([torch.ones(3)], 1.0) == 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pydl.optim.clip_grad_norm_((p for p in ()), 1.0)
    assert "empty generator" in str(caught[0].message)


def test_versions_move_as_torchs():
    for clip in (pydl.optim.clip_grad_norm_, TORCHS):
        params = grads()
        before = params[4].grad._version
        clip(params, 1e9)
        assert params[4].grad._version > before


def left_to_torch(params, monkeypatch, **options):
    told, kernel = [], _nodes.clip_grad_norm
    with monkeypatch.context() as patch:
        patch.setattr(_nodes, "clip_grad_norm", lambda *args: (told.append(kernel(*args)), told[-1])[1])
        pydl.optim.clip_grad_norm_(params, 0.1, **options)
    return told in ([], [NotImplemented])


def test_what_is_left_to_torch(monkeypatch):
    assert not left_to_torch(grads(), monkeypatch)
    some = functools.partial(grads, shapes=((6, 4), (3,)))  # an infinite norm of no number is an error of torch's
    for norm_type in (1.0, "inf", float("inf"), 3):
        assert left_to_torch(some(), monkeypatch, norm_type=norm_type)
        compare(0.1, some, norm_type=norm_type)
    shared = grads(torch.float32, shapes=((6,), (6,)))
    shared[0].grad = shared[1].grad
    assert left_to_torch(shared, monkeypatch)  # multiplied twice
    half = grads(torch.bfloat16, shapes=((6,), (6,)))
    assert left_to_torch(half, monkeypatch)
    gaps = grads(torch.float32, shapes=((6, 4),))
    gaps[0].grad = torch.randn(6, 8)[:, ::2]
    assert left_to_torch(gaps, monkeypatch)
    sparse = some()
    sparse[0].grad = sparse[0].grad.to_sparse()
    assert _nodes.clip_grad_norm(sparse, 0.1, False) is NotImplemented
    with pydl.backend.use("torch"):
        assert left_to_torch(grads(), monkeypatch)
