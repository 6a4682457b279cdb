"""embedding against torch in float64: every option, shape, layout, dtype and instruction set."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from testing import ALL_DTYPES, assert_close

import pydl
import pydl.ops.embedding
from pydl.functional import embedding

pytestmark = pytest.mark.cpu_kernels


def passes(function, ids, weight, grad=None, **options):
    leaf = weight.detach().clone().requires_grad_()
    y = function(ids, leaf, **options)
    if grad is None:
        grad = (torch.arange(y.numel()) * 0.7 + 0.3).sin().reshape(y.shape)
    return y, torch.autograd.grad(y, leaf, grad.to(y.dtype))[0], leaf


def compare(ids, weight, grad=None, **options):
    """Result, gradient, and the table itself, which max_norm writes to."""
    dtype = weight.dtype
    actual = passes(embedding, ids, weight, grad, **options)
    expected = passes(F.embedding, ids, weight.double(), None if grad is None else grad.double(), **options)
    for p, q in zip(actual, expected, strict=True):
        assert p.dtype == dtype
        assert p.shape == q.shape
        # a sum of many: relative to its own size
        size = max(1.0, q.abs().max().item()) if q.numel() else 1.0
        assert_close(p.detach().double() / size, q / size, dtype, scale=2)


# (rows, width, shape of ids): rows in tasks of 16384 numbers, lists in ranges of 4096 rows
SHAPES = [
    (1, 1, ()),
    (3, 5, (4,)),
    (28, 256, (8, 35)),
    (5000, 12, (3, 7, 11)),
    (9, 70, (300,)),
    (7, 3, (0,)),
    (5, 0, (4,)),
]


@pytest.mark.best_isa
@pytest.mark.parametrize("rows, width, size", SHAPES, ids=str)
def test_all_passes(rows, width, size, device):
    for dtype in ALL_DTYPES:
        compare(torch.randint(rows, size), torch.randn(rows, width).to(dtype))


def test_remainders(device):
    for width, dtype in itertools.product((1, 2, 3, 4, 5, 7, 8, 9, 15, 17, 31, 33, 63, 65, 129), ALL_DTYPES):
        compare(torch.randint(6, (20,)), torch.randn(8, width).to(dtype))


OPTIONS = [
    {"padding_idx": 2},
    {"padding_idx": -1},
    {"scale_grad_by_freq": True},
    {"scale_grad_by_freq": True, "padding_idx": 0},
    {"max_norm": 1.5},
    {"max_norm": 1.5, "norm_type": 1.0},
]


@pytest.mark.best_isa
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(options, device):
    for dtype in ALL_DTYPES:
        if dtype.itemsize == 2 and "max_norm" in options:
            continue  # torch scales the table in its own dtype: what is rounded there is no error of ours
        compare(torch.randint(7, (5, 9)), torch.randn(7, 12).to(dtype), **options)


@pytest.mark.best_isa
def test_any_strides(device):
    weight = torch.randn(9, 20)
    ids = torch.randint(9, (6, 8))
    for ids_of, grad in itertools.product(
        (ids, ids.t(), ids[:, ::2], ids[:1].expand(6, 8), ids.int()),
        (
            lambda size: torch.randn(()).expand(size),
            lambda size: torch.randn(size[::-1]).permute(*range(len(size) - 1, -1, -1)),
            lambda size: torch.randn(*size[:-1], 2 * size[-1])[..., ::2],
        ),
    ):
        compare(ids_of, weight, grad((*ids_of.shape, 20)))
        compare(ids_of, torch.randn(20, 9).t(), grad((*ids_of.shape, 20)))


def test_sums_of_half_types_are_kept_in_float32(device):
    """1,000 times 1/256 beside 1: bfloat16 alone would stay at 1."""
    grad = torch.full((1001, 4), 1 / 256)
    grad[0] = 1
    _, actual, _ = passes(embedding, torch.zeros(1001, dtype=torch.int64), torch.ones(2, 4).bfloat16(), grad)
    assert_close(actual, torch.tensor([1 + 1000 / 256, 0]).view(2, 1).expand(2, 4), torch.bfloat16)


@pytest.mark.best_isa
def test_thread_count_changes_no_bit(device):
    before = torch.get_num_threads()
    ids, weight = torch.randint(9000, (4000,)) ** 2 % 9000, torch.randn(9000, 20)
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(passes(embedding, ids, weight)[1])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results[1:])


def ours_ran(call):
    with torch.profiler.profile() as profiler:
        call().sum().backward()
    return any(event.key == "pydl::embedding_backward" for event in profiler.key_averages())


def test_what_is_left_to_torch(monkeypatch):
    weight, ids = torch.randn(5, 4, requires_grad=True), torch.tensor([0, 3, 3])
    assert ours_ran(lambda: embedding(ids, weight))
    assert not ours_ran(lambda: embedding(ids, weight, sparse=True))
    assert not ours_ran(lambda: torch.compile(embedding, backend="eager", fullgraph=True)(ids, weight))
    with pydl.backend.use("torch"):
        assert not ours_ran(lambda: embedding(ids, weight))
    monkeypatch.undo()
    assert not ours_ran(lambda: embedding(ids, weight))
    many = torch.zeros(pydl.ops.embedding.WORTH_A_CALL // 4, dtype=torch.int64)
    assert ours_ran(lambda: embedding(many, weight))
    with pydl.swapped():
        assert ours_ran(lambda: F.embedding(many, weight))
        assert ours_ran(lambda: torch.nn.Embedding(5, 4)(many))


def test_sparse_is_torchs():
    weight, ids = torch.randn(5, 4, requires_grad=True), torch.tensor([0, 3, 3])
    embedding(ids, weight, sparse=True).sum().backward()
    assert weight.grad.is_sparse


REFUSED = {
    "a number beyond": lambda f, w: f(torch.tensor([0, 5]), w),
    "a negative number": lambda f, w: f(torch.tensor([-1]), w),
    "no integers": lambda f, w: f(torch.tensor([0.5]), w),
    "a padding beyond": lambda f, w: f(torch.tensor([0]), w, padding_idx=5),
    "a padding that is no integer": lambda f, w: f(torch.tensor([0]), w, padding_idx=1.5),
    "a list": lambda f, w: f([0], w),
    "a longest norm in words": lambda f, w: f(torch.tensor([0]), w, max_norm="one"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_as_by_torch(case):
    weight = torch.randn(5, 4, requires_grad=True)
    with pytest.raises(Exception) as theirs:  # noqa: PT011  (whatever torch raises)
        REFUSED[case](F.embedding, weight)
    with pytest.raises(type(theirs.value)):
        REFUSED[case](embedding, weight)


BACKWARD_REFUSED = {
    "ids beyond": ((torch.ones(1, 4), torch.tensor([5]), 5), IndexError, r"ids to be in \[0, 5\)"),
    "ids of another dtype": (
        (torch.ones(1, 4), torch.tensor([1]).int(), 5),
        RuntimeError,
        "ids to be int64, got int32",
    ),
    "shapes": ((torch.ones(2, 4), torch.tensor([1]), 5), RuntimeError, "grad_output to be of the shape of ids and one"),
    "rows": ((torch.ones(1, 4), torch.tensor([1]), -5), RuntimeError, "num_weights to be at least 0, got -5"),
}


@pytest.mark.parametrize("case", BACKWARD_REFUSED)
def test_a_backward_that_does_not_fit_is_refused(case):
    arguments, error, message = BACKWARD_REFUSED[case]
    with pytest.raises(error, match=f"embedding: expected {message}"):
        torch.ops.pydl.embedding_backward(*arguments, -1, False)


@pytest.mark.parametrize("options", [{}, {"padding_idx": 1}, {"scale_grad_by_freq": True}], ids=str)
def test_gradcheck(options):
    weight, ids = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), torch.tensor([[0, 1], [1, 4]])
    if not options:  # which change the gradient alone
        assert torch.autograd.gradcheck(lambda w: embedding(ids, w), (weight,))
    assert torch.autograd.gradgradcheck(lambda w: embedding(ids, w, **options), (weight,))


def test_opcheck():
    ids = torch.tensor([[0, 1, 1], [4, 2, 0]])
    grad = torch.randn(2, 3, 7, requires_grad=True)
    torch.library.opcheck(torch.ops.pydl.embedding_backward, (grad, ids, 6, 2, True))


def test_transforms():
    weight, ids = torch.randn(5, 3, dtype=torch.float64), torch.tensor([[0, 1], [1, 4]])
    for of in (
        lambda f: torch.func.grad(lambda w: f(ids, w).sin().sum())(weight),
        lambda f: torch.func.vmap(lambda i: f(i, weight))(ids),
        lambda f: torch.func.hessian(lambda w: f(ids, w).sin().sum())(weight),
        lambda f: torch.func.jvp(lambda w: f(ids, w).sin(), (weight,), (weight.cos(),))[1],
    ):
        assert_close(of(embedding), of(F.embedding))
    leaf = weight.requires_grad_()
    y, grads = embedding(ids, leaf), torch.randn(4, 2, 2, 3, dtype=torch.float64)
    (batched,) = torch.autograd.grad(y, leaf, grads, is_grads_batched=True)
    expected = [torch.autograd.grad(F.embedding(ids, leaf), leaf, g)[0] for g in grads]
    assert_close(batched, torch.stack(expected))


class Typed(torch.Tensor):
    """A tensor with a type of its own."""


def test_other_tensors():
    weight = torch.randn(5, 3, requires_grad=True)
    assert type(embedding(torch.tensor([1]), weight.as_subclass(Typed))) is Typed


# ---- the layer


@pytest.mark.parametrize("options", [{}, {"padding_idx": 1, "scale_grad_by_freq": True}, {"max_norm": 0.5}], ids=str)
@pytest.mark.parametrize("of", ["pydl.nn", "swap"])
def test_layer(of, options):
    ids = torch.randint(6, (3, 4))
    theirs = torch.nn.Embedding(6, 5, **options)
    ours = pydl.nn.Embedding(6, 5, **options) if of == "pydl.nn" else pydl.swap(torch.nn.Embedding(6, 5, **options))
    assert repr(ours) == repr(theirs)
    ours.load_state_dict(theirs.state_dict())
    for layer in (theirs, ours):
        layer(ids).sin().sum().backward()
    assert ours_ran(lambda: ours(ids))
    ours.zero_grad()
    ours(ids).sin().sum().backward()
    assert_close(ours.weight.grad, theirs.weight.grad)
    assert not pydl.report(ours).rows[0].reason


def test_layer_steps_aside(monkeypatch):
    layer, ids = pydl.swap(torch.nn.Embedding(6, 5)), torch.tensor([1, 2])
    layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(Typed))
    assert type(layer(ids)) is Typed
    monkeypatch.setattr(F, "embedding", lambda *args: "another")
    assert layer(ids) == "another"
