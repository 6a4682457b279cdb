"""The quick way of a call (pydl.ops._nodes): the same numbers as the long way, and no call that is not plain."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from grid import CALLS
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import pydl
from pydl import functional
from pydl.ops import _nodes

pytestmark = pytest.mark.skipif(_nodes.why_not is not None, reason=f"pydl._torch is not used: {_nodes.why_not}")

PLAIN = (False, 1, 0.0, True, False, False)  # has_biases, num_layers, dropout, train, bidirectional, batch_first
TARGET = torch.tensor([1, 0, 2, 1])
WEIGHTS = [torch.randn(5, 6), torch.randn(5, 5)]
# name -> (arguments of _nodes' function behind the tensors, the same call of pydl.functional, shapes of the tensors)
CASES = {
    "linear": ((None,), lambda x, w, b: functional.linear(x, w, b), [(4, 6), (3, 6), (3,)]),
    "linear_relu": (("relu",), lambda x, w, b: functional.linear(x, w, b, activation="relu"), [(4, 6), (3, 6), (3,)]),
    "linear_rows": ((None,), lambda x, w, b: functional.linear(x, w, b), [(2, 4, 6), (3, 6), (3,)]),
    "linear_steps": ((None,), lambda x, w, b: functional.linear(x.transpose(0, 1), w, b), [(2, 4, 6), (3, 6), (3,)]),
    "conv2d": (
        ((2, 1), 1, 1, 1, None),
        lambda x, w, b: functional.conv2d(x, w, b, (2, 1), 1),
        [(2, 3, 7, 6), (4, 3, 3, 3), (4,)],
    ),
    "conv2d_sigmoid": (
        (1, (0, 1), 1, 3, "sigmoid"),
        lambda x, w, b: functional.conv2d(x, w, b, 1, (0, 1), 1, 3, activation="sigmoid"),
        [(2, 3, 7, 6), (6, 1, 3, 2), (6,)],
    ),
    "conv_transpose2d": (
        ((2, 1), (1, 0), (1, 0), 1, (1, 2), None),
        lambda x, w, b: functional.conv_transpose2d(x, w, b, (2, 1), (1, 0), (1, 0), 1, (1, 2)),
        [(2, 3, 7, 6), (3, 4, 3, 3), (4,)],
    ),
    "conv_transpose2d_relu": (
        (2, 1, 0, 3, 1, "relu"),
        lambda x, w, b: functional.conv_transpose2d(x, w, b, 2, 1, groups=3, activation="relu"),
        [(2, 3, 5, 6), (3, 2, 4, 4), (6,)],
    ),
    "conv3d": (
        (),
        lambda x, w, b: functional.conv3d(x, w, b, (1, 2, 1), (1, 0, 1), (2, 1, 1)),
        [(2, 3, 5, 5, 4), (6, 3, 2, 3, 2), (6,)],
    ),
    "conv3d in groups": ((), lambda x, w: functional.conv3d(x, w, groups=2), [(2, 4, 3, 4, 4), (4, 2, 2, 2, 2)]),
    "max_pool3d": ((), lambda x: functional.max_pool3d(x, (2, 3, 2), 2, 1), [(2, 3, 4, 5, 6)]),
    "avg_pool3d": (
        (),
        lambda x: functional.avg_pool3d(x, (2, 3, 2), None, (0, 1, 1), True, False),
        [(2, 3, 4, 5, 6)],
    ),
    "avg_pool3d of channels_last": (
        (),
        lambda x: functional.avg_pool3d(x.contiguous(memory_format=torch.channels_last_3d), 2, divisor_override=3),
        [(2, 3, 4, 5, 6)],
    ),
    "adaptive_avg_pool3d": ((), lambda x: functional.adaptive_avg_pool3d(x, (2, 1, 3)), [(2, 3, 4, 5, 6)]),
    "adaptive_max_pool3d": ((), lambda x: functional.adaptive_max_pool3d(x, (2, 1, 3)), [(2, 3, 4, 5, 6)]),
    "max_pool2d": ((2, None, 0, 1, False), lambda x: functional.max_pool2d(x, 2), [(2, 3, 6, 7)]),
    "avg_pool2d": (
        ((2, 3), 2, 1, False, True, 5),
        lambda x: functional.avg_pool2d(x, (2, 3), 2, 1, divisor_override=5),
        [(2, 3, 6, 7)],
    ),
    **{
        name: (None, lambda x, call=call: call(functional, x), [(4, 5)])
        for name, call in CALLS.items()
        if name in _nodes.CALLS
    },
    "softmax of columns": (None, lambda x: functional.softmax(x, 1), [(4, 5, 3)]),
    "log_softmax of columns": (None, lambda x: functional.log_softmax(x, -3), [(4, 5, 3)]),
    "layer_norm": (None, lambda x, w, b: functional.layer_norm(x, (3, 5), w, b), [(4, 3, 5), (3, 5), (3, 5)]),
    "rms_norm": (None, lambda x, w: functional.rms_norm(x, (3, 5), w), [(4, 3, 5), (3, 5)]),
    "embedding": (None, lambda w: functional.embedding(TARGET, w), [(5, 6)]),
    "embedding_padded": (None, lambda w: functional.embedding(TARGET, w, -4, None, 2.0, True), [(5, 6)]),
    "group_norm": (None, lambda x, w, b: functional.group_norm(x, 3, w, b), [(2, 6, 5), (6,), (6,)]),
    "group_norm of pixels": (None, lambda x: functional.group_norm(x, 1), [(2, 6, 3, 5)]),
    "rms_norm_eps": (None, lambda x: functional.rms_norm(x, (5,), eps=0.1), [(1, 5)]),
    "attention": (
        None,
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True),
        [(2, 3, 4, 5), (2, 3, 4, 5), (2, 3, 4, 5)],
    ),
    "attention_of_rows": (
        None,
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, scale=0.3),
        [(2, 4, 5), (2, 3, 5), (2, 3, 6)],
    ),
    "attention_masked": (
        None,
        lambda q, k, v: functional.scaled_dot_product_attention(
            q, k, v, torch.ones(4, 3, dtype=torch.bool), lengths=torch.tensor([2, 3])
        ),
        [(2, 4, 5), (2, 3, 5), (2, 3, 5)],
    ),
    "attention_dropout": (
        None,
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, dropout_p=0.3),
        [(2, 3, 4, 5), (2, 3, 4, 5), (2, 3, 4, 5)],
    ),
    "batch_norm": (
        None,
        lambda x, w, b: functional.batch_norm(x, torch.zeros(3).to(x), torch.ones(3).to(x), w, b, True),
        [(4, 3, 5), (3,), (3,)],
    ),
    "batch_norm_residual": (
        None,
        lambda x, w, b, r: functional.batch_norm(
            x, torch.zeros(3).to(x), torch.ones(3).to(x), w, b, False, residual=r, activation="relu"
        ),
        [(4, 3, 5), (3,), (3,), (4, 3, 5)],
    ),
    "cross_entropy": (
        (TARGET, -100, "mean", 0.0, 0.0),
        lambda x: functional.cross_entropy(x, TARGET),
        [(4, 5)],
    ),
    "cross_entropy_rows": (
        (TARGET, 2, "none", 0.1, 0.01),
        lambda x: functional.cross_entropy(
            x, TARGET, ignore_index=2, reduction="none", label_smoothing=0.1, z_loss=0.01
        ),
        [(4, 5)],
    ),
    "gru": (None, lambda x, h, *w: functional.gru(x, h, w, *PLAIN)[0], [(3, 2, 5), (1, 2, 4), (12, 5), (12, 4)]),
    "rnn_relu": (
        None,
        lambda x, h, *w: functional.rnn_relu(x, h, list(w), True, *PLAIN[1:])[0],
        [(3, 2, 5), (1, 2, 4), (4, 5), (4, 4), (4,), (4,)],
    ),
    "lstm": (
        None,
        lambda x, h, c, *w: torch.cat(functional.lstm(x, (h, c), w, *PLAIN)),
        [(3, 2, 5), (1, 2, 4), (1, 2, 4), (16, 5), (16, 4)],
    ),
    "lstm_packed": (
        None,
        lambda x, h, c, *w: functional.lstm(x, torch.tensor([2, 2, 1]), (h, c), w, *PLAIN[:-1])[0],
        [(5, 5), (1, 2, 4), (1, 2, 4), (16, 5), (16, 4)],
    ),
    "gru_deep": (
        None,
        lambda x, h, *w: torch.cat([y.flatten() for y in functional.gru(x, h, w, False, 2, 0.0, True, True, True)]),
        [(2, 3, 5), (4, 2, 4), (12, 5), (12, 4), (12, 5), (12, 4), (12, 8), (12, 4), (12, 8), (12, 4)],
    ),
    "rnn_tanh_cell": (
        None,
        lambda x, h, *w: functional.rnn_tanh_cell(x, h, *w),
        [(2, 5), (2, 4), (4, 5), (4, 4), (4,), (4,)],
    ),
    "lstm_cell": (
        None,
        lambda x, h, c, *w: functional.lstm_cell(x, (h, c), *w)[1],
        [(2, 5), (2, 4), (2, 4), (16, 5), (16, 4)],
    ),
    "linear_cross_entropy": (
        None,
        lambda x, w, b: functional.linear_cross_entropy(x, w, TARGET, linear_bias=b),
        [(4, 5), (3, 5), (3,)],
    ),
    "linear_cross_entropy_rows": (
        None,
        lambda x, w: functional.linear_cross_entropy(
            x, w, TARGET, reduction="none", ignore_index=2, label_smoothing=0.1, z_loss=0.01, return_correct=True
        )[0],
        [(4, 5), (3, 5)],
    ),
    "dropout": ((0.4, True), lambda x: functional.dropout(x, 0.4), [(4, 5)]),
}


def tensors(name, dtype=torch.float32):
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in CASES[name][2]]


@pytest.fixture(autouse=True)
def _quick_again():
    yield
    _nodes.use(True)


def is_torchs(name, dtype):
    """Means of volumes of 16 bits."""
    return name.startswith(("avg_pool3d", "adaptive_avg_pool3d")) and dtype.itemsize == 2


def results(name, given, quick, want=slice(None)):
    """The output of the case's function, and gradients of `given[want]` for an upstream gradient that is not 1."""
    _nodes.use(quick)
    torch.manual_seed(3)
    output = CASES[name][1](*given)
    upstream = torch.linspace(-1, 1, output.numel()).reshape(output.shape).to(output.dtype)
    return output, *torch.autograd.grad(output, given[want], upstream)


DTYPES = torch.float32, torch.float64, torch.bfloat16, torch.float16


@pytest.mark.parametrize("name, dtype", [(n, dtype) for n in CASES for dtype in DTYPES if not is_torchs(n, dtype)])
def test_both_ways_compute_the_same(name, dtype):
    given = tensors(name, dtype)
    quick, python = results(name, given, True), results(name, given, False)
    of_parts = "attention_of_rows", "attention_masked", "lstm", "gru_deep"  # views of an op's results, or of several
    if name not in of_parts:
        assert type(quick[0].grad_fn).__name__ == "CppFunction"
        assert type(python[0].grad_fn).__name__ != "CppFunction"
    for a, b in zip(quick, python, strict=True):
        assert torch.equal(a, b)
        assert (a.dtype, a.stride()) == (b.dtype, b.stride())


@pytest.mark.parametrize("name", CASES)
def test_each_gradient_by_itself(name):
    given = tensors(name)
    every = results(name, given, True)[1:]
    for i, expected in enumerate(every):
        assert torch.equal(results(name, given, True, slice(i, i + 1))[1], expected)
        alone = [t.detach().requires_grad_(j == i) for j, t in enumerate(given)]
        assert torch.equal(results(name, alone, True, slice(i, i + 1))[1], expected)


def test_gradients_of_states_alone():
    x, h, c, *w = tensors("lstm")
    found = []
    for quick in (True, False):
        _nodes.use(quick)
        for i in (1, 2):
            states = functional.lstm(x, (h, c), w, *PLAIN)
            found.append(torch.autograd.grad(states[i].sum(), (x, h, c, *w)))
    for quick, python in zip(found[:2], found[2:], strict=True):
        assert all(map(torch.equal, quick, python))


@pytest.mark.parametrize("quick", [True, False])
def test_an_output_that_was_written_to_is_made_again(quick):
    _nodes.use(quick)
    x, h, *w = tensors("gru")
    bias = torch.zeros(12)
    expected = torch.autograd.grad(functional.gru(x, h, [*w, bias, bias], True, *PLAIN[1:])[0].sum(), (x, *w))
    output = functional.gru(x, h, [*w, bias, bias], True, *PLAIN[1:])[0]
    output += 1
    for a, b in zip(torch.autograd.grad(output.sum(), (x, *w), retain_graph=True), expected, strict=True):
        assert torch.equal(a, b)
    bias += 1
    with pytest.raises(RuntimeError, match=r"gru: .* got one of shape \(12,\) at version 1 instead of 0"):
        output.sum().backward()


@pytest.mark.parametrize("scale", [1.0, 3.0, float("inf")])
def test_gradients_that_a_forward_made(scale):
    given = tensors("linear_cross_entropy", torch.bfloat16)
    found = []
    for quick in (True, False):
        _nodes.use(quick)
        loss, correct = functional.linear_cross_entropy(
            *given[:2], TARGET, linear_bias=given[2], ignore_index=2, return_correct=True
        )
        assert not correct.requires_grad
        again = [torch.autograd.grad(loss * scale, given, retain_graph=True) for _ in range(2)]
        found.append([loss, correct, *again[0], *again[1]])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("name", [name for name in CASES if "dropout" not in name])
def test_second_derivatives(name):
    given = tensors(name, torch.float64)
    assert torch.autograd.gradgradcheck(CASES[name][1], given, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_without_gradients_there_is_no_node(name):
    given = tensors(name)
    with torch.no_grad():
        assert not CASES[name][1](*given).requires_grad
    output = CASES[name][1](*(t.detach() for t in given))
    assert output.grad_fn is None


def test_inference_mode_is_plain():
    x, w = torch.randn(4, 6), torch.randn(3, 6, requires_grad=True)
    with torch.inference_mode():
        made = _nodes.linear(x, w, None, None)
        assert made.is_inference()
        assert not made.requires_grad
        assert torch.equal(_nodes.linear(made, torch.ones(2, 3), None, None), F.linear(made, torch.ones(2, 3)))
        layer = pydl.nn.BatchNorm1d(6)
        layer(x)  # statistics that are inference tensors count no versions
        assert int(layer.num_batches_tracked) == 1
    assert torch.equal(made, functional.linear(x, w))
    assert not _nodes.linear(made, torch.ones(2, 3), None, None).requires_grad
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        functional.linear(made, torch.ones(2, 3, requires_grad=True))


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_that_never_came_goes_no_further(name):
    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    given = tensors(name)
    found = torch.autograd.grad(Nothing.apply(CASES[name][1](*given)).sum(), given, allow_unused=True)
    assert found == (None,) * len(given)


def test_a_graph_is_kept_or_freed():
    x = torch.randn(4, 6, requires_grad=True)
    output = functional.linear(x, torch.randn(3, 6, requires_grad=True)).sum()
    output.backward(retain_graph=True)
    output.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        output.backward()


class _Subclass(torch.Tensor):
    pass


class _Functions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


UNUSUAL_MOMENTS = {
    "a function mode": _Functions,
    "a dispatch mode": _Dispatch,
    "forward-mode differentiation": forward_ad.dual_level,
    "torch's backend": lambda: pydl.backend.use("torch"),
}
UNUSUAL_TENSORS = {
    "a subclass": lambda t: t.as_subclass(_Subclass),
    "on the meta device": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "of oneDNN's layout": lambda t: t.to_mkldnn(),
    "complex": lambda t: t.to(torch.complex64),
    "integers": lambda t: t.to(torch.int32),
    "conjugated": lambda t: t.to(torch.complex64).conj(),
    "no tensor": lambda t: t.tolist(),
}


def linear(x):
    return _nodes.linear(x, torch.ones(3, 6), None, None)


@pytest.mark.parametrize("moment", UNUSUAL_MOMENTS)
def test_moments_that_are_not_plain(moment):
    x = torch.randn(4, 6)
    assert linear(x) is not NotImplemented
    with UNUSUAL_MOMENTS[moment]():
        assert linear(x) is NotImplemented
    assert linear(x) is not NotImplemented


@pytest.mark.parametrize("kind", UNUSUAL_TENSORS)
def test_tensors_that_are_not_plain(kind):
    x = UNUSUAL_TENSORS[kind](torch.randn(4, 6))
    assert linear(x) is NotImplemented
    assert _nodes.linear(torch.randn(4, 6), x, None, None) is NotImplemented  # as the weight


@pytest.mark.parametrize("transform", ["vmap", "grad"])
def test_transforms_are_not_plain(transform):
    asked = []

    def function(x):
        asked.append(linear(x))
        return x.sum()

    getattr(torch.func, transform)(function)(torch.randn(2, 4, 6) if transform == "vmap" else torch.randn(4, 6))
    assert asked == [NotImplemented]


def test_tracing_is_not_plain():
    asked = []

    def function(x):
        asked.append(linear(x))
        return x + 1

    torch.jit.trace(function, torch.randn(4, 6), check_trace=False)
    assert asked == [NotImplemented]


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("linear", (torch.randn(6), torch.randn(3, 6), None, None)),  # one row
        ("linear", (torch.randn(4, 6), torch.randn(3, 6), torch.randn(1), None)),  # a bias that broadcasts
        ("linear", (torch.randn(4, 6), torch.randn(3, 6), None, "tanh")),
        ("conv2d", (torch.randn(3, 7, 6), torch.randn(4, 3, 3, 3), None, 1, 0, 1, 1, None)),  # unbatched
        ("conv2d", (torch.randn(2, 3, 7, 6), torch.randn(4, 3, 3, 3), None, 1, "same", 1, 1, None)),
        ("conv2d", (torch.randn(2, 3, 7, 6), torch.randn(4, 3, 3, 3), None, 1.0, 0, 1, 1, None)),
        ("conv2d", (torch.randn(2, 3, 7, 6), torch.randn(4, 3, 3, 3), None, (1, 1, 1), 0, 1, 1, None)),
        ("max_pool2d", (torch.randn(2, 3, 7, 6), [2, 2], None, 0, 1, False)),
        ("max_pool2d", (torch.randn(2, 3, 7, 6), 2, None, 0, 1, 0)),
        ("avg_pool2d", (torch.randn(2, 3, 7, 6), 2, None, 0, False, True, 0)),
        ("max_pool3d", (torch.randn(3, 4, 7, 6), 2, 2, 0, 1, False)),  # unbatched
        ("max_pool3d", (torch.randn(2, 3, 4, 7, 6), (2, 2), 2, 0, 1, False)),
        ("avg_pool3d", (torch.randn(2, 3, 4, 7, 6), 2, None, 0, False, True, 0)),
        ("conv3d", (torch.randn(2, 3, 4, 7, 6), torch.randn(4, 3, 1, 1, 1), None, 1, 0, 1, 1, 0)),
        ("softmax", (torch.randn(4, 6), 2)),
        ("softmax", (torch.randn(4, 6), None)),
        ("log_softmax", (torch.randn(()), -1)),
        ("layer_norm", (torch.randn(4, 6), (5,), None, None, 1e-5)),
        ("layer_norm", (torch.randn(4, 6), (6,), None, None, 1)),
        ("embedding", (torch.randn(5, 6), TARGET, None, False, 0)),  # that needs no gradient
        ("embedding", (torch.randn(5, 6).requires_grad_(), TARGET.int(), None, False, 0)),
        ("embedding", (torch.randn(5, 6).requires_grad_(), TARGET, 5, False, 0)),
        ("embedding", (torch.randn(5, 6).requires_grad_(), TARGET, None, False, 25)),  # of fewer numbers
        ("group_norm", (torch.randn(4, 6), 4, None, None, 1e-5)),
        ("group_norm", (torch.randn(4, 6), 0, None, None, 1e-5)),
        ("group_norm", (torch.randn(1, 6), 6, None, None, 1e-5)),
        ("group_norm", (torch.randn(4, 6), 2, None, torch.randn(6), 1e-5)),
        ("group_norm", (torch.randn(4, 6), 2, torch.randn(4), None, 1e-5)),
        ("rms_norm", (torch.randn(4, 6), (5,), None, None)),
        ("rms_norm", (torch.randn(4, 1), (1,), None, None)),
        ("rms_norm", (torch.randn(6, 4).t(), (6,), None, None)),
        ("rms_norm", (torch.randn(4, 6).half(), (6,), torch.randn(6), None)),
        ("rms_norm", (torch.randn(2, 2, 4, 6), (6,), None, None)),  # of images: torch looks at their memory format
        ("batch_norm", (torch.randn(1, 6), None, None, None, None, True, 0.1, 1e-5, None, None, None, -1)),
        ("batch_norm", (torch.randn(4, 6), torch.zeros(6), None, None, None, True, 0.1, 1e-5, None, None, None, -1)),
        ("batch_norm", (torch.randn(4, 6), None, None, None, None, True, None, 1e-5, None, None, None, -1)),
        ("batch_norm", (torch.randn(4, 6), None, None, None, None, True, 0.1, 1e-5, None, None, None, 1 << 4)),
        ("cross_entropy", (torch.randn(4, 6), torch.rand(4, 6), -100, "mean", 0.0, 0.0)),  # probabilities
        ("cross_entropy", (torch.randn(4, 6), TARGET, -100, "median", 0.0, 0.0)),
        (
            "linear_cross_entropy",
            (torch.randn(4, 6), torch.randn(3, 6), torch.rand(4, 3), None, "mean", None, 0.0, 0.0, False),
        ),
        (
            "linear_cross_entropy",
            (torch.randn(4, 6), torch.randn(3, 2, 6), TARGET, None, "mean", None, 0.0, 0.0, False),
        ),
        (
            "recurrent_cell",
            (torch.randn(4, 6), torch.randn(4, 5), torch.randn(5, 6), torch.randn(5, 5), None, None, "lstm"),
        ),
        (
            "recurrent_cell",
            (torch.randn(4, 6), torch.randn(1, 5), torch.randn(5, 6), torch.randn(5, 5), None, None, "rnn_relu"),
        ),
        (
            "recurrent_cell",
            (torch.randn(6, 4).t(), torch.randn(4, 5), torch.randn(15, 6), torch.randn(15, 5), None, None, "gru"),
        ),
        (
            "recurrent_cell",
            (
                torch.randn(4, 6),
                torch.randn(4, 5),
                torch.randn(5, 6),
                torch.randn(5, 5),
                torch.randn(5),
                None,
                "rnn_tanh",
            ),
        ),
        (
            "recurrent_stack",
            (torch.randn(3, 2, 6), torch.randn(1, 2, 5), WEIGHTS, False, 1, 0.5, True, False, False, "rnn_tanh"),
        ),
        (
            "recurrent_stack",
            (torch.randn(3, 2, 6), torch.randn(1, 2, 5), WEIGHTS, False, 2, 0.0, True, False, False, "rnn_tanh"),
        ),
        (
            "recurrent_stack",
            (torch.randn(3, 2, 6), torch.randn(1, 2, 5), WEIGHTS, True, 1, 0.0, True, False, False, "rnn_tanh"),
        ),
        (
            "recurrent_stack",
            (torch.randn(3, 2, 6), torch.randn(1, 3, 5), WEIGHTS, False, 1, 0.0, True, False, False, "rnn_tanh"),
        ),
        (
            "recurrent_stack",
            (torch.randn(3, 2, 6), torch.randn(1, 2, 5), WEIGHTS, False, 1, 0.0, True, False, False, "elman"),
        ),
        (
            "scaled_dot_product_attention",
            (torch.randn(3, 5), torch.randn(3, 5), torch.randn(3, 5), 0.0, False, None, None),
        ),
        ("scaled_dot_product_attention", (*torch.randn(3, 2, 2, 3, 5), 0, False, None, None)),
        ("scaled_dot_product_attention", (*torch.randn(3, 2, 2, 3, 5), 1.5, False, None, None)),
        (
            "scaled_dot_product_attention",
            (*torch.randn(2, 2, 2, 3, 5), torch.randn(2, 1, 3, 5), 0.0, False, None, None),
        ),
        ("scaled_dot_product_attention", (*torch.randn(3, 2, 2, 0, 5), 0.0, False, None, None)),
        ("scaled_dot_product_attention", (*torch.randn(3, 2, 1, 3, 257), 0.0, False, None, None)),
        ("dropout", (torch.randn(4, 6), 1.0, True)),
        ("dropout", (torch.randn(4, 6), 0.5, False)),
        ("dropout", (torch.randn(4, 1).expand(4, 6), 0.5, True)),
        ("dropout", (torch.randn(4, 6), 2**70, True)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_that_are_not_plain(name, arguments):
    assert getattr(_nodes, name)(*arguments) is NotImplemented


def test_what_python_asks_for_is_there():
    files = Path(pydl.__file__).parent.rglob("*.py")
    asked = {name for path in files for name in re.findall(r"\b_nodes\.(\w+)\(", path.read_text())}
    assert asked == {*_nodes.CALLS, "serve_cpu", "serve_memory"}


def test_a_wrong_number_of_arguments_is_an_error():
    with pytest.raises(TypeError, match="expected 4 arguments, got 2"):
        _nodes.linear(torch.randn(4, 6), torch.randn(3, 6))


def test_torchs_own_attention_is_not_plain():
    q = torch.randn(2, 2, 3, 5)
    asked = (q, q, q, 0.0, False, None, None)
    assert _nodes.scaled_dot_product_attention(*asked) is not NotImplemented
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert _nodes.scaled_dot_product_attention(*asked) is NotImplemented


def test_what_is_small():
    x = torch.randn(4, 6)
    assert _nodes.is_small(x, 25)
    assert not _nodes.is_small(x, 24)
    assert _nodes.is_small_product(x, torch.randn(6, 5), 121)
    assert not _nodes.is_small_product(x, torch.randn(6, 5), 120)
    assert not _nodes.is_small_product(x, torch.randn(3, 6, 5), 360)
    for kind, make in UNUSUAL_TENSORS.items():
        if kind not in ("complex", "integers"):
            assert not _nodes.is_small(make(x), 1000)
            assert not _nodes.is_small_product(x, make(x), 1000)
    with pytest.raises(TypeError, match="expected 2 arguments, got 1"):
        _nodes.is_small(x)
    _nodes.use(False)
    assert not _nodes.is_small(x, 25)


@pytest.mark.parametrize("quick", [True, False])
def test_errors_are_those_of_the_op(quick):
    _nodes.use(quick)
    with pytest.raises(RuntimeError, match=r"linear: expected input's last dimension to be 5"):
        functional.linear(torch.randn(4, 6), torch.randn(3, 5))
    with pytest.raises(IndexError, match=r"cross_entropy: expected"):
        functional.cross_entropy(torch.randn(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"cross_entropy: expected"):
        functional.cross_entropy(torch.randn(2, 3), torch.tensor([0]))


def test_running_statistics_are_updated_and_seen_to_be():
    for quick in (True, False):
        _nodes.use(quick)
        layer = pydl.nn.BatchNorm1d(6)
        written = layer.running_mean, layer.running_var, layer.num_batches_tracked
        before = [t._version for t in written]
        layer(torch.linspace(-1, 1, 24).view(4, 6))
        assert [t._version for t in written] == [version + 1 for version in before]
        assert int(layer.num_batches_tracked) == 1
        if quick:
            expected = layer.state_dict()
    for name, value in layer.state_dict().items():
        assert torch.equal(value, expected[name])


def test_a_written_parameter_is_refused():
    x, w = torch.randn(4, 6, requires_grad=True), torch.randn(3, 6, requires_grad=True)
    output = functional.linear(x, w)
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_the_seed_is_torchs_generator():
    x = torch.ones(100)
    torch.manual_seed(5)
    quick = functional.dropout(x, 0.5)
    after = torch.rand(())
    _nodes.use(False)
    torch.manual_seed(5)
    assert torch.equal(quick, functional.dropout(x, 0.5))
    assert torch.equal(after, torch.rand(()))


def test_checkpoints_and_hooks():
    net = pydl.swap(torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Dropout(0.5), torch.nn.Linear(5, 2)))
    x = torch.randn(4, 6, requires_grad=True)
    found = []
    for again in (False, True):
        torch.manual_seed(1)
        output = checkpoint(net, x, use_reentrant=False) if again else net(x)
        found.append(torch.autograd.grad(output.sum(), x)[0])
    assert torch.equal(*found)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.shape) or t, lambda t: t):
        functional.linear(x, torch.randn(3, 6, requires_grad=True))
    assert packed == [(4, 6), (3, 6)]


# those whose calls are in Python always
IN_PYTHON = {
    "conv_transpose2d": (lambda x, w: functional.conv_transpose2d(x, w), [(2, 3, 5, 4), (3, 4, 2, 2)]),
    "matmul": (lambda x, w: functional.matmul(x, w), [(128, 128), (128, 128)]),
    "mse_loss": (lambda x, y: functional.mse_loss(x, y), [(4, 5), (4, 5)]),
    "embedding_bag": (lambda w: functional.embedding_bag(TARGET.view(2, 2), w), [(5, 6)]),
    "instance_norm": (lambda x: functional.instance_norm(x), [(2, 3, 5)]),
    **{
        name: (lambda x, call=call: call(functional, x), [(4, 5)])
        for name, call in CALLS.items()
        if name not in _nodes.CALLS
    },
}


@pytest.mark.parametrize("cast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("quick", [True, False], ids=["in C++", "in Python"])
@pytest.mark.parametrize("name", [*CASES, *IN_PYTHON])
def test_a_checkpoint_with_torchs_ops_before(name, quick, cast):
    """It runs the forward once more where a backward asks for what was saved, and torch counts what that saves."""
    _nodes.use(quick)
    *_, call, shapes = (CASES | IN_PYTHON)[name]
    given = [torch.randn(shape).requires_grad_() for shape in shapes]

    def step(*tensors):
        return call(*(t.sin() for t in tensors))

    found = []
    for again in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            output = checkpoint(step, *given, use_reentrant=False) if again else step(*given)
        found.append(torch.autograd.grad(output.float().square().sum(), given))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("quick", [True, False], ids=["in C++", "in Python"])
@pytest.mark.parametrize("name", [name for name in (*CASES, *IN_PYTHON) if "dropout" not in name])
def test_second_derivatives_within_a_checkpoint(name, quick):
    _nodes.use(quick)
    *_, call, shapes = (CASES | IN_PYTHON)[name]
    given = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]

    def step(*tensors):
        output = call(*(t.sin() for t in tensors))
        grads = torch.autograd.grad(output.square().sum(), tensors, create_graph=True)
        return sum(g.square().sum() for g in grads)

    found = []
    for again in (False, True):
        output = checkpoint(step, *given, use_reentrant=False) if again else step(*given)
        found.append(torch.autograd.grad(output, given, allow_unused=True))
    assert all(a is b if a is None else torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    "environment, built, words",
    [({"PYDL_NODES": "0"}, torch.__version__, "PYDL_NODES=0"), ({}, "1.0", "built beside torch 1.0; reinstall pydl")],
)
def test_why_not(monkeypatch, environment, built, words):
    monkeypatch.setattr(_nodes, "_C", SimpleNamespace(torch_version=built))
    for name in ("PYDL_NODES", *environment):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    module, why_not = _nodes._load()
    assert module is None
    assert words in why_not


def test_a_module_that_cannot_be_loaded_is_done_without(monkeypatch):
    monkeypatch.delenv("PYDL_NODES", raising=False)
    monkeypatch.delattr(pydl, "_torch")
    monkeypatch.setitem(sys.modules, "pydl._torch", None)  # which makes its import an ImportError
    module, why_not = _nodes._load()
    assert module is None
    assert why_not.startswith("pydl._torch cannot be loaded: ")


def test_compiled_autograd_is_refused_in_words():
    x = torch.randn(4, 6, requires_grad=True)
    y = functional.linear(x, torch.randn(3, 6))
    assert y.grad_fn.name() == "pydl.LinearBackward"
    with (
        torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")),
        pytest.raises(NotImplementedError, match="linear: expected the backward to run eagerly, got compiled autograd"),
    ):
        y.sum().backward()


def test_torch_compile_takes_the_op():
    w = torch.randn(3, 6)
    compiled = torch.compile(lambda x: functional.linear(x, w), fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 6)
    torch.testing.assert_close(compiled(x), F.linear(x, w))
