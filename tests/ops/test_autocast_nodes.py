"""The quick way (pydl.ops._nodes) under autocast: the same bits, layouts and errors as the long way."""

import contextlib

import pytest
import torch
from test_nodes import CASES, PLAIN, is_torchs
from torch.utils.checkpoint import checkpoint

from pydl import functional
from pydl.ops import _nodes

pytestmark = pytest.mark.skipif(_nodes.why_not is not None, reason=f"pydl._torch is not used: {_nodes.why_not}")

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
MIXES = {
    "float32": (F32,),
    "bfloat16": (BF16,),
    "float16": (F16,),
    "float64": (F64,),
    "bfloat16 before float32": (BF16, F32, F32, F32),
    "float32 before bfloat16": (F32, BF16, BF16, BF16),
    "float64 before float32": (F64, F32, F32, F32),
    "of all": (F32, F16, BF16, F32),
}
LOWERED = [
    name
    for name in CASES
    if name.startswith(("linear", "conv2d")) or name in ("attention", "attention_of_rows", "attention_dropout")
]
# recurrent layers are torch's under autocast but for a GRU of float32; the others' results are views or made of several
TORCHS = [name for name in CASES if name.startswith(("rnn", "lstm"))]
OF_PARTS = ("attention_of_rows", "attention_masked", "gru", "gru_deep", "embedding", "embedding_padded")

CASES_HERE = {
    **CASES,
    "linear in columns": (None, lambda x, w, b: functional.linear(x.t(), w, b), [(6, 4), (3, 6), (3,)]),
    "linear by a transpose": (None, lambda x, w, b: functional.linear(x, w.t(), b), [(4, 6), (6, 3), (3,)]),
    "linear of slices": (
        None,
        lambda x, w, b: functional.linear(x[:, 1:], w[:, ::2], b[1:], activation="sigmoid"),
        [(4, 4), (3, 6), (4,)],
    ),
    "linear of one tensor": (None, lambda x: functional.linear(x, x, x[0]), [(5, 5)]),
    "conv2d channels_last": (
        None,
        lambda x, w, b: functional.conv2d(
            x.contiguous(memory_format=torch.channels_last), w, b, 1, 1, activation="relu"
        ),
        [(2, 3, 7, 6), (4, 3, 3, 3), (4,)],
    ),
    "conv1d": (None, lambda x, w, b: functional.conv1d(x, w, b, padding=1), [(2, 3, 7), (4, 3, 3), (4,)]),
    "two layers": (
        None,
        lambda x, w, b, v: functional.linear(functional.linear(x, w, b, activation="relu"), v),
        [(4, 6), (3, 6), (3,), (2, 3)],
    ),
    "adaptive pools": (
        None,
        lambda x: functional.adaptive_avg_pool2d(x, 3) + functional.adaptive_max_pool2d(x, 3),
        [(2, 3, 6, 6)],
    ),
    "a large weight": (None, lambda x, w: functional.linear(x, w), [(3, 1024), (1024, 1024)]),
}
SMALL = [name for name in CASES_HERE if name != "a large weight"]
LOWERED_HERE = [*LOWERED, *(name for name in CASES_HERE if name not in CASES and name != "adaptive pools")]


@pytest.fixture(autouse=True)
def _quick_again():
    yield
    _nodes.use(True)


def made(name, mix):
    torch.manual_seed(1)
    shapes = CASES_HERE[name][2]
    return [torch.randn(s).to(mix[i % len(mix)]).requires_grad_() for i, s in enumerate(shapes)]


def upstream_of(output):
    return torch.linspace(-1, 1, output.numel()).reshape(output.shape).to(output.dtype)


def both_ways(compute):
    """What compute() returns by C++ and by Python, or the type of what it raises."""
    found = []
    for quick in (True, False):
        _nodes.use(quick)
        torch.manual_seed(3)
        try:
            found.append(compute())
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            found.append(type(error))
    return found


def assert_same(quick, python):
    if isinstance(python, type):
        assert quick is python
        return
    assert len(quick) == len(python)
    for a, b in zip(quick, python, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
            assert torch.equal(a, b)


def assert_close(quick, python, equal):
    """As assert_same for the first ones.

    What meets in one cast is added up in bfloat16 in Python, where the cast has a node, and in float32 in C++, where
    each op has its own. None is a gradient of zero.
    """
    if isinstance(python, type):
        assert quick is python
        return
    assert_same(quick[:equal], python[:equal])
    for a, b in zip(quick[equal:], python[equal:], strict=True):
        if a is None or b is None:
            assert (a if b is None else b) is None or not (a if b is None else b).any()
            continue
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=2**-7 * b.abs().max().item())


def one_step(name, given, context):
    with context():
        output = CASES_HERE[name][1](*given)
    return output, *torch.autograd.grad(output, given, upstream_of(output))


def low(dtype=BF16, **options):
    return torch.autocast("cpu", dtype, **options)


@contextlib.contextmanager
def contexts(*managers):
    with contextlib.ExitStack() as stack:
        for manager in managers:
            stack.enter_context(manager())
        yield


REGIONS = {
    "bfloat16": low,
    "float16": lambda: low(F16),
    "off within": lambda: contexts(low, lambda: low(enabled=False)),
    "on within off": lambda: contexts(low, lambda: low(enabled=False), low),
    "float16 within bfloat16": lambda: contexts(low, lambda: low(F16)),
    "without a cache": lambda: low(cache_enabled=False),
}


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("name", CASES_HERE)
def test_both_ways_compute_the_same(name, mix, region):
    given = made(name, MIXES[mix])
    assert_same(*both_ways(lambda: one_step(name, given, REGIONS[region])))


# recurrent layers of bfloat16 are torch's under autocast
OF_OURS = [name for name in CASES if name not in (*TORCHS, *OF_PARTS)]
NODES = [
    (name, mix)
    for name in OF_OURS
    for mix in ("float32", "bfloat16")
    if (name, mix) != ("gru", "bfloat16") and not is_torchs(name, MIXES[mix][0])
]


@pytest.mark.parametrize("name, mix", NODES)
def test_a_call_has_a_node_of_ours(name, mix):
    given = made(name, MIXES[mix])
    with low():
        output = CASES[name][1](*given)
    assert output.grad_fn.name().startswith("pydl.")


@pytest.mark.parametrize("name", LOWERED_HERE)
@pytest.mark.parametrize("mix", ["float32", "bfloat16 before float32", "float32 before bfloat16"])
def test_some_of_the_gradients(name, mix):
    every = made(name, MIXES[mix])
    for wanted in range(1, 1 << len(every)):
        given = [t.detach().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(every)]
        leaves = [t for t in given if t.requires_grad]

        def step(given=given, leaves=leaves):
            with low():
                output = CASES_HERE[name][1](*given)
            return output, *torch.autograd.grad(output, leaves, upstream_of(output))

        quick, python = both_ways(step)
        assert_same(quick, python)
        assert [g.dtype for g in quick[1:]] == [t.dtype for t in leaves]


@pytest.mark.parametrize("leaf", [0, 1])
def test_less_is_asked_for_than_requires_a_gradient(leaf):
    given = made("linear", (F32,))

    def step():
        with low():
            output = functional.linear(*given)
        return torch.autograd.grad(output, given[leaf : leaf + 1], upstream_of(output))

    assert_same(*both_ways(step))


@pytest.mark.parametrize("mix", ["float32", "bfloat16 before float32", "float64"])
@pytest.mark.parametrize("name", [name for name in SMALL if "dropout" not in name])
def test_second_derivatives(name, mix):
    given = made(name, MIXES[mix])

    def step():
        with low():
            output = CASES_HERE[name][1](*given)
        upstream = upstream_of(output).requires_grad_()
        first = torch.autograd.grad(output, given, upstream, create_graph=True)
        total = sum(g.float().square().sum() for g in first)
        return *first, *torch.autograd.grad(total, (*given, upstream), allow_unused=True)

    assert_close(*both_ways(step), len(given))


def test_third_derivatives():
    given = made("linear", (F32,))

    def step():
        with low():
            x, w, b = given
            output = functional.linear(x, w, b, activation="sigmoid")
        (first,) = torch.autograd.grad(output.float().square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), w, create_graph=True)
        return torch.autograd.grad(second.square().sum(), given, allow_unused=True)

    assert_close(*both_ways(step), 0)


@pytest.mark.parametrize("name", LOWERED_HERE)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(name, mode):
    given = made(name, (F32,))

    def step():
        with mode(), low():
            return (CASES_HERE[name][1](*given),)

    quick, python = both_ways(step)
    assert_same(quick, python)
    assert quick[0].grad_fn is None
    assert quick[0].is_inference() == (mode is torch.inference_mode)


@pytest.mark.parametrize("quick", [True, False])
def test_a_parameter_may_be_written_before_the_backward(quick):
    """Its cast is what was multiplied, as with torch's; what came in the dtype of autocast is refused."""
    _nodes.use(quick)
    x, w = torch.randn(4, 6, requires_grad=True), torch.randn(3, 6, requires_grad=True)
    with low():
        output = functional.linear(x, w)
        expected = torch.autograd.grad(functional.linear(x, w).sum(), (x, w))
    with torch.no_grad():
        w.mul_(2)
        x.mul_(2)
    found = torch.autograd.grad(output.sum(), (x, w))
    assert_same(found, expected)
    y = torch.randn(3, 6).bfloat16().requires_grad_()
    with low():
        output = functional.linear(x, y)
    with torch.no_grad():
        y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("quick", [True, False])
def test_a_parameter_is_cast_anew_at_each_call(quick):
    """Torch's cache of casts would multiply by a weight's values of before it was written to."""
    _nodes.use(quick)
    x, w = torch.randn(4, 6), torch.randn(3, 6, requires_grad=True)
    with low():
        before = functional.linear(x, w)
        with torch.no_grad():
            w.mul_(2)
        assert torch.equal(functional.linear(x, w), before * 2)


@pytest.mark.parametrize("name", LOWERED_HERE)
def test_saved_tensors_are_the_same(name):
    given = made(name, (F32,))

    def step():
        packed = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.detach()) or t * 1, lambda t: t)
        with hooks:
            result = one_step(name, given, low)
        packed.sort(key=lambda t: (t.numel(), t.dtype == F32, t.sum().item()))
        return *result, *packed

    assert_same(*both_ways(step))


def test_what_is_saved_lives_no_longer_than_the_graph():
    x, w = torch.randn(4, 6), torch.randn(3, 6, requires_grad=True)
    with low():
        output = functional.linear(x, w).sum()
    output.backward(retain_graph=True)
    output.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        output.backward()


def test_checkpoints():
    given = made("two layers", (F32,))

    def step(again):
        with low():
            if again:
                output = checkpoint(CASES_HERE["two layers"][1], *given, use_reentrant=False)
            else:
                output = CASES_HERE["two layers"][1](*given)
        return torch.autograd.grad(output.sum(), given)

    assert_same(step(False), step(True))


def test_gradients_are_accumulated_in_float32():
    x, w = torch.randn(4, 6), torch.randn(3, 6, requires_grad=True)

    def step():
        w.grad = None
        with low():
            output = sum(functional.linear(x * k, w) for k in (1, 2, 3, 4))
        output.sum().backward()
        return (w.grad,)

    assert_same(*both_ways(step))


@pytest.mark.parametrize("name", LOWERED_HERE)
def test_batched_gradients(name):
    given = made(name, (F32,))

    def step(by_vmap):
        with low():
            output = CASES_HERE[name][1](*given)
        upstreams = torch.stack([upstream_of(output), upstream_of(output) * 2])
        if not by_vmap:
            return torch.autograd.grad(output, given, upstreams, is_grads_batched=True)
        return torch.func.vmap(lambda g: torch.autograd.grad(output, given, g))(upstreams)

    for by_vmap in (False, True):
        assert_same(*both_ways(lambda by_vmap=by_vmap: step(by_vmap)))


def test_gradient_hooks_see_float32():
    x, w = torch.randn(4, 6), torch.randn(3, 6, requires_grad=True)
    seen = []
    w.register_hook(lambda g: seen.append(g.dtype) or g * 2)
    with low():
        output = functional.linear(x, w)
    (found,) = torch.autograd.grad(output.sum(), w)
    with low():
        (plain,) = torch.autograd.grad(functional.linear(x, w.detach().requires_grad_()).sum(), w, allow_unused=True)
    assert plain is None
    assert seen == [F32]
    assert torch.equal(found, 2 * x.bfloat16().float().sum(0).bfloat16().float().expand(3, 6))


@pytest.mark.parametrize("upstream", [1.0, 3.0, float("inf")])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_that_a_forward_made(upstream, reduction):
    given = made("linear_cross_entropy", (F32,))
    target = torch.tensor([1, 0, 2, 1])

    def step():
        with low():
            loss, correct = functional.linear_cross_entropy(
                *given[:2], target, linear_bias=given[2], reduction=reduction, ignore_index=2, return_correct=True
            )
        again = [torch.autograd.grad(loss * upstream, given, retain_graph=True) for _ in range(2)]
        return loss, correct, *(g.nan_to_num() for grads in again for g in grads)

    assert_same(*both_ways(step))


def test_moments_that_are_not_plain():
    x, w = torch.randn(4, 6), torch.randn(3, 6)
    with low():
        assert _nodes.linear(x, w, None, None) is not NotImplemented
        assert _nodes.linear(x[:, ::2], w[:, ::2], None, None) is NotImplemented  # whose casts lie otherwise
        with torch.autograd.forward_ad.dual_level():
            assert _nodes.linear(x, w, None, None) is NotImplemented
        with torch.inference_mode():
            assert _nodes.linear(x, w, None, None) is not NotImplemented
        asked = []
        torch.func.vmap(lambda t: asked.append(_nodes.linear(t, w, None, None)) or t)(x[None])
        assert asked == [NotImplemented]
        h = torch.randn(1, 2, 4)
        weights = [torch.randn(4, 5), torch.randn(4, 4)]
        asked = torch.randn(3, 2, 5), h, weights, *PLAIN
        assert _nodes.recurrent_stack(*asked, "rnn_tanh") is NotImplemented  # torch's
    before = torch.get_autocast_dtype("cpu")
    torch.set_autocast_dtype("cpu", F64)
    torch.set_autocast_enabled("cpu", True)
    try:
        assert _nodes.linear(x, w, None, None) is NotImplemented
    finally:
        torch.set_autocast_enabled("cpu", False)
        torch.set_autocast_dtype("cpu", before)


def test_a_tangent_is_refused():
    x = torch.randn(4, 6, requires_grad=True)
    with low():
        output = functional.linear(x, torch.randn(3, 6))
    with torch.autograd.forward_ad.dual_level():
        grad = torch.autograd.forward_ad.make_dual(torch.ones_like(output), torch.ones_like(output))
        with pytest.raises(NotImplementedError, match="linear: expected gradients in reverse mode"):
            torch.autograd.grad(output, x, grad)
