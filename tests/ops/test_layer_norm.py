"""layer_norm and rms_norm against torch in float64: every pass, shape, layout, dtype and instruction set."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from testing import ALL_DTYPES, assert_close

from pydl.functional import layer_norm, rms_norm

pytestmark = pytest.mark.cpu_kernels

# (input size, number of dimensions that are normalised). Rows go in steps of four (forward) and two (backward), in
# blocks of rows, along vectors of 4, 8 or 16 and, in the forward, in chunks of 2048.
SHAPES = {
    "one number": ((1, 1), 1),
    "unbatched": ((7,), 1),
    "one row": ((1, 33), 1),
    "width 1": ((9, 1), 1),
    "less than a vector": ((6, 3), 1),
    "rows that fill no step": ((7, 16), 1),
    "vectors and a rest": ((5, 37), 1),
    "the book's transformer": ((2, 9, 32), 1),
    "several blocks of rows": ((700, 20), 1),
    "many blocks of rows": ((5000, 8), 1),
    "two dimensions": ((3, 4, 5, 6), 2),
    "all dimensions": ((4, 5), 2),
    "chunks of a row and a rest": ((3, 5000), 1),
    "a row too wide for steps of four": ((5, 20001), 1),
    "no rows": ((0, 5), 1),
    "no rows in three dimensions": ((2, 0, 5), 1),
    "no columns": ((3, 0), 1),
}
NORMS = {"layer_norm": (layer_norm, F.layer_norm), "rms_norm": (rms_norm, F.rms_norm)}
EPS = 1e-3


def make(shape, dtype=torch.float32):
    """input, weight and bias of a shape of SHAPES."""
    size, dims = SHAPES[shape]
    x = torch.randn(size, dtype=torch.float64) * 2 + 1
    normalised = size[len(size) - dims :]
    return [t.to(dtype) for t in (x, torch.rand(normalised).double() + 0.5, torch.randn(normalised).double())]


def gradient_of(x):
    """A gradient that is not all ones."""
    return (torch.arange(x.numel()) * 0.7 + 0.3).sin().reshape(x.shape).to(x.dtype)


def passes(name, function, tensors, normalised=None, grad=None):
    """Output and the gradients of input, weight and, for a layer norm, bias, which keep their strides."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    x, weight, bias = leaves
    normalised = weight.shape if normalised is None else normalised
    arguments = (weight, bias) if name == "layer_norm" else (weight,)
    y = function(x, normalised, *arguments, eps=EPS)
    asked = [t for t in (x, *arguments) if t is not None]
    grad = gradient_of(x) if grad is None else grad
    return y, *torch.autograd.grad(y, asked, grad.to(y.dtype))


def exact(name, tensors, normalised=None, grad=None):
    """By torch in float64."""
    doubles = [None if t is None else t.detach().double() for t in tensors]
    grad = gradient_of(tensors[0]) if grad is None else grad
    return passes(name, NORMS[name][1], doubles, normalised, grad.double())


def check(actual, expected, dtypes):
    """Each result within its dtype's tolerance, relative to its own size (sums over rows cancel)."""
    for a, e, dtype in zip(actual, expected, dtypes, strict=True):
        assert a.shape == e.shape
        assert a.dtype == dtype
        size = max(1.0, e.abs().max().item()) if e.numel() else 1.0
        assert_close(a.detach().double() / size, e / size, dtype, scale=2)


def compare(name, tensors, normalised=None, grad=None):
    given = [t for t in (tensors if name == "layer_norm" else tensors[:2]) if t is not None]
    dtypes = [given[0].dtype, *(t.dtype for t in given)]
    check(passes(name, NORMS[name][0], tensors, normalised, grad), exact(name, tensors, normalised, grad), dtypes)


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NORMS)
def test_all_passes(name, shape, device):
    for dtype in ALL_DTYPES:
        x, weight, bias = make(shape, dtype)
        compare(name, (x, weight, bias))
        compare(name, (x, weight, None))
        compare(name, (x, None, bias if name == "layer_norm" else None), weight.shape)
        compare(name, (x, None, None), weight.shape)


@pytest.mark.parametrize("name", NORMS)
def test_remainders(name, device):
    """Rows around steps of two and four, columns around one and two vectors."""
    for rows, width in itertools.product((1, 2, 3, 4, 5, 8, 9), (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65)):
        x = torch.randn(rows, width)
        compare(name, (x, torch.rand(width) + 0.5, torch.randn(width)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_half_input_with_float32_parameters(name, dtype, device):
    for shape in ("vectors and a rest", "several blocks of rows", "unbatched", "two dimensions"):
        x, weight, bias = make(shape)
        compare(name, (x.to(dtype), weight, bias))


LAYOUTS = {
    "transposed": lambda n, k: torch.randn(k, n).t(),
    "columns sliced": lambda n, k: torch.randn(n, k + 5)[:, 2 : k + 2],
    "every second column": lambda n, k: torch.randn(n, 2 * k)[:, ::2],
    "every third row": lambda n, k: torch.randn(3 * n, k)[::3],
    "one row expanded": lambda n, k: torch.randn(1, k).expand(n, k),
    "one column expanded": lambda n, k: torch.randn(n, 1).expand(n, k),
    "one number expanded": lambda n, k: torch.randn(1, 1).expand(n, k),
    "overlapping": lambda n, k: torch.randn(7 * n + 5 * k).as_strided((n, k), (7, 5)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NORMS)
def test_any_strides(name, layout, device):
    weight, bias = torch.rand(40)[::2] + 0.5, torch.randn(20, 3)[:, 1]
    for dtype in ALL_DTYPES:
        for x, grad in (
            (LAYOUTS[layout](9, 20), torch.randn(9, 20)),
            (torch.randn(9, 20), LAYOUTS[layout](9, 20)),
        ):
            compare(name, [t.to(dtype) for t in (x, weight, bias)], grad=grad.to(dtype))


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (2, 3, 2, 4, 5)], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_channels_last(name, shape, device):
    last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    for dims, of_grad in itertools.product((1, 2), (last, torch.contiguous_format)):
        normalised = shape[len(shape) - dims :]
        x, grad = (
            torch.randn(shape).contiguous(memory_format=last),
            torch.randn(shape).contiguous(memory_format=of_grad),
        )
        compare(name, (x, torch.rand(normalised), torch.randn(normalised)), grad=grad)


# ---- values


@pytest.mark.parametrize("shape", ["vectors and a rest", "several blocks of rows", "chunks of a row and a rest"])
def test_mean_much_larger_than_the_deviation(shape, device):
    """float32 keeps its digits at a mean of 1e4 deviations; torch's own is 1e-3 off there."""
    for dtype in (torch.float32, torch.float64):
        x, weight, bias = make(shape, dtype)
        for offset in (1e4, -1e5):
            tensors = (x + offset, weight, bias)
            actual, expected = passes("layer_norm", layer_norm, tensors), exact("layer_norm", tensors)
            for a, e in zip(actual, expected, strict=True):
                size = max(1.0, e.abs().max().item())
                assert_close(a.double() / size, e / size, torch.float32, scale=2)


@pytest.mark.parametrize("name", NORMS)
def test_one_value_far_from_the_rest(name, device):
    for at in (0, 8, 36):
        x, weight, bias = make("vectors and a rest")
        x[:, at] = 1e4
        compare(name, (x, weight, bias))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("name", NORMS)
def test_what_is_not_finite_spoils_its_row_alone(name, value, device):
    tensors = make("rows that fill no step")
    tensors[0][2, 3] = value
    actual, expected = passes(name, NORMS[name][0], tensors), exact(name, tensors)
    for a, e in zip(actual[:2], expected[:2], strict=True):
        assert_close(a, e, torch.float32, scale=10)
        assert a[:2].isfinite().all()
        assert a[3:].isfinite().all()


@pytest.mark.parametrize("name", NORMS)
def test_rows_of_one_value(name, device):
    """No deviation: eps alone keeps the result finite."""
    for value in (0.0, 0.1, -300.0):
        compare(name, (torch.full((5, 37), value), torch.rand(37), torch.randn(37)))


def test_eps_of_rms_norm():
    for dtype in ALL_DTYPES:
        x = torch.randn(5, 37).to(dtype) * 1e-4
        assert_close(rms_norm(x, (37,)), F.rms_norm(x, (37,)).double(), dtype, scale=2)
        assert_close(rms_norm(x, (37,), eps=0.1), F.rms_norm(x.double(), (37,), eps=0.1), dtype)


@pytest.mark.parametrize("name", NORMS)
def test_thread_count_changes_no_bit(name, device):
    before = torch.get_num_threads()
    for shape in ("several blocks of rows", "many blocks of rows", "chunks of a row and a rest", "two dimensions"):
        for dtype in ALL_DTYPES:
            tensors, results = make(shape, dtype), []
            try:
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    results.append(passes(name, NORMS[name][0], tensors))
            finally:
                torch.set_num_threads(before)
            for result in results[1:]:
                assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_results_larger_than_the_cache(name, dtype, device):
    """They are written past it, with the same bits."""
    width = 64
    x = torch.randn((17 << 20) // (width * dtype.itemsize), width).to(dtype)
    tensors = (x, (torch.rand(width) + 0.5).to(dtype), torch.randn(width).to(dtype))
    grad = torch.randn(x.shape).to(dtype)
    large = passes(name, NORMS[name][0], tensors, grad=grad)
    part = passes(name, NORMS[name][0], (x[-999:], *tensors[1:]), grad=grad[-999:])
    for a, b in zip(large[:2], part[:2], strict=True):
        assert torch.equal(a[-999:], b)


@pytest.mark.parametrize("name", NORMS)
def test_only_needed_gradients_are_computed(name, device):
    x, weight, bias = make("vectors and a rest")
    kept = 3 if name == "layer_norm" else 2
    full = passes(name, NORMS[name][0], (x, weight, bias))[1:]
    for needed in itertools.product([False, True], repeat=kept):
        leaves = [t.detach().requires_grad_(need) for t, need in zip((x, weight, bias)[:kept], needed, strict=True)]
        y = NORMS[name][0](leaves[0], weight.shape, *leaves[1:], eps=EPS)
        assert y.requires_grad == any(needed)
        if any(needed):
            y.backward(gradient_of(x))
        assert [t.grad is not None for t in leaves] == list(needed)
        for leaf, expected in zip(leaves, full, strict=True):
            assert leaf.grad is None or torch.equal(leaf.grad, expected)


@pytest.mark.parametrize("name", NORMS)
def test_two_numbers_of_a_row_are_saved(name):
    x, weight, bias = (t.requires_grad_() for t in make("vectors and a rest"))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        NORMS[name][0](x, weight.shape, weight, *((bias,) if name == "layer_norm" else ()))
    assert saved == [x.shape, weight.shape, (2 if name == "layer_norm" else 1, 5)]
