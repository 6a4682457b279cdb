"""matmul and its family beside torch: what is refused, what is torch's to serve, and torch's own machinery."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.utils.flop_counter
from test_matmul import make, passes
from test_matmul import small_ones_too as small_ones_too  # a fixture for every test here
from test_other_tensors import Listener, Typed
from testing import assert_close
from torch.func import grad, vmap

import pydl
import pydl.functional as PF
from pydl import backend

X, W, STACK = torch.randn(4, 5), torch.randn(5, 3), torch.randn(2, 4, 5)


def product(left, right):
    """Of our op itself."""
    return torch.ops.pydl.matmul(left, right, None, 1.0, 1.0, False)


REFUSED = {
    "columns and rows": ("matmul", (X, X), "as many columns on the left as rows on the right, got shapes (4, 5) and"),
    "in stacks": ("matmul", (STACK, X), "as many columns on the left as rows on the right, got shapes (2, 4, 5) and"),
    "batches": ("matmul", (STACK, torch.randn(3, 5, 2)), "batches that broadcast, got shapes (2, 4, 5) and (3, 5, 2)"),
    "dtypes": ("matmul", (X, W.double()), "right to be of the dtype of left, got float64 and float32"),
    "of mm": ("mm", (X, X), "as many columns on the left as rows on the right, got shapes (4, 5) and (4, 5)"),
    "of bmm": ("bmm", (STACK, STACK), "as many columns on the left as rows on the right, got shapes (2, 4, 5) and"),
    "an addend's size": ("addmm", (torch.randn(4), X, W), "addend to broadcast to the product's shape (4, 3), got (4)"),
    "an addend's dtype": ("addmm", (W[0].double(), X, W), "addend to be of the dtype of left, got float64 and float32"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    name, args, message = REFUSED[case]
    for leaf in (False, True):
        with pytest.raises(RuntimeError) as theirs:
            getattr(torch, name)(*args)
        with pytest.raises(RuntimeError) as ours:
            getattr(PF, name)(args[0].clone().requires_grad_(leaf), *args[1:])
        assert ours.type is theirs.type
        assert str(ours.value).startswith(f"matmul: expected {message}")


TORCHS = {
    "two vectors": ("matmul", (X[0], W[:, 0]), {}),
    "a matrix and a vector": ("matmul", (X, W[:, 0]), {}),
    "a vector and a matrix": ("matmul", (X[0], W), {}),
    "integers": ("matmul", (X.int(), W.int()), {}),
    "complex": ("mm", (X.to(torch.complex64), W.to(torch.complex64)), {}),
    "sparse on the left": ("mm", (X.to_sparse(), W), {}),
    "sparse on the right": ("matmul", (X, W.to_sparse()), {}),
    "on the meta device": ("bmm", (STACK.to("meta"), STACK.mT.to("meta")), {}),
    "a factor that is a tensor": ("addmm", (W[0], X, W), {"beta": torch.tensor(2.0)}),
}


@pytest.mark.parametrize("case", TORCHS)
def test_torchs_to_serve(case):
    name, args, options = TORCHS[case]
    with torch.profiler.profile() as profile:
        actual = getattr(PF, name)(*args, **options)
    assert not any(event.name.startswith("pydl::") for event in profile.events())
    expected = getattr(torch, name)(*args, **options)
    assert (actual.shape, actual.dtype, actual.layout) == (expected.shape, expected.dtype, expected.layout)
    if not actual.is_meta:
        assert torch.equal(actual.to_dense(), expected.to_dense())


def test_refused_by_torch_itself():
    """Dimensions that a function of torch's does not take, and what is no tensor."""
    for name, args in (
        ("mm", (STACK, W)),
        ("mm", (X, W[0])),
        ("bmm", (X, W)),
        ("bmm", (STACK, torch.randn(1, 5, 3))),
        ("addmm", (STACK, X, W)),
        ("baddbmm", (W, X, W)),
        ("matmul", (X, None)),
        ("matmul", ([1.0], X)),
        ("mm", (X, 2.0)),
        ("addmm", (1.0, X, W)),
    ):
        with pytest.raises((RuntimeError, TypeError, IndexError)) as theirs:
            getattr(torch, name)(*args)
        with pytest.raises(theirs.type) as ours:
            getattr(PF, name)(*args)
        assert str(ours.value).split("(")[0] == str(theirs.value).split("(")[0]  # before the list of what was given


def test_out_is_written_to():
    for name, args in (("matmul", (STACK, W)), ("mm", (X, W)), ("bmm", (STACK, STACK.mT)), ("addmm", (W[0], X, W))):
        expected = getattr(torch, name)(*args)
        out = torch.empty_like(expected)
        assert getattr(PF, name)(*args, out=out) is out
        assert torch.equal(out, expected)


def test_small_products_are_torchs(monkeypatch):
    monkeypatch.undo()
    for left, right, ours in (
        (torch.randn(10, 2), torch.randn(2, 1), False),
        (torch.randn(100, 200), torch.randn(200, 99), False),
        (torch.randn(100, 200), torch.randn(200, 100), True),  # 2 million multiplications
        (torch.randn(128, 1, 128), torch.randn(128, 128), True),
        (torch.randn(2, 64), torch.randn(512, 64, 64), True),
        (torch.randn(1, 2, 64), torch.randn(512, 64, 2), False),
    ):
        with torch.profiler.profile() as profile:
            PF.matmul(left, right)
        assert any(event.name.startswith("pydl::") for event in profile.events()) == ours


def test_torch_backend():
    with backend.use("torch"):
        assert torch.equal(PF.matmul(STACK, W), torch.matmul(STACK, W))


# ---- torch's own machinery

PAIRS = [((4, 5), (5, 3)), ((2, 4, 5), (5, 3)), ((4, 5), (2, 5, 3)), ((2, 4, 5), (2, 5, 3)), ((2, 1, 4, 5), (3, 5, 2))]


@pytest.mark.parametrize("sizes", PAIRS, ids=str)
def test_gradcheck(sizes):
    tensors = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    assert torch.autograd.gradcheck(PF.matmul, tensors)
    assert torch.autograd.gradgradcheck(PF.matmul, tensors)


@pytest.mark.parametrize("addend", [(2, 4, 3), (4, 1), (3,)], ids=str)
def test_gradcheck_with_an_addend(addend):
    tensors = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in (addend, (2, 4, 5), (2, 5, 3))]

    def call(*tensors):
        return PF.baddbmm(*tensors, beta=0.5, alpha=-2)

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize("sizes", PAIRS, ids=str)
def test_opcheck(sizes):
    left, right = (torch.randn(size, requires_grad=True) for size in sizes)
    op = torch.ops.pydl.matmul
    torch.library.opcheck(op, (left, right, None, 1.0, 1.0, False))
    torch.library.opcheck(op, (left, right.detach(), torch.randn(right.shape[-1], requires_grad=True), 2.0, 0.5, False))
    if left.dim() == right.dim() == 2:
        torch.library.opcheck(op, (left, right, None, 1.0, 1.0, True))


@pytest.mark.parametrize("by, dynamic", [("inductor", True), ("aot_eager", False), ("aot_eager", True)])
def test_compile(by, dynamic):
    def step(x, w, b):
        y = PF.addmm(b, x, w, alpha=0.5)
        return PF.matmul(PF.bmm(y.unflatten(0, (2, -1)), y.unflatten(0, (2, -1)).mT), x[:, :3].unflatten(0, (2, -1)))

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=by)
    for rows in (8, 12):
        tensors = [torch.randn(rows, 20), torch.randn(20, 18) / 4, torch.randn(18)]
        for a, e in zip(passes(compiled, tensors), passes(step, tensors), strict=True):
            torch.testing.assert_close(a, e)
            assert a.stride() == e.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    left, right = make("a batch")
    leaf = right.clone().requires_grad_()
    with torch.autocast("cpu", dtype):
        for name, args in (("bmm", (left, right)), ("baddbmm", (left[..., :18], left, right)), ("mm", (X, W))):
            expected, actual = getattr(torch, name)(*args), getattr(PF, name)(*args)
            assert actual.dtype == expected.dtype == dtype
            torch.testing.assert_close(actual, expected, rtol=2e-2, atol=3e-2)
        assert PF.mm(X.double(), W.double()).dtype == torch.mm(X.double(), W.double()).dtype
        PF.matmul(left, leaf).sum().backward()
    assert leaf.grad.dtype == torch.float32


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0), (1, -1)], ids=str)
@pytest.mark.parametrize("sizes", PAIRS, ids=str)
def test_vmap(sizes, in_dims):
    tensors = []
    for size, dim in zip(sizes, in_dims, strict=True):
        size = list(size)
        if dim is not None:
            size.insert(dim % (len(size) + 1), 3)
        tensors.append(torch.randn(size, dtype=torch.float64))

    def loss(f):
        return lambda left, right: f(left, right).square().sum()

    for of in (lambda f: f, lambda f: grad(loss(f), argnums=(0, 1))):
        ours, theirs = (vmap(of(f), in_dims=in_dims)(*tensors) for f in (PF.matmul, torch.matmul))
        for p, q in zip(*((t,) if torch.is_tensor(t) else t for t in (ours, theirs)), strict=True):
            assert_close(p, q)


@pytest.mark.parametrize("of_addend", [None, 0, 1])
def test_vmap_with_an_addend(of_addend):
    addend = torch.randn((4, 3) if of_addend is None else (6, 4, 3) if of_addend == 0 else (4, 6, 3))
    left, right = torch.randn(6, 4, 5), torch.randn(5, 3)
    ours, theirs = (
        vmap(lambda a, x, f=f: f(a, x, right, beta=2, alpha=3), in_dims=(of_addend, 0))(addend, left)
        for f in (PF.addmm, torch.addmm)
    )
    assert_close(ours, theirs.double())


def test_flops_are_counted_as_torchs():
    counts = []
    for f in (torch, PF):
        left, right = (t.requires_grad_() for t in make("a batch"))
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            y = f.addmm(right[0, 0], f.bmm(left, right).flatten(0, 1), right[0, :18, :18])
            y.sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_only_what_is_needed_is_computed_and_saved():
    for needs in ((True, False), (False, True), (True, True)):
        left, right = (t.requires_grad_(need) for t, need in zip(make("a batch"), needs, strict=True))
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.shape) or t, lambda t: t):
            y = PF.bmm(left, right)
        assert sorted(saved) == sorted([right.shape] * needs[0] + [left.shape] * needs[1])
        with torch.profiler.profile() as profile:
            y.sum().backward()
        assert sum(event.name == "pydl::matmul" for event in profile.events()) == sum(needs)


def test_writes_between_forward_and_backward():
    """Free to what no gradient needs; an error, as by torch, to what one does."""
    for f in (torch.bmm, PF.bmm):
        left, right = make("a batch")
        right.requires_grad_()
        y = f(left, right)
        with torch.no_grad():
            right.add_(1)
        y.sum().backward()
        y = f(left, right)
        left.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("name", ["matmul", "mm", "bmm", "addmm", "baddbmm"])
def test_who_listens_to_torchs_function_hears_of_it(name):
    matrices = (X, W) if name in ("matmul", "mm", "addmm") else (STACK, STACK.mT)
    args = (torch.zeros(1), *matrices) if name.endswith("addmm") or name == "baddbmm" else matrices
    assert type(getattr(PF, name)(*args[:-1], args[-1].as_subclass(Typed))) is Typed
    with Listener() as listener:
        getattr(PF, name)(*args)
    assert getattr(torch, name) in listener.calls


# ---- under pydl.swapped()

WRITTEN = {
    "@": lambda x, w, s: x @ w,
    "torch.matmul": lambda x, w, s: torch.matmul(x, w),
    "torch.matmul by name": lambda x, w, s: torch.matmul(input=x, other=w),
    "Tensor.matmul": lambda x, w, s: x.matmul(w),
    "torch.linalg.matmul": lambda x, w, s: torch.linalg.matmul(x, w),
    "torch.mm": lambda x, w, s: torch.mm(x, w),
    "Tensor.mm": lambda x, w, s: x.mm(w),
    "torch.bmm": lambda x, w, s: torch.bmm(s, s.mT),
    "Tensor.bmm": lambda x, w, s: s.bmm(mat2=s.mT),
    "torch.addmm": lambda x, w, s: torch.addmm(w[0], x, w, beta=2),
    "Tensor.addmm": lambda x, w, s: w[0].addmm(x, w, alpha=0.5),
    "torch.baddbmm": lambda x, w, s: torch.baddbmm(s[..., :1], s, s.mT, beta=0.5),
    "Tensor.baddbmm": lambda x, w, s: s[..., :1].baddbmm(s, s.mT),
    "attention, written out": lambda x, w, s: torch.softmax(s @ s.transpose(1, 2) / 2, -1) @ s,
}


@pytest.mark.parametrize("way", WRITTEN)
def test_served_in_a_swapped_block(way):
    expected = WRITTEN[way](X, W, STACK)
    with pydl.swapped(), torch.profiler.profile() as profile:
        actual = WRITTEN[way](X, W, STACK)
    assert any(event.name == "pydl::matmul" for event in profile.events())
    torch.testing.assert_close(actual, expected)


def test_forms_that_are_torchs_in_a_swapped_block():
    with pydl.swapped(), torch.profiler.profile() as profile:
        assert torch.equal(X @ W[:, 0], X.mv(W[:, 0]))
        assert (X.to(torch.int64) @ W.to(torch.int64)).dtype == torch.int64
        out = torch.empty(4, 3)
        assert torch.mm(X, W, out=out) is out
        with pytest.raises(TypeError):
            torch.mm(X)
        with pytest.raises(TypeError):
            torch.mm(X, W, W)
    assert not any(event.name == "pydl::matmul" for event in profile.events())


def test_softmax_regression_from_scratch():
    """The book's, with X @ W in its own forward: the same losses, by our products."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.W = nn.Parameter(torch.randn(20, 6, generator=generator) * 0.1)
            self.b = nn.Parameter(torch.zeros(6))

        def forward(self, x):
            return x.reshape(-1, 20) @ self.W + self.b

    losses = []
    x, target = torch.randn(64, 4, 5), torch.arange(64) % 6
    for block in (torch.enable_grad, pydl.swapped):
        net, found = Net(), []
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        for _ in range(5):
            with block():
                loss = F.cross_entropy(net(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        losses.append(torch.tensor(found))
    assert losses[0][-1] < losses[0][0]
    torch.testing.assert_close(losses[1], losses[0])
