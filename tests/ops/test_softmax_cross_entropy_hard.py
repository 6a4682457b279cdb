"""Softmax cross entropy where it is hard: ignored rows, empty input, inf, nan, huge logits, other dtypes, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_oracle import REDUCTIONS, compare, make, reference
from testing import DTYPES, assert_close

import pydl
import pydl.functional as pf


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(4, 5), (2, 5, 3)], ids=str)
def test_all_ignored(device, shape, smoothing, reduction):
    """nan for mean, 0 otherwise, as torch; every gradient 0; nothing left unwritten."""
    input, target = make(shape, "classes", device=device)
    input.requires_grad_()
    target.fill_(-100)
    loss = pf.cross_entropy(input, target, reduction=reduction, label_smoothing=smoothing)
    assert_close(loss, reference(input, target, reduction=reduction, label_smoothing=smoothing))
    loss.sum().backward()
    assert torch.equal(input.grad, torch.zeros_like(input))


@pytest.mark.parametrize("shape", [(2, 4), (1, 4, 2), (2, 9000)], ids=str)
def test_ignored_rows_may_hold_anything(device, shape):
    """Padding is often garbage: it adds nothing to the loss and has gradient 0 (torch: nan)."""
    input = torch.randn(shape, device=device)
    input.select(*((0, 0) if len(shape) == 2 else (2, 0))).fill_(math.nan)
    target = torch.tensor([-7, 1], device=device).view(shape[0], *shape[2:])
    input.requires_grad_()
    for smoothing in (0.0, 0.2):
        loss = pf.cross_entropy(input, target, ignore_index=-7, label_smoothing=smoothing)
        (grad,) = torch.autograd.grad(loss, input)
        rows = grad.movedim(1, -1).flatten(0, -2)
        assert torch.equal(rows[0], torch.zeros_like(rows[0]))
        clean = input.detach().movedim(1, -1).flatten(0, -2)[1:]
        assert_close(loss, reference(clean, target.flatten()[1:], label_smoothing=smoothing))


def test_ignore_index_that_is_a_class(device):
    input, target = make((9, 4), "classes", device=device)
    compare(input, target, ignore_index=2, weight=torch.rand(4, device=device), label_smoothing=0.1)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "shape, target_shape",
    [((0, 5), (0,)), ((0, 5), (0, 5)), ((0, 5, 3), (0, 3)), ((2, 5, 0), (2, 0)), ((3, 0), (3, 0)), ((0, 0), (0,))],
    ids=str,
)
def test_empty(device, shape, target_shape, reduction):
    input = torch.randn(shape, device=device, requires_grad=True)
    target = torch.zeros(target_shape, device=device, dtype=input.dtype if shape == target_shape else torch.int64)
    loss = pf.cross_entropy(input, target, reduction=reduction)
    expected = F.cross_entropy(input, target, reduction=reduction)
    assert loss.shape == expected.shape
    assert_close(loss, expected)
    (grad,) = torch.autograd.grad(loss.sum(), input)
    assert grad.shape == input.shape


INF, NAN = math.inf, math.nan
HARD_ROWS = {
    "-inf": [-INF, 1.0, 2.0],
    "all -inf": [-INF, -INF, -INF],
    "+inf": [INF, 1.0, 2.0],
    "nan": [1.0, NAN, 2.0],
    "-inf and nan": [-INF, NAN, -INF],
    "lowest": [torch.finfo(torch.float32).min, 0.0, torch.finfo(torch.float32).min],
    "all lowest": [torch.finfo(torch.float32).min] * 3,
    "largest": [torch.finfo(torch.float32).max, 0.0, 1.0],
    "1e4": [1e4, -1e4, 9999.5],
    "-1e4": [-1e4, -1e4 - 1, -1e4],
    "6e4": [6e4, 59000.0, -6e4],
    "subnormal": [1e-40, -1e-40, 0.0],
    "exp underflows": [0.0, -95.0, -103.0],
}


@pytest.mark.parametrize("row", HARD_ROWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hard_numbers(device, dtype, row):
    """As torch in float64, in both layouts, alone and inside longer rows."""
    values = torch.tensor(HARD_ROWS[row], device=device).to(dtype)
    for padded in (values, torch.cat([values, torch.full((150,), float(values[1]), device=device, dtype=dtype)])):
        for layout in ("rows", "strided"):
            for smoothing in (0.0, 0.1):
                input = padded.expand(3, -1) if layout == "rows" else padded.view(1, -1, 1).expand(1, -1, 3)
                input = input.contiguous().requires_grad_()
                target = torch.tensor([0, 1, 2], device=device).view(input.shape[0], *input.shape[2:])
                input64 = input.detach().double().requires_grad_()
                loss = pf.cross_entropy(input, target, reduction="none", label_smoothing=smoothing)
                expected = F.cross_entropy(input64, target, reduction="none", label_smoothing=smoothing)
                expected = expected.to(dtype)  # beyond the dtype's range it is inf there
                assert_close(loss, expected, scale=2.0)
                (grad,) = torch.autograd.grad(loss.sum(), input)
                (expected_grad,) = torch.autograd.grad(expected.sum(), input64)
                assert_close(grad, expected_grad)


def test_hard_numbers_of_probabilities(device):
    for row in ("-inf", "all -inf", "+inf", "nan", "1e4"):
        input = torch.tensor([HARD_ROWS[row]], device=device)
        compare(input, torch.tensor([[0.2, 0.5, 0.3]], device=device), scale=4.0)
        compare(input, torch.tensor([[0.0, 1.0, 0.0]], device=device), scale=4.0)


def test_exp_and_log_over_their_range(device):
    """A row (0, -x) has loss log(1 + exp(-x)): exp alone for large x. (0, x) with target 0: its gradient is softmax."""
    for dtype, limit in ((torch.float32, 87.0), (torch.float64, 708.0)):
        x = torch.linspace(0, limit, 4001, device=device, dtype=dtype)
        input = torch.stack([torch.zeros_like(x), -x], 1).requires_grad_()
        target = torch.zeros(len(x), dtype=torch.int64, device=device)
        (grad,) = torch.autograd.grad(pf.cross_entropy(input, target, reduction="sum"), input)
        expected = torch.exp(-x.double()) / (1 + torch.exp(-x.double()))
        # exp itself, and the rounding of its argument -x - log(1 + exp(-x))
        bound = (4 + x.double().clamp(max=40) / 2) * torch.finfo(dtype).eps
        relative = ((grad[:, 1].double() - expected) / expected).abs()
        assert (relative < bound).all(), (dtype, float((relative / bound).max()))
    # logarithms of whole numbers: C equal logits have loss log C
    for classes in (1, 2, 3, 5, 1000, 65537):
        loss = pf.cross_entropy(
            torch.zeros(1, classes, device=device), torch.zeros(1, dtype=torch.int64, device=device)
        )
        assert abs(float(loss) - math.log(classes)) <= 2e-7 * max(math.log(classes), 0.1)


def test_autocast(device):
    input, target = make((6, 40), "classes", torch.bfloat16, device)
    input.requires_grad_()
    with torch.autocast(device.type, torch.bfloat16):
        loss = pf.cross_entropy(input, target)
        rows = pf.cross_entropy(input, target, reduction="none")
        soft = pf.cross_entropy(input, torch.full((6, 40), 1 / 40, device=device))
        weighted = pf.cross_entropy(input, target, weight=torch.rand(40, device=device))
    assert loss.dtype == rows.dtype == soft.dtype == weighted.dtype == torch.float32
    assert_close(loss, reference(input, target))  # to float32 accuracy, from bf16 logits
    assert_close(rows, reference(input, target, reduction="none"))
    (grad,) = torch.autograd.grad(rows.sum(), input)
    assert grad.dtype == torch.bfloat16


@pytest.mark.parametrize("input_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target_dtype", DTYPES, ids=str)
def test_probabilities_of_another_dtype(device, input_dtype, target_dtype):
    input, target = make((4, 20), "probabilities", input_dtype, device)
    target = target.to(target_dtype)
    ours, theirs = pf.cross_entropy(input, target), F.cross_entropy(input, target)
    assert ours.dtype == theirs.dtype
    coarse = max((input_dtype, target_dtype, ours.dtype), key=lambda d: torch.finfo(d).eps)
    assert_close(ours, reference(input, target), coarse)


def test_weight_that_learns(device):
    """torch gives the weight a gradient for probabilities, and refuses for class indices."""
    input, target = make((5, 7), "probabilities", device=device)
    weight = torch.rand(7, device=device, requires_grad=True)
    weight64 = weight.detach().double().requires_grad_()
    (grad,) = torch.autograd.grad(pf.cross_entropy(input, target, weight, label_smoothing=0.1), weight)
    (expected,) = torch.autograd.grad(
        F.cross_entropy(input.double(), target.double(), weight64, label_smoothing=0.1), weight64
    )
    assert_close(grad, expected)
    with pytest.raises(RuntimeError, match="weight to need no gradient"):
        pf.cross_entropy(input, target.argmax(1), weight)


def test_uint8_targets(device):
    input, target = make((5, 7), "classes", device=device)
    assert_close(pf.cross_entropy(input, target.to(torch.uint8)), reference(input, target))


@pytest.mark.parametrize(
    "size_average, reduce, reduction", [(None, False, "none"), (False, None, "sum"), (True, True, "mean")]
)
def test_deprecated_reduction(device, size_average, reduce, reduction):
    input, target = make((5, 7), "classes", device=device)
    with pytest.warns(UserWarning, match="deprecated"):
        loss = pf.cross_entropy(input, target, size_average=size_average, reduce=reduce)
    assert_close(loss, reference(input, target, reduction=reduction))


I64 = torch.int64
X = torch.zeros(4, 5)
Y = torch.zeros(4, dtype=I64)
BAD = [
    ("index too large", (X, torch.tensor([0, 1, 2, 5])), {}, r"expected target to be in \[0, 5\).*got 5"),
    ("index negative", (X, torch.tensor([0, 1, 2, -1])), {"reduction": "none"}, "got -1"),
    ("index too large in space", (X.view(1, 5, 4), torch.tensor([[0, 9, 1, 1]])), {}, "got 9"),
    ("no classes", (torch.zeros(3, 0), Y[:3]), {}, r"in \[0, 0\).*got 0"),
    ("reduction", (X, Y), {"reduction": "average"}, "none, mean or sum, got 'average'"),
    ("smoothing", (X, Y), {"label_smoothing": 1.5}, r"label_smoothing to be in \[0, 1\], got 1.5"),
    ("batch sizes", (X, Y[:3]), {}, r"expected target to be of shape \(4\) or \(4, 5\), got \(3\)"),
    ("target without batch", (X, Y[0]), {}, "expected target to be of shape"),
    ("target too deep", (X, Y.view(4, 1)), {}, r"got \(4, 1\)"),
    ("probabilities of another shape", (X, torch.zeros(4, 6)), {}, r"got \(4, 6\)"),
    ("spatial sizes", (X.view(2, 5, 2), Y.view(2, 2)[:, :1]), {}, r"of shape \(2, 2\) or"),
    ("spatial sizes 2d", (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 5, dtype=I64)), {}, r"got \(2, 4, 5\)"),
    ("spatial rank", (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, dtype=I64)), {}, r"got \(2, 4\)"),
    ("indices of input's shape", (X, torch.zeros(4, 5, dtype=I64)), {}, "class probabilities of a floating"),
    ("int32 target", (X, Y.int()), {}, "dtype to be int64 or uint8"),
    ("bool target", (X, Y.bool()), {}, "dtype to be int64 or uint8"),
    ("float target", (X, Y.float()), {}, "dtype to be int64 or uint8"),
    ("complex target", (X, X.to(torch.complex64)), {}, "class probabilities"),
    ("unbatched, three targets", (X[0], Y[:3]), {}, r"one class index, got shape \(3\)"),
    ("scalar input", (X[0, 0], X[0, 0]), {}, "1 or more dimensions, got 0"),
    ("weight's size", (X, Y, torch.ones(4)), {}, r"weight to be of shape \(5\).*got \(4\)"),
    ("weight's rank", (X, Y, torch.ones(5, 1)), {}, r"weight to be of shape \(5\).*got \(5, 1\)"),
    ("weight's dtype", (X, Y, torch.ones(5).double()), {}, "weight dtype to be input's"),
    ("weight's dtype, half", (X.bfloat16(), Y, torch.ones(5)), {}, "weight dtype to be input's"),
    ("weight of probabilities", (X, X, torch.ones(4)), {}, r"weight to be of shape \(5\)"),
    ("ignore_index of probabilities", (X, X), {"ignore_index": 1}, "ignore_index to be negative"),
]


@pytest.mark.parametrize("args, options, match", [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input(args, options, match):
    """The exception type is torch's; the message is ours."""
    with pytest.raises(Exception) as theirs:  # noqa: PT011  (whatever torch raises is what we must raise)
        F.cross_entropy(*args, **options)
    with pytest.raises(type(theirs.value), match=match) as ours:
        pf.cross_entropy(*args, **options)
    # torch says RuntimeError where ours may be the narrower kind, never the other way round
    assert type(ours.value) is type(theirs.value)


def test_bad_target_leaves_inputs_alone(device):
    input, target = make((3, 4), "classes", device=device)
    target[1] = 4
    before = input.clone()
    if pydl.backend.current(device) == "cpu":
        with pytest.raises(IndexError, match="got 4"):
            pf.cross_entropy(input, target)
    else:  # a GPU cannot raise without being waited for: nan for the row, and no access outside the logits
        loss = pf.cross_entropy(input.requires_grad_(), target, reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), input)
        assert loss.isnan().tolist() == [False, True, False]
        assert grad.isnan().all(1).tolist() == [False, True, False]
        input = input.detach()
    assert torch.equal(input, before)


def test_other_dtypes_are_torchs():
    with pytest.raises(NotImplementedError):
        pf.cross_entropy(X.long(), Y)
    with pytest.raises(ValueError, match="z_loss to be 0"):
        pf.cross_entropy(X.long(), Y, z_loss=0.1)
