"""Softmax cross entropy: gradients and who makes them, transforms, compile; bits and sizes at the ends of the range."""

import math

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_oracle import REDUCTIONS, compare, make, reference
from testing import DTYPES, assert_close

import pydl.functional as pf
import pydl.ops.softmax_cross_entropy as op


def test_loss_without_gradients(device):
    """The loss is there when nothing needs a gradient, and the same."""
    input, target = make((5, 30), "classes", device=device)
    with torch.no_grad():
        loss = pf.cross_entropy(input, target)
    assert not loss.requires_grad
    assert torch.equal(loss, pf.cross_entropy(input.requires_grad_(), target))


def test_backward_twice(device):
    """A retained graph gives the same gradient again, also after one with another upstream gradient."""
    input, target = make((5, 30), "classes", device=device)
    input.requires_grad_()
    loss = pf.cross_entropy(input, target)
    grads = [
        torch.autograd.grad(loss, input, torch.tensor(s, device=device), retain_graph=True)[0] for s in (1.0, 2.0, 1.0)
    ]
    assert torch.equal(grads[0], grads[2])
    assert_close(grads[1], 2 * grads[0])
    assert grads[0].data_ptr() != grads[2].data_ptr()


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(5, 30), (300, 70), (300, 200), (2, 9, 5), (3, 20000), (9, 20000)], ids=str)
def test_gradient_made_in_the_forward(device, dtype, shape, smoothing):
    """It has the bits of the one that the backward makes, and is handed out for an upstream gradient of 1 alone."""
    input, target = make(shape, "classes", dtype, device, ignored=True)
    input.requires_grad_()
    options = {"label_smoothing": smoothing, "z_loss": 1e-3, "weight": torch.rand(shape[1], device=device).to(dtype)}
    for reduction in ("mean", "sum"):
        grads = []
        for early in (True, False):
            op._Eager.early = early
            loss = pf.cross_entropy(input, target, reduction=reduction, **options)
            grads.append(torch.autograd.grad(loss, input)[0])
            assert op._Eager.early  # an upstream gradient of 1: the next forward makes it again
        assert torch.equal(*grads)
        compare(input, target, reduction=reduction, **options)  # upstream -1.75
        assert not op._Eager.early


def test_gradient_of_a_scaled_half_loss(device):
    """Gradients below the smallest half survive a loss scale, as the scaled loss asks for: rounding comes last."""
    input, target = make((4096, 8), "classes", torch.float16, device)
    input.requires_grad_()
    scale = 2.0**14
    loss = pf.cross_entropy(input, target, reduction="mean") * scale
    (grad,) = torch.autograd.grad(loss, input)
    input64 = input.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(input64, target) * scale, input64)
    assert_close(grad, expected)


def test_checkpoint(device):
    input, target = make((5, 30), "classes", device=device)
    input.requires_grad_()

    def loss(x):
        return pf.cross_entropy(x * 2.0, target)

    (expected,) = torch.autograd.grad(loss(input), input)
    for reentrant in (False, True):
        kept = torch.utils.checkpoint.checkpoint(loss, input, use_reentrant=reentrant)
        kept.backward()
        assert torch.equal(input.grad, expected)
        input.grad = None


def test_gradient_accumulates(device):
    input, target = make((5, 30), "classes", device=device)
    input.requires_grad_()
    for _ in range(2):
        pf.cross_entropy(input, target).backward()
    (once,) = torch.autograd.grad(pf.cross_entropy(input, target), input)
    assert_close(input.grad, 2 * once)


def test_logits_changed_before_backward(device):
    """Either the right gradient or an error, never a wrong one."""
    input, target = make((5, 30), "classes", device=device)
    leaf = input.requires_grad_()
    logits = leaf * 1.0
    loss = pf.cross_entropy(logits, target, reduction="none")
    logits.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 3)], ids=str)
def test_gradcheck(kind, shape):
    input, target = make(shape, kind, torch.float64, ignored=True)
    weight = torch.rand(shape[1], dtype=torch.float64)
    target.requires_grad_(kind == "probabilities")
    for reduction in REDUCTIONS:

        def function(x, t, reduction=reduction):
            return pf.cross_entropy(x, t, weight, reduction=reduction, label_smoothing=0.1, z_loss=0.05)

        assert torch.autograd.gradcheck(function, (input.requires_grad_(), target))
        assert torch.autograd.gradgradcheck(function, (input, target))


def test_double_backward_unbatched():
    input = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: pf.cross_entropy(x, torch.tensor(2), z_loss=0.1), (input,))


def test_derivative_of_the_backward_op_is_refused():
    input, target = make((3, 5), "classes")
    _, norm, denominator = torch.ops.pydl.softmax_cross_entropy_forward(input, target, None, 1, -100, 0.0, 0.0)
    upstream = torch.ones((), requires_grad=True)
    grad = torch.ops.pydl.softmax_cross_entropy_backward(
        upstream, input, target, None, norm, denominator, 1, -100, 0.0, 0.0
    )
    with pytest.raises(RuntimeError, match="create_graph=True through cross_entropy"):
        grad.sum().backward()


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("shape", [(3, 5), (2, 5, 3), (5,)], ids=str)
def test_opcheck(kind, shape):
    input = torch.randn(shape, requires_grad=True)
    if kind == "classes":
        target = torch.randint(0, 5, shape[:1] + shape[2:] if len(shape) > 1 else ())
    else:
        target = torch.rand(shape, requires_grad=True)
    for reduction in range(3):
        options = (reduction, -100, 0.1, 0.01)
        args = (input, target, torch.rand(5), *options, False)
        torch.library.opcheck(torch.ops.pydl.softmax_cross_entropy_forward, args)
        if reduction:
            detached = (input.detach(), target.detach(), *args[2:])
            torch.library.opcheck(torch.ops.pydl.softmax_cross_entropy_forward_backward, detached)
        output, norm, denominator = torch.ops.pydl.softmax_cross_entropy_forward(*args)
        saved = (torch.ones_like(output).detach(), input.detach(), target.detach(), None, norm, denominator)
        torch.library.opcheck(torch.ops.pydl.softmax_cross_entropy_backward, (*saved, *options))
        if kind == "probabilities":
            torch.library.opcheck(torch.ops.pydl.softmax_cross_entropy_backward_target, (*saved, reduction, 0.1))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_compile(kind, dynamic):
    torch._dynamo.reset()

    def loss_of(x, t, w):
        return pf.cross_entropy(x * 2.0, t, w, label_smoothing=0.1, z_loss=0.01) * 3.0

    compiler = "inductor" if kind == "classes" else "aot_eager"  # inductor takes seconds, and these are one op
    compiled = torch.compile(loss_of, fullgraph=True, dynamic=dynamic, backend=compiler)
    for shape in [(6, 12), (7, 13)][: 2 if dynamic else 1]:  # static: a second one compiles the same once more
        input, target = make(shape, kind)
        if kind == "classes":
            target[0] = -100
        weight = torch.rand(shape[1])
        results = []
        for function in (compiled, loss_of):
            x = input.clone().requires_grad_()
            loss = function(x, target, weight)
            loss.backward()
            results.append((loss.detach(), x.grad))
        assert_close(results[0][0], results[1][0])
        assert_close(results[0][1], results[1][1])


def test_compile_autocast_and_reductions():
    torch._dynamo.reset()
    input, target = make((2, 12, 5), "classes", torch.bfloat16)

    @torch.compile(fullgraph=True)
    def losses(x, t):
        with torch.autocast("cpu", torch.bfloat16):
            return [pf.cross_entropy(x, t, reduction=r) for r in REDUCTIONS]

    for loss, reduction in zip(losses(input, target), REDUCTIONS, strict=True):
        assert loss.dtype == torch.float32
        assert_close(loss, reference(input, target, reduction=reduction))


def test_transforms():
    """torch.func: per-sample gradients, Jacobians, Hessians (forward mode: test_transforms.py)."""
    input, target = make((4, 5), "classes", torch.float64)
    for of, to in ((pf.cross_entropy, F.cross_entropy),):
        results = []
        for f in (of, to):
            loss = lambda x, t, f=f: f(x, t, label_smoothing=0.1)  # noqa: E731
            results.append(
                [
                    torch.func.grad(loss)(input, target),
                    torch.func.vmap(torch.func.grad(loss))(input, target),
                    torch.func.jacrev(lambda x, f=f: f(x, target, reduction="none"))(input),
                    torch.func.jacrev(torch.func.grad(loss))(input, target),
                ]
            )
        for ours, theirs in zip(*results, strict=True):
            assert_close(ours, theirs)


def test_thread_count_does_not_matter():
    """Bit for bit: many rows, short ones, few long ones (split between threads), too long to be kept, side by side."""
    before = torch.get_num_threads()
    try:
        for shape in [(300, 50), (9000, 10), (3, 40000), (9, 200003), (2, 7, 900), (1, 20000)]:
            for kind, smoothing in (("classes", 0.0), ("classes", 0.1), ("probabilities", 0.1)):
                input, target = make(shape, kind)
                input.requires_grad_()
                results = []
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    loss = pf.cross_entropy(input, target, label_smoothing=smoothing)
                    results.append((loss, *torch.autograd.grad(loss * 2.0, input)))
                for loss, grad in results[1:]:
                    assert torch.equal(loss, results[0][0])
                    assert torch.equal(grad, results[0][1])
    finally:
        torch.set_num_threads(before)


def test_long_rows(device):
    """More classes than any block: several blocks to a row, split between threads."""
    for kind in ("classes", "probabilities"):
        input, target = make((2, 50257), kind, device=device)
        compare(input, target)
        compare(input, target, reduction="none", label_smoothing=0.1, weight=torch.rand(50257, device=device))


@pytest.mark.large
def test_large_gradient_past_the_caches(device):
    """16 MB and more are written by another kind of store; rows that start off its alignment too."""
    for classes in (5003, 5008):
        for dtype in (torch.float32, torch.bfloat16):
            input, target = make((1700, classes), "classes", dtype, device)
            compare(input, target)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(5, 128), (7, 13), (1040,)], ids=str)  # planes of whole vectors, of none, two blocks
def test_gradient_of_pixels_past_the_caches(device, small_caches, size, dtype):
    """Classes lie apart. The target's gradient has a layout of its own; a slice begins where no vector does."""
    for kind in ("classes", "probabilities"):
        input, target = make((3, 6, *size), kind, dtype, device, ignored=True)
        compare(input, target)
        compare(input[..., 1:], target[..., 1:], label_smoothing=0.1)
    input.requires_grad_()
    (early,) = torch.autograd.grad(pf.cross_entropy(input, target.argmax(1)), input)  # made in the forward
    input64 = input.detach().double().requires_grad_()
    assert_close(early, torch.autograd.grad(F.cross_entropy(input64, target.argmax(1)), input64)[0])


def test_mean_of_many_rows_in_bf16():
    """The sum of 70,000 losses is not kept in bf16."""
    input, target = make((70000, 4), "classes", torch.bfloat16)
    assert_close(pf.cross_entropy(input, target), reference(input, target))


@pytest.mark.slow
def test_beyond_31_bits():
    """2³¹ + 5 elements: the last logits lie beyond what 32-bit offsets reach."""
    classes = 4099
    rows = (2**31 + 5) // classes + 1
    input = torch.zeros(rows, classes, dtype=torch.bfloat16)
    input[-1] = torch.linspace(-5.0, 5.0, classes)
    target = torch.zeros(rows, dtype=torch.int64)
    target[-1] = 4
    input.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = pf.cross_entropy(input, target, reduction="sum")
    tail = input.detach()[-3:].double().requires_grad_()
    expected = F.cross_entropy(tail, target[-3:], reduction="sum")
    assert_close(loss, expected + (rows - 3) * math.log(classes))
    loss.backward()
    (expected_grad,) = torch.autograd.grad(expected, tail)
    assert_close(input.grad[-3:], expected_grad)
    del input, loss, target

    input = torch.zeros(1, 2**31 + 5, dtype=torch.bfloat16)
    input[0, -1] = 30.0
    with torch.autocast("cpu", torch.bfloat16):
        loss = pf.cross_entropy(input, torch.tensor([2**31 + 4]))
    assert_close(loss, torch.tensor(math.log(math.exp(30.0) + 2**31 + 4) - 30.0))
