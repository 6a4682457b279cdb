"""linear_cross_entropy against torch's two calls in float64: every pass, option, shape, layout and dtype."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_oracle import REDUCTIONS, reference
from testing import ALL_DTYPES, assert_close

import pydl.functional as pf

pytestmark = pytest.mark.cpu_kernels

# (rows, features, classes); blocks are of 64 rows and more, of 12 MB of logits
SHAPES = {
    "one number": (1, 1, 1),
    "one row": (1, 19, 7),
    "one feature": (9, 1, 17),
    "one class: a loss of zero": (5, 4, 1),
    "short rows": (37, 20, 10),
    "the most classes that count as short": (20, 16, 128),
    "and one more": (20, 16, 129),
    "the book's characters": (96, 32, 28),
    "two blocks of classes, split among threads where rows are few": (3, 5, 17000),
    "two blocks of the sum over features": (20, 300, 40),
    "many rows": (700, 30, 40),
}


def make(name, dtype=torch.float32, ignored=True):
    """input, linear_weight, linear_bias and target, some of whose rows are ignored."""
    rows, features, classes = SHAPES[name] if isinstance(name, str) else name
    x = torch.randn(rows, features, dtype=torch.float64)
    w = torch.randn(classes, features, dtype=torch.float64) * 2 * max(features, 1) ** -0.5
    target = torch.randint(classes, (rows,))
    if ignored and rows > 1:
        target[torch.rand(rows) < 0.3] = -100
        target[0] = 0  # at least one counts
    return [t.to(dtype) for t in (x, w, torch.randn(classes, dtype=torch.float64))], target


def exact(input, linear_weight, target, linear_bias=None, **options):
    """torch's two calls, in the dtype of the tensors."""
    return reference(F.linear(input, linear_weight, linear_bias), target, **options)


def results(function, tensors, target, upstream=None, **options):
    """The loss and the gradients of the tensors; with an upstream gradient that is not one."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    input, linear_weight, *bias = leaves
    loss = function(input, linear_weight, target, linear_bias=bias[0] if bias else None, **options)
    if upstream is None:
        upstream = (torch.arange(loss.numel()) * 0.7 + 0.3).sin().reshape(loss.shape) * 2
    return loss, *torch.autograd.grad(loss, leaves, upstream.to(loss.dtype))


def compare(tensors, target, scale=1.0, **options):
    """Each result within the dtype's tolerance, relative to its own size (sums of thousands of terms cancel)."""
    dtype = tensors[0].dtype
    actual = results(pf.linear_cross_entropy, tensors, target, **options)
    wide = {k: v.double() if isinstance(v, torch.Tensor) and v.dim() else v for k, v in options.items()}
    expected = results(exact, [t.double() for t in tensors], target, **wide)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert a.dtype == dtype
        size = max(1.0, e.abs().nan_to_num().max().item()) if e.numel() else 1.0
        assert_close(a.detach().double() / size, e / size, dtype, scale=2 * scale)


@pytest.mark.parametrize("name", SHAPES)
def test_matches_float64(name, device):
    for dtype, reduction in itertools.product(ALL_DTYPES, REDUCTIONS):
        tensors, target = make(name, dtype)
        compare(tensors, target, reduction=reduction)
        compare(tensors[:2], target, reduction=reduction)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(7, 5, 21), (30, 9, 140)], ids=str)
def test_options(device, shape, smoothing, weighted):
    for reduction, z_loss, dtype in itertools.product(REDUCTIONS, (0.0, 0.01), ALL_DTYPES):
        tensors, target = make(shape, dtype, ignored=False)
        target[1] = target[3] = 2
        weight = torch.rand(shape[2]).to(dtype) if weighted else None
        options = {"reduction": reduction, "label_smoothing": smoothing, "z_loss": z_loss, "ignore_index": 2}
        compare(tensors, target, weight=weight, **options)


@pytest.mark.parametrize("shape", [(130, 6, 60000), (200, 7, 30011)], ids=str)
def test_several_blocks(device, shape):
    """Two blocks of 65 rows, and two of 100: each gradient of the weight is added to that of the block before."""
    tensors, target = make(shape)
    for options in (
        {},
        {"reduction": "none"},
        {"label_smoothing": 0.1, "z_loss": 1e-3, "weight": torch.rand(shape[2])},
    ):
        compare(tensors, target, scale=3, **options)


def test_remainders(device):
    """Features and classes around vectors and panels; rows around register blocks and tiles of short rows."""
    for rows, classes in itertools.product((1, 6, 7, 14, 15, 17), (2, 7, 8, 9, 16, 17, 33, 127, 130)):
        compare(*make((rows, 33, classes)))
    for features, classes in itertools.product((1, 7, 8, 15, 17, 32, 257), (3, 40, 200)):
        compare(*make((9, features, classes)))


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_gradients_made_in_the_forward(device, dtype):
    """Those handed out for an upstream gradient of 1 have the bits of those that a second backward makes."""
    for shape, reduction in itertools.product([(37, 20, 10), (40, 9, 300), (150, 6, 60000)], ("mean", "sum")):
        tensors, target = make(shape, dtype)
        leaves = [t.requires_grad_() for t in tensors]
        loss = pf.linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2], reduction=reduction)
        first = torch.autograd.grad(loss, leaves, retain_graph=True)
        again = torch.autograd.grad(loss, leaves, retain_graph=True)
        assert all(map(torch.equal, first, again))
        loss = pf.linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2], reduction=reduction)
        scaled = torch.autograd.grad(loss, leaves, torch.tensor(-0.5, dtype=dtype))
        for a, b in zip(scaled, first, strict=True):
            smallest = torch.finfo(dtype).smallest_normal  # below, a half is no exact factor
            assert torch.equal(a, torch.where(b.abs() > 2 * smallest, -0.5 * b, a))


def test_error_of_float32(device):
    """At most 1e-5 of the results' root mean square, over several blocks of rows."""
    tensors, target = make((400, 256, 16003), ignored=False)
    actual = results(pf.linear_cross_entropy, tensors, target, torch.ones(()))
    expected = results(exact, [t.double() for t in tensors], target, torch.ones(()))
    assert abs(actual[0].double() - expected[0]) <= 1e-6 * expected[0]
    for a, e in zip(actual[1:], expected[1:], strict=True):
        at_targets = 8 * e.square().mean().sqrt()  # where a class is a target, entries are larger than the rest
        assert (a.double() - e).abs().max() <= 1e-5 * max(e.square().mean().sqrt(), at_targets)


# ---- rows that are empty, ignored, unbatched


def test_unbatched(device):
    x, w, b = torch.randn(6), torch.randn(11, 6), torch.randn(11)
    for target, reduction in itertools.product((torch.tensor(3), torch.tensor(-100)), REDUCTIONS):
        compare([x, w, b], target, reduction=reduction, label_smoothing=0.1)
        loss = pf.linear_cross_entropy(x, w, target.view(1), linear_bias=b, reduction=reduction)  # torch takes it too
        assert_close(loss, F.cross_entropy(F.linear(x, w, b).double(), target, reduction=reduction))


@pytest.mark.parametrize("shape", [(0, 5, 3), (0, 0, 3), (4, 0, 3), (4, 0, 3000)], ids=str)
def test_empty(shape, device):
    for reduction in REDUCTIONS:
        tensors, target = make(shape, ignored=False)
        compare(tensors, target, reduction=reduction)


def test_no_classes(device):
    x, w, target = torch.randn(2, 3, requires_grad=True), torch.randn(0, 3), torch.tensor([-100, -100])
    loss = pf.linear_cross_entropy(x, w, target, reduction="sum")
    loss.backward()
    assert loss == 0
    assert x.grad.eq(0).all()
    with pytest.raises(IndexError, match=r"linear_cross_entropy: expected target to be in \[0, 0\)"):
        pf.linear_cross_entropy(x, w, torch.tensor([0, 0]))


def test_all_rows_ignored(device):
    tensors, _ = make("short rows")
    for reduction in REDUCTIONS:
        compare(tensors, torch.full((37,), -100), reduction=reduction)


def test_targets_of_other_dtypes_and_strides(device):
    tensors, target = make("short rows", ignored=False)
    expected = results(pf.linear_cross_entropy, tensors, target)
    for other in (target.to(torch.uint8), target.repeat_interleave(2)[::2], target[:1].expand(37)):
        actual = results(pf.linear_cross_entropy, tensors, other)
        if other.stride() == (0,):
            expected = results(pf.linear_cross_entropy, tensors, other.contiguous())
        assert all(map(torch.equal, actual, expected))


# ---- layouts

LAYOUTS = {
    "contiguous": lambda n, k: torch.randn(n, k),
    "transposed": lambda n, k: torch.randn(k, n).t(),
    "columns sliced": lambda n, k: torch.randn(n, k + 5)[:, 2 : k + 2],
    "every second column": lambda n, k: torch.randn(n, 2 * k)[:, ::2],
    "every third row": lambda n, k: torch.randn(3 * n, k)[::3],
    "one row expanded": lambda n, k: torch.randn(1, k).expand(n, k),
    "one number expanded": lambda n, k: torch.randn(1, 1).expand(n, k),
}


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("of_weight", LAYOUTS)
@pytest.mark.parametrize("of_input", LAYOUTS)
def test_any_strides(of_input, of_weight, dtype):
    target = torch.randint(18, (30,))
    tensors = [LAYOUTS[of_input](30, 20).to(dtype), LAYOUTS[of_weight](18, 20).to(dtype) / 4]
    bias = torch.randn(36)[::2].to(dtype)
    compare([*tensors, bias], target)
    for upstream in (torch.randn(60)[::2], torch.randn(1).expand(30)):  # one for each row, apart; one number
        expected = results(exact, [t.double() for t in tensors], target, upstream.to(dtype).double(), reduction="none")
        actual = results(pf.linear_cross_entropy, tensors, target, upstream.to(dtype), reduction="none")
        for a, e in zip(actual, expected, strict=True):
            size = max(1.0, e.abs().max().item())
            assert_close(a.double() / size, e / size, dtype, scale=2)


# ---- values


def test_huge_logits(device):
    tensors, target = make("and one more")
    compare([tensors[0] * 1e4, *tensors[1:]], target, scale=10)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_spoils_its_row_alone(value, device):
    tensors, target = make("short rows")
    target[3], target[4] = 1, -100
    for row in (3, 4):
        tensors[0][row, 2] = value
    loss, grad_input, _ = results(pf.linear_cross_entropy, tensors[:2], target, torch.ones(37), reduction="none")
    spoiled = torch.arange(37) == 3
    assert torch.equal(loss.isfinite(), ~spoiled)
    assert torch.equal(grad_input.isfinite().all(1), ~spoiled)
    assert loss[4] == 0
    assert grad_input[4].eq(0).all()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_upstream_gradients_that_are_not_finite_leave_ignored_rows_alone(value, device):
    tensors, target = make("short rows")
    _, grad_input, _ = results(pf.linear_cross_entropy, tensors[:2], target, torch.tensor(value))
    _, expected, _ = results(exact, [t.double() for t in tensors[:2]], target, torch.tensor(value))
    assert torch.equal(grad_input.isfinite(), expected.isfinite())
    assert grad_input[target == -100].eq(0).all()


def test_thread_count_changes_no_bit(device):
    before = torch.get_num_threads()
    for shape, dtype in itertools.product([(700, 30, 40), (150, 6, 60000), (3, 5, 17000)], ALL_DTYPES):
        found = []
        tensors, target = make(shape, dtype)
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                for reduction in ("mean", "none"):
                    found.append(results(pf.linear_cross_entropy, tensors, target, reduction=reduction))
        finally:
            torch.set_num_threads(before)
        for i in (2, 4):
            assert all(map(torch.equal, found[i] + found[i + 1], found[0] + found[1]))


# ---- the count of correct rows


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(500, 6, 3), (90, 5, 2100), (150, 3, 60000)], ids=str)
def test_correct(device, shape, dtype):
    (x, w, b), target = make(shape, dtype)
    logits = F.linear(*(t.float() if dtype.itemsize == 2 else t for t in (x, w, b)))
    found = logits.argmax(1)
    target[::2] = torch.where(target[::2] < 0, -100, found[::2])  # half of them right
    expected = ((found == target) & (target != -100)).sum()
    for needed in (False, True):
        loss, correct = pf.linear_cross_entropy(
            x, w.requires_grad_(needed), target, linear_bias=b, return_correct=True, label_smoothing=0.1
        )
        assert torch.equal(correct, expected)
        assert not correct.requires_grad
        assert torch.equal(loss, pf.linear_cross_entropy(x, w, target, linear_bias=b, label_smoothing=0.1))
    (grad,) = torch.autograd.grad(loss, w)
    assert torch.equal(grad, results(pf.linear_cross_entropy, [x, w.detach(), b], target, torch.ones(()),
                                     label_smoothing=0.1)[2])  # fmt: skip


def test_correct_takes_the_first_of_equal_logits(device):
    """A layer of zeros says the first class; a row with a nan is never right; ignored rows never count."""
    x, target = torch.zeros(5, 4), torch.tensor([0, 1, 0, 2, 0])
    w = torch.zeros(3, 4)
    assert pf.linear_cross_entropy(x, w, target, return_correct=True)[1] == 3
    assert pf.linear_cross_entropy(x, w, target, ignore_index=0, return_correct=True)[1] == 0
    x[0, 0] = float("nan")
    assert pf.linear_cross_entropy(x, w, target, return_correct=True)[1] == 2
    assert pf.linear_cross_entropy(x[:0], w, target[:0], return_correct=True)[1] == 0
    assert pf.linear_cross_entropy(torch.zeros(4), w, torch.tensor(0), return_correct=True)[1] == 1
