"""Batch normalisation under torch's machinery: opcheck, gradients of gradients, compile, transforms, autocast."""

import pytest
import torch
import torch.nn.functional as F
from batch_norm_oracle import COLUMNS, ROWS, all_inputs, make
from testing import assert_close
from torch.library import opcheck

import pydl
import pydl.functional as PF

# ---- torch's machinery


@pytest.mark.best_isa
@pytest.mark.parametrize("memory_format", [ROWS, COLUMNS])
@pytest.mark.parametrize("training", [True, False])
def test_opcheck(device, memory_format, training):
    ops = pydl.backend.ops_for(torch.empty(0, device=device))
    x, mean, var, w, b, r = all_inputs((4, 3, 5, 6), torch.float32, device, memory_format, residual=True)
    opcheck(ops.batch_norm_forward, (x, mean, var, w, b, r, training, 1e-5, 1))
    opcheck(ops.batch_norm_forward, (x, mean, var, None, None, None, training, 1e-5, 0))
    y, m, v = (t.detach() for t in ops.batch_norm_forward(x, mean, var, w, b, r, training, 1e-5, 1))
    opcheck(ops.batch_norm_update_stats, (mean.clone(), var.clone(), m, v, 120, 0.1))
    grad = torch.randn_like(x)
    needs = (True, True, True, True)
    opcheck(ops.batch_norm_backward, (grad, x, m, v, w, b, y, training, 1e-5, 1, *needs))
    opcheck(ops.batch_norm_backward, (grad, x, m, v, None, None, None, training, 1e-5, 0, True, False, False, False))
    x, w, b, r = (t.detach() for t in (x, w, b, r))
    opcheck(ops.batch_norm_stats, (x,))
    opcheck(ops.batch_norm_apply, (x, m, v, w, b, r, 1e-5, 1))
    opcheck(ops.batch_norm_backward_reduce, (grad, x, m, v, w, b, y, 1e-5, 1))
    opcheck(ops.batch_norm_backward_apply, (grad, x, m, v, w, b, y, m, v, 120.0, 1e-5, 1, True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@pytest.mark.parametrize("residual", [True, False])
def test_gradcheck_first_and_second_order(training, activation, residual):
    for memory_format in (ROWS, COLUMNS):
        x, mean, var, w, b, r = all_inputs((4, 3, 3, 2), torch.float64, "cpu", memory_format, residual=residual)

        def f(x, w, b, r=None, mean=mean, var=var):
            return PF.batch_norm(x, mean.clone(), var.clone(), w, b, training, residual=r, activation=activation)

        leaves = (x, w, b, r) if residual else (x, w, b)
        assert torch.autograd.gradcheck(f, leaves)
        assert torch.autograd.gradgradcheck(f, leaves)


def test_third_order(device):
    def third(function, x):
        (g,) = torch.autograd.grad((function(x) ** 3).sum(), x, create_graph=True)
        (h,) = torch.autograd.grad((g**2).sum(), x, create_graph=True)
        return torch.autograd.grad((h**2).sum(), x)[0]

    x = make((7, 3), torch.float64, device)
    actual = third(lambda x: PF.batch_norm(x, None, None, training=True, activation="sigmoid"), x)
    expected = third(lambda x: torch.sigmoid((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()), x)
    assert_close(actual, expected)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_compile(dynamic, training):
    torch._dynamo.reset()
    _, mean, var, w, b, _ = all_inputs((2, 3), torch.float32, "cpu")

    def f(x, r, mean, var):
        return PF.batch_norm(x * 2, mean, var, w, b, training, residual=r, activation="relu").square().sum()

    compiler = "inductor" if training else "aot_eager"  # inductor takes seconds, and evaluation has one op less
    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic, backend=compiler)
    for batch in (4, 6) if dynamic else (4,):  # static: a second one compiles the same once more
        results = []
        x, _, _, _, _, r = all_inputs((batch, 3, 5, 5), torch.float32, "cpu", residual=True)
        for function in (f, compiled):
            statistics = mean.clone(), var.clone()
            loss = function(x, r, *statistics)
            results.append([loss, *statistics, *torch.autograd.grad(loss, (x, w, b, r))])
        for eager, traced in zip(*results, strict=True):
            assert_close(traced, eager, scale=10)
        changed = not torch.equal(results[1][1], mean)
        assert changed == training


def test_transforms(device):
    x, _, _, w, b, _ = all_inputs((3, 5, 4), torch.float64, device)
    x, w, b = x.detach(), w.detach(), b.detach()

    def loss(batch_norm, x):
        return (batch_norm(x, None, None, w, b, True) ** 3).sum()

    expected = torch.func.grad(lambda x: loss(F.batch_norm, x))(x)
    assert_close(torch.func.grad(lambda x: loss(PF.batch_norm, x))(x), expected)
    batch = torch.randn(2, 3, 5, 4, dtype=torch.float64, device=device)
    actual = torch.func.vmap(torch.func.grad(lambda x: loss(PF.batch_norm, x)))(batch)
    for x, one in zip(batch, actual, strict=True):
        assert_close(one, torch.func.grad(lambda x: loss(F.batch_norm, x))(x))


def test_under_autocast_dtypes_are_torchs(device):
    x, mean, var, w, b, _ = all_inputs((6, 4, 5, 5), torch.float32, device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        for t in (x, x.bfloat16()):
            assert PF.batch_norm(t, mean, var, w, b, True).dtype == F.batch_norm(t, mean, var, w, b, True).dtype


@pytest.mark.slow
@pytest.mark.parametrize("columns", [False, True])
def test_more_than_two_to_the_31_elements(columns):
    n = 2**31 + 5
    x = torch.ones(n, dtype=torch.bfloat16)
    x[1::2] = 3
    x[-2:] = torch.tensor([-5.0, 7.0])
    x = x.view(n, 1) if columns else x.view(1, 1, n)
    y = PF.batch_norm(x, torch.tensor([2.0]), torch.tensor([1.0]), training=True, momentum=1.0, eps=1e-12).flatten()
    assert_close(y[-4:], (x.flatten()[-4:] - 2).double())
    assert_close(y[:4], torch.tensor([-1.0, 1.0, -1.0, 1.0]))
