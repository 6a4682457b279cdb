"""What the tests of batch_norm share: inputs, torch in float64 as the oracle, the comparison with it."""

import torch
import torch.nn.functional as F
from testing import assert_close

import pydl.functional as PF

HALF = (torch.bfloat16, torch.float16)
ROWS, COLUMNS, COLUMNS_3D = torch.contiguous_format, torch.channels_last, torch.channels_last_3d


def make(shape, dtype, device, memory_format=ROWS, requires_grad=True):
    x = (torch.randn(shape, dtype=torch.float64) * 2 + 1).to(dtype)
    return x.to(device).contiguous(memory_format=memory_format).requires_grad_(requires_grad)


def oracle(inputs, grad, training, activation=None, momentum=0.1, eps=1e-5):
    """Output, gradients (input, weight, bias, residual) and running statistics, by torch in float64."""
    x, mean, var, w, b, r = (t if t is None else t.detach().cpu().double().clone() for t in inputs)
    leaves = [t for t in (x, w, b, r) if t is not None]
    for t in leaves:
        t.requires_grad_()
    y = F.batch_norm(x, mean, var, w, b, training, momentum, eps)
    y = y if r is None else y + r
    y = {None: lambda t: t, "relu": F.relu, "sigmoid": torch.sigmoid}[activation](y)
    y.backward(grad.detach().cpu().double())
    return y, [t if t is None else t.grad for t in (x, w, b, r)], (mean, var)


def check(inputs, grad, training, activation=None, scale=1.0):
    x, mean, var, w, b, r = inputs
    expected, grads, running = oracle(inputs, grad, training, activation)
    y = PF.batch_norm(x, mean, var, w, b, training, residual=r, activation=activation)
    assert y.dtype == x.dtype
    assert_close(y, expected, scale=4 * scale)
    y.backward(grad)
    for t, g in zip((x, w, b, r), grads, strict=True):
        if t is None:
            continue
        assert t.grad.dtype == t.dtype
        # sums over a channel: the error grows like the root of their number, relative to what is summed
        size = grad.detach().double().norm().item() if t.dim() == 1 else 1.0
        assert_close(t.grad, g, dtype=x.dtype, scale=8 * scale * max(1.0, size))
        t.grad = None
    for t, e in zip((mean, var), running, strict=True):
        if t is not None:
            assert_close(t, e, scale=4)


def all_inputs(shape, dtype, device, memory_format=ROWS, param_dtype=None, residual=False):
    param_dtype = param_dtype or dtype
    channels = shape[1]
    x = make(shape, dtype, device, memory_format)
    mean, w, b = (make((channels,), param_dtype, device) for _ in range(3))
    var = torch.rand(channels, device=device).to(param_dtype) + 0.5
    r = make(shape, dtype, device, memory_format) if residual else None
    return x, mean.detach(), var, w, b, r
