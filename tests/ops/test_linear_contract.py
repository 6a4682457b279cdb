"""linear beside torch: what is refused, what is torch's to serve, and torch's own machinery."""

import pytest
import torch
import torch.nn.functional as F
import torch.utils.flop_counter
from test_linear import make, passes
from testing import assert_close
from torch.func import functional_call, grad, stack_module_state, vmap

import pydl
from pydl import backend
from pydl.functional import linear

X, W, B = torch.randn(4, 5), torch.randn(3, 5), torch.randn(3)
REFUSED = {
    "no dimension": ((X[0, 0], W), "expected input to be at least 1-D, got shape ()"),
    "weight of three dimensions": ((X, W[None]), "expected weight to be 2-D, got shape (1, 3, 5)"),
    "weight of none": ((X, W[0, 0]), "expected weight to be 2-D, got shape ()"),
    "features": ((X[:, :4], W), "expected input's last dimension to be 5 (weight of shape (3, 5)), got shape (4, 4)"),
    "unbatched features": ((X[0, :4], W), "expected input's last dimension to be 5 (weight of shape (3, 5)), got"),
    "bias size": ((X, W, B[:2]), "expected bias to be of shape (3), got (2)"),
    "dtype of weight": ((X, W.double()), "expected weight to be of the dtype of input, got float64 and float32"),
    "dtype of bias": ((X, W, B.double()), "expected bias to be of the dtype of input, got float64 and float32"),
    "device of bias": ((X, W, B.to("meta")), "expected bias to be on cpu as input is, got meta"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    args, message = REFUSED[case]
    with pytest.raises(RuntimeError) as theirs:
        F.linear(*args)
    with pytest.raises(RuntimeError) as ours:
        linear(*args)
    assert ours.type is theirs.type
    assert str(ours.value).startswith(f"linear: {message}")
    with pytest.raises(RuntimeError) as ours:
        linear(args[0], args[1].requires_grad_(), *args[2:])
    assert str(ours.value).startswith(f"linear: {message}")


NO_TENSORS = {
    "a list as input": ([1.0], W),
    "a list as weight": (X, [1.0]),
    "no weight": (X, None),
    "a list as bias": (X, W, [1.0]),
    "a number as bias": (X, W, 0.0),
    "nothing": (),
}


@pytest.mark.parametrize("args", NO_TENSORS.values(), ids=NO_TENSORS)
def test_what_is_no_tensor(args):
    for function in (F.linear, linear):
        with pytest.raises(TypeError):
            function(*args)


def test_unknown_activation():
    with pytest.raises(ValueError, match=r"linear: expected activation to be None, 'relu' or 'sigmoid', got 'tanh'"):
        linear(X, W, activation="tanh")


STACK = torch.randn(5, 2, 5).transpose(0, 1)
TORCHS = {
    "integers": (X.int(), W.int()),
    "complex": (X.to(torch.complex64), W.to(torch.complex64)),
    "a weight of one dimension": (X, W[0]),
    "a bias of one number": (X, W, B[:1]),
    "a bias without dimensions": (X, W, B[0]),
    "a bias of two dimensions": (X, W, B[None]),
    "a bias for each row": (X, W, torch.randn(4, 3)),
    "a bias of another dtype that torch adds": (STACK, W, B.double()),
    "a sparse weight": (X, W.to_sparse()),
    "on the meta device": (X.to("meta"), W.to("meta")),
}


@pytest.mark.parametrize("case", TORCHS)
def test_torchs_to_serve(case):
    expected, actual = F.linear(*TORCHS[case]), linear(*TORCHS[case])
    assert actual.stride() == expected.stride()
    assert actual.dtype == expected.dtype
    if not actual.is_meta:
        assert torch.equal(actual, expected)
        if not actual.is_complex():
            assert torch.equal(linear(*TORCHS[case], activation="relu"), expected.relu())


def test_torch_backend():
    with backend.use("torch"):
        assert torch.equal(linear(X, W, B, activation="relu"), F.linear(X, W, B).relu())


# ---- torch's own machinery

TRACED = ["unbatched", "three dimensions", "blocks of rows and a rest", "no rows"]


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (0, 5)], ids=str)
@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_gradcheck(shape, activation):
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (shape, (3, 5), (3,))]

    def call(*tensors):
        return linear(*tensors, activation=activation)

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize("transposed", [False, True])
def test_double_backward_equals_torch(transposed):
    x, w, b = make("blocks of rows and a rest", torch.float64)
    if transposed:
        x, w = (t.t().contiguous().t() for t in (x, w))

    def second(function, activation):
        leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, w, b)]
        y = activation(function(*leaves))
        first = torch.autograd.grad((y**3).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in first), leaves)

    for theirs, ours in ((lambda y: y, None), (torch.relu, "relu"), (torch.sigmoid, "sigmoid")):
        expected = second(F.linear, theirs)
        actual = second(lambda *a, act=ours: linear(*a, activation=act), lambda y: y)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("name", TRACED)
def test_opcheck(name):
    x, w, b = (t.requires_grad_() for t in make(name))
    ops, grad_output = torch.ops.pydl, torch.randn(*x.shape[:-1], w.shape[0], requires_grad=True)
    for activation in ("none", "relu", "sigmoid"):
        torch.library.opcheck(ops.linear_forward, (x, w, b, activation))
    torch.library.opcheck(ops.linear_forward, (x.detach(), w, None, "none"))
    for column_major in (False, True):
        if x.dim() == 2 or not column_major:
            torch.library.opcheck(ops.linear_backward_input, (grad_output, w, column_major))
        torch.library.opcheck(ops.linear_backward_weight, (grad_output, x, column_major))
        low = grad_output.detach().bfloat16().requires_grad_(), x.detach().bfloat16().requires_grad_()
        torch.library.opcheck(ops.linear_backward_weight, (*low, column_major, True))
    torch.library.opcheck(ops.linear_backward_bias, (grad_output,))


@pytest.mark.parametrize("by, dynamic", [("inductor", True), ("aot_eager", False), ("aot_eager", True)])
def test_compile(by, dynamic):
    def step(x, w, b):
        y = linear(x, w, b, activation="relu")
        return linear(linear(y.unflatten(0, (-1, 2)), w[:, :18].t(), None), w[:18].t())

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=by)
    layouts = [lambda t: t, lambda t: t.t().contiguous().t()]
    for batch in (4, 6):
        for layout in layouts[:1] if by == "inductor" else layouts:  # which takes long to compile
            tensors = [layout(torch.randn(batch, 40)), layout(torch.randn(18, 40)) / 6, torch.randn(18)]
            grad = torch.randn(batch // 2, 2, 40)
            expected, actual = passes(step, tensors, grad), passes(compiled, tensors, grad)
            for a, e in zip(actual, expected, strict=True):
                torch.testing.assert_close(a, e)
                assert a.stride() == e.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    x, w, b = make("blocks of rows and a rest")
    leaf = w.clone().requires_grad_()
    with torch.autocast("cpu", dtype):
        expected, actual = F.linear(x, w, b), linear(x, w, b)
        assert linear(x.double(), w.double()).dtype == F.linear(x.double(), w.double()).dtype
        linear(x, leaf, b).sum().backward()
    assert actual.dtype == expected.dtype == dtype
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)
    assert leaf.grad.dtype == torch.float32


# ---- torch.func


def losses():
    """The same number of (weight, bias, input) by ours and by torch's."""
    return (
        lambda w, b, x: linear(x, w, b, activation="sigmoid").square().sum(),
        lambda w, b, x: torch.sigmoid(F.linear(x, w, b)).square().sum(),
    )


@pytest.mark.parametrize(
    "in_dims", [(None, None, 0), (0, 0, None), (0, 0, 0), (1, None, -1), (0, None, 1), (None, 0, 0)]
)
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 4, 5)], ids=str)
def test_vmap(shape, in_dims):
    def batched(size, dim):
        size = list(size)
        if dim is not None:
            size.insert(dim % (len(size) + 1), 3)
        return torch.randn(size, dtype=torch.float64)

    tensors = [batched(size, dim) for size, dim in zip(((6, 5), (6,), shape), in_dims, strict=True)]
    for of in (lambda f: f, lambda f: grad(f, argnums=(0, 1, 2))):
        ours, theirs = (vmap(of(f), in_dims=in_dims)(*tensors) for f in losses())
        for p, q in zip(*((t,) if torch.is_tensor(t) else t for t in (ours, theirs)), strict=True):
            assert_close(p, q)


def test_gradients_of_each_sample():
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3)).double()
    x, target = torch.randn(9, 5).double(), torch.arange(9) % 3

    def loss(parameters, x, target):
        return F.cross_entropy(functional_call(net, parameters, (x[None],)), target[None])

    found = []
    for change in (lambda net: net, pydl.swap):
        change(net)
        parameters = {name: p.detach() for name, p in net.named_parameters()}
        found.append(vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, target))
    for name in found[0]:
        assert_close(found[1][name], found[0][name])


def test_ensemble_of_models():
    nets = [torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3)) for _ in range(4)]
    x, expected = torch.randn(9, 5), None
    for change in (lambda net: net, pydl.swap):
        nets = [change(net) for net in nets]
        parameters, buffers = stack_module_state(nets)
        for in_dims in ((0, 0, None), (0, 0, 0)):
            inputs = x if in_dims[2] is None else x.expand(4, 9, 5)
            output = vmap(functional_call, in_dims=(None, in_dims[:2], in_dims[2]))(
                nets[0], (parameters, buffers), inputs
            )
            expected = output.double() if expected is None else expected
            assert_close(output, expected)


def test_flops_are_counted_as_torchs():
    counts = []
    for f in (F.linear, linear):
        x, w, b = (t.requires_grad_() for t in make("blocks of rows and a rest"))
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            f(f(x, w, b), w[:, :32], b).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
