"""Functions of one number against torch in float64: every pass, shape, layout, dtype and instruction set."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from testing import ALL_DTYPES, assert_close
from torch.func import grad, vmap

import pydl
import pydl.functional as PF
import pydl.ops.elementwise

pytestmark = pytest.mark.cpu_kernels

ROWS = {  # what the grids over all ops take (grid.py)
    "relu": {"layer": "ReLU", "options": ("inplace",)},
    "leaky_relu": {
        "layer": "LeakyReLU", "of_layer": {"negative_slope": 0.3}, "options": ("negative_slope", "inplace"),
    },
    "sigmoid": {"layer": "Sigmoid"},
    "tanh": {"layer": "Tanh"},
    "gelu": {"layer": "GELU", "of_layer": {"approximate": "tanh"}, "options": ("approximate",)},
    "silu": {"layer": "SiLU", "options": ("inplace",)},
    "softplus": {"layer": "Softplus", "of_layer": {"beta": 2, "threshold": 1}, "options": ("beta", "threshold")},
}  # fmt: skip
# name -> the function by a library
FUNCTIONS = {
    "relu": lambda f, x: f.relu(x),
    "leaky_relu": lambda f, x: f.leaky_relu(x, 0.3),
    "leaky_relu upside down": lambda f, x: f.leaky_relu(x, -2),
    "sigmoid": lambda f, x: f.sigmoid(x),
    "tanh": lambda f, x: f.tanh(x),
    "gelu": lambda f, x: f.gelu(x),
    "gelu by tanh": lambda f, x: f.gelu(x, approximate="tanh"),
    "silu": lambda f, x: f.silu(x),
    "softplus": lambda f, x: f.softplus(x),
    "softplus, straight from 1 on": lambda f, x: f.softplus(x, 2.5, 1),
    "softplus upside down": lambda f, x: f.softplus(x, -0.5),
}
SPECIAL = torch.tensor([0.0, -0.0, 1e-30, 1e30, -1e30, float("inf"), float("-inf"), float("nan"), 88.0, -88.0, -104.5])


def passes(call, library, x, grad=None):
    """Output and the gradient of the input, which keeps its strides."""
    leaf = x.detach().requires_grad_()
    y = call(library, leaf)
    if grad is None:
        grad = (torch.arange(x.numel()) * 0.7 + 0.3).sin().reshape(x.shape)
    return y, torch.autograd.grad(y, leaf, grad.to(y.dtype))[0]


def compare(name, x, grad=None):
    call = FUNCTIONS[name]
    for actual, expected in zip(passes(call, PF, x, grad), passes(call, F, x.double(), grad), strict=True):
        assert actual.dtype == x.dtype
        assert actual.shape == expected.shape
        assert_close(actual, expected, x.dtype)


@pytest.mark.best_isa
@pytest.mark.parametrize("name", FUNCTIONS)
def test_all_passes(name, device):
    # steps of four vectors of 4 to 16 numbers, one vector, a part of one; more than one task
    for dtype, size in itertools.product(ALL_DTYPES, [(), (1,), (3, 5), (2, 3, 4, 17), (0, 5), (3, 8192)]):
        compare(name, (torch.randn(size) * 4).to(dtype))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_remainders(name, device):
    for size in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 127):
        compare(name, torch.randn(size) * 4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_whole_line(name, device):
    """Of both tails, of what is near 0 and of what is not finite; torch's own result where float64's is too wide."""
    for dtype in ALL_DTYPES:
        x = torch.cat([torch.linspace(-20, 20, 4001), torch.linspace(-1e-3, 1e-3, 99)]).to(dtype)
        compare(name, x)
        special = SPECIAL.to(dtype)
        # one number at a time: torch's vectors of AVX-512 have nan for GELU of inf, where its scalar code has inf
        alone = [passes(FUNCTIONS[name], F, x, torch.ones(1)) for x in special.split(1)]
        for actual, expected in zip(
            passes(FUNCTIONS[name], PF, special, torch.ones(11)), zip(*alone, strict=True), strict=True
        ):
            assert_close(actual, torch.cat(expected), dtype)


@pytest.mark.parametrize("name", ["leaky_relu", "tanh", "gelu", "gelu by tanh", "silu"])
def test_zeros_keep_their_sign(name, device):
    for dtype in ALL_DTYPES:
        x = torch.tensor([0.0, -0.0] * 40, dtype=dtype)
        assert torch.equal(FUNCTIONS[name](PF, x).signbit(), FUNCTIONS[name](F, x).signbit())


def test_small_numbers_keep_their_digits(device):
    """Relative to the result: torch's float32 does so as well, but for the tail of GELU."""
    x = torch.logspace(-30, -1, 500)
    for name in ("tanh", "silu", "gelu", "gelu by tanh"):
        for sign in (1, -1):
            actual, expected = (FUNCTIONS[name](f, sign * t) for f, t in ((PF, x), (F, x.double())))
            torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=0)
    tail = torch.linspace(-12, -4, 500)
    exact = tail.double() * torch.special.erfc(-tail.double() / 2**0.5) / 2
    torch.testing.assert_close(PF.gelu(tail).double(), exact, rtol=1e-5, atol=0)
    exact = torch.exp(tail.double()).log1p()
    torch.testing.assert_close(PF.softplus(tail).double(), exact, rtol=2e-6, atol=0)


LAYOUTS = {
    "transposed": lambda n, k: torch.randn(k, n).t(),
    "columns sliced": lambda n, k: torch.randn(n, k + 5)[:, 2 : k + 2],
    "rows of a transpose sliced": lambda n, k: torch.randn(k, n + 3)[:, 1 : n + 1].t(),
    "every second row": lambda n, k: torch.randn(2 * n, k)[::2],
    "every second column": lambda n, k: torch.randn(n, 2 * k)[:, ::2],
    "one row expanded": lambda n, k: torch.randn(1, k).expand(n, k),
    "one number expanded": lambda n, k: torch.randn(1, 1).expand(n, k),
}


@pytest.mark.best_isa
@pytest.mark.parametrize("of_grad", [None, *LAYOUTS])
@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_any_strides(name, of_grad, device):
    for dtype, layout in itertools.product(ALL_DTYPES, [None, *LAYOUTS]):
        x, g = (torch.randn(9, 37) if of is None else LAYOUTS[of](9, 37) for of in (layout, of_grad))
        compare(name, x.to(dtype), g.to(dtype))
    compare(name, torch.randn(9, 105)[:, 2:102], torch.randn(9, 104)[:, :100])  # rows that are walked where they lie
    images = torch.randn(2, 5, 6, 7).to(memory_format=torch.channels_last)
    compare(name, images[:, 1:4], torch.randn(2, 3, 6, 7))


@pytest.mark.best_isa
@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_thread_count_changes_no_bit(name, device):
    before, x = torch.get_num_threads(), torch.randn(70001)
    for dtype in ALL_DTYPES:
        results = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(passes(FUNCTIONS[name], PF, x.to(dtype)))
        finally:
            torch.set_num_threads(before)
        for result in results[1:]:
            assert all(map(torch.equal, result, results[0]))


@pytest.mark.best_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_past_the_caches(dtype, device):
    """Of a result that no cache holds; a slice begins where no vector does."""
    before = pydl._C.cpu_caches()
    pydl._C.set_cpu_caches(1 << 12, 1 << 13, 1 << 14)
    try:
        x = torch.randn(20011).to(dtype)
        compare("silu", x)
        compare("silu", x[1:])
        compare("silu", x[:20000].view(40, 500)[:, 4:])
    finally:
        pydl._C.set_cpu_caches(*before)


# ---- beside torch


def test_small_ones_are_left_to_torch(monkeypatch):
    """A call of ours costs more than torch's function of a few numbers."""
    monkeypatch.undo()
    for name, worth in pydl.ops.elementwise.WORTH_A_CALL.items():
        for count in (worth - 1, worth):
            x = torch.zeros(1).expand(count)
            with torch.profiler.profile() as profiler:
                FUNCTIONS[name](PF, x)
            ours = any(event.key == f"pydl::{name}_forward" for event in profiler.key_averages())
            assert ours is (count == worth)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "silu"])
def test_in_place(name):
    x = torch.randn(5, 7)
    expected, held = getattr(F, name)(x), x.clone()
    assert getattr(PF, name)(held, inplace=True) is held
    assert torch.equal(held, expected)
    layer = {"relu": pydl.nn.ReLU, "leaky_relu": pydl.nn.LeakyReLU, "silu": pydl.nn.SiLU}[name](inplace=True)
    held = x.clone()
    assert layer(held) is held
    assert torch.equal(held, expected)


X = torch.randn(4, 5)
TORCHS = {
    "integers": lambda f: f.relu(X.int()),
    "integers to a sigmoid": lambda f: f.sigmoid(X.int()),
    "complex": lambda f: f.tanh(X.cfloat()),
    "complex to a gelu": lambda f: f.gelu(X.cfloat()),
    "on the meta device": lambda f: f.silu(X.to("meta")),
    "a list": lambda f: f.relu([1.0]),
    "an unknown approximation": lambda f: f.gelu(X, approximate="sine"),
    "a slope that is a tensor": lambda f: f.leaky_relu(X, torch.tensor(0.5)),
    "a slope in words": lambda f: f.leaky_relu(X, "steep"),
    "a threshold in words": lambda f: f.softplus(X, 1, "high"),
}


def outcome(call, library):
    try:
        return call(library)
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("case", TORCHS)
def test_torchs_to_serve(case):
    actual, expected = (outcome(TORCHS[case], f) for f in (PF, F))
    if isinstance(expected, type):
        assert actual is expected
        return
    assert (actual.stride(), actual.dtype, actual.device) == (expected.stride(), expected.dtype, expected.device)
    assert actual.is_meta or torch.equal(actual, expected)


def test_gradients_that_do_not_fit_are_refused():
    for shape, dtype, message in (
        ((5, 4), torch.float32, r"silu: expected grad_output to be of shape \(4, 5\), got \(5, 4\)"),
        ((4, 5), torch.float64, "silu: expected grad_output to be of the dtype of what was saved, got float64"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.pydl.silu_backward(torch.ones(shape, dtype=dtype), X)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradcheck(name):
    x = torch.cat([torch.linspace(-3, -0.1, 9), torch.linspace(0.1, 3, 9)]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: FUNCTIONS[name](PF, x), (x,))
    assert torch.autograd.gradgradcheck(lambda x: FUNCTIONS[name](PF, x), (x,))


@pytest.mark.parametrize("name, options", [("relu", ()), ("gelu", (True,)), ("softplus", (1.0, 20.0))])
def test_opcheck(name, options):
    for x in (torch.randn(0, 5), torch.randn(3, 4, 5)[:, 1:3]):
        x.requires_grad_()
        torch.library.opcheck(getattr(torch.ops.pydl, f"{name}_forward"), (x, *options))
        grad = torch.randn(x.shape, requires_grad=True)
        torch.library.opcheck(getattr(torch.ops.pydl, f"{name}_backward"), (grad, x, *options))


@pytest.mark.parametrize("by, dynamic", [("inductor", True), ("aot_eager", False)])
def test_compile(by, dynamic):
    def step(x):
        for call in FUNCTIONS.values():
            x = call(PF, x)
        return x

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=by)
    for rows in (4, 6):
        x = torch.randn(rows, 3, 7).transpose(0, 1)
        found = []
        for function in (step, compiled):
            leaf = x.detach().requires_grad_()
            y = function(leaf)
            found.append((y, *torch.autograd.grad(y.sin().sum(), leaf)))
        for a, e in zip(*found, strict=True):
            torch.testing.assert_close(a, e)
            assert a.stride() == e.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_changes_nothing(name, dtype):
    for x in (X, X.to(dtype), X.double()):
        with torch.autocast("cpu", dtype):
            expected, actual = (FUNCTIONS[name](f, x) for f in (F, PF))
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("in_dim", [0, 1, -1])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap(name, in_dim):
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    for of in (lambda f: f, lambda f: grad(lambda x: f(x).sin().sum())):
        ours, theirs = (vmap(of(lambda x, f=f: FUNCTIONS[name](f, x)), in_dims=in_dim)(x) for f in (PF, F))
        assert_close(ours, theirs)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_saved(name):
    saved, x = [], torch.randn(4, 5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        y = FUNCTIONS[name](PF, x)
    assert saved == [(y if name in ("relu", "sigmoid", "tanh") else x).data_ptr()]
