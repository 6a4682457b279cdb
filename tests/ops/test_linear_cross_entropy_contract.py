"""linear_cross_entropy beside torch: what is refused, what takes two calls, and torch's own machinery."""

import pytest
import torch
import torch.nn.functional as F
import torch.utils.flop_counter
from cross_entropy_oracle import REDUCTIONS
from test_linear_cross_entropy import exact, make, results
from testing import assert_close
from torch.func import grad, vmap

import pydl
from pydl import backend
from pydl.functional import linear_cross_entropy

X, W, B, T = torch.randn(4, 5), torch.randn(3, 5), torch.randn(3), torch.tensor([0, 2, 1, 1])
DOUBLE = {"linear_bias": B.double()}
# positional arguments, the others -> torch's exception and our message
REFUSED = {
    "input of three dimensions": ((X[None], W, T[None]), {}, RuntimeError, "input to be of 1 or 2 dimensions, got"),
    "weight of one dimension": ((X, W[0], T), {}, RuntimeError, "linear_weight to be at least 2-D, got shape (5,)"),
    "features": ((X[:, :4], W, T), {}, RuntimeError, "input's last dimension to be 5 (linear_weight of shape (3, 5))"),
    "dtype of weight": ((X, W.double(), T), {}, RuntimeError, "linear_weight to be of the dtype of input, got float64"),
    "bias size": ((X, W, T), {"linear_bias": B[:2]}, RuntimeError, "linear_bias to be of shape (3), got (2)"),
    "dtype of bias": ((X, W, T), DOUBLE, RuntimeError, "linear_bias to be of the dtype of input, got float64"),
    "batch sizes": ((X, W, T[:3]), {}, ValueError, "target to be of shape (4), got (3)"),
    "target of two dimensions": ((X, W, T[:, None]), {}, RuntimeError, "target to be of shape (4), got (4, 1)"),
    "several targets for one row": ((X[0], W, T), {}, ValueError, "target to be one class index, got shape (4)"),
    "dtype of target": ((X, W, T.int()), {}, RuntimeError, "target dtype to be int64 or uint8, got int32"),
    "class out of range": ((X, W, T + 2), {}, IndexError, "target to be in [0, 3) or ignore_index (-100), got 4"),
    "class below 0": ((X, W, T - 1), {}, IndexError, "target to be in [0, 3) or ignore_index (-100), got -1"),
    "class weights": ((X, W, T), {"weight": B[:2]}, RuntimeError, "weight to be of shape (3), one for each class, got"),
    "dtype of class weights": ((X, W, T), {"weight": B.double()}, RuntimeError, "weight dtype to be input's"),
    "smoothing": ((X, W, T), {"label_smoothing": 1.5}, RuntimeError, "label_smoothing to be in [0, 1], got 1.5"),
    "reduction": ((X, W, T), {"reduction": "max"}, ValueError, "reduction to be none, mean or sum, got 'max'"),
    "unbatched with positions": ((X[0], W[:, None], T[:1]), {}, RuntimeError, "input to be 2-D for linear_weight of"),
    "bias with positions": ((X, W[:, None], T[:, None]), {"linear_bias": B}, RuntimeError, "linear_bias to be of sh"),
    "probabilities": ((X, W, X[:, :3]), {"ignore_index": 1}, RuntimeError, "ignore_index to be None for class prob"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    args, options, error, message = REFUSED[case]
    for leaf in (args[1], args[1].detach().requires_grad_()):
        with pytest.raises(error) as ours:
            linear_cross_entropy(args[0], leaf, *args[2:], **options)
        assert ours.type is error
        assert str(ours.value).startswith(f"linear_cross_entropy: expected {message}")
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        with pytest.raises(error):
            F.linear_cross_entropy(*args, **options)


def test_refusals_of_what_is_ours_alone():
    with pytest.raises(ValueError, match="expected target to be class indices for return_correct, got class prob"):
        linear_cross_entropy(X, W, X[:, :3], return_correct=True)
    with pytest.raises(TypeError, match="expected return_correct to be True or False, got 1"):
        linear_cross_entropy(X, W, T, return_correct=1)
    with pytest.raises(ValueError, match="cross_entropy: expected z_loss to be 0 where"), backend.use("torch"):
        linear_cross_entropy(X, W, T, z_loss=0.1)
    for args in ((X, W, [0, 1]), ([1.0], W, T), (X, None, T)):
        with pytest.raises(TypeError, match=r"linear_cross_entropy: expected \w+ to be a Tensor, got"):
            linear_cross_entropy(*args)
    with pytest.raises(TypeError, match="linear_cross_entropy: expected linear_bias to be a Tensor, got float"):
        linear_cross_entropy(X, W, T, linear_bias=0.5)


# ---- two calls

POSITIONS = torch.randn(3, 2, 4, 5)
TWO_CALLS = {
    "probabilities": (X, W, torch.rand(4, 3), B),
    "probabilities, unbatched": (X[0], W, torch.rand(3), B),
    "positions": (X, POSITIONS, torch.randint(3, (4, 2, 4)), torch.randn(3, 2, 4)),
    "probabilities with positions": (X, POSITIONS, torch.rand(4, 3, 2, 4), None),
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("case", TWO_CALLS)
def test_two_calls(case, reduction):
    x, w, target, bias = (t.double() if t is not None and t.is_floating_point() else t for t in TWO_CALLS[case])

    def composed(x, w, target, linear_bias=None, **options):
        logits = F.linear(x, w.flatten(0, -2), None if linear_bias is None else linear_bias.flatten())
        if w.dim() > 2:
            logits = logits.unflatten(-1, w.shape[:-1])
        return exact(logits, torch.eye(logits.shape[1]).double(), target, **options) if w.dim() == 2 and x.dim() == 2 \
            else F.cross_entropy(logits, target, **options)  # fmt: skip

    tensors = [x, w] if bias is None else [x, w, bias]
    options = {"reduction": reduction, "label_smoothing": 0.1}
    actual = results(linear_cross_entropy, tensors, target, **options)
    for a, e in zip(actual, results(composed, tensors, target, **options), strict=True):
        assert_close(a, e)


def test_correct_of_two_calls():
    x, w, target, bias = TWO_CALLS["positions"]
    logits = F.linear(x, w.flatten(0, -2), bias.flatten()).unflatten(-1, w.shape[:-1])
    expected = ((logits.argmax(1) == target) & (target != 1)).sum()
    assert linear_cross_entropy(x, w, target, linear_bias=bias, ignore_index=1, return_correct=True)[1] == expected
    with backend.use("torch"):
        loss, correct = linear_cross_entropy(X, W, T, return_correct=True)
        assert correct == (F.linear(X, W).argmax(1) == T).sum()
        assert torch.equal(loss, F.cross_entropy(F.linear(X, W), T))


def test_dtypes_and_devices_that_are_torchs():
    with pytest.raises(RuntimeError) as theirs:
        F.cross_entropy(F.linear(X.to(torch.complex64), W.to(torch.complex64)), T)
    with pytest.raises(type(theirs.value)):
        linear_cross_entropy(X.to(torch.complex64), W.to(torch.complex64), T)
    x, w = X.to("meta"), W.to("meta").requires_grad_()
    loss = linear_cross_entropy(x, w, T.to("meta"), reduction="none")
    assert loss.is_meta
    assert loss.shape == (4,)


@pytest.mark.skipif(not hasattr(torch.nn, "LinearCrossEntropyOptions"), reason="this torch has no such options")
def test_options_of_torchs_own_blocks_ask_for_torchs_function():
    options = torch.nn.LinearCrossEntropyOptions()
    with torch.profiler.profile() as profile:
        loss = linear_cross_entropy(X, W, T, options=options)
    assert not any(event.name.startswith("pydl::") for event in profile.events())
    assert_close(loss, F.cross_entropy(F.linear(X, W), T).double())
    with pytest.raises(
        ValueError, match="linear_cross_entropy: expected options to be None with z_loss or return_correct"
    ):
        linear_cross_entropy(X, W, T, options=options, z_loss=0.1)


# ---- gradients


def test_only_what_needs_a_gradient_gets_one():
    for needs in range(8):
        leaves = [t.clone().requires_grad_(bool(needs >> i & 1)) for i, t in enumerate((X, W, B))]
        loss = linear_cross_entropy(leaves[0], leaves[1], T, linear_bias=leaves[2])
        assert loss.requires_grad == bool(needs)
        if needs:
            loss.backward()
        assert [t.grad is not None for t in leaves] == [t.requires_grad for t in leaves]
        expected = results(exact, [X, W, B], T, torch.ones(()))[1:]
        for t, e in zip(leaves, expected, strict=True):
            if t.grad is not None:
                assert_close(t.grad, e.double())


def test_no_gradient_no_product():
    with torch.profiler.profile() as profile:
        with torch.no_grad():
            linear_cross_entropy(X, W.clone().requires_grad_(), T)
        linear_cross_entropy(X, W, T)
    names = [event.name for event in profile.events() if event.name.startswith("pydl::")]
    assert names == ["pydl::linear_cross_entropy_forward"] * 2


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(5,), (4, 5)], ids=str)
def test_gradcheck(shape, reduction):
    x, w, b = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (shape, (3, 5), (3,)))
    target = T if len(shape) == 2 else T[1]

    def call(x, w, b):
        return linear_cross_entropy(
            x,
            w,
            target,
            linear_bias=b,
            weight=torch.tensor([0.5, 1, 2], dtype=torch.float64),
            reduction=reduction,
            ignore_index=1,
            label_smoothing=0.1,
            z_loss=0.05,
        )

    assert torch.autograd.gradcheck(call, (x, w, b))
    assert torch.autograd.gradgradcheck(call, (x, w, b))


@pytest.mark.parametrize("scale", [1.0, -1.75])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_backward_twice(reduction, scale):
    tensors, target = make("short rows")
    leaves = [t.requires_grad_() for t in tensors]
    loss = linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2], reduction=reduction)
    upstream = torch.tensor(scale)
    first = torch.autograd.grad(loss, leaves, upstream, retain_graph=True)
    second = torch.autograd.grad(loss, leaves, upstream)
    for one, other in zip(first, second, strict=True):
        assert_close(one, other.double())
        assert one.data_ptr() != other.data_ptr()


def test_gradients_of_a_scaled_half_loss():
    """Gradients below the smallest half survive a loss scale: rounding comes last."""
    tensors, target = make((2048, 6, 8), torch.float16)
    leaves = [t.requires_grad_() for t in tensors]
    scale = 2.0**14
    loss = linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2]) * scale
    expected = results(exact, [t.double() for t in tensors], target, torch.tensor(scale))
    for actual, e in zip(torch.autograd.grad(loss, leaves), expected[1:], strict=True):
        assert_close(actual, e)


def test_checkpoint():
    tensors, target = make("short rows")
    x, w, _ = (t.requires_grad_() for t in tensors)

    def loss(x):
        return linear_cross_entropy(x * 2.0, w, target)

    expected = torch.autograd.grad(loss(x), (x, w))
    for reentrant in (False, True):
        torch.utils.checkpoint.checkpoint(loss, x, use_reentrant=reentrant).backward()
        for t, e in zip((x, w), expected, strict=True):
            assert torch.equal(t.grad, e)
            t.grad = None


def test_tensors_written_between_forward_and_backward():
    """The gradients made in the forward, or an error: never wrong ones."""
    tensors, target = make("short rows")
    for reduction in ("mean", "none"):
        leaf = tensors[0].clone().requires_grad_()
        held = leaf * 1.0
        loss = linear_cross_entropy(held, tensors[1], target, reduction=reduction)
        held.data_ptr()
        held.add_(1.0)
        if reduction == "none":
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.sum().backward()
        else:
            loss.backward()
            expected = results(linear_cross_entropy, tensors[:2], target, torch.ones(()))
            assert torch.equal(leaf.grad, expected[1])


def test_derivative_of_the_backward_op_is_refused():
    ops, rest = torch.ops.pydl, (1, -100, 0.0, 0.0)
    _, norm, denominator, _ = ops.linear_cross_entropy_forward(X, W, T, None, None, *rest, False, False)
    needs = (True, False, False)
    upstream = torch.ones((), requires_grad=True)
    gradient, _, _ = ops.linear_cross_entropy_backward(upstream, X, W, T, None, None, norm, denominator, *rest, *needs)
    with pytest.raises(RuntimeError, match="create_graph=True through linear_cross_entropy"):
        gradient.sum().backward()


# ---- torch's own machinery


@pytest.mark.parametrize("shape", [(5,), (4, 5), (0, 5)], ids=str)
def test_opcheck(shape):
    ops = torch.ops.pydl
    x, w, b = (torch.randn(s, requires_grad=True) for s in (shape, (3, 5), (3,)))
    target = T[0] if len(shape) == 1 else T[: shape[0]]
    for reduction in (0, 1, 2) if target.numel() else (0, 2):  # a mean of no rows is nan, which opcheck finds unequal
        rest = (reduction, -100, 0.1, 0.01)
        args = (x, w, target, b, torch.rand(3), *rest)
        torch.library.opcheck(ops.linear_cross_entropy_forward, (*args, False, True))
        torch.library.opcheck(ops.linear_cross_entropy_forward, (*args, True, False))
        detached = [t.detach() if isinstance(t, torch.Tensor) else t for t in args]
        if reduction:
            for needs in ((True, True, True), (False, True, False)):
                torch.library.opcheck(ops.linear_cross_entropy_forward_backward, (*detached, False, True, *needs))
        output, norm, denominator, _ = ops.linear_cross_entropy_forward(*detached, False, False)
        saved = (torch.ones_like(output), *detached[:5], norm, denominator, *rest, True, True, False)
        torch.library.opcheck(ops.linear_cross_entropy_backward, saved)


@pytest.mark.parametrize("by, dynamic", [("inductor", True), ("aot_eager", False), ("aot_eager", True)])
def test_compile(by, dynamic):
    torch._dynamo.reset()

    def step(x, w, target, linear_bias=None, reduction="mean"):
        loss, correct = linear_cross_entropy(
            x * 2.0,
            w,
            target,
            linear_bias=linear_bias,
            reduction=reduction,
            label_smoothing=0.1,
            z_loss=0.01,
            return_correct=True,
        )
        return loss * 3.0 + correct

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=by)
    for shape in [(6, 5, 12), (7, 6, 13)][: 2 if dynamic else 1]:  # static: a second one compiles the same once more
        tensors, target = make(shape)
        for reduction in ("mean", "none") if by == "aot_eager" else ("mean",):
            expected = results(step, tensors, target, reduction=reduction)
            for a, e in zip(results(compiled, tensors, target, reduction=reduction), expected, strict=True):
                assert_close(a, e.double(), scale=5)


def test_compiled_refusals():
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="eager")
    for case in ("features", "dtype of weight", "bias size", "batch sizes", "class weights"):
        args, options, _, message = REFUSED[case]
        torch._dynamo.reset()
        with pytest.raises(Exception, match="linear_cross_entropy: expected") as raised:
            compiled(*args, **options)
        assert message.split(",")[0] in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    tensors, target = make("short rows")
    weight = torch.rand(10)
    with torch.autocast("cpu", dtype):
        expected = results(lambda x, w, t, linear_bias, **o: F.cross_entropy(F.linear(x, w, linear_bias), t, **o),
                           tensors, target, weight=weight)  # fmt: skip
        actual = results(linear_cross_entropy, tensors, target, weight=weight)
        doubles = [t.double() for t in tensors]
        assert linear_cross_entropy(doubles[0], doubles[1], target).dtype == torch.float64
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype == torch.float32
        torch.testing.assert_close(a, e, rtol=3e-2, atol=3e-2)


def test_transforms():
    """torch.func: per-sample gradients, Jacobians, Hessians (forward mode: test_transforms.py)."""
    x, w, b = (torch.randn(s, dtype=torch.float64) for s in ((4, 5), (3, 5), (3,)))
    found = []
    for f in (linear_cross_entropy, exact):
        loss = lambda w, b, x, t, f=f, **o: f(x, w, t, linear_bias=b, label_smoothing=0.1, **o)  # noqa: E731
        found.append(
            [
                *grad(loss, argnums=(0, 1, 2))(w, b, x, T),
                *vmap(grad(loss, argnums=(0, 1)), in_dims=(None, None, 0, 0))(w, b, x, T),
                vmap(loss, in_dims=(0, None, None, None))(torch.stack([w, 2 * w]), b, x, T),
                torch.func.jacrev(lambda x, loss=loss: loss(w, b, x, T, reduction="none"))(x),
                torch.func.jacrev(grad(loss))(w, b, x, T),
            ]
        )
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs)


def test_vmap_counts_correct_rows_of_each_sample():
    x = torch.randn(3, 4, 5)
    _, correct = vmap(lambda x: linear_cross_entropy(x, W, T, return_correct=True))(x)
    assert torch.equal(correct, (F.linear(x, W).argmax(2) == T).sum(1))


@pytest.mark.skipif(not hasattr(torch.nn, "LinearCrossEntropyOptions"), reason="this torch has no such loss")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True, "reduction": "sum"},
        {"reduction": "none", "label_smoothing": 0.1},
        {"ignore_index": 2, "weight": torch.rand(6)},
        {"out_features": (2, 3), "bias": True},
    ],
    ids=lambda o: " ".join(o),
)
def test_module(options):
    expected = torch.nn.LinearCrossEntropyLoss(5, 6, **options)
    actual = pydl.nn.LinearCrossEntropyLoss(5, 6, **options)
    actual.load_state_dict(expected.state_dict())
    assert repr(actual) == repr(expected)
    swapped = torch.nn.LinearCrossEntropyLoss(5, 6, **options)
    swapped.load_state_dict(expected.state_dict())
    pydl.swap(swapped)
    expected.double()
    target = torch.randint(6, (7, *options.get("out_features", ())))
    x = torch.randn(7, 5)
    losses = expected(x.double(), target), actual(x, target), swapped(x, target)
    for loss in losses:
        loss.pow(2).sum().backward()
    for module, loss in ((actual, losses[1]), (swapped, losses[2])):
        assert_close(loss, losses[0])
        for p, q in zip(module.parameters(), expected.parameters(), strict=True):
            assert_close(p.grad, q.grad, scale=5)
    with torch.profiler.profile() as profile:
        swapped(x, target)
        with pydl.swapped():
            F.linear_cross_entropy(x, actual.linear.weight[:6], target.flatten()[:7])
    ran = [event.name for event in profile.events() if event.name.startswith("pydl::")]
    assert "pydl::linear_cross_entropy_forward_backward" in ran


def test_flops():
    """Under a mode, such as the counter, the backward makes the logits a second time: four products."""
    product = 2 * 37 * 20 * 10
    (x, w, b), target = make("short rows")
    for needs, products in (((True, True, True), 4), ((False, True, False), 3), ((False, False, False), 1)):
        leaves = [t.clone().requires_grad_(need) for t, need in zip((x, w, b), needs, strict=True)]
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            loss = linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2])
            if loss.requires_grad:
                loss.backward()
        assert counter.get_total_flops() == products * product
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:  # what runs without a mode
        torch.ops.pydl.linear_cross_entropy_forward_backward(
            x, w, target, b, None, 1, -100, 0.0, 0.0, False, False, True, True, True
        )
    assert counter.get_total_flops() == 3 * product
