"""matmul, mm, bmm, addmm, baddbmm against torch in float64: every pass, shape, layout, dtype and instruction set."""

import itertools

import pytest
import torch
from testing import ALL_DTYPES, assert_close

import pydl.functional as PF
import pydl.ops.matmul

pytestmark = pytest.mark.cpu_kernels


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    """Products that torch would serve, since they are small, are ours here."""
    monkeypatch.setattr(pydl.ops.matmul, "WORTH_A_CALL", 0)


# (left, right). Each shape says why it is there: register blocks are 6 or 14 rows by two vectors (16 or 32 columns),
# and sums are taken in blocks of 256.
SHAPES = {
    "one number": ((1, 1), (1, 1)),
    "one row": ((1, 19), (19, 7)),
    "one column": ((40, 33), (33, 1)),
    "a sum of one": ((9, 1), (1, 17)),
    "a rest of everything": ((29, 257), (257, 49)),
    "more panels than one task takes": ((3, 9), (9, 1100)),
    "many rows": ((530, 30), (30, 40)),
    "slices of the sum": ((29, 8500), (8500, 49)),
    "a batch": ((3, 7, 20), (3, 20, 18)),
    "a batch of many small ones": ((70, 9, 8), (70, 8, 9)),
    "attention of the book: 9 tokens": ((8, 4, 9, 64), (8, 4, 64, 9)),
    "a stack times a matrix": ((3, 5, 20), (20, 17)),
    "a stack of stacks times a matrix": ((2, 3, 5, 20), (20, 17)),
    "a matrix times a stack": ((5, 20), (3, 20, 17)),
    "a batch of one on the left": ((1, 5, 20), (3, 20, 17)),
    "a batch of one on the right": ((3, 5, 20), (1, 20, 17)),
    "one row each": ((6, 1, 20), (6, 20, 17)),
    "batches that broadcast": ((2, 1, 5, 20), (3, 20, 17)),
    "batches that broadcast in turns": ((2, 1, 2, 5, 9), (1, 3, 1, 9, 4)),
    "more batches than the kernel counts": ((2, 1, 2, 1, 5, 9), (1, 3, 1, 2, 9, 4)),
    "no rows": ((0, 5), (5, 3)),
    "no sum: zeros": ((4, 0), (0, 3)),
    "no columns": ((2, 4, 5), (2, 5, 0)),
    "no batch": ((0, 4, 5), (0, 5, 3)),
    "no sum in a batch": ((2, 4, 0), (2, 0, 3)),
}


def make(name, dtype=torch.float32):
    """Left and right of a shape; scaled so that products are of size one."""
    left, right = (torch.randn(size, dtype=torch.float64) for size in SHAPES[name])
    return [left.to(dtype), (right * max(right.shape[-2], 1) ** -0.5).to(dtype)]


def gradient_like(output):
    """A gradient that is not all ones."""
    return (torch.arange(output.numel()) * 0.7 + 0.3).sin().reshape(output.shape).to(output.dtype)


def passes(function, tensors, needs=(True, True, True), **options):
    """Output and the gradients of the tensors that need one, which keep their strides."""
    leaves = [t.detach().requires_grad_(need) for t, need in zip(tensors, needs, strict=False)]
    y = function(*leaves, **options)
    return y, *torch.autograd.grad(y, [t for t in leaves if t.requires_grad], gradient_like(y))


def compare(ours, theirs, tensors, needs=(True, True, True), strides=False, **options):
    """Each result within the dtype's tolerance, relative to its own size; on demand with torch's strides."""
    actual = passes(ours, tensors, needs, **options)
    expected = passes(theirs, [t.detach().double() for t in tensors], needs, **options)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert a.dtype == tensors[0].dtype
        size = max(1.0, e.abs().max().item()) if e.numel() else 1.0
        assert_close(a.detach().double() / size, e / size, tensors[0].dtype, scale=3)
    if strides:
        for a, t in zip(actual, passes(theirs, tensors, needs, **options), strict=True):
            assert a.stride() == t.stride()


@pytest.mark.parametrize("name", SHAPES)
def test_all_passes(name, device):
    for dtype in ALL_DTYPES:
        tensors = make(name, dtype)
        compare(PF.matmul, torch.matmul, tensors)
        if len(tensors[0].shape) == len(tensors[1].shape) == 2:
            compare(PF.mm, torch.mm, tensors)
        if len(tensors[0].shape) == 3 and tensors[0].shape[0] == tensors[1].shape[0]:
            compare(PF.bmm, torch.bmm, tensors)


def test_remainders_of_every_block(device):
    """Rows around the blocks of 6 and 14, columns around one and two vectors, in a batch of two; sums around 256."""
    for n, o in itertools.product((1, 5, 6, 7, 13, 14, 15, 29), (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65)):
        compare(PF.bmm, torch.bmm, [torch.randn(2, n, 19), torch.randn(2, 19, o) / 4])
    for n, k in itertools.product((1, 6, 15), (0, 1, 2, 3, 255, 256, 257, 513)):
        for dtype in (torch.float32, torch.bfloat16):
            compare(PF.bmm, torch.bmm, [torch.randn(2, n, k).to(dtype), (torch.randn(2, k, 17) / 16).to(dtype)])


# ---- something added

ADDENDS = {
    "a matrix": (29, 49),
    "a row": (49,),
    "a row of two dimensions": (1, 49),
    "a column": (29, 1),
    "a number": (),
    "a number of two dimensions": (1, 1),
}
FACTORS = [(1, 1), (0, 1), (2, 1), (1, 0.5), (-0.5, 3), (0, 0.25), (1, 0), (0, 0)]


@pytest.mark.parametrize("addend", ADDENDS)
def test_addmm(addend, device):
    for name in ("slices of the sum", "a rest of everything"):
        left, right = make(name)
        for (beta, alpha), dtype in itertools.product(FACTORS, ALL_DTYPES):
            tensors = [t.to(dtype) for t in (torch.randn(ADDENDS[addend]), left, right)]
            compare(PF.addmm, torch.addmm, tensors, beta=beta, alpha=alpha)
    for needs in itertools.product([False, True], repeat=3):
        if any(needs):
            compare(PF.addmm, torch.addmm, [torch.randn(ADDENDS[addend]), left, right], needs, strides=True)


@pytest.mark.parametrize("addend", [(3, 7, 18), (7, 18), (3, 1, 18), (3, 7, 1), (18,), (1,), ()], ids=str)
def test_baddbmm(addend, device):
    for beta, alpha in FACTORS:
        tensors = [torch.randn(addend), *make("a batch")]
        compare(PF.baddbmm, torch.baddbmm, tensors, strides=True, beta=beta, alpha=alpha)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_added_zero_times_is_not_read(value, device):
    left, right = make("one column")
    expected = torch.mm(left.double(), right.double())
    assert_close(PF.addmm(torch.full((40, 1), value), left, right, beta=0), expected)
    assert not PF.addmm(torch.full((40, 1), value), left, right).isfinite().any()


def test_addend_in_any_strides(device):
    left, right = torch.randn(2, 13, 20), torch.randn(2, 20, 33) / 4
    for addend in (
        torch.randn(2, 33, 13).mT,
        torch.randn(13, 2, 33).transpose(0, 1),
        torch.randn(2, 13, 66)[..., ::2],
        torch.randn(13, 1).expand(2, 13, 33),
    ):
        compare(PF.baddbmm, torch.baddbmm, [addend, left, right], beta=0.5)


# ---- layouts

LAYOUTS = {
    "contiguous": lambda *size: torch.randn(size),
    "transposed": lambda *size: torch.randn(*size[:-2], size[-1], size[-2]).mT,
    "columns sliced": lambda *size: torch.randn(*size[:-1], size[-1] + 3)[..., 1:-2],
    "a transpose sliced": lambda *size: torch.randn(*size[:-2], size[-1], size[-2] + 3).mT[..., 1:-2, :],
    "one row expanded": lambda *size: torch.randn(*size[:-2], 1, size[-1]).expand(size),
    "rows outermost": lambda *size: torch.randn(size[-2], *size[:-2], size[-1]).movedim(0, -2),
    "columns outermost": lambda *size: torch.randn(size[-1], *size[:-1]).movedim(0, -1),
    "batch expanded": lambda *size: torch.randn(1, *size[1:]).expand(size),
    "every second column": lambda *size: torch.randn(*size[:-1], 2 * size[-1])[..., ::2],
}
# pairs of shapes: as many dimensions as torch tells apart, and dimensions of one, whose strides say nothing
LAID_OUT = [
    ((5, 7), (7, 4)),
    ((1, 7), (7, 1)),
    ((5, 1), (1, 4)),
    ((3, 5, 7), (7, 4)),
    ((5, 7), (3, 7, 4)),
    ((3, 5, 7), (3, 7, 4)),
    ((1, 5, 7), (3, 7, 4)),
    ((3, 5, 7), (1, 7, 4)),
    ((3, 1, 7), (7, 4)),
    ((1, 1, 7), (7, 4)),
    ((2, 3, 5, 7), (2, 3, 7, 4)),
    ((2, 1, 5, 7), (3, 7, 4)),
    ((2, 3, 5, 7), (7, 4)),
    ((5, 7), (2, 3, 7, 4)),
    ((2, 1, 2, 5, 7), (1, 3, 1, 7, 4)),
]


@pytest.mark.parametrize("of_left", LAYOUTS)
def test_any_strides_as_torchs(of_left):
    """Values, and strides of outputs and gradients; of this machine's best instruction set."""
    for (left, right), of_right in itertools.product(LAID_OUT, LAYOUTS):
        tensors = [LAYOUTS[of_left](*left), LAYOUTS[of_right](*right)]
        for needs in ((True, True), (True, False), (False, True)):
            compare(PF.matmul, torch.matmul, tensors, needs, strides=True)
        compare(PF.matmul, torch.matmul, [t.bfloat16() for t in tensors])


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_of_any_dtype(layout, dtype, device):
    for left, right in ((9, 20), (20, 18)), ((2, 2, 9, 20), (2, 2, 20, 18)):
        compare(PF.matmul, torch.matmul, [LAYOUTS[layout](*left).to(dtype), LAYOUTS[layout](*right).to(dtype) / 4])


def test_heads_cut_from_one_projection(device):
    """(N, L, heads, d) seen as (N, heads, L, d): two strides lead through the batch, and nothing is copied."""
    q, k = (torch.randn(2, 5, 3, 16).transpose(1, 2) for _ in range(2))
    compare(lambda q, k: PF.matmul(q, k.mT), lambda q, k: torch.matmul(q, k.mT), [q, k / 4], strides=True)


# ---- values


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_spoils_its_row_alone(value, device):
    left, right = make("a batch")
    left[1, 3, 5] = value
    assert_close(PF.bmm(left, right), torch.bmm(left.double(), right.double()))


def test_huge_values(device):
    left, right = make("a rest of everything")
    for scale in (1e18, 1e-18):
        assert_close(PF.mm(left * scale, right * scale) / scale / scale, torch.mm(left.double(), right.double()))
    assert PF.mm(left.abs() * 1e30, right.abs() * 1e30).eq(float("inf")).all()  # beyond float32
    small = PF.addmm(torch.zeros(1), left * 1e-25, right * 1e-25, alpha=1e30)  # alpha meets sums, not factors
    assert_close(small, torch.addmm(torch.zeros(1), left * 1e-25, right * 1e-25, alpha=1e30), scale=100)


def test_thread_count_changes_no_bit(device):
    before = torch.get_num_threads()
    for name in ("a rest of everything", "many rows", "a batch of many small ones", "a stack times a matrix"):
        for dtype in ALL_DTYPES:
            tensors, results = make(name, dtype), []
            try:
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    results.append(passes(PF.matmul, tensors))
            finally:
                torch.set_num_threads(before)
            for result in results[1:]:
                assert all(map(torch.equal, result, results[0]))
