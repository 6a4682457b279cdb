"""Softmax cross entropy against float64 torch: every option, layout and dtype, hard numbers, bad input, transforms."""

import math

import pytest
import torch
import torch.nn.functional as F
from testing import DTYPES, assert_close

import pydl
import pydl.functional as pf
import pydl.ops.softmax_cross_entropy as op

REDUCTIONS = ["none", "mean", "sum"]

# (N, C, *positions), each with its reason; lanes are 4, 8 or 16 floats, class blocks 8192
SHAPES = [
    (5, 3),  # fewer classes than lanes
    (3, 16),  # one whole vector
    (4, 17),  # and one more
    (2, 255),  # chunks, vectors and a remainder
    (3, 8200),  # two class blocks, the second of 8
    (64, 40),  # rows shared by threads
    (2, 5, 3),  # classes apart, three rows side by side
    (2, 9, 4, 5),
    (1, 6, 37, 29),  # more rows than a block holds
    (2, 3, 2, 2, 3),
]


def reference(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, z_loss=0.0):
    """torch in float64, and z-loss by its definition: z lse² of rows not ignored, divided as the mean divides."""

    def double(t):
        return t if t is None or not t.is_floating_point() else t.double()

    input, target, weight = double(input), double(target), double(weight)
    loss = F.cross_entropy(
        input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )
    if z_loss == 0.0:
        return loss
    lse = torch.logsumexp(input, 0 if input.dim() == 1 else 1)
    extra = z_loss * lse**2
    if target.is_floating_point():
        denominator = extra.numel()
    else:
        counted = target != ignore_index
        extra = torch.where(counted, extra, 0.0)
        denominator = counted.sum() if weight is None else weight[target[counted]].sum()
    return loss + (extra if reduction == "none" else extra.sum() / (denominator if reduction == "mean" else 1.0))


def make(shape, kind, dtype=torch.float32, device="cpu", ignored=False, scale=2.0):
    """Logits and targets of one kind: classes, or probabilities that do not quite sum to 1."""
    input = (torch.randn(shape) * scale).to(dtype).to(device)
    if kind == "classes":
        target = torch.randint(0, shape[1], (shape[0], *shape[2:]))
        if ignored:
            target[torch.rand(target.shape) < 0.3] = -100
            target.view(-1)[0] = 0  # at least one counts
    else:
        target = torch.rand(shape).to(dtype)
        target = target / target.sum(1, keepdim=True) * 1.1
    return input, target.to(device)


def compare(input, target, scale=1.0, **options):
    """Loss and gradients, with an upstream gradient that is not one, against float64."""
    input = input.detach().requires_grad_()
    target = target.detach().requires_grad_(target.is_floating_point())
    before = input.detach().clone()
    input64 = input.detach().double().requires_grad_()
    target64 = target.detach().double().requires_grad_() if target.is_floating_point() else target
    loss = pf.cross_entropy(input, target, **options)
    expected = reference(input64, target64, **options)
    assert loss.shape == expected.shape
    assert_close(loss, expected, input.dtype, scale)
    upstream = torch.randn(loss.shape, device=loss.device).to(loss.dtype) if loss.dim() else torch.tensor(-1.75)
    wanted = [t for t in (input, target) if t.requires_grad]
    wanted64 = [t for t in (input64, target64) if t.requires_grad]
    upstream = upstream.to(loss)
    grads = torch.autograd.grad(loss, wanted, upstream)
    expected_grads = torch.autograd.grad(expected, wanted64, upstream.double())
    for grad, expected_grad, tensor in zip(grads, expected_grads, wanted, strict=True):
        assert grad.dtype == tensor.dtype
        assert grad.shape == tensor.shape
        assert_close(grad, expected_grad, input.dtype, scale)
    torch.testing.assert_close(input.detach(), before, rtol=0, atol=0, equal_nan=True)  # logits survive
    return loss


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_float64(device, dtype, shape, kind):
    input, target = make(shape, kind, dtype, device)
    for reduction in REDUCTIONS:
        compare(input, target, reduction=reduction)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("shape", [(7, 21), (3, 9, 5)], ids=str)
def test_options(device, shape, kind, smoothing, weighted):
    for reduction in REDUCTIONS:
        for z_loss in (0.0, 0.01):
            input, target = make(shape, kind, device=device, ignored=True)
            weight = torch.rand(shape[1], device=device) if weighted else None
            compare(input, target, weight=weight, reduction=reduction, label_smoothing=smoothing, z_loss=z_loss)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_options_in_every_dtype(device, dtype):
    for kind in ("classes", "probabilities"):
        input, target = make((6, 33), kind, dtype, device, ignored=True)
        weight = torch.rand(33, device=device).to(dtype)
        compare(input, target, weight=weight, label_smoothing=0.1, z_loss=1e-3, reduction="none")


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_unbatched(device, kind):
    input = torch.randn(11, device=device)
    target = torch.tensor(3, device=device) if kind == "classes" else torch.rand(11, device=device)
    for reduction in REDUCTIONS:
        assert compare(input, target, reduction=reduction, label_smoothing=0.1).shape == ()
    if kind == "classes":  # torch also takes a target of one element here
        assert pf.cross_entropy(input, target.view(1)).shape == ()
        assert compare(input, torch.tensor(-100, device=device), reduction="sum") == 0


LAYOUTS = {
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed space": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "class step 2": lambda t: torch.stack([t, t], 2).flatten(1, 2)[:, ::2],
    "space step 2": lambda t: torch.stack([t, t], -1).flatten(3)[..., ::2],
    "slice of a wider row": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "batch last": lambda t: t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "offset by one element": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_layouts(device, layout, kind):
    input, target = make((3, 19, 6, 7), kind, device=device)
    strided = LAYOUTS[layout](input)
    for reduction in ("none", "mean"):
        compare(strided, target, reduction=reduction, label_smoothing=0.1)
        if kind == "probabilities":  # the target in the other layout, and the input in the plain one
            compare(input, LAYOUTS[layout](target), reduction=reduction)


def test_transposed_matrix(device):
    input, target = make((300, 12), "classes", device=device)
    compare(input.t().contiguous().t(), target)
    compare(input[::3], target[::3], reduction="none")
    compare(input, target.repeat_interleave(2)[::2], reduction="none")


def test_channels_last_gradient_keeps_the_layout(device):
    input, target = make((2, 5, 4, 3), "classes", device=device)
    input = input.contiguous(memory_format=torch.channels_last).requires_grad_()
    pf.cross_entropy(input, target).backward()
    assert input.grad.is_contiguous(memory_format=torch.channels_last)


def test_expanded_upstream_gradient(device):
    """sum() hands down a gradient of stride 0."""
    for shape in [(6, 10), (2, 10, 3)]:
        input, target = make(shape, "classes", device=device)
        input.requires_grad_()
        (grad,) = torch.autograd.grad(pf.cross_entropy(input, target, reduction="none").sum() * 3.0, input)
        input64 = input.detach().double().requires_grad_()
        (expected,) = torch.autograd.grad(F.cross_entropy(input64, target, reduction="sum") * 3.0, input64)
        assert_close(grad, expected)


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


def test_loss_without_gradients(device):
    """The loss is there when nothing needs a gradient, and the same."""
    input, target = make((5, 30), "classes", device=device)
    with torch.no_grad():
        loss = pf.cross_entropy(input, target)
    assert not loss.requires_grad
    assert torch.equal(loss, pf.cross_entropy(input.requires_grad_(), target))


def test_backward_twice(device):
    """A retained graph gives the same gradient again, also after one with another upstream gradient."""
    input, target = make((5, 30), "classes", device=device)
    input.requires_grad_()
    loss = pf.cross_entropy(input, target)
    grads = [
        torch.autograd.grad(loss, input, torch.tensor(s, device=device), retain_graph=True)[0] for s in (1.0, 2.0, 1.0)
    ]
    assert torch.equal(grads[0], grads[2])
    assert_close(grads[1], 2 * grads[0])
    assert grads[0].data_ptr() != grads[2].data_ptr()


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 30), (2, 9, 5), (3, 20000)], ids=str)
def test_gradient_made_in_the_forward(device, dtype, shape):
    """It has the bits of the one that the backward makes, and is handed out for an upstream gradient of 1 alone."""
    input, target = make(shape, "classes", dtype, device, ignored=True)
    input.requires_grad_()
    options = {"label_smoothing": 0.1, "z_loss": 1e-3, "weight": torch.rand(shape[1], device=device).to(dtype)}
    for reduction in ("mean", "sum"):
        grads = []
        for early in (True, False):
            op._Eager.early = early
            loss = pf.cross_entropy(input, target, reduction=reduction, **options)
            grads.append(torch.autograd.grad(loss, input)[0])
            assert op._Eager.early  # an upstream gradient of 1: the next forward makes it again
        assert torch.equal(*grads)
        compare(input, target, reduction=reduction, **options)  # upstream -1.75
        assert not op._Eager.early


def test_gradient_of_a_scaled_half_loss(device):
    """Gradients below the smallest half survive a loss scale, as the scaled loss asks for: rounding comes last."""
    input, target = make((4096, 8), "classes", torch.float16, device)
    input.requires_grad_()
    scale = 2.0**14
    loss = pf.cross_entropy(input, target, reduction="mean") * scale
    (grad,) = torch.autograd.grad(loss, input)
    input64 = input.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(input64, target) * scale, input64)
    assert_close(grad, expected)


def test_checkpoint(device):
    input, target = make((5, 30), "classes", device=device)
    input.requires_grad_()

    def loss(x):
        return pf.cross_entropy(x * 2.0, target)

    (expected,) = torch.autograd.grad(loss(input), input)
    for reentrant in (False, True):
        kept = torch.utils.checkpoint.checkpoint(loss, input, use_reentrant=reentrant)
        kept.backward()
        assert torch.equal(input.grad, expected)
        input.grad = None


def test_gradient_accumulates(device):
    input, target = make((5, 30), "classes", device=device)
    input.requires_grad_()
    for _ in range(2):
        pf.cross_entropy(input, target).backward()
    (once,) = torch.autograd.grad(pf.cross_entropy(input, target), input)
    assert_close(input.grad, 2 * once)


def test_logits_changed_before_backward(device):
    """Either the right gradient or an error, never a wrong one."""
    input, target = make((5, 30), "classes", device=device)
    leaf = input.requires_grad_()
    logits = leaf * 1.0
    loss = pf.cross_entropy(logits, target, reduction="none")
    logits.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 3)], ids=str)
def test_gradcheck(kind, shape):
    input, target = make(shape, kind, torch.float64, ignored=True)
    weight = torch.rand(shape[1], dtype=torch.float64)
    target.requires_grad_(kind == "probabilities")
    for reduction in REDUCTIONS:

        def function(x, t, reduction=reduction):
            return pf.cross_entropy(x, t, weight, reduction=reduction, label_smoothing=0.1, z_loss=0.05)

        assert torch.autograd.gradcheck(function, (input.requires_grad_(), target))
        assert torch.autograd.gradgradcheck(function, (input, target))


def test_double_backward_unbatched():
    input = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: pf.cross_entropy(x, torch.tensor(2), z_loss=0.1), (input,))


def test_derivative_of_the_backward_op_is_refused():
    input, target = make((3, 5), "classes")
    _, norm, denominator = torch.ops.pydl.softmax_cross_entropy_forward(input, target, None, 1, -100, 0.0, 0.0)
    upstream = torch.ones((), requires_grad=True)
    grad = torch.ops.pydl.softmax_cross_entropy_backward(
        upstream, input, target, None, norm, denominator, 1, -100, 0.0, 0.0
    )
    with pytest.raises(RuntimeError, match="create_graph=True through cross_entropy"):
        grad.sum().backward()


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("shape", [(3, 5), (2, 5, 3), (5,)], ids=str)
def test_opcheck(kind, shape):
    input = torch.randn(shape, requires_grad=True)
    if kind == "classes":
        target = torch.randint(0, 5, shape[:1] + shape[2:] if len(shape) > 1 else ())
    else:
        target = torch.rand(shape, requires_grad=True)
    for reduction in range(3):
        options = (reduction, -100, 0.1, 0.01)
        args = (input, target, torch.rand(5), *options, False)
        torch.library.opcheck(torch.ops.pydl.softmax_cross_entropy_forward, args)
        if reduction:
            detached = (input.detach(), target.detach(), *args[2:])
            torch.library.opcheck(torch.ops.pydl.softmax_cross_entropy_forward_backward, detached)
        output, norm, denominator = torch.ops.pydl.softmax_cross_entropy_forward(*args)
        saved = (torch.ones_like(output).detach(), input.detach(), target.detach(), None, norm, denominator)
        torch.library.opcheck(torch.ops.pydl.softmax_cross_entropy_backward, (*saved, *options))
        if kind == "probabilities":
            torch.library.opcheck(torch.ops.pydl.softmax_cross_entropy_backward_target, (*saved, reduction, 0.1))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_compile(kind, dynamic):
    torch._dynamo.reset()

    def loss_of(x, t, w):
        return pf.cross_entropy(x * 2.0, t, w, label_smoothing=0.1, z_loss=0.01) * 3.0

    compiled = torch.compile(loss_of, fullgraph=True, dynamic=dynamic)
    for shape in [(6, 12), (7, 13)]:
        input, target = make(shape, kind)
        if kind == "classes":
            target[0] = -100
        weight = torch.rand(shape[1])
        results = []
        for function in (compiled, loss_of):
            x = input.clone().requires_grad_()
            loss = function(x, target, weight)
            loss.backward()
            results.append((loss.detach(), x.grad))
        assert_close(results[0][0], results[1][0])
        assert_close(results[0][1], results[1][1])


def test_compile_autocast_and_reductions():
    torch._dynamo.reset()
    input, target = make((2, 12, 5), "classes", torch.bfloat16)

    @torch.compile(fullgraph=True)
    def losses(x, t):
        with torch.autocast("cpu", torch.bfloat16):
            return [pf.cross_entropy(x, t, reduction=r) for r in REDUCTIONS]

    for loss, reduction in zip(losses(input, target), REDUCTIONS, strict=True):
        assert loss.dtype == torch.float32
        assert_close(loss, reference(input, target, reduction=reduction))


def test_transforms():
    """torch.func: per-sample gradients, Jacobians, Hessians; forward mode is refused in words."""
    input, target = make((4, 5), "classes", torch.float64)
    for of, to in ((pf.cross_entropy, F.cross_entropy),):
        results = []
        for f in (of, to):
            loss = lambda x, t, f=f: f(x, t, label_smoothing=0.1)  # noqa: E731
            results.append(
                [
                    torch.func.grad(loss)(input, target),
                    torch.func.vmap(torch.func.grad(loss))(input, target),
                    torch.func.jacrev(lambda x, f=f: f(x, target, reduction="none"))(input),
                    torch.func.jacrev(torch.func.grad(loss))(input, target),
                ]
            )
        for ours, theirs in zip(*results, strict=True):
            assert_close(ours, theirs)
    with pytest.raises(NotImplementedError, match="cross_entropy: expected gradients in reverse mode"):
        torch.func.jvp(lambda x: pf.cross_entropy(x, target), (input,), (torch.ones_like(input),))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(input, torch.ones_like(input))
        with pytest.raises(NotImplementedError, match="forward-mode tangent"):
            pf.cross_entropy(dual, target)


def test_thread_count_does_not_matter():
    """Bit for bit: many rows, few long rows (split between threads), rows side by side."""
    before = torch.get_num_threads()
    try:
        for shape in [(300, 50), (3, 40000), (2, 7, 900), (1, 20000)]:
            for kind in ("classes", "probabilities"):
                input, target = make(shape, kind)
                input.requires_grad_()
                results = []
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    loss = pf.cross_entropy(input, target, label_smoothing=0.1)
                    results.append((loss, *torch.autograd.grad(loss * 2.0, input)))
                for loss, grad in results[1:]:
                    assert torch.equal(loss, results[0][0])
                    assert torch.equal(grad, results[0][1])
    finally:
        torch.set_num_threads(before)


def test_long_rows(device):
    """More classes than any block: several blocks to a row, split between threads."""
    for kind in ("classes", "probabilities"):
        input, target = make((2, 50257), kind, device=device)
        compare(input, target)
        compare(input, target, reduction="none", label_smoothing=0.1, weight=torch.rand(50257, device=device))


@pytest.mark.large
def test_large_gradient_past_the_caches(device):
    """16 MB and more are written by another kind of store; rows that start off its alignment too."""
    for classes in (5003, 5008):
        for dtype in (torch.float32, torch.bfloat16):
            input, target = make((1700, classes), "classes", dtype, device)
            compare(input, target)


def test_mean_of_many_rows_in_bf16():
    """The sum of 70,000 losses is not kept in bf16."""
    input, target = make((70000, 4), "classes", torch.bfloat16)
    assert_close(pf.cross_entropy(input, target), reference(input, target))


@pytest.mark.slow
def test_beyond_31_bits():
    """2³¹ + 5 elements: the last logits lie beyond what 32-bit offsets reach."""
    classes = 4099
    rows = (2**31 + 5) // classes + 1
    input = torch.zeros(rows, classes, dtype=torch.bfloat16)
    input[-1] = torch.linspace(-5.0, 5.0, classes)
    target = torch.zeros(rows, dtype=torch.int64)
    target[-1] = 4
    input.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = pf.cross_entropy(input, target, reduction="sum")
    tail = input.detach()[-3:].double().requires_grad_()
    expected = F.cross_entropy(tail, target[-3:], reduction="sum")
    assert_close(loss, expected + (rows - 3) * math.log(classes))
    loss.backward()
    (expected_grad,) = torch.autograd.grad(expected, tail)
    assert_close(input.grad[-3:], expected_grad)
    del input, loss, target

    input = torch.zeros(1, 2**31 + 5, dtype=torch.bfloat16)
    input[0, -1] = 30.0
    with torch.autocast("cpu", torch.bfloat16):
        loss = pf.cross_entropy(input, torch.tensor([2**31 + 4]))
    assert_close(loss, torch.tensor(math.log(math.exp(30.0) + 2**31 + 4) - 30.0))
