"""layer_norm and rms_norm beside torch: what is refused, what is torch's to serve, and torch's own machinery."""

import pytest
import torch
import torch.nn.functional as F
from test_layer_norm import NORMS, make, passes
from testing import assert_close
from torch.func import functional_call, grad, vmap

import pydl
from pydl import backend
from pydl.functional import layer_norm, rms_norm

X, W, B = torch.randn(4, 5), torch.randn(5), torch.randn(5)
REFUSED = {
    "another size": ((X, (4,)), "expected input to end in normalized_shape (4,), got shape (4, 5)"),
    "no size": ((X, ()), "expected normalized_shape to be of at least one dimension, got ()"),
    "no dimension": ((X[0, 0], (5,)), "expected input to end in normalized_shape (5,), got shape ()"),
    "fewer dimensions": ((X[0], (4, 5)), "expected input to end in normalized_shape (4, 5), got shape (5,)"),
    "weight": ((X, (5,), W[:4]), "expected weight to be of shape (5), got (4)"),
    "weight of two dimensions": ((X, (5,), W[None]), "expected weight to be of shape (5), got (1, 5)"),
    "a number": ((X, 5), "expected normalized_shape to be a sequence of integers, got int"),
    "a float": ((X, (5.0,)), "expected normalized_shape to be integers, got 5.0"),
    "eps": ((X, (5,), W, [1]), "expected eps to be a number, got [1]"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("name", NORMS)
def test_refusals(name, case):
    args, message = REFUSED[case]
    if case == "eps" and name == "layer_norm":
        args = (*args[:3], B, args[3])
    ours, torchs = NORMS[name]
    with pytest.raises((RuntimeError, ValueError, TypeError)) as theirs:
        torchs(*args)
    with pytest.raises((RuntimeError, ValueError, TypeError)) as refused:
        ours(*args)
    assert refused.type is theirs.type
    assert str(refused.value).startswith(f"{name}: {message}")
    with pytest.raises(theirs.type, match=name):
        ours(args[0].clone().requires_grad_(), *args[1:])


DTYPES = {
    "weight": ((X, (5,), W.double()), "weight to be of the dtype of input, got float64 and float32"),
    "half weight": ((X, (5,), W.half()), "weight to be of the dtype of input, got float16 and float32"),
    "half input": (
        (X.half(), (5,), W.bfloat16()),
        "weight to be of the dtype of input, or float32, got bfloat16 and float16",
    ),
    "bias": ((X.half(), (5,), W.half(), B), "bias to be of the dtype of weight, got float32 and float16"),
}


@pytest.mark.parametrize("case", DTYPES)
def test_dtypes_that_layer_norm_refuses(case):
    args, message = DTYPES[case]
    with pytest.raises(RuntimeError):
        F.layer_norm(*args)
    with pytest.raises(RuntimeError) as ours:
        layer_norm(*args)
    assert str(ours.value) == f"layer_norm: expected {message}"


TORCHS = {
    "layer_norm of integers": lambda f: f.layer_norm(X.int(), (5,)),
    "rms_norm of integers": lambda f: f.rms_norm(X.int(), (5,)),
    "rms_norm of complex numbers": lambda f: f.rms_norm(X.to(torch.complex64), (5,)),
    "rms_norm by a weight of float64": lambda f: f.rms_norm(X, (5,), W.double()),
    "rms_norm by a half weight": lambda f: f.rms_norm(X, (5,), W.half()),
    "layer_norm by a sparse weight": lambda f: f.layer_norm(X, (5,), W.to_sparse()),
    "layer_norm with a bias of another dtype": lambda f: f.layer_norm(X.half(), (5,), None, B),
    "on the meta device": lambda f: f.layer_norm(X.to("meta"), (5,), W.to("meta")),
    "a list": lambda f: f.layer_norm([1.0], (1,)),
    "a number as weight": lambda f: f.rms_norm(X, (5,), 1.0),
}


def outcome(call, f):
    try:
        return call(f)
    except Exception as error:
        return type(error)


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
@pytest.mark.parametrize("case", TORCHS)
def test_torchs_to_serve(case):
    expected, actual = outcome(TORCHS[case], F), outcome(TORCHS[case], pydl.functional)
    if isinstance(expected, type):
        assert actual is expected
        return
    assert (actual.stride(), actual.dtype, actual.device) == (expected.stride(), expected.dtype, expected.device)
    if not actual.is_meta:
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", NORMS)
def test_torch_backend(name):
    ours, torchs = NORMS[name]
    with backend.use("torch"):
        assert torch.equal(ours(X, (5,), W), torchs(X, (5,), W))


# ---- torch's own machinery


@pytest.mark.parametrize("shape, dims", [((5,), 1), ((4, 5), 1), ((2, 3, 5), 2), ((0, 5), 1)], ids=str)
@pytest.mark.parametrize("affine", ["weight and bias", "weight", "nothing"])
@pytest.mark.parametrize("name", NORMS)
def test_gradcheck(name, affine, shape, dims):
    normalised = shape[len(shape) - dims :]
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True)]
    if affine != "nothing":
        tensors.append(torch.randn(normalised, dtype=torch.float64, requires_grad=True))
    if affine == "weight and bias" and name == "layer_norm":
        tensors.append(torch.randn(normalised, dtype=torch.float64, requires_grad=True))

    def call(x, *parameters):
        return NORMS[name][0](x, normalised, *parameters, eps=0.1)

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


def in_words(name):
    """The formula in elementwise ops: torch's third derivative takes mean and deviation for constants."""

    def norm(x, normalised, weight, eps):
        x = x - x.mean(-1, keepdim=True) if name == "layer_norm" else x
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight

    return norm


@pytest.mark.parametrize("name", NORMS)
def test_third_derivative(name):
    x, weight, _ = make("less than a vector", torch.float64)

    def third(function):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        grads = [function(leaves[0], weight.shape, leaves[1], eps=0.1)]
        for _ in range(3):
            grads = torch.autograd.grad(sum(g.sin().sum() for g in grads), leaves, create_graph=True)
        return grads

    for actual, expected in zip(*map(third, (NORMS[name][0], in_words(name))), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", ["unbatched", "vectors and a rest", "two dimensions", "no rows"])
@pytest.mark.parametrize("name", NORMS)
def test_opcheck(name, shape):
    x, weight, bias = (t.requires_grad_() for t in make(shape))
    dims, grad_output = weight.dim(), torch.randn(x.shape, requires_grad=True)
    forward, backward = (getattr(torch.ops.pydl, f"{name}_{of}") for of in ("forward", "backward"))
    biases, needs = ((bias,), (None,)) if name == "layer_norm" else ((), ()), 3 if name == "layer_norm" else 2
    for of_weight, of_bias in zip((weight, None), biases, strict=True):
        torch.library.opcheck(forward, (x, of_weight, *of_bias, dims, 1e-5))
        stats = forward(x.detach(), of_weight, *of_bias, dims, 1e-5)[1].detach()
        for need in (True, False):
            args = (grad_output, x, stats, of_weight, dims, 1e-5, need, True, False)[: 6 + needs]
            torch.library.opcheck(backward, args)


@pytest.mark.parametrize("by, dynamic", [("inductor", True), ("aot_eager", False), ("aot_eager", True)])
@pytest.mark.parametrize("name", NORMS)
def test_compile(name, by, dynamic):
    def step(x, *parameters):
        return NORMS[name][0](x, x.shape[1:], *parameters) * 2

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=by)
    for rows in (4, 6):
        found = []
        for function in (step, compiled):
            torch.manual_seed(rows)
            leaves = [torch.randn(s, requires_grad=True) for s in ((rows, 3, 7), (3, 7), (3, 7))]
            leaves = leaves if name == "layer_norm" else leaves[:2]
            y = function(*leaves)
            found.append((y, *torch.autograd.grad(y.sin().sum(), leaves)))
        for a, e in zip(*found, strict=True):
            torch.testing.assert_close(a, e)
            assert a.stride() == e.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NORMS)
def test_autocast_changes_nothing(name, dtype):
    """As in torch: the norm is computed in the dtype that its input has."""
    ours, torchs = NORMS[name]
    for x in (X, X.to(dtype), X.double()):
        weight = W if x.dtype != torch.float64 else W.double()
        with torch.autocast("cpu", dtype):
            expected, actual = torchs(x, (5,), weight), ours(x, (5,), weight)
        assert actual.dtype == expected.dtype == x.dtype
        torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


# ---- torch.func


@pytest.mark.parametrize(
    "in_dims", [(None, None, 0), (0, 0, None), (0, 0, 0), (1, None, -1), (0, None, 1), (None, 0, 0)]
)
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 4, 5)], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_vmap(name, shape, in_dims):
    def batched(size, dim):
        size = list(size)
        if dim is not None:
            size.insert(dim % (len(size) + 1), 3)
        return torch.randn(size, dtype=torch.float64)

    def loss(function, w, b, x):
        extra = (w, b) if name == "layer_norm" else (w + b,)
        return function(x, (5,), *extra, eps=0.1).sin().sum()

    tensors = [batched(size, dim) for size, dim in zip(((5,), (5,), shape), in_dims, strict=True)]
    for of in (lambda f: f, lambda f: grad(f, argnums=(0, 1, 2))):
        ours, theirs = (vmap(of(lambda w, b, x, f=f: loss(f, w, b, x)), in_dims=in_dims)(*tensors) for f in NORMS[name])
        for p, q in zip(*((t,) if torch.is_tensor(t) else t for t in (ours, theirs)), strict=True):
            assert_close(p, q)


def test_gradients_of_each_sample():
    layers = torch.nn.LayerNorm(5), torch.nn.Linear(5, 7), torch.nn.RMSNorm(7), torch.nn.Linear(7, 3)
    net, x, target = torch.nn.Sequential(*layers).double(), torch.randn(9, 5).double(), torch.arange(9) % 3

    def loss(parameters, x, target):
        return F.cross_entropy(functional_call(net, parameters, (x[None],)), target[None])

    found = []
    for change in (lambda net: net, pydl.swap):
        change(net)
        parameters = {name: p.detach() for name, p in net.named_parameters()}
        found.append(vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, target))
    for name in found[0]:
        assert_close(found[1][name], found[0][name])


def test_swapped_block_takes_torchs_own_arguments():
    with pydl.swapped(), torch.profiler.profile() as profile:
        output = torch.layer_norm(X, (5,), W, B, 1e-5, False)
        torch.rms_norm(X, (5,), W)
    assert_close(output, F.layer_norm(X.double(), (5,), W.double(), B.double()))
    ran = {event.name for event in profile.events() if event.name.startswith("pydl::")}
    assert ran == {"pydl::layer_norm_forward", "pydl::rms_norm_forward"}


def test_result_is_not_what_is_kept():
    """The input is saved, not the result, which a caller may write to, as with torch's layer norm."""
    leaf = X.clone().requires_grad_()
    for function in (layer_norm, rms_norm):
        y = function(leaf, (5,))
        y += 1.0
        y.sum().backward()


def test_gradients_equal_those_of_a_graph():
    x, weight, bias = make("vectors and a rest")
    for name, (ours, _) in NORMS.items():
        plain = passes(name, ours, (x, weight, bias))
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
        arguments = leaves[1:] if name == "layer_norm" else leaves[1:2]
        y = ours(leaves[0], weight.shape, *arguments, eps=1e-3)
        upstream = (torch.arange(x.numel()) * 0.7 + 0.3).sin().reshape(x.shape)
        graph = torch.autograd.grad(y, (leaves[0], *arguments), upstream, create_graph=True)
        assert all(map(torch.equal, graph, plain[1:]))
