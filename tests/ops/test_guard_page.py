"""Kernels read nothing behind their inputs: each input ends where a page begins that nobody may read."""

import ctypes
import mmap

import pytest
import torch
import torch.nn.functional as F
from algorithms import forced
from grid import CALLS
from optimizers import KERNELS, name_of
from testing import assert_close

import pydl.functional as pf
import pydl.ops.matmul
from pydl.ops import _nodes

pytestmark = pytest.mark.cpu_kernels
_C = ctypes.CDLL(None, use_errno=True)
_C.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def at_the_end(values):
    """A copy of ``values`` whose last byte is the last before a page without permissions."""
    page, size = mmap.PAGESIZE, max(values.numel() * values.element_size(), 1)
    room = -(-size // page) * page
    memory = mmap.mmap(-1, room + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if _C.mprotect(address + room, page, 0) != 0:  # PROT_NONE
        raise OSError(ctypes.get_errno(), "mprotect failed")
    copy = torch.frombuffer(memory, dtype=values.dtype, count=values.numel(), offset=room - size)
    return copy.view(values.shape).copy_(values)


def compare(ours, torchs, *tensors):
    """Outputs and gradients of both, from guarded copies of the tensors (floating ones need gradients)."""
    guarded = [at_the_end(t).requires_grad_(t.is_floating_point()) for t in tensors]
    exact = [t.double().requires_grad_() if t.is_floating_point() else t for t in tensors]
    output, expected = ours(*guarded), torchs(*exact)
    assert_close(output, expected, output.dtype, scale=30.0)
    upstream = torch.randn(output.shape)
    wanted = [i for i, t in enumerate(tensors) if t.is_floating_point()]
    grads = torch.autograd.grad(output, [guarded[i] for i in wanted], at_the_end(upstream.to(output.dtype)))
    expected = torch.autograd.grad(expected, [exact[i] for i in wanted], upstream.to(output.dtype).double())
    for one, other in zip(grads, expected, strict=True):
        assert_close(one, other, one.dtype, scale=30.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 7, 10, 16, 17, 31, 100, 128, 129, 300])
def test_cross_entropy(device, classes, dtype):
    for rows in (1, 15, 16, 17, 40):
        logits, target = torch.randn(rows, classes).to(dtype), torch.randint(classes, (rows,))
        compare(pf.cross_entropy, F.cross_entropy, logits, target)


@pytest.mark.parametrize("size", [1, 2, 5, 17])
@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 1), (3, 2), (5, 1)])
@pytest.mark.parametrize("algorithm", ["auto", "winograd"])
def test_conv2d(device, kernel, stride, size, algorithm):
    options = {"stride": stride, "padding": kernel // 2}
    for channels in (1, 3, 20):
        x, weight = torch.randn(3, channels, size, size), torch.randn(18, channels, kernel, kernel) / kernel
        with forced(algorithm):
            compare(lambda x, w: pf.conv2d(x, w, **options), lambda x, w: F.conv2d(x, w, **options), x, weight)


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv3d(device, stride, size):
    options = {"stride": stride, "padding": 1}
    for images, channels in ((1, 3), (3, 1), (3, 20)):
        x, weight = torch.randn(images, channels, size, size, size), torch.randn(18, channels, 3, 3, 3) / 5
        compare(lambda x, w: pf.conv3d(x, w, **options), lambda x, w: F.conv3d(x, w, **options), x, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pooled_batch_norm(device, dtype):
    for shape in ((2, 3, 2, 2), (3, 2, 5, 7), (2, 2, 4, 34), (2, 2, 3, 33)):
        x, statistics = torch.randn(shape).to(dtype), (torch.zeros(shape[1]), torch.ones(shape[1]))
        output, mean, var = torch.ops.pydl.batch_norm_pooled_train(
            at_the_end(x), *statistics, None, None, None, 0.1, 1e-5, 2
        )
        exact = x.double().requires_grad_()
        expected = F.avg_pool2d(F.batch_norm(exact, None, None, training=True).sigmoid(), 2)
        assert_close(output, expected, scale=30.0)
        upstream = torch.randn(expected.shape).to(dtype)
        found, *_ = torch.ops.pydl.batch_norm_pooled_backward(
            at_the_end(upstream), at_the_end(x), mean, var, None, None, 1e-5, 2, True, False, False
        )
        assert_close(found, torch.autograd.grad(expected, exact, upstream.double())[0], scale=30.0)


@pytest.mark.parametrize("name", ["max_pool3d", "avg_pool3d"])
def test_pooling_of_volumes(device, name):
    ours, torchs = getattr(pf, name), getattr(F, name)
    for window in ((2, 2), (3, 1)):
        compare(lambda x, w=window: ours(x, *w), lambda x, w=window: torchs(x, *w), torch.randn(2, 3, 4, 7, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("features", [1, 7, 8, 9, 16, 17, 33])
def test_linear(device, features, dtype):
    for rows, depth in ((1, 1), (1, 37), (5, 3), (6, 8), (7, 17), (14, 256), (15, 257), (29, 64)):
        tensors = torch.randn(rows, depth), torch.randn(features, depth) / depth**0.5, torch.randn(features)
        compare(pf.linear, F.linear, *(t.to(dtype) for t in tensors))
        x, weight, bias = (t.to(dtype) for t in tensors)
        compare(
            lambda x, w, b: pf.linear(x.t(), w.t(), b),
            lambda x, w, b: F.linear(x.t(), w.t(), b),
            x.t(),
            weight.t(),
            bias,
        )


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("classes", [1, 7, 16, 33, 130, 1031])
def test_linear_cross_entropy(device, classes, dtype, reduction):
    for rows, features in ((1, 1), (5, 37), (15, 8), (40, 257)):
        x, w, b = torch.randn(rows, features), torch.randn(classes, features) / features**0.5, torch.randn(classes)
        compare(
            lambda x, w, b, t: pf.linear_cross_entropy(x, w, t, linear_bias=b, reduction=reduction),
            lambda x, w, b, t: F.cross_entropy(F.linear(x, w, b), t, reduction=reduction),
            *(t.to(dtype) for t in (x, w, b)),
            torch.randint(classes, (rows,)),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_products(device, dtype, monkeypatch):
    monkeypatch.setattr(pydl.ops.matmul, "WORTH_A_CALL", 0)
    for rows, depth, columns in ((1, 1, 1), (5, 3, 9), (7, 17, 33), (15, 257, 8)):
        left, right = torch.randn(3, rows, depth).to(dtype), (torch.randn(3, depth, columns) / 4).to(dtype)
        addend = torch.randn(3, rows, columns).to(dtype)
        compare(pf.bmm, torch.bmm, left, right)
        compare(lambda a, b: pf.bmm(a.mT, b.mT), lambda a, b: torch.bmm(a.mT, b.mT), left.mT, right.mT)
        compare(lambda *t: pf.baddbmm(*t, beta=2), lambda *t: torch.baddbmm(*t, beta=2), addend, left, right)
        compare(lambda a, *t: pf.baddbmm(a.mT, *t), lambda a, *t: torch.baddbmm(a.mT, *t), addend.mT, left, right)


@pytest.mark.parametrize("size", [3, 10, 33])
@pytest.mark.parametrize("kernel, stride", [(2, 2), (3, 2), (3, 1)])
@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_pooling(device, name, kernel, stride, size):
    ours, torchs = getattr(pf, name), getattr(F, name)
    compare(lambda x: ours(x, kernel, stride), lambda x: torchs(x, kernel, stride), torch.randn(2, 3, size, size))


@pytest.mark.parametrize("size", [3, 10, 33])
@pytest.mark.parametrize("name", ["adaptive_max_pool2d", "adaptive_avg_pool2d"])
def test_pooling_to_a_size(device, name, size):
    ours, torchs = getattr(pf, name), getattr(F, name)
    for to in (1, (1, size)):
        compare(lambda x, t=to: ours(x, t), lambda x, t=to: torchs(x, t), torch.randn(2, 3, size, size))


@pytest.mark.parametrize("size", [7, 33])
@pytest.mark.parametrize("kernel, stride", [(2, 2), (3, 1), (3, 4)])
@pytest.mark.parametrize("name", ["max_pool1d", "avg_pool1d"])
def test_pooling_of_rows(device, name, kernel, stride, size):
    ours, torchs = getattr(pf, name), getattr(F, name)
    compare(lambda x: ours(x, kernel, stride), lambda x: torchs(x, kernel, stride), torch.randn(2, 3, size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1, 5, 8, 16, 17, 33, 2050])
def test_norms_of_rows(device, width, dtype):
    for rows in (1, 4, 7):
        x, weight, bias = (t.to(dtype) for t in (torch.randn(rows, width), torch.rand(width), torch.randn(width)))
        compare(
            lambda x, w, b: pf.layer_norm(x, w.shape, w, b, 0.1),
            lambda x, w, b: F.layer_norm(x, w.shape, w, b, 0.1),
            x,
            weight,
            bias,
        )
        image = x[:, None].repeat(1, 2, 1)
        compare(lambda x: pf.group_norm(x, 1, eps=0.1), lambda x: F.group_norm(x, 1, eps=0.1), image)
        if rows * width > 1:  # one number is refused
            compare(lambda x: pf.group_norm(x, 1, eps=0.1), lambda x: F.group_norm(x, 1, eps=0.1), x)
        compare(lambda x, w: pf.rms_norm(x, w.shape, w, 0.1), lambda x, w: F.rms_norm(x, w.shape, w, 0.1), x, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1, 5, 8, 16, 17, 33, 70])
@pytest.mark.parametrize("name", CALLS)
def test_of_one_tensor(device, name, width, dtype):
    for rows in (1, 4, 7):
        x = torch.randn(rows, width).to(dtype)
        compare(lambda x: CALLS[name](pf, x), lambda x: CALLS[name](F, x), x)
        if name == "softmax":
            compare(lambda x: pf.softmax(x, 0), lambda x: F.softmax(x, 0), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1, 5, 8, 17, 33, 70])
def test_losses(device, width, dtype):
    x, target, weight = torch.randn(3, width).to(dtype), torch.rand(3, width).to(dtype), torch.rand(width).to(dtype)
    guarded = at_the_end(target), at_the_end(weight)
    exact = target.double(), weight.double()
    for reduction in ("none", "mean"):
        compare(*(lambda x, f=f, t=t[0], r=reduction: f.huber_loss(x, t, r) for f, t in ((pf, guarded), (F, exact))), x)
        compare(
            *(
                lambda x, f=f, t=t, r=reduction: f.binary_cross_entropy_with_logits(x, *t, reduction=r)
                for f, t in ((pf, guarded), (F, exact))
            ),
            x,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1, 5, 8, 17, 33, 70])
def test_embedding(device, width, dtype):
    ids = at_the_end(torch.randint(6, (9,)))
    compare(lambda w: pf.embedding(ids, w), lambda w: F.embedding(ids, w), torch.randn(6, width).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1, 5, 8, 16, 17, 33])
def test_attention(device, width, dtype):
    for rows, keys in ((1, 1), (7, 9), (70, 70), (3, 33)):
        q, k, v = (torch.randn(1, 2, n, width).to(dtype) for n in (rows, keys, keys))
        mask = torch.rand(rows, keys) > 0.3
        guarded = at_the_end(mask)
        compare(pf.scaled_dot_product_attention, F.scaled_dot_product_attention, q, k, v)
        compare(
            lambda q, k, v, m=guarded: pf.scaled_dot_product_attention(q, k, v, m),
            lambda q, k, v, m=mask: F.scaled_dot_product_attention(q, k, v, m),
            *(q, k, v),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("units", [1, 7, 8, 9, 17, 33])
def test_recurrent(device, units, dtype):
    for kind, batch, features in (("rnn_tanh", 7, 8), ("gru", 5, 1), ("lstm", 1, 9)):
        gates, states = {"rnn_tanh": 1, "gru": 3, "lstm": 4}[kind] * units, 2 if kind == "lstm" else 1
        shapes = [(8, batch, features)] + [(1, batch, units)] * states
        shapes += [(gates, features), (gates, units), (gates,), (gates,)]

        def call(library, x, *tensors, kind=kind, states=states):
            hx = tensors[:2] if states == 2 else tensors[0]
            return getattr(library, kind)(x, hx, tensors[states:], True, 1, 0.0, False, False, False)[0]

        tensors = [(torch.randn(shape) / 3).to(dtype) for shape in shapes]
        compare(lambda *t, c=call: c(pf, *t), lambda *t, c=call: c(torch, *t), *tensors)


@pytest.mark.parametrize("shape", [(9, 5), (3, 5, 7, 7), (2, 3, 33, 33)], ids=str)
def test_batch_norm(device, shape):
    compare(
        lambda x, w, b: pf.batch_norm(x, None, None, w, b, training=True),
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        *(torch.randn(s) for s in (shape, shape[1:2], shape[1:2])),
    )


@pytest.mark.skipif(_nodes.why_not is not None, reason=f"pydl._torch is not loaded: {_nodes.why_not}")
@pytest.mark.parametrize("name, options", KERNELS, ids=name_of)
def test_optimizers(device, name, options):
    for dtype in (torch.float32, torch.float64):
        params = [torch.nn.Parameter(at_the_end(torch.randn(n, dtype=dtype))) for n in (1, 3, 8, 21, 4099)]
        optimizer = getattr(pydl.optim, name)(params, **options)
        for _ in range(3):
            for p in params:
                p.grad = at_the_end(torch.randn(p.shape, dtype=dtype))
            optimizer.step()
            pydl.optim.clip_grad_norm_(params, 0.1)
            for p, state in optimizer.state.items():
                found = {key: value if value is None else at_the_end(value) for key, value in state.items()}
                optimizer.state[p] = found
        assert pydl.optim.why_torch(optimizer) is None
