"""Batch normalisation: refusals, what is kept and computed, the halves, bits that do not depend on threads."""

import pytest
import torch
import torch.nn.functional as F
from batch_norm_oracle import COLUMNS, ROWS, all_inputs, make, oracle
from testing import assert_close

import pydl
import pydl.functional as PF

# ---- empty and refused


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0, 4), (2, 0, 3, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_empty(device, shape, training):
    x, mean, var, w, b, _ = all_inputs(shape, torch.float32, device)
    before = mean.clone(), var.clone()
    y = PF.batch_norm(x, mean, var, w, b, training)
    assert y.shape == shape
    assert torch.equal(mean, before[0])
    assert torch.equal(var, before[1])
    y.sum().backward()
    assert w.grad.eq(0).all()
    assert b.grad.eq(0).all()
    assert x.grad.shape == shape


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_one_value_per_channel_is_refused_in_training(device, shape):
    x = torch.randn(shape, device=device)
    with pytest.raises(
        ValueError, match=r"batch_norm: expected input to have more than 1 value per channel.*got shape"
    ):
        PF.batch_norm(x, None, None, training=True)
    with pytest.raises(ValueError, match="more than 1 value"):
        F.batch_norm(x, None, None, training=True)
    mean, var = torch.ones(3, device=device), torch.full((3,), 4.0, device=device)
    assert_close(PF.batch_norm(x, mean, var), F.batch_norm(x.double(), mean.double(), var.double()))


def refused():
    x, one, ok = torch.randn(4, 3, 5, 5), torch.ones(2), torch.ones(3)
    half = torch.ones(3, dtype=torch.float16)
    yield "dimensions", (torch.randn(3), None, None, None, None, True), {}
    yield "running_mean to have 3 elements", (x, one, ok, ok, ok), {}
    yield "running_var to have 3 elements", (x, ok, one, ok, ok), {}
    yield "weight to have 3 elements", (x, ok, ok, one, ok), {}
    yield "bias to have 3 elements", (x, ok, ok, ok, one), {}
    yield "weight to have input's dtype", (x, ok, ok, half, half), {}
    yield "bias to have the dtype", (x.bfloat16(), ok, ok, ok, ok.bfloat16()), {}
    yield "running_mean to have the dtype", (x.half(), ok, ok, half, half), {}
    yield "running_mean to be given in evaluation mode", (x, None, None), {}
    yield "running_var to be given in evaluation mode", (x, ok, None), {}
    yield "both given or both None", (x, ok, None, None, None, True), {}
    yield "eps to be positive", (x, ok, ok, ok, ok, True, 0.1, 0.0), {}
    yield "eps to be at least 0", (x, ok, ok, ok, ok, False, 0.1, -1.0), {}
    yield "momentum to be a number", (x, ok, ok, ok, ok, True, None), {}
    yield "not to require grad", (x, ok.clone().requires_grad_(), ok, ok, ok, True), {}


@pytest.mark.parametrize("words,args,kwargs", [pytest.param(*case, id=case[0]) for case in refused()])
def test_refusals_are_torchs_with_better_words(words, args, kwargs):
    with pytest.raises(Exception) as theirs:  # noqa: PT011  (whatever torch raises is what we must raise)
        F.batch_norm(*args, **kwargs)
    with pytest.raises(type(theirs.value), match=f"batch_norm: expected .*{words}.*, got"):
        PF.batch_norm(*args, **kwargs)


def test_refused_extras(device):
    x = torch.randn(4, 3, 5, 5, device=device)
    with pytest.raises(ValueError, match=r"batch_norm: expected activation to be .*, got 'gelu'"):
        PF.batch_norm(x, None, None, training=True, activation="gelu")
    with pytest.raises(RuntimeError, match=r"expected residual to have input's shape \(4, 3, 5, 5\), got \(4, 3, 5\)"):
        PF.batch_norm(x, None, None, training=True, residual=x[..., 0])
    with pytest.raises(RuntimeError, match="expected residual to have input's dtype"):
        PF.batch_norm(x, None, None, training=True, residual=x.double())


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64])
def test_other_dtypes_go_to_torch(dtype):
    with pytest.raises(NotImplementedError, match="not implemented for"):
        PF.batch_norm(torch.ones(4, 3).to(dtype), None, None, training=True)


def test_torch_backend_serves_the_extras_too():
    x, r = torch.randn(4, 3), torch.randn(4, 3)
    expected = PF.batch_norm(x, None, None, training=True, residual=r, activation="relu")
    with pydl.backend.use("torch"):
        assert_close(PF.batch_norm(x, None, None, training=True, residual=r, activation="relu"), expected)


# ---- what is kept, and what is computed


@pytest.mark.parametrize("activation", [None, "relu"])
def test_output_may_be_written_over(device, activation):
    x = make((6, 4, 5, 5), torch.float64, device)
    grad = torch.randn_like(x)
    expected = torch.autograd.grad(PF.batch_norm(x, None, None, training=True, activation=activation), x, grad)
    y = PF.batch_norm(x, None, None, training=True, activation=activation)
    y += 3
    assert torch.equal(torch.autograd.grad(y, x, grad)[0], expected[0])


@pytest.mark.parametrize("activation,residual", [("relu", True), ("sigmoid", False)])
def test_output_that_is_kept_is_guarded(device, activation, residual):
    x = make((6, 4, 5, 5), torch.float32, device)
    r = torch.randn_like(x) if residual else None
    y = PF.batch_norm(x, None, None, training=True, residual=r, activation=activation)
    y += 3
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("wanted", ["input", "weight", "bias", "residual"])
@pytest.mark.parametrize("training", [True, False])
def test_each_gradient_alone(device, wanted, training):
    x, mean, var, w, b, r = all_inputs((6, 4, 5, 5), torch.float32, device, residual=True)
    grad = torch.randn_like(x)
    args = {"input": x, "weight": w, "bias": b, "residual": r}
    _, grads, _ = oracle((x, mean, var, w, b, r), grad, training, "relu")
    args = {k: v.detach().requires_grad_(k == wanted) for k, v in args.items()}
    y = PF.batch_norm(
        args["input"], mean, var, args["weight"], args["bias"], training, residual=args["residual"], activation="relu"
    )
    (actual,) = torch.autograd.grad(y, args[wanted], grad)
    assert_close(actual, grads[list(args).index(wanted)], scale=50)


def test_what_nobody_needs_is_not_computed(device):
    x, _, _, w, b, _ = all_inputs((6, 4, 5, 5), torch.float32, device)
    ops = pydl.backend.ops_for(x)
    _, mean, var = ops.batch_norm_forward(x, None, None, w, b, None, True, 1e-5, 0)
    needs = (False, True, False, False)
    grads = ops.batch_norm_backward(x, x, mean, var, w, b, None, True, 1e-5, 0, *needs)
    assert [g.numel() for g in grads] == [0, 4, 0, 0]


def test_frozen_statistics_with_changed_buffers(device):
    # backward in evaluation mode uses the statistics of its forward, even when the buffers move on
    x, mean, var, w, b, _ = all_inputs((6, 4, 5, 5), torch.float32, device)
    grad = torch.randn_like(x)
    _, grads, _ = oracle((x, mean, var, w, b, None), grad, False)
    y = PF.batch_norm(x, mean, var, w, b)
    var.mul_(9)
    y.backward(grad)
    assert_close(x.grad, grads[0])
    assert_close(w.grad, grads[1], scale=50)


# ---- the halves


@pytest.mark.parametrize("memory_format", [ROWS, COLUMNS])
@pytest.mark.parametrize("activation", [0, 1, 2])
def test_halves_make_a_synchronised_version(device, memory_format, activation):
    x, _, _, w, b, r = all_inputs((12, 6, 9, 9), torch.float64, device, memory_format, residual=True)
    ops = pydl.backend.ops_for(x)
    x, w, b, r = (t.detach() for t in (x, w, b, r))
    grad = torch.randn_like(x)
    y, _, _ = ops.batch_norm_forward(x, None, None, w, b, r, True, 1e-5, activation)
    _, mean, var = ops.batch_norm_forward(x, None, None, w, b, r, True, 1e-5, activation)
    kept = y if activation else None
    whole = ops.batch_norm_backward(
        grad, x, mean, var, w, b, kept, True, 1e-5, activation, True, True, True, activation != 0
    )
    # two processes with shards of unequal size
    shards = [slice(0, 5), slice(5, 12)]
    counts = [5 * 81, 7 * 81]
    stats = [ops.batch_norm_stats(x[s]) for s in shards]
    n = sum(counts)
    all_mean = sum(c * m for c, (m, _) in zip(counts, stats, strict=True)) / n
    all_var = sum(c * (v + (m - all_mean) ** 2) for c, (m, v) in zip(counts, stats, strict=True)) / n
    assert_close(all_mean, mean)
    assert_close(all_var, var)
    parts = [ops.batch_norm_apply(x[s], all_mean, all_var, w, b, r[s], 1e-5, activation) for s in shards]
    assert_close(torch.cat(parts), y)
    kept_parts = [p if activation else None for p in parts]
    sums = [
        ops.batch_norm_backward_reduce(grad[s], x[s], all_mean, all_var, w, b, k, 1e-5, activation)
        for s, k in zip(shards, kept_parts, strict=True)
    ]
    sum_grad, sum_grad_xhat = (sum(pair) for pair in zip(*sums, strict=True))
    assert_close(sum_grad_xhat, whole[1])
    assert_close(sum_grad, whole[2])
    grads = [
        ops.batch_norm_backward_apply(
            grad[s], x[s], all_mean, all_var, w, b, k, sum_grad, sum_grad_xhat, n, 1e-5, activation, activation != 0
        )
        for s, k in zip(shards, kept_parts, strict=True)
    ]
    assert_close(torch.cat([g for g, _ in grads]), whole[0])
    if activation:
        assert_close(torch.cat([g for _, g in grads]), whole[3])


def test_halves_refuse_to_be_differentiated(device):
    x = make((6, 4, 5, 5), torch.float32, device)
    mean, _ = pydl.backend.ops_for(x).batch_norm_stats(x)
    with pytest.raises(RuntimeError, match="batch_norm_stats: expected its inputs to be used without gradient"):
        mean.sum().backward()


# ---- determinism


@pytest.mark.cpu_kernels
@pytest.mark.parametrize(
    "shape,memory_format",
    [
        ((16, 18, 40, 40), ROWS),  # channels shared out
        ((16, 8, 40, 40), ROWS),  # images shared out
        ((64, 50, 3, 3), ROWS),  # small planes
        ((5, 1, 200, 200), ROWS),  # one channel split
        ((16, 3, 100, 100), ROWS),  # three channels split
        ((16, 6, 100, 100), COLUMNS),
        ((5000, 130), ROWS),
    ],
)
def test_bits_do_not_depend_on_the_number_of_threads(device, shape, memory_format):
    x, _, _, w, b, r = all_inputs(shape, torch.float32, device, memory_format, residual=True)
    grad = torch.randn_like(x)
    results, threads = [], torch.get_num_threads()
    for count in (1, 2, 3, 8, 8):
        torch.set_num_threads(count)
        try:
            mean, var = torch.zeros(shape[1], device=device), torch.ones(shape[1], device=device)
            y = PF.batch_norm(x, mean, var, w, b, True, residual=r, activation="relu")
            results.append([y, mean, var, *torch.autograd.grad(y, (x, w, b, r), grad)])
        finally:
            torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
