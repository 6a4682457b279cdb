"""scaled_dot_product_attention beside torch: what is torch's to serve, what is refused, and torch's own machinery."""

import pytest
import torch
import torch.nn.functional as F
import torch.utils.flop_counter
from test_attention import formula, make
from test_other_tensors import Listener, Typed
from testing import assert_close
from torch.func import grad, vmap
from torch.utils.checkpoint import checkpoint

import pydl
from pydl import backend
from pydl.functional import scaled_dot_product_attention as attention
from pydl.ops._attention_schema import CONTIGUOUS, FLASH, TRANSPOSED_KEY

Q, K, V = make(2, 3, 5, 7, 8)
T = F.scaled_dot_product_attention


def outcome(call, function):
    try:
        torch.manual_seed(0)
        return call(function)
    except Exception as error:
        return type(error)


TORCHS = {
    "five dimensions": lambda f: f(Q[None], K[None], V[None]),
    "samples that broadcast": lambda f: f(Q, K[:1], V[:1]),
    "heads that broadcast": lambda f: f(Q, K[:, :1], V[:, :1]),
    "a wide head": lambda f: f(*make(1, 1, 3, 4, 300)[:2], torch.ones(1, 1, 4, 5)),
    "a mask and causal": lambda f: f(Q, K, V, torch.ones(5, 7), is_causal=True),
    "a mask of another size": lambda f: f(Q, K, V, torch.ones(5, 6)),
    "a mask of integers": lambda f: f(Q, K, V, torch.ones(5, 7).int()),
    "a mask of another dtype": lambda f: f(Q, K, V, torch.ones(5, 7).double()),
    "widths": lambda f: f(Q, K[..., :5], V),
    "dtypes": lambda f: f(Q, K.double(), V),
    "integers": lambda f: f(Q.int(), K.int(), V.int()),
    "one dimension": lambda f: f(Q[0, 0, 0], K[0, 0, 0], V[0, 0, 0]),
    "probability": lambda f: f(Q, K, V, dropout_p=1.5),
    "heads that do not divide": lambda f: f(Q, K[:, :2], V[:, :2], enable_gqa=True),
    "on the meta device": lambda f: f(Q.to("meta"), K.to("meta"), V.to("meta")),
    "a list": lambda f: f([1.0], K, V),
}


@pytest.mark.parametrize("case", TORCHS)
def test_torchs_to_serve(case):
    actual, expected = (outcome(TORCHS[case], f) for f in (attention, T))
    if isinstance(expected, type):
        assert actual is expected
        return
    assert (actual.stride(), actual.dtype, actual.device) == (expected.stride(), expected.dtype, expected.device)
    assert actual.is_meta or torch.equal(actual, expected)


LENGTHS_REFUSED = {
    "dtype": (torch.tensor([1.0, 2.0]), "expected lengths to be int64, got torch.float32"),
    "shape": (torch.tensor([1, 2, 3]), "expected lengths to be of the shape of query's first dimension"),
    "rows": (torch.ones(2, 4).long(), "expected lengths to be of the shape of query's first dimension"),
}


@pytest.mark.parametrize("case", LENGTHS_REFUSED)
def test_lengths_refused(case):
    lengths, message = LENGTHS_REFUSED[case]
    with pytest.raises(RuntimeError, match=f"scaled_dot_product_attention: {message}"):
        attention(Q, K, V, lengths=lengths)


OP_REFUSED = {
    "ranks": (lambda q, k, v: (q[0], k[0], v[0]), {}, "query, key and value to be 4-D"),
    "dtypes": (lambda q, k, v: (q, k.double(), v), {}, "key to be of the dtype of query, got float64 and float32"),
    "heads": (lambda q, k, v: (q, k[:, :2], v[:, :2]), {}, "query, key and value to be .N, H, L, E."),
    "a mask's size": (lambda *t: t, {"mask": torch.ones(2, 3, 5, 6)}, "attn_mask to broadcast to .2, 3, 5, 7., got"),
    "a mask's dtype": (lambda *t: t, {"mask": torch.ones(1, 1, 5, 7).int()}, "attn_mask to be bool, float32 or of"),
    "lengths": (lambda *t: t, {"lengths": torch.ones(3).long()}, "lengths to be of shape .2. or .2, 5., got .3."),
    "a seed": (lambda *t: t, {"seed": torch.ones(2)}, "seed to be an int64 tensor of one element, got float32"),
}


def test_a_boolean_mask_has_no_gradient():
    output, lse = op(Q, K, V, mask := torch.ones(1, 1, 5, 7).bool())
    with pytest.raises(RuntimeError, match="scaled_dot_product_attention: expected attn_mask to be additive"):
        torch.ops.pydl.attention_backward_mask(output, Q, K, V, output, lse, mask, None, None, 0.0, False, 0.4)


def op(query, key, value, mask=None, lengths=None, seed=None, p=0.0, causal=False, scale=0.4, layout=CONTIGUOUS):
    return torch.ops.pydl.attention_forward(query, key, value, mask, lengths, seed, p, causal, scale, layout)


@pytest.mark.parametrize("case", OP_REFUSED)
def test_what_the_op_refuses(case):
    change, options, message = OP_REFUSED[case]
    with pytest.raises(RuntimeError, match=f"scaled_dot_product_attention: expected {message}"):
        op(*change(Q, K, V), **options)


@pytest.mark.parametrize("dims", [2, 3])
def test_fewer_dimensions(dims):
    for options in ({}, {"is_causal": True}, {"attn_mask": torch.randn(5, 7)}, {"attn_mask": torch.rand(1, 7) > 0.3}):
        results = []
        for function in (attention, T):
            leaves = [(t[0] if dims == 3 else t[0, 0]).detach().requires_grad_() for t in (Q, K, V)]
            output = function(*leaves, **options)
            results.append((output, *torch.autograd.grad(output.sin().sum(), leaves)))
        assert results[0][0].stride() == results[1][0].stride()
        for a, e in zip(*results, strict=True):
            assert_close(a, e, scale=10)
    mask = torch.rand(3, 5, 7) > 0.3
    assert_close(attention(Q[0], K[0], V[0], mask), T(Q[0], K[0], V[0], mask), scale=10)


PROJECTED = torch.randn(2, 5, 72)
STRIDES = {
    "contiguous": (Q, K, V),
    "cut from a projection": [t.view(2, 5, 3, 8).transpose(1, 2) for t in PROJECTED.chunk(3, -1)],
    "a value of another width": (Q, K, V[..., :5]),
    "one row": (Q[:, :, :1], K, V),
    "a cache": (Q[:, :, :1], K.transpose(1, 2).contiguous().transpose(1, 2), V),
}


@pytest.mark.parametrize("case", STRIDES)
def test_strides_are_torchs(case):
    """Of the output and of all gradients."""
    masks = [None, torch.randn(1, STRIDES[case][1].shape[2]), torch.ones(1, 1, 1, STRIDES[case][1].shape[2]).bool()]
    for mask in masks:
        for p in (0.0, 0.5):
            found = []
            for function in (attention, T):
                leaves = [t.detach().requires_grad_() for t in STRIDES[case]]
                output = function(*leaves, mask, p)
                grads = torch.autograd.grad(output, leaves, torch.ones(output.shape))
                found.append([t.stride() for t in (output, *grads)])
            assert found[0] == found[1]


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_heads_of_a_projection_come_back_side_by_side_where_there_are_lengths(p):
    """So that no view of them is a copy: torch has no lengths, whose layout it would be."""
    leaves = [t.detach().requires_grad_() for t in STRIDES["cut from a projection"]]
    output = attention(*leaves, dropout_p=p, lengths=torch.tensor([5, 2]))
    grads = torch.autograd.grad(output, leaves, torch.ones(2, 5, 3, 8).transpose(1, 2))
    assert all(t.transpose(1, 2).is_contiguous() for t in (output, *grads))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_torchs_own_samples(dtype):
    """OpInfo's: without dropout their values, and with it their shapes; strides of all."""
    reason = "torch's OpInfo database needs its test packages"
    op_db = pytest.importorskip("torch.testing._internal.common_methods_invocations", reason=reason).op_db
    (info,) = (o for o in op_db if o.name == "nn.functional.scaled_dot_product_attention")
    count = 0
    for sample in info.sample_inputs("cpu", dtype, requires_grad=True):
        results = []
        for function in (attention, T):
            leaves = [t.detach().requires_grad_() for t in (sample.input, *sample.args[:2])]
            output = function(*leaves, *sample.args[2:], **sample.kwargs)
            results.append((output, *torch.autograd.grad(output.sum(), leaves)))
        for a, e in zip(*results, strict=True):
            assert (a.shape, a.stride()) == (e.shape, e.stride()), sample
            if not sample.kwargs.get("dropout_p"):
                assert_close(a, e, scale=20)
        count += 1
    assert count > 5


# ---- autograd, transforms, compilation

MASKS = {
    "plain": {},
    "causal": {"is_causal": True},
    "lengths": {"lengths": torch.tensor([3, 0])},
    "boolean": {"attn_mask": torch.arange(35).view(5, 7) % 3 > 0},
    "additive": {"attn_mask": torch.linspace(-1, 1, 35).view(5, 7).double()},
}


@pytest.mark.parametrize("case", MASKS)
def test_gradcheck(case):
    leaves = [t.double().requires_grad_() for t in make(2, 2, 5, 7, 3)]
    assert torch.autograd.gradcheck(lambda *t: attention(*t, **MASKS[case]), leaves)
    assert torch.autograd.gradgradcheck(lambda *t: attention(*t, **MASKS[case]), leaves)


def test_gradcheck_of_shared_keys_and_dropout():
    leaves = [t.double().requires_grad_() for t in make(1, 4, 3, 4, 2, 3, key_heads=2)]

    def call(*tensors):
        torch.manual_seed(0)
        return attention(*tensors, dropout_p=0.4, enable_gqa=True)

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


def test_a_gradient_of_one_alone():
    for i in range(3):
        leaves = [t.detach().requires_grad_(j == i) for j, t in enumerate((Q, K, V))]
        exact = [t.detach().double().requires_grad_(j == i) for j, t in enumerate((Q, K, V))]
        attention(*leaves).sin().sum().backward()
        formula(*exact).sin().sum().backward()
        assert_close(leaves[i].grad, exact[i].grad, scale=10)
        assert all(t.grad is None for j, t in enumerate(leaves) if j != i)


LEARNT = [(5, 7), (2, 3, 5, 7), (2, 1, 1, 7), (3, 5, 1)]


@pytest.mark.parametrize("shape", LEARNT, ids=str)
def test_a_mask_that_learns(shape):
    """Values and strides beside torch; ours alone runs, whoever else learns."""
    masks = torch.randn(shape), torch.randn(shape[::-1]).permute(*range(len(shape))[::-1])
    for mask, others, p in (
        (masks[0], True, 0.0),
        (masks[1], True, 0.0),
        (masks[0], False, 0.0),
        (masks[0], True, 0.5),
    ):
        found = []
        for function in (attention, T):
            leaves = [t.detach().requires_grad_(others) for t in (Q, K, V)] + [mask.detach().requires_grad_()]
            with torch.autograd.profiler.profile() as profiler:
                output = function(*leaves, p)
                of = leaves if others else leaves[3:]
                grads = torch.autograd.grad(output.sum(), of)
            names = {event.key for event in profiler.key_averages()}
            assert ("pydl::attention_backward_mask" in names) == (function is attention)
            assert ("pydl::attention_backward" in names) == (function is attention and others)
            found.append((output, *grads))
        for a, e in zip(*found, strict=True):
            assert (a.shape, a.stride()) == (e.shape, e.stride())
            if p == 0:
                assert_close(a, e, scale=20)
    with torch.no_grad():
        mask = masks[0].requires_grad_()
        assert attention(Q, K, V, mask).stride() == T(Q, K, V, mask).stride()


@pytest.mark.parametrize("shape", LEARNT, ids=str)
def test_gradcheck_of_a_mask(shape):
    leaves = [t.double().requires_grad_() for t in (*make(2, 3, 5, 7, 3), torch.randn(shape))]
    assert torch.autograd.gradcheck(attention, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(attention, leaves, fast_mode=True)


def test_opcheck():
    seed = torch.tensor([7])
    leaves = [t.detach().requires_grad_() for t in (Q, K, V)]
    options = [
        (None, None, None, 0.0, False, 0.4, FLASH),
        (torch.ones(1, 3, 5, 1).bool(), torch.tensor([2, 7]), seed, 0.3, True, 0.4, TRANSPOSED_KEY),
        (None, None, None, 0.0, False, 0.4, CONTIGUOUS),
    ]
    for rest, needs in zip(options, ((True, True, True), (False, True, False), (True, False, True)), strict=True):
        torch.library.opcheck(torch.ops.pydl.attention_forward, (*leaves, *rest))
        output, lse = torch.ops.pydl.attention_forward(*(t.detach() for t in leaves), *rest)
        args = (torch.randn(output.shape, requires_grad=True), *leaves, output, lse, *rest)
        torch.library.opcheck(torch.ops.pydl.attention_backward, (*args, *needs))
    mask = torch.randn(1, 3, 5, 1, requires_grad=True)
    output, lse = torch.ops.pydl.attention_forward(*(t.detach() for t in leaves), mask.detach(), *options[0][1:])
    args = torch.randn(output.shape, requires_grad=True), *leaves, output, lse, mask, None, seed, 0.3, False, 0.4
    torch.library.opcheck(torch.ops.pydl.attention_backward_mask, args)


@pytest.mark.parametrize("by, dynamic", [("inductor", True), ("aot_eager", False)])
def test_compile(by, dynamic):
    def step(q, k, v, mask):
        return attention(q, k, v, is_causal=True) * 2 + attention(q, k, v, mask)

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=by)
    for rows in (4, 6) if dynamic else (4,):
        tensors = *make(2, 3, rows, 7, 8), torch.randn(3, 1, 7)
        found = []
        for function in (step, compiled):
            leaves = [t.clone().requires_grad_() for t in tensors]
            y = function(*leaves)
            found.append((y, *torch.autograd.grad(y.sin().sum(), leaves)))
        for a, e in zip(*found, strict=True):
            torch.testing.assert_close(a, e)
            assert a.stride() == e.stride()


def test_compiled_dropout_has_one_mask_in_both_passes():
    """With values of one the output is the sum of the weights that were kept, and so is the gradient of a value."""
    compiled = torch.compile(lambda v: attention(Q[:, :, :1], K, v, dropout_p=0.5), fullgraph=True, backend="aot_eager")
    value = torch.ones(2, 3, 7, 1, requires_grad=True)
    output = compiled(value)
    (gradient,) = torch.autograd.grad(output.sum(), value)
    assert_close(gradient.sum(2, keepdim=True), output, scale=10)
    assert not torch.equal(compiled(value), output)


def test_vmap_and_grad():
    stacks = [torch.stack([t, t * 0.5]).double() for t in (Q, K, V)]
    assert_close(vmap(attention)(*stacks), torch.stack([T(*t) for t in zip(*stacks, strict=True)]), scale=10)
    mixed = vmap(lambda q, k, v: attention(q, k, v, is_causal=True), in_dims=(0, None, 0))
    assert_close(mixed(stacks[0], stacks[1][0], stacks[2]), torch.stack([T(q, stacks[1][0], v, is_causal=True)
                 for q, v in zip(stacks[0], stacks[2], strict=True)]), scale=10)  # fmt: skip
    masks = torch.rand(2, 5, 7) > 0.3
    key, value = stacks[1][0], stacks[2][0]
    masked = vmap(lambda q, m: attention(q, key, value, m))(stacks[0], masks)
    assert_close(masked, torch.stack([T(q, key, value, m) for q, m in zip(stacks[0], masks, strict=True)]))
    twice = torch.stack([stacks[0][0]] * 2)
    dropped = vmap(lambda q: attention(q, key, value, dropout_p=0.5), randomness="same")(twice)
    assert torch.equal(dropped[0], dropped[1])
    per_sample = vmap(grad(lambda q, k, v: attention(q, k, v).sin().sum(), argnums=(0, 1, 2)))(*stacks)
    expected = vmap(grad(lambda q, k, v: formula(q, k, v).sin().sum(), argnums=(0, 1, 2)))(*stacks)
    for a, e in zip(per_sample, expected, strict=True):
        assert_close(a, e, scale=10)
    biases = torch.randn(2, 5, 7).double()
    of_masks = vmap(grad(lambda m: attention(stacks[0][0], key, value, m).sin().sum()))(biases)
    assert_close(of_masks, vmap(grad(lambda m: formula(stacks[0][0], key, value, m).sin().sum()))(biases), scale=10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_torchs(dtype):
    for t in (Q, Q.double(), Q.to(dtype)):
        tensors = [t, K.to(t.dtype), V.to(t.dtype)]
        for mask in (None, torch.randn(5, 7), torch.ones(5, 7).bool()):
            with torch.autocast("cpu", dtype):
                expected, actual = (outcome(lambda f, m=mask, t=tensors: f(*t, m), f) for f in (T, attention))
            if isinstance(expected, type):
                assert actual is expected
                continue
            assert actual.dtype == expected.dtype
            torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


def test_checkpoint_draws_the_same_mask():
    results = []
    for wrap in (lambda f, *t: f(*t), lambda f, *t: checkpoint(f, *t, use_reentrant=False)):
        torch.manual_seed(1)
        leaves = [t.detach().requires_grad_() for t in (Q, K, V)]
        output = wrap(lambda *t: attention(*t, dropout_p=0.3), *leaves)
        results.append((output, *torch.autograd.grad(output.sin().sum(), leaves)))
    assert all(map(torch.equal, *results))


def test_flops_are_torchs():
    counts = []
    for function in (attention, T):
        leaves = [t.detach().requires_grad_() for t in make(2, 3, 8, 8, 16)]
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            function(*leaves).sum().backward()
        counts.append(counter.get_total_flops())
    forward = 2 * 2 * 3 * 8 * 8 * (16 + 16)
    assert counts[0] == forward + 2 * 2 * 3 * 8 * 8 * (3 * 16 + 2 * 16)
    assert counts[0] == counts[1] or counts[1] == 0  # torch has no formula for its own op on the CPU


def test_other_tensors_see_torchs_function():
    with Listener() as listener:
        attention(Q, K, V)
    assert T in listener.calls
    Typed.calls.clear()
    assert isinstance(attention(Q.as_subclass(Typed), K, V), Typed)
    assert T in Typed.calls


def test_swapped():
    with pydl.swapped(), torch.autograd.profiler.profile() as profiler:
        output = T(Q, K, V, is_causal=True, scale=0.3)
    assert any(event.key == "pydl::attention_forward" for event in profiler.key_averages())
    assert_close(output, T(Q, K, V, is_causal=True, scale=0.3), scale=10)


def test_lengths_by_torch():
    for lengths in (torch.tensor([3, 0]), torch.arange(10).view(2, 5)):
        for options in (
            {},
            {"is_causal": True},
            {"attn_mask": torch.randn(5, 7)},
            {"attn_mask": torch.rand(5, 7) > 0.5},
        ):
            with backend.use("torch"):
                expected = attention(Q, K, V, lengths=lengths, **options)
            assert_close(attention(Q, K, V, lengths=lengths, **options), expected, scale=10)
    with backend.use("torch"):
        expected = attention(Q[0], K[0], V[0], lengths=torch.tensor([3, 0, 7]))
    assert_close(attention(Q[0], K[0], V[0], lengths=torch.tensor([3, 0, 7])), expected, scale=10)


def test_who_takes_flash_attention_away_gets_torchs():
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        with torch.autograd.profiler.profile() as profiler:
            output = attention(Q, K, V)
        expected = T(Q, K, V)
    assert not any(event.key.startswith("pydl::") for event in profiler.key_averages())
    assert torch.equal(output, expected)
