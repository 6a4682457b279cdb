"""Matrix products of bfloat16, and what is made of them, by the dot product of pairs, and as a CPU without that
instruction multiplies them.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F
from testing import AVX512_ALONE, BF16_DOT, assert_close, bf16_dot

from pydl import _C, backend
from pydl.functional import linear, linear_cross_entropy

pytestmark = AVX512_ALONE


@pytest.fixture(params=BF16_DOT, ids=["pairs", "widened"], autouse=True)
def pairs(request):
    with backend.use("cpu"), backend.isa("avx512"), bf16_dot(request.param):
        yield request.param


def matmul(left, right, addend=None, beta=1.0, alpha=1.0):
    """The op itself: small products of ``functional.matmul`` are torch's."""
    return torch.ops.pydl.matmul(left, right, addend, beta, alpha, False)


def numbers(*size):
    return torch.randn(size).bfloat16()


def in_columns(rows, columns):
    return numbers(columns, rows).t()


def odd_pitch(rows, columns):
    """Rows an odd number of elements apart, the first at an odd place."""
    return numbers(rows, columns + 4 + columns % 2)[:, 3 : 3 + columns]


def odd_pitch_in_columns(rows, columns):
    return odd_pitch(columns, rows).t()


def every_second(rows, columns):
    return numbers(rows, 2 * columns)[:, ::2]


LAYOUTS = {f.__name__: f for f in (in_columns, odd_pitch, odd_pitch_in_columns, every_second)} | {"in rows": numbers}


def check(actual, left, right, finish=lambda y: y):
    """Within one rounding to bfloat16 of the product in float64, relative to the size of what was summed."""
    assert actual.dtype == torch.bfloat16
    expected = finish(left.double() @ right.double())
    size = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    assert_close(actual.double() / size, expected / size, torch.bfloat16, scale=0.5)


def test_what_the_instruction_flushes_shows_which_ran(pairs):
    """2^-130, which is subnormal, times 2^60: nothing by pairs; 2^-70 by widened numbers, as in torch's float32."""
    left, right = torch.full((30, 64), 2.0**-130).bfloat16(), torch.full((64, 40), 2.0**60).bfloat16()
    assert (matmul(left, right) == (0.0 if pairs else 64 * 2.0**-70)).all()
    assert (matmul(left[:, :1], right[:1]) == 2.0**-70).all()  # a single product is never one of pairs


@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
def test_layouts(left, right):
    for rows, depth, columns in ((29, 64, 64), (29, 63, 45), (3, 515, 33), (64, 1030, 100)):
        a, b = LAYOUTS[left](rows, depth), LAYOUTS[right](depth, columns)
        check(matmul(a, b), a, b)


def test_remainders_of_every_block():
    """Rows around the block of 14, columns around vectors of 16 and two, depths around a pair and parts of 512."""
    for rows, columns in itertools.product((1, 2, 13, 14, 15, 29), (1, 15, 16, 17, 31, 32, 33, 65)):
        a, b = numbers(rows, 37), numbers(37, columns)
        check(matmul(a, b), a, b)
        check(matmul(a.t().contiguous().t(), b), a, b)
    for depth in (0, 1, 2, 3, 4, 31, 32, 33, 511, 512, 513, 1023, 1024, 1025, 1540):
        for a, b in itertools.product(
            (numbers(15, depth), in_columns(15, depth)), (numbers(depth, 49), in_columns(depth, 49))
        ):
            check(matmul(a, b), a, b)


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@pytest.mark.parametrize("depth", [7, 64, 1100])
def test_bias_and_activation(activation, depth):
    x, w, b = numbers(40, depth), numbers(75, depth), numbers(75)
    functions = {None: lambda y: y, "relu": torch.relu, "sigmoid": torch.sigmoid}
    check(linear(x, w, b, activation=activation), x, w.t(), lambda y: functions[activation](y + b.double()))


@pytest.mark.parametrize("depth", [7, 64, 1100])
def test_alpha_and_addend(depth):
    left, right, addend = numbers(40, depth), numbers(depth, 75), numbers(40, 75)
    actual = matmul(left, right, addend, beta=0.5, alpha=-2.0)
    check(actual, left, right, lambda y: 0.5 * addend.double() - 2.0 * y)


@pytest.mark.parametrize("size", [(9, 9, 64), (64, 7, 3), (40, 40, 33)])
def test_batches(size):
    rows, columns, depth = size
    left, right = numbers(2, 3, rows, depth), numbers(2, 3, columns, depth).mT
    check(matmul(left, right), left, right)


@pytest.mark.parametrize("depth", [6, 7, 600, 601])
def test_rounded_once(depth):
    """Whole numbers whose sums float32 holds: the result is the sum's nearest bfloat16, at every depth."""
    left, right = torch.randint(-9, 10, (33, depth)).bfloat16(), torch.randint(-9, 10, (depth, 70)).bfloat16()
    for a, b in itertools.product((left, left.t().contiguous().t()), (right, right.t().contiguous().t())):
        assert torch.equal(matmul(a, b), (left.double() @ right.double()).bfloat16())


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("depth", [16, 17, 513])
def test_what_is_not_finite_spoils_its_row_alone(value, depth):
    for place in (0, depth - 2, depth - 1):  # the last number of an odd depth has nothing beside it
        for left, right in itertools.product((numbers, in_columns), repeat=2):
            a, b = left(31, depth), right(depth, 47)
            a[17, place] = value
            actual, expected = matmul(a, b), (a.double() @ b.double()).bfloat16()
            assert torch.equal(actual.isnan(), expected.isnan())
            infinite = expected.isinf()
            assert torch.equal(actual[infinite], expected[infinite])
            assert actual[expected.isfinite()].isfinite().all()


def test_thread_count_changes_no_bit():
    before = torch.get_num_threads()
    for rows, depth, columns in ((530, 301, 270), (700, 30, 40), (14, 1100, 1100), (1100, 2000, 10)):
        for a, b in itertools.product(
            (numbers(rows, depth), in_columns(rows, depth)), (numbers(depth, columns), in_columns(depth, columns))
        ):
            results = []
            try:
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    results.append(matmul(a, b))
            finally:
                torch.set_num_threads(before)
            assert torch.equal(results[0], results[1])
            assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("left", LAYOUTS)
def test_caches_change_no_bit(left):
    """Small ones make everything far: rows are prefetched while others are multiplied."""
    before = _C.cpu_caches()
    for rows, depth, columns in ((120, 1030, 300), (33, 77, 65), (700, 256, 512)):
        a, b = LAYOUTS[left](rows, depth), numbers(depth, columns)
        expected = matmul(a, b)
        try:
            _C.set_cpu_caches(4 << 10, 16 << 10, 32 << 10)
            found = matmul(a, b)
        finally:
            _C.set_cpu_caches(*before)
        assert torch.equal(found, expected)


def test_what_the_instruction_flushes_shows_which_made_the_logits(pairs):
    """2^-130, which is subnormal, times 2^127: nothing by pairs; 1/8 each by widened numbers."""
    x, w = torch.full((3, 64), 2.0**-130).bfloat16(), torch.zeros(2, 64).bfloat16()
    w[0] = 2.0**127
    losses = linear_cross_entropy(x, w, torch.zeros(3, dtype=torch.int64), reduction="none")
    expected = F.cross_entropy(torch.tensor([[0.0 if pairs else 8.0, 0.0]]), torch.tensor([0])).item()
    assert_close(losses.double(), torch.full((3,), expected, dtype=torch.float64), torch.bfloat16)


def two_calls(x, w, b, target, reduction):
    return F.cross_entropy(F.linear(x, w, b), target, reduction=reduction)


def in_one(x, w, b, target, reduction):
    return linear_cross_entropy(x, w, target, linear_bias=b, reduction=reduction)


def loss_and_gradients(function, x, w, b, target, reduction, weights):
    tensors = [t.detach().clone().requires_grad_() for t in (x, w, b)]
    loss = function(*tensors, target, reduction)
    loss.backward(weights[: loss.numel()].reshape(loss.shape).to(loss.dtype))
    return [loss.detach(), *(t.grad for t in tensors)]


# rows x features x classes: a class or a feature without a neighbour, partial vectors; more blocks of rows than one
@pytest.mark.parametrize("size", [(1, 1, 3), (7, 33, 10), (64, 16, 1), (300, 40, 257), (150, 24, 47_000)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_linear_cross_entropy_is_as_near_to_float64_as_torch(size, reduction):
    """Root mean square of the errors, beside those of torch's two calls in bfloat16."""
    rows, features, classes = size
    x, w, b = in_columns(rows, features), numbers(classes, features) / 4, numbers(classes)
    target, weights = torch.randint(classes, (rows,)), torch.randn(rows).bfloat16()
    expected = loss_and_gradients(two_calls, x.double(), w.double(), b.double(), target, reduction, weights.double())
    found = loss_and_gradients(in_one, x, w, b, target, reduction, weights)
    theirs = loss_and_gradients(two_calls, x, w, b, target, reduction, weights)
    for actual, torchs, exact in zip(found, theirs, expected, strict=True):
        assert actual.dtype == torch.bfloat16
        rounding = 2.0**-9 * exact.square().mean().sqrt()  # of the result alone: where torch has luck
        error, of_torch = ((t.double() - exact).square().mean().sqrt() for t in (actual, torchs))
        assert error <= 1.1 * of_torch + rounding


def test_threads_change_no_bit_of_linear_cross_entropy():
    x, w, b, target = numbers(150, 24), numbers(47_000, 24), numbers(47_000), torch.randint(47_000, (150,))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(loss_and_gradients(in_one, x, w, b, target, "mean", torch.ones(1)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, o) for a, o in zip(results[0], other, strict=True))
