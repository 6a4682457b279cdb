"""linear against torch in float64: every pass, shape, layout, dtype and instruction set."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from testing import ALL_DTYPES, AVX512_ALONE, BF16_DOT, assert_close, bf16_dot

from pydl import _C, backend
from pydl.functional import linear

pytestmark = pytest.mark.cpu_kernels

# (input size, out_features). Each shape says why it is there: register blocks are 6 or 14 rows by two vectors (16 or 32
# columns), and sums are taken in blocks of 256.
SHAPES = {
    "one number": ((1, 1), 1),
    "one row": ((1, 19), 7),
    "one input": ((9, 1), 17),
    "one output: a column that no vector fills": ((40, 33), 1),
    "unbatched": ((20,), 18),
    "three dimensions": ((3, 5, 20), 17),
    "four dimensions, one of them 1": ((2, 1, 7, 9), 33),
    "lenet 1: N 256": ((256, 400), 120),
    "lenet 2": ((64, 120), 84),
    "lenet 3": ((256, 84), 10),
    "the book's softmax regression": ((256, 784), 10),
    "the book's mlp": ((64, 784), 256),
    "linear regression": ((10, 2), 1),
    "one block of rows": ((14, 64), 32),
    "blocks of rows and a rest": ((29, 64), 32),
    "blocks of columns and a rest": ((14, 64), 49),
    "one block of the sum": ((12, 256), 32),
    "one more": ((12, 257), 32),
    "one less": ((12, 255), 32),
    "several blocks of the sum": ((7, 1030), 20),
    "many rows": ((700, 30), 40),
    "wide": ((20, 40), 300),
    "more panels than one task takes": ((3, 9), 1100),
    "all three": ((530, 300), 270),
    "slices of the forward's sums": ((7, 8500), 33),
    "slices of the weight gradient's": ((8500, 40), 17),
    "no rows": ((0, 5), 3),
    "no rows in three dimensions": ((2, 0, 5), 3),
    "no inputs: the bias alone": ((4, 0), 3),
    "no inputs, unbatched": ((0,), 3),
    "no outputs": ((4, 5), 0),
}


def make(name, dtype=torch.float32):
    """input, weight and bias of a shape; weights scaled so that outputs are of size one."""
    size, features = SHAPES[name]
    x = torch.randn(size, dtype=torch.float64)
    w = torch.randn(features, size[-1], dtype=torch.float64) * max(size[-1], 1) ** -0.5
    return [t.to(dtype) for t in (x, w, torch.randn(features, dtype=torch.float64))]


def gradient_of(tensors):
    """A gradient that is not all ones, for the output of linear on these tensors."""
    size = (*tensors[0].shape[:-1], tensors[1].shape[0])
    return (torch.arange(torch.Size(size).numel()) * 0.7 + 0.3).sin().reshape(size).to(tensors[0].dtype)


def passes(function, tensors, grad=None, **extra):
    """Output and the gradients of all tensors, which keep their strides."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = function(*leaves, **extra)
    grad = gradient_of(tensors) if grad is None else grad
    return y, *torch.autograd.grad(y, leaves, grad.to(y.dtype))


def exact(tensors, grad=None, activation=None):
    """By torch in float64."""
    functions = {None: lambda y: y, "relu": torch.relu, "sigmoid": torch.sigmoid}
    grad = gradient_of(tensors) if grad is None else grad
    return passes(lambda *t: functions[activation](F.linear(*t)), [t.detach().double() for t in tensors], grad)


def check(actual, expected, dtype):
    """Each result within the dtype's tolerance, relative to its own size (sums of thousands of terms cancel)."""
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert a.dtype == dtype
        size = max(1.0, e.abs().max().item()) if e.numel() else 1.0
        assert_close(a.detach().double() / size, e / size, dtype, scale=2)


@pytest.mark.parametrize("name", SHAPES)
def test_all_passes(name, device):
    for dtype in ALL_DTYPES:
        tensors = make(name, dtype)
        check(passes(linear, tensors), exact(tensors), dtype)
        check(passes(linear, tensors[:2]), exact(tensors[:2]), dtype)


def test_remainders_of_every_block(device):
    """Rows around 1 and the blocks of 6 and 14, columns around vectors of 8 and 16 and two of them, sums around 256.

    A gradient's product has the same three numbers in another order, so that each is rows, columns and depth.
    """
    for n, o in itertools.product((1, 2, 5, 6, 7, 13, 14, 15, 28, 29), (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 65)):
        tensors = [torch.randn(n, 37), torch.randn(o, 37) / 6, torch.randn(o)]
        check(passes(linear, tensors), exact(tensors), torch.float32)
    for n, k in itertools.product((1, 6, 15), (0, 1, 2, 3, 255, 256, 257, 511, 513)):
        for dtype in (torch.float32, torch.bfloat16):
            tensors = [t.to(dtype) for t in (torch.randn(n, k), torch.randn(17, k) / 16, torch.randn(17))]
            check(passes(linear, tensors), exact(tensors), dtype)


@pytest.mark.parametrize("columns", [2080, 2064, 2061])  # whole panels, half of one, rows that begin within lines
def test_outputs_that_the_caches_do_not_hold(columns, device):
    for dtype in (torch.float32, torch.bfloat16):
        rows = (36 << 20) // (columns * dtype.itemsize)
        tensors = [torch.randn(rows, 9).to(dtype), torch.randn(columns, 9).to(dtype), torch.randn(columns).to(dtype)]
        for activation in (None, "relu", "sigmoid"):
            found = linear(*tensors, activation=activation)
            functions = {None: lambda y: y, "relu": torch.relu, "sigmoid": torch.sigmoid}
            check([found], [functions[activation](F.linear(*(t.double() for t in tensors)))], dtype)


@pytest.mark.parametrize("rows", [1, 5, 6, 7, 16, 32, 33])  # around blocks of 6, and the last that goes by dot products
def test_few_rows_of_a_weight_that_the_caches_do_not_hold(rows, device):
    for dtype, width in ((torch.float32, 2099), (torch.bfloat16, 4098), (torch.bfloat16, 4099)):  # ends within a vector
        x, w, b = torch.randn(rows, width), torch.randn(1101, width) / width**0.5, torch.randn(1101)
        tensors = [t.to(dtype) for t in (x, w, b)]
        for activation in (None, "relu", "sigmoid"):
            functions = {None: lambda y: y, "relu": torch.relu, "sigmoid": torch.sigmoid}
            exact = functions[activation](F.linear(*(t.double() for t in tensors)))
            check([linear(*tensors, activation=activation)], [exact], dtype)
        check([linear(*tensors[:2])], [F.linear(*(t.double() for t in tensors[:2]))], dtype)


@AVX512_ALONE[1]
@pytest.mark.parametrize("pairs", BF16_DOT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dot_products_are_those_of_few_rows_and_a_large_weight(dtype, pairs):
    x, w = torch.randn(32, 4099).to(dtype), torch.randn(1101, 4099).to(dtype)
    small = w[:200].clone()
    # along the depth in lanes: sums in another order, and other last digits, than those of panels
    with backend.use("cpu"), backend.isa("avx512"), bf16_dot(pairs):
        few, panels = linear(x[:16], w), linear(x, w)[:16]
        assert torch.equal(few, panels) == (dtype == torch.bfloat16 and not pairs)  # widened numbers are panels' alone
        assert torch.equal(linear(x[:17], w)[:16], panels)
        assert torch.equal(linear(x[:16], small), linear(x, small)[:16])


@pytest.mark.parametrize("rows", [1, 6, 300, 8500])  # one product a sum, some, several blocks, slices
@pytest.mark.parametrize("column_major", [False, True])
def test_weight_gradients_of_bfloat16_in_float32(rows, column_major, device):
    grad, x = torch.randn(rows, 45).bfloat16(), torch.randn(rows, 67).bfloat16()
    low = torch.ops.pydl.linear_backward_weight(grad, x, column_major)
    found = torch.ops.pydl.linear_backward_weight(grad, x, column_major, in_float32=True)
    assert low.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    assert found.stride() == low.stride()
    assert torch.equal(found, low.float())


@pytest.mark.parametrize(
    "name",
    [
        "lenet 1: N 256",
        "the book's mlp",
        "several blocks of the sum",
        "all three",
        "slices of the forward's sums",
        "slices of the weight gradient's",
    ],
)
def test_error_of_float32(name, device):
    """At most 5e-6 of the results' root mean square, since sums are taken in blocks."""
    tensors = make(name)
    for a, e in zip(passes(linear, tensors), exact(tensors), strict=True):
        assert (a.detach().double() - e).abs().max() <= 5e-6 * e.square().mean().sqrt()


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize(
    "name", ["unbatched", "blocks of rows and a rest", "wide", "slices of the forward's sums", "no rows"]
)
def test_activation(name, activation, device):
    for dtype in ALL_DTYPES:
        tensors = make(name, dtype)
        check(passes(linear, tensors, activation=activation), exact(tensors, activation=activation), dtype)
    output = linear(*make(name), activation=activation)  # outside autograd's graph
    assert_close(output, output.double())


# ---- layouts

LAYOUTS = {
    "contiguous": lambda n, k: torch.randn(n, k),
    "transposed": lambda n, k: torch.randn(k, n).t(),
    "columns sliced: a row's stride is larger": lambda n, k: torch.randn(n, k + 5)[:, 2 : k + 2],
    "a transpose sliced": lambda n, k: torch.randn(k + 2, n + 3)[1 : k + 1, 2 : n + 2].t(),
    "every second column": lambda n, k: torch.randn(n, 2 * k)[:, ::2],
    "every third row": lambda n, k: torch.randn(3 * n, k)[::3],
    "one row expanded": lambda n, k: torch.randn(1, k).expand(n, k),
    "one column expanded": lambda n, k: torch.randn(n, 1).expand(n, k),
    "one number expanded": lambda n, k: torch.randn(1, 1).expand(n, k),
    "overlapping": lambda n, k: torch.randn(7 * n + 5 * k).as_strided((n, k), (7, 5)),
}


@pytest.mark.parametrize("of_input", LAYOUTS)
def test_any_strides(of_input):
    """Of this machine's best instruction set; the others read through the same code, see the next test."""
    for of_weight, of_grad in itertools.product(LAYOUTS, LAYOUTS):
        tensors = [LAYOUTS[of_input](15, 35), LAYOUTS[of_weight](18, 35) / 6, torch.randn(36)[::2]]
        grad = LAYOUTS[of_grad](15, 18)
        check(passes(linear, tensors, grad), exact(tensors, grad), torch.float32)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_of_any_dtype(layout, dtype, device):
    tensors = [LAYOUTS[layout](9, 20).to(dtype), LAYOUTS[layout](18, 20).to(dtype) / 4, torch.randn(18).to(dtype)]
    grad = LAYOUTS[layout](9, 18).to(dtype)
    check(passes(linear, tensors, grad), exact(tensors, grad), dtype)


STACKS = {
    "batch and rows exchanged": lambda: torch.randn(5, 3, 20).transpose(0, 1),
    "features first": lambda: torch.randn(20, 3, 5).permute(1, 2, 0),
    "rows sliced": lambda: torch.randn(3, 8, 20)[:, 1:6],
    "rows expanded": lambda: torch.randn(3, 1, 20).expand(3, 5, 20),
    "batch expanded": lambda: torch.randn(1, 5, 20).expand(3, 5, 20),
    "one image": lambda: torch.randn(2, 5, 20)[1:],
    "four dimensions, the middle ones exchanged": lambda: torch.randn(2, 4, 3, 20).transpose(1, 2),
}


@pytest.mark.parametrize("stack", STACKS)
def test_rows_that_no_stride_leads_through(stack, device):
    x, w, b = STACKS[stack](), torch.randn(17, 20) / 4, torch.randn(17)
    for grad in (None, torch.randn(17).expand(*x.shape[:-1], 17), torch.randn(1).expand(*x.shape[:-1], 17)):
        check(passes(linear, (x, w, b), grad), exact((x, w, b), grad), torch.float32)
    grad = torch.randn(17, *x.shape[:-1]).movedim(0, -1)
    check(passes(linear, (x, w, b), grad), exact((x, w, b), grad), torch.float32)


# ---- values


def test_huge_values(device):
    x, w, b = make("blocks of rows and a rest")
    for scale in (1e18, 1e-18):
        output = linear(x * scale, w * scale, b * scale * scale)
        assert_close(output / scale / scale, F.linear(x.double(), w.double(), b.double()), torch.float32, scale=5)
    assert linear(x.abs() * 1e30, w.abs() * 1e30).eq(float("inf")).all()  # beyond float32


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
def test_what_is_not_finite_spoils_its_row_alone(value, activation, device):
    tensors = make("blocks of rows and a rest")
    tensors[0][17, 3] = value
    for a, e in zip(passes(linear, tensors, activation=activation), exact(tensors, activation=activation), strict=True):
        size = e[e.isfinite()].abs().sum().clamp(min=1.0)
        assert_close(a.detach().double() / size, e / size, torch.float32)


def test_thread_count_changes_no_bit(device):
    before = torch.get_num_threads()
    names = "all three", "many rows", "wide", "one output: a column that no vector fills", "lenet 3"
    for name in (*names, "slices of the forward's sums", "slices of the weight gradient's"):
        for dtype in ALL_DTYPES:
            tensors, results = make(name, dtype), []
            try:
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    results.append(passes(linear, tensors))
            finally:
                torch.set_num_threads(before)
            for result in results[1:]:
                assert all(map(torch.equal, result, results[0]))


def test_caches_change_no_bit(device):
    """Their sizes decide how products are cut and read, and what is prefetched: small ones make everything far."""
    before = _C.cpu_caches()
    names = "all three", "many rows", "wide", "several blocks of the sum", "lenet 3"
    for name in (*names, "slices of the forward's sums", "slices of the weight gradient's"):
        for dtype in ALL_DTYPES:
            tensors = make(name, dtype)
            expected = passes(linear, tensors)
            try:
                _C.set_cpu_caches(4 << 10, 16 << 10, 32 << 10)
                found = passes(linear, tensors)
            finally:
                _C.set_cpu_caches(*before)
            assert all(map(torch.equal, found, expected))


def test_repeated_calls_change_no_bit(device):
    tensors = make("all three")
    assert all(map(torch.equal, passes(linear, tensors), passes(linear, tensors)))


def test_only_needed_gradients_are_computed(device):
    for needed in itertools.product([False, True], repeat=3):
        leaves = [t.requires_grad_(need) for t, need in zip(make("one block of rows"), needed, strict=True)]
        y = linear(*leaves)
        assert y.requires_grad == any(needed)
        if not any(needed):
            continue
        with torch.profiler.profile() as profile:
            y.sum().backward()
        ran = {event.name for event in profile.events() if event.name.startswith("pydl::")}
        names = ("input", "weight", "bias")
        assert ran == {f"pydl::linear_backward_{name}" for name, need in zip(names, needed, strict=True) if need}
        assert [t.grad is not None for t in leaves] == list(needed)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_only_what_a_formula_needs_is_saved(activation):
    for needed in itertools.product([False, True], repeat=2):
        x, w, b = make("blocks of rows and a rest")
        x.requires_grad_(needed[0]), w.requires_grad_(needed[1]), b.requires_grad_()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.shape) or t, lambda t: t):
            y = linear(x, w, b, activation=activation)
        expected = [w.shape] * needed[0] + [x.shape] * needed[1] + [y.shape] * (activation is not None)
        assert sorted(saved) == sorted(expected)
