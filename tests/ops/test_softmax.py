"""softmax and log_softmax against torch in float64: every pass, shape, layout, dtype and instruction set."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from testing import ALL_DTYPES, assert_close
from torch.func import grad, vmap

import pydl
from pydl import backend
from pydl.functional import log_softmax, softmax

pytestmark = pytest.mark.cpu_kernels

ROWS = {  # what the grids over all ops take (grid.py)
    "softmax": {"layer": "Softmax", "of_layer": {"dim": -1}, "given": {"dim": -1}, "options": ("dim", "dtype")},
    "log_softmax": {"layer": "LogSoftmax", "of_layer": {"dim": 1}, "given": {"dim": 1}, "options": ("dim", "dtype")},
}
OPS = {"softmax": (softmax, F.softmax), "log_softmax": (log_softmax, F.log_softmax)}
# rows go in steps of four, along vectors of 4, 8 or 16
SHAPES = [(1,), (7,), (1, 1), (3, 5), (4, 8), (9, 33), (2, 3, 4, 17), (300, 64), (5, 1000), (0, 5), (3, 0), (2, 0, 4)]


def passes(function, x, grad=None, dim=-1):
    """Output and the gradient of the input, which keeps its strides."""
    leaf = x.detach().requires_grad_()
    y = function(leaf, dim)
    if grad is None:
        grad = (torch.arange(x.numel()) * 0.7 + 0.3).sin().reshape(x.shape)
    return y, torch.autograd.grad(y, leaf, grad.to(y.dtype))[0]


def compare(name, x, grad=None, dim=-1):
    ours, torchs = OPS[name]
    found, exact, alike = (
        passes(ours, x, grad, dim),
        passes(torchs, x.double(), grad, dim),
        passes(torchs, x, grad, dim),
    )
    for actual, expected, like in zip(found, exact, alike, strict=True):
        assert (actual.dtype, actual.shape, actual.stride()) == (like.dtype, like.shape, like.stride())
        assert_close(actual, expected, x.dtype, scale=2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_all_passes(name, shape, device):
    for dtype in ALL_DTYPES:
        compare(name, (torch.randn(shape) * 3).to(dtype))


@pytest.mark.parametrize("name", OPS)
def test_remainders(name, device):
    for rows, width in itertools.product((1, 2, 3, 4, 5, 8, 9), (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65)):
        compare(name, torch.randn(rows, width))


# (shape, dim): columns in tiles of 4 vectors of 4, 8 or 16 and what remains; 300 and 600 rows are more than are kept
COLUMNS = [
    ((3, 5), 0), ((2, 3, 1), 1), ((2, 7, 3, 3), 1), ((1, 64), 0), ((9, 83), -2), ((2, 5, 64), -2), ((3, 4, 2, 9), 0),
    ((300, 35), 0), ((600, 69), 0), ((0, 5), 0), ((5, 0), 0), ((2, 0, 4), 1),
]  # fmt: skip


@pytest.mark.parametrize("shape, dim", COLUMNS, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_another_dimension(name, shape, dim, device):
    for dtype in ALL_DTYPES:
        compare(name, (torch.randn(shape) * 3).to(dtype), dim=dim)


@pytest.mark.parametrize("name", OPS)
def test_remaining_columns(name, device):
    for rows, columns in itertools.product((1, 2, 7), (2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65)):
        compare(name, torch.randn(rows, columns), dim=0)


LAYOUTS = {
    "transposed": lambda n, k: torch.randn(k, n).t(),
    "columns sliced": lambda n, k: torch.randn(n, k + 5)[:, 2 : k + 2],
    "every second column": lambda n, k: torch.randn(n, 2 * k)[:, ::2],
    "one row expanded": lambda n, k: torch.randn(1, k).expand(n, k),
    "one number expanded": lambda n, k: torch.randn(1, 1).expand(n, k),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPS)
def test_any_strides(name, layout, device):
    for dtype in ALL_DTYPES:
        compare(name, LAYOUTS[layout](9, 20).to(dtype))
        compare(name, torch.randn(9, 20).to(dtype), LAYOUTS[layout](9, 20).to(dtype))
        compare(name, LAYOUTS[layout](9, 20).to(dtype), LAYOUTS[layout](9, 20).to(dtype), dim=0)


@pytest.mark.parametrize("name", OPS)
def test_huge_and_far_apart(name, device):
    for x in (torch.randn(5, 37) * 1e4, torch.randn(5, 37) + 1e6, torch.full((5, 37), -3e38)):
        compare(name, x)
        compare(name, x, dim=0)


@pytest.mark.parametrize("name", OPS)
def test_what_is_not_finite(name, device):
    """Masks of -inf give 0, a row of nothing else nan; inf and nan spoil their row alone."""
    for value in (float("inf"), float("nan"), float("-inf")):
        x = torch.randn(9, 37)
        x[2, 5] = value
        x[7, 33:] = value
        ours, torchs = OPS[name]
        actual, expected = ours(x, -1), torchs(x.double(), -1)
        assert_close(actual, expected, torch.float32, scale=2)
        assert actual[3:7].isfinite().all()
        actual, expected = ours(x.t(), 0), torchs(x.t().double(), 0)
        assert_close(actual, expected, torch.float32, scale=2)
        assert actual[:, 3:7].isfinite().all()
    compare("softmax", torch.randn(5, 37).masked_fill(torch.arange(37) > 20, -torch.inf))
    assert OPS[name][0](torch.full((5, 9), -torch.inf), -1).isnan().all()


@pytest.mark.parametrize("name", OPS)
def test_thread_count_changes_no_bit(name, device):
    before, x = torch.get_num_threads(), torch.randn(999, 130)
    for dtype in ALL_DTYPES:
        results = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(passes(OPS[name][0], x.to(dtype)) + passes(OPS[name][0], x.to(dtype), dim=0))
        finally:
            torch.set_num_threads(before)
        for result in results[1:]:
            assert all(map(torch.equal, result, results[0]))


# ---- lengths


def masked(x, lengths):
    """The softmax of the first ``lengths`` numbers of each row, and 0 beyond."""
    lengths = lengths.view(*lengths.shape, *(1,) * (x.dim() - lengths.dim()))
    beyond = torch.arange(x.shape[-1]) >= lengths
    return F.softmax(x.masked_fill(beyond, -1e6), -1).masked_fill(beyond, 0)


LENGTHS = [torch.tensor([3, 0, 17, 40]), torch.arange(24).view(4, 6), torch.arange(120).view(4, 6, 5) % 19]


@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda t: str(tuple(t.shape)))
def test_lengths(lengths, device):
    x = torch.randn(4, 6, 5, 17)
    for dtype in ALL_DTYPES:
        leaf = x.to(dtype).requires_grad_()
        exact = x.to(dtype).double().requires_grad_()
        grad = torch.randn(x.shape).to(dtype)
        y, expected = softmax(leaf, -1, lengths=lengths), masked(exact, lengths)
        assert_close(y, expected, dtype, scale=2)
        (actual,) = torch.autograd.grad(y, leaf, grad)
        assert_close(actual, torch.autograd.grad(expected, exact, grad.double())[0], dtype, scale=2)


def test_lengths_by_torch():
    x = torch.randn(4, 6, 5, 17).requires_grad_()
    for lengths in LENGTHS:
        with backend.use("torch"):
            y, expected = softmax(x, lengths=lengths), masked(x.double(), lengths)
        assert_close(y, expected)
        for a, e in zip(
            torch.autograd.grad(y.sin().sum(), x), torch.autograd.grad(expected.sin().sum(), x), strict=True
        ):
            assert_close(a, e)


def test_a_row_of_length_0(device):
    """It reads nothing, even where that is not finite, and its gradient is 0."""
    x, lengths = torch.randn(3, 17), torch.tensor([5, 0, -1])
    x[1:] = float("nan")
    y = softmax(x.requires_grad_(), lengths=lengths)
    (to_x,) = torch.autograd.grad(y, x, torch.randn(3, 17))
    for t in (y, to_x):
        assert t[0, :5].all()
        assert not t[1:].any()


def test_what_beyond_a_length_holds_is_not_read(device):
    x, lengths = torch.randn(4, 17), torch.tensor([3, 9, 16, 17])
    spoiled = x.masked_fill(torch.arange(17) >= lengths[:, None], float("nan"))
    assert torch.equal(softmax(spoiled, -1, lengths=lengths), softmax(x, -1, lengths=lengths))


LENGTHS_REFUSED = {
    "another dimension": ((0, torch.tensor([1, 2])), ValueError, "expected dim to be the last one where lengths are"),
    "dtype": ((-1, torch.tensor([1.0, 2.0])), RuntimeError, "expected lengths to be int64, got torch.float32"),
    "shape": ((-1, torch.tensor([1, 2, 3])), RuntimeError, "expected lengths to have the first dimensions of input"),
    "too many": ((-1, torch.ones(2, 5).long()), RuntimeError, "expected lengths to have the first dimensions of input"),
}


@pytest.mark.parametrize("case", LENGTHS_REFUSED)
def test_lengths_refused(case):
    (dim, lengths), error, message = LENGTHS_REFUSED[case]
    with pytest.raises(error, match=f"softmax: {message}"):
        softmax(torch.randn(2, 5), dim, lengths=lengths)


# ---- beside torch

X = torch.randn(4, 5)
TORCHS = {
    "another dtype of the result": lambda f: f(X, 1, dtype=torch.float64),
    "integers with a dtype": lambda f: f(X.int(), 1, dtype=torch.float32),
    "no dimension": lambda f: f(X[0, 0], 0),
    "a dimension that is not there": lambda f: f(X, 2),
    "integers": lambda f: f(X.int(), 1),
    "on the meta device": lambda f: f(X.to("meta"), 1),
    "a list": lambda f: f([1.0], 0),
}


def outcome(call, f):
    try:
        return call(f)
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("case", TORCHS)
@pytest.mark.parametrize("name", OPS)
def test_torchs_to_serve(name, case):
    actual, expected = (outcome(TORCHS[case], f) for f in OPS[name])
    if isinstance(expected, type):
        assert actual is expected
        return
    assert (actual.stride(), actual.dtype, actual.device) == (expected.stride(), expected.dtype, expected.device)
    assert actual.is_meta or torch.equal(actual, expected)


@pytest.mark.parametrize("name", OPS)
def test_no_dimension_named_warns_as_torch(name):
    for f in (*OPS[name], getattr(pydl.nn, {"softmax": "Softmax", "log_softmax": "LogSoftmax"}[name])()):
        with pytest.warns(UserWarning, match="Implicit dimension choice"):
            f(X)


def test_softmax2d_refuses_what_torch_refuses():
    for shape in ((4, 5), (2, 3, 4, 5, 6)):
        with pytest.raises(ValueError, match="expected input to be 3D or 4D"):
            pydl.nn.Softmax2d()(torch.randn(shape))
    x = torch.randn(3, 4, 5)
    assert_close(pydl.nn.Softmax2d()(x), x.double().softmax(0))


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("name", OPS)
def test_gradcheck(name, shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    calls = [lambda x: OPS[name][0](x, -1), lambda x: OPS[name][0](x, 0)]
    if name == "softmax" and len(shape) > 1:
        calls.append(lambda x: softmax(x, -1, lengths=torch.arange(shape[0])))
    for call in calls:
        assert torch.autograd.gradcheck(call, (x,))
        assert torch.autograd.gradgradcheck(call, (x,))


@pytest.mark.parametrize("shape", [(5,), (4, 17), (0, 5), (2, 3, 4)], ids=str)
def test_opcheck(shape):
    ops, x = torch.ops.pydl, torch.randn(shape, requires_grad=True)
    g, lengths = torch.randn(shape, requires_grad=True), torch.arange(shape[0]) if len(shape) > 1 else None
    for n in {None, lengths}:
        torch.library.opcheck(ops.softmax_forward, (x, -1, n))
        torch.library.opcheck(ops.softmax_backward, (g, x.detach().softmax(-1).requires_grad_(), -1, n))
    torch.library.opcheck(ops.log_softmax_forward, (x, -len(shape)))
    torch.library.opcheck(ops.log_softmax_backward, (g, x.detach().log_softmax(0).requires_grad_(), -len(shape)))


def test_a_dimension_that_ops_do_not_take():
    ops = torch.ops.pydl
    for dim in (0, -3):
        with pytest.raises(RuntimeError, match=f"softmax: expected dim to be one of -2 to -1, got {dim}"):
            ops.log_softmax_forward(X, dim)
    with pytest.raises(RuntimeError, match="softmax: expected dim to be the last one where lengths are given, got -2"):
        ops.softmax_forward(X, -2, torch.ones(4).long())


@pytest.mark.parametrize("by, dynamic", [("inductor", True), ("aot_eager", False)])
@pytest.mark.parametrize("name", OPS)
def test_compile(name, by, dynamic):
    def step(x):
        return OPS[name][0](x, -1) * 2 + OPS[name][0](x, 1)

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=by)
    for rows in (4, 6):
        x = torch.randn(rows, 3, 7)
        found = []
        for function in (step, compiled):
            leaf = x.clone().requires_grad_()
            y = function(leaf)
            found.append((y, *torch.autograd.grad(y.sin().sum(), leaf)))
        for a, e in zip(*found, strict=True):
            torch.testing.assert_close(a, e)
            assert a.stride() == e.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPS)
def test_autocast_changes_nothing(name, dtype):
    ours, torchs = OPS[name]
    for x in (X, X.to(dtype), X.double()):
        with torch.autocast("cpu", dtype):
            expected, actual = torchs(x, -1), ours(x, -1)
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("in_dim", [0, 1, -1])
@pytest.mark.parametrize("name", OPS)
def test_vmap(name, in_dim):
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    for of, dim in itertools.product((lambda f: f, lambda f: grad(lambda x: f(x).sin().sum())), (-1, 0)):
        ours, theirs = (vmap(of(lambda x, f=f: f(x, dim)), in_dims=in_dim)(x) for f in OPS[name])  # noqa: B023  (called at once)
        assert_close(ours, theirs)
    lengths = torch.tensor([[1, 5, 2, 0], [3, 3, 3, 3], [4, 5, 1, 2]])
    ours, theirs = (vmap(f)(x, lengths) for f in (lambda x, n: softmax(x, -1, lengths=n), masked))
    assert_close(ours, theirs)


@pytest.mark.parametrize("name", OPS)
def test_only_the_output_is_saved(name):
    saved, x = [], torch.randn(4, 5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        OPS[name][0](x, -1)
    assert saved == [x.shape]
