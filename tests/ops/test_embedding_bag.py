"""embedding_bag against torch in float64: every option, shape, layout, dtype and instruction set."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from testing import ALL_DTYPES, assert_close

import pydl
import pydl.ops.embedding_bag
from pydl.functional import embedding_bag

pytestmark = pytest.mark.cpu_kernels


def passes(function, ids, weight, offsets=None, per_sample_weights=None, grad=None, **options):
    leaf = weight.detach().clone().requires_grad_()
    y = function(ids, leaf, offsets, per_sample_weights=per_sample_weights, **options)
    if grad is None:
        grad = (torch.arange(y.numel()) * 0.7 + 0.3).sin().reshape(y.shape)
    return y, torch.autograd.grad(y, leaf, grad.to(y.dtype))[0], leaf


def compare(ids, weight, offsets=None, per_sample_weights=None, **options):
    """Result, gradient, and the table itself, which max_norm writes to."""
    exact = weight.double(), offsets, None if per_sample_weights is None else per_sample_weights.double()
    actual = passes(embedding_bag, ids, weight, offsets, per_sample_weights, **options)
    expected = passes(F.embedding_bag, ids, *exact, **options)
    for p, q in zip(actual, expected, strict=True):
        assert (p.dtype, p.shape) == (weight.dtype, q.shape)
        size = max(1.0, q.abs().max().item()) if q.numel() else 1.0  # a sum of many: relative to its own size
        assert_close(p.detach().double() / size, q / size, weight.dtype, scale=2)


# (rows, width, shape of ids, offsets): small tables are summed up in order, others row by row; bags without a place in
# the middle and at the end
SHAPES = [
    (1, 1, (2, 1), None),
    (28, 256, (8, 35), None),
    (5000, 12, (33, 7), None),
    (9, 70, (300,), [0, 0, 100, 299, 300]),
    (400, 45, (300,), [0, 7, 7, 8, 200]),
    (7, 3, (5,), [0]),
]


@pytest.mark.best_isa
@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("rows, width, size, offsets", SHAPES, ids=str)
def test_all_passes(rows, width, size, offsets, mode, device):
    offsets = None if offsets is None else torch.tensor(offsets)
    for dtype in ALL_DTYPES:
        compare(torch.randint(rows, size), torch.randn(rows, width).to(dtype), offsets, mode=mode)


def test_remainders(device):
    """Both ways of summing, at widths around those of vectors and of a thread's columns."""
    for width, dtype in itertools.product((1, 3, 7, 9, 15, 17, 31, 33, 65), ALL_DTYPES):
        for rows in (8, 60):
            compare(torch.randint(6, (4, 5)), torch.randn(rows, width).to(dtype))


OPTIONS = [
    {"padding_idx": 2},
    {"padding_idx": -1, "mode": "sum"},
    {"max_norm": 1.5, "norm_type": 1.0},
    {"include_last_offset": True},
    {"include_last_offset": True, "mode": "sum", "padding_idx": 1},
]


@pytest.mark.best_isa
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(options, device):
    offsets = torch.tensor([0, 3, 3, 21, 45])
    for dtype, rows in itertools.product(ALL_DTYPES, (7, 70)):
        if dtype.itemsize == 2 and "max_norm" in options:
            continue  # torch scales the table in its own dtype: what is rounded there is no error of ours
        compare(torch.randint(7, (45,)), torch.randn(rows, 12).to(dtype), offsets, **options)


@pytest.mark.best_isa
def test_weights_of_samples(device):
    for dtype, rows in itertools.product(ALL_DTYPES, (7, 70)):
        weight, factors = torch.randn(rows, 12).to(dtype), torch.randn(5, 9).to(dtype)
        for options in ({}, {"padding_idx": 3}):
            compare(torch.randint(7, (5, 9)), weight, None, factors, mode="sum", **options)


@pytest.mark.best_isa
def test_any_strides(device):
    weight, ids = torch.randn(9, 20), torch.randint(9, (6, 8))
    for of_ids in (ids.t(), ids[:, ::2], ids[:1].expand(6, 8), ids.int()):
        compare(of_ids, weight)
        compare(of_ids, torch.randn(20, 9).t())
    compare(ids.flatten()[::2], weight, torch.tensor([0, 9, 1, 9, 20, 9])[::2])
    compare(ids.flatten().int(), weight, torch.tensor([0, 20]).int())
    for grad in (torch.randn(()).expand(6, 20), torch.randn(20, 6).t(), torch.randn(6, 40)[:, ::2]):
        found = passes(embedding_bag, ids, weight, grad=grad)
        for p, q in zip(found, passes(F.embedding_bag, ids, weight, grad=grad), strict=True):
            torch.testing.assert_close(p, q)


@pytest.mark.best_isa
def test_thread_count_changes_no_bit(device):
    before, results = torch.get_num_threads(), []
    ids, tables = torch.randint(60, (90, 50)), [torch.randn(60, 200), torch.randn(900, 200)]
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([passes(embedding_bag, ids, table)[1] for table in tables])
    finally:
        torch.set_num_threads(before)
    assert all(all(map(torch.equal, result, results[0])) for result in results[1:])


def ours_ran(call):
    with torch.profiler.profile() as profiler:
        call().sum().backward()
    return any(event.key == "pydl::embedding_bag_backward" for event in profiler.key_averages())


def test_what_is_left_to_torch(monkeypatch):
    weight, ids = torch.randn(5, 4, requires_grad=True), torch.tensor([[0, 3, 3], [1, 2, 1]])
    factors = torch.randn(2, 3, requires_grad=True)
    assert ours_ran(lambda: embedding_bag(ids, weight))
    assert not ours_ran(lambda: embedding_bag(ids, weight, sparse=True))
    assert not ours_ran(lambda: embedding_bag(ids, weight, scale_grad_by_freq=True))
    assert not ours_ran(lambda: embedding_bag(ids, weight, mode="max"))
    assert not ours_ran(lambda: embedding_bag(ids, weight, mode="sum", per_sample_weights=factors))
    assert not ours_ran(lambda: torch.compile(embedding_bag, backend="eager", fullgraph=True)(ids, weight))
    for end, ours in (
        (3, True),
        (2, False),
    ):  # places beyond the last bag: its gradient is torch's
        offsets = torch.tensor([0, 1, end])
        assert ours == ours_ran(lambda o=offsets: embedding_bag(ids[0], weight, o, include_last_offset=True))
    with pydl.backend.use("torch"):
        assert not ours_ran(lambda: embedding_bag(ids, weight))
    monkeypatch.undo()
    assert not ours_ran(lambda: embedding_bag(ids, weight))
    many = torch.zeros(2, pydl.ops.embedding_bag.WORTH_A_CALL // 4, dtype=torch.int64)
    assert ours_ran(lambda: embedding_bag(many, weight))
    with pydl.swapped():
        assert ours_ran(lambda: F.embedding_bag(many, weight))
        assert ours_ran(lambda: torch.nn.EmbeddingBag(5, 4)(many))


def test_sparse_and_maxima_are_torchs():
    weight, ids = torch.randn(5, 4, requires_grad=True), torch.tensor([[0, 3, 3]])
    embedding_bag(ids, weight, sparse=True).sum().backward()
    assert weight.grad.is_sparse
    assert torch.equal(embedding_bag(ids, weight, mode="max"), F.embedding_bag(ids, weight, mode="max"))


IDS = torch.tensor([[0, 3, 3]])
REFUSED = {
    "a number beyond": lambda f, w: f(torch.tensor([[0, 5]]), w),
    "no integers": lambda f, w: f(torch.tensor([[0.5]]), w),
    "no offsets": lambda f, w: f(IDS[0], w),
    "offsets beside bags": lambda f, w: f(IDS, w, torch.tensor([0])),
    "offsets that do not begin with 0": lambda f, w: f(IDS[0], w, torch.tensor([1, 2])),
    "an offset beyond": lambda f, w: f(IDS[0], w, torch.tensor([0, 9])),
    "an unknown mode": lambda f, w: f(IDS, w, mode="median"),
    "weights of samples in a mean": lambda f, w: f(IDS, w, per_sample_weights=torch.ones(1, 3)),
    "weights of other samples": lambda f, w: f(IDS, w, mode="sum", per_sample_weights=torch.ones(1, 2)),
    "a padding beyond": lambda f, w: f(IDS, w, padding_idx=5),
    "a list": lambda f, w: f([[0]], w),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_as_by_torch(case):
    weight = torch.randn(5, 4, requires_grad=True)
    with pytest.raises(Exception) as theirs:  # noqa: PT011  (whatever torch raises)
        REFUSED[case](F.embedding_bag, weight)
    with pytest.raises(type(theirs.value)):
        REFUSED[case](embedding_bag, weight)


GIVEN = torch.ones(2, 4), torch.tensor([1, 2, 0]), torch.tensor([0, 2]), None, 5, -1, True, False
BACKWARD_REFUSED = {
    "ids beyond": ((1, torch.tensor([1, 5, 0])), IndexError, r"ids to be in \[0, 5\)"),
    "ids of another dtype": (
        (1, torch.tensor([1]).int()),
        RuntimeError,
        "ids and offsets to be int64 and 1-D, got int32",
    ),
    "bags": ((0, torch.ones(3, 4)), RuntimeError, "grad_output to have a row for each of 2 bags"),
    "rows": ((4, -5), RuntimeError, "num_weights to be at least 0, got -5"),
    "offsets": ((2, torch.tensor([1, 2])), RuntimeError, r"offsets to begin with 0 and to be in \[0, 3\], got 1"),
    "an offset beyond": (
        (2, torch.tensor([0, 4])),
        RuntimeError,
        r"offsets to begin with 0 and to be in \[0, 3\], got 4",
    ),
    "factors": ((3, torch.ones(2)), RuntimeError, "per_sample_weights to be of the shape of ids"),
    "their dtype": ((3, torch.ones(3).double()), RuntimeError, "per_sample_weights to be of the dtype of grad_output"),
}


@pytest.mark.parametrize("case", BACKWARD_REFUSED)
def test_a_backward_that_does_not_fit_is_refused(case):
    (place, value), error, message = BACKWARD_REFUSED[case]
    with pytest.raises(error, match=f"embedding_bag: expected {message}"):
        torch.ops.pydl.embedding_bag_backward(*GIVEN[:place], value, *GIVEN[place + 1 :])


def test_opcheck():
    grad, ids, offsets = torch.randn(3, 7, requires_grad=True), torch.tensor([0, 1, 1, 4, 2]), torch.tensor([0, 2, 2])
    for mean, factors in ((True, None), (False, torch.randn(5))):
        torch.library.opcheck(torch.ops.pydl.embedding_bag_backward, (grad, ids, offsets, factors, 6, 2, mean, False))


@pytest.mark.parametrize(
    "options",
    [{}, {"padding_idx": 1}, {"padding_idx": 1, "mode": "sum"}, {"include_last_offset": True}],
    ids=str,
)
def test_second_derivatives(options):
    """Linear in the gradient: what comes back for it is the forward of what is given, as it is weighted."""
    ids, offsets = torch.tensor([0, 1, 1, 4, 2]), torch.tensor([0, 2, 2, 5])
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda w: embedding_bag(ids, w, offsets, **options), (weight,))
    factors = torch.randn(5, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda w: embedding_bag(ids, w, offsets, mode="sum", per_sample_weights=factors), (weight,)
    )


def test_transforms():
    weight, ids = torch.randn(5, 3, dtype=torch.float64), torch.tensor([[0, 1], [1, 4]])
    expected = torch.func.grad(lambda w: F.embedding_bag(ids, w).sin().sum())(weight)
    assert_close(torch.func.grad(lambda w: embedding_bag(ids, w).sin().sum())(weight), expected)
    leaf = weight.requires_grad_()
    y, grads = embedding_bag(ids, leaf), torch.randn(4, 2, 3, dtype=torch.float64)
    (batched,) = torch.autograd.grad(y, leaf, grads, is_grads_batched=True)
    each = [torch.autograd.grad(F.embedding_bag(ids, leaf), leaf, g)[0] for g in grads]
    assert_close(batched, torch.stack(each))


class Typed(torch.Tensor):
    """A tensor with a type of its own."""


# ---- the layer


@pytest.mark.parametrize("options", [{}, {"padding_idx": 1, "mode": "sum"}, {"max_norm": 0.5}], ids=str)
@pytest.mark.parametrize("of", ["pydl.nn", "swap"])
def test_layer(of, options):
    ids = torch.randint(6, (3, 4))
    theirs, own = torch.nn.EmbeddingBag(6, 5, **options), pydl.nn.EmbeddingBag(6, 5, **options)
    ours = own if of == "pydl.nn" else pydl.swap(torch.nn.EmbeddingBag(6, 5, **options))
    assert repr(ours) == repr(theirs)
    ours.load_state_dict(theirs.state_dict())
    assert ours_ran(lambda: ours(ids.flatten(), torch.tensor([0, 5])))
    ours.zero_grad()
    for layer in (theirs, ours):
        layer(ids).sin().sum().backward()
    assert_close(ours.weight.grad, theirs.weight.grad)
    assert not pydl.report(ours).rows[0].reason


def test_layer_steps_aside(monkeypatch):
    layer, ids = pydl.swap(torch.nn.EmbeddingBag(6, 5)), torch.tensor([[1, 2]])
    assert type(embedding_bag(ids, layer.weight.detach().as_subclass(Typed))) is Typed
    layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(Typed))
    assert type(layer(ids)) is Typed
    monkeypatch.setattr(F, "embedding_bag", lambda *args: "another")
    assert layer(ids) == "another"
