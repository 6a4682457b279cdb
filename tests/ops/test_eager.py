"""What the autograd.Functions for eager mode (pydl.ops._library.eager) must not lose beside torch's own ``apply``."""

import pytest
import torch
from grid import CALLS
from torch.autograd.profiler import profile

import pydl
import pydl.functional as PF


def conv(input, weight, bias):
    return PF.conv2d(input, weight, bias, padding=1)


def conv_transposed(input, weight, bias):
    return PF.conv_transpose2d(input, weight.transpose(0, 1), bias, stride=2)


def norm(input, weight, bias):
    return PF.batch_norm(input, None, None, weight, bias, training=True)


def dense(input, weight, bias):
    return PF.linear(input, weight, bias)


def row_norm(input, weight, bias):
    return PF.layer_norm(input, (12,), weight[:12])


def row_rms(input, weight, bias):
    return PF.rms_norm(input, (12,), weight[:12])


def group_norm(input, weight, bias):
    return PF.group_norm(input, 4, weight, bias)


def of_one_tensor(call):
    def op(input, weight, bias):
        return call(PF, input) * bias.sum()

    op.__name__ = call.__name__
    return op


def error(input, weight, bias):
    return PF.mse_loss(input, torch.ones(4, 16, 12, 12).double()) * bias.sum()


def odds(input, weight, bias):
    return PF.binary_cross_entropy_with_logits(input, torch.ones(4, 16, 12, 12).double()) * bias.sum()


def heads(input, weight, bias):
    return PF.scaled_dot_product_attention(input, input, input) * bias.sum()


def gated(input, weight, bias):
    weights = [weight, torch.eye(36, 12).double(), bias, bias]
    return PF.gru(input.mean(3), torch.zeros(1, 16, 12).double(), weights, True, 1, 0.0, True, False, False)[0]


def loss(input, weight, bias):
    target = torch.arange(input.shape[0]) % input.shape[1]
    return PF.cross_entropy(input.mean((2, 3)), target) * weight.sum()


def last(input, weight, bias):
    """Without reduction, so that the backward reads what was saved."""
    target = torch.arange(input.shape[0]) % weight.shape[0]
    return PF.linear_cross_entropy(input.mean((2, 3)), weight, target, linear_bias=bias, reduction="none")


def drop(input, weight, bias):
    return PF.dropout(input, 0.5, seed=torch.tensor([7])) * bias.sum()


def largest(input, weight, bias):
    return PF.max_pool2d(input, 2) * bias.sum()


def mean(input, weight, bias):
    return PF.avg_pool2d(input, 2) * bias.sum()


OPS = [conv, dense, gated, heads, norm, group_norm, row_norm, row_rms, *map(of_one_tensor, CALLS.values())]
OPS += [error, odds, loss, last, drop, largest, mean]


def make(op):
    generator = torch.Generator().manual_seed(3)
    weight = {conv: (16, 16, 3, 3), dense: (160, 12), gated: (36, 12), last: (12, 16)}.get(op, (16,))
    shapes = (4, 16, 12, 12), weight, weight[:1]  # 1.3 M multiplications: enough to ask what is wanted
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


def calls(function):
    """The names of pydl's ops that ``function`` calls."""
    with profile() as profiler:
        function()
    return sorted(event.key for event in profiler.key_averages() if event.key.startswith("pydl::"))


@pytest.mark.best_isa
@pytest.mark.cpu_kernels
@pytest.mark.parametrize("through", ["grad", "grad of a product", "backward"])
@pytest.mark.parametrize("asked", [(0,), (1,), (0, 1), (2,)], ids=str)
@pytest.mark.parametrize("op", [conv, dense], ids=lambda op: op.__name__)
def test_only_gradients_asked_for_are_computed(device, op, asked, through):
    """requires_grad of both input and weight, and a gradient asked for of one: the other is not computed."""
    leaves = [t.detach().to(device).requires_grad_() for t in make(op)]
    inputs = [t * 2 for t in leaves] if through == "grad of a product" else leaves
    output = op(*inputs)
    grad = torch.randn_like(output)
    with pydl.backend.use("torch"):
        theirs = op(*inputs)
    expected = torch.autograd.grad(theirs, leaves, grad, retain_graph=True)
    found = []

    def run():
        wanted = [leaves[i] for i in asked]
        if through == "backward":
            output.backward(grad, inputs=wanted)
            found.extend(t.grad for t in wanted)
        else:
            found.extend(torch.autograd.grad(output, wanted, grad))

    name = {conv: "conv2d", dense: "linear"}[op]
    of_input, of_weight = (f"pydl::{name}_backward_{of}" for of in ("input", "weight"))
    called = calls(run)
    assert (of_input in called, of_weight in called) == (0 in asked, 1 in asked)
    for i, gradient in zip(asked, found, strict=True):
        torch.testing.assert_close(gradient, expected[i])


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
def test_tensor_kept_from_a_transform(op):
    """A tensor that left torch.func.grad in a wrapper serves as the tensor inside it."""
    inputs = make(op)
    kept = []

    def inside(x):
        kept.append(x * 1.0)
        return x.sum()

    torch.func.grad(inside)(inputs[0].detach())
    plain = inputs[0].detach().requires_grad_()
    first = op(kept[0], *inputs[1:])
    torch.testing.assert_close(first, op(plain, *inputs[1:]))
    parameter = inputs[1] if op in (norm, group_norm, row_norm, row_rms, loss) else inputs[2]
    grads = [
        torch.autograd.grad(output, parameter, torch.ones_like(output)) for output in (first, op(plain, *inputs[1:]))
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
def test_saved_tensors_hooks(op):
    """What the backward reads goes through the hooks, and comes back through them."""
    inputs = make(op)
    grad = torch.ones_like(op(*inputs))
    expected = torch.autograd.grad(op(*inputs), inputs[0], grad)
    packed, unpacked = [], []

    def pack(tensor):
        packed.append(tensor.shape)
        return tensor.clone()

    def unpack(tensor):
        unpacked.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        output = op(*inputs)
    assert packed
    torch.testing.assert_close(torch.autograd.grad(output, inputs[0], grad), expected)
    assert unpacked


@pytest.mark.parametrize("op", [conv, dense, norm, group_norm, row_norm, row_rms], ids=lambda op: op.__name__)
def test_input_written_before_backward(op):
    """torch's version counter sees it."""
    leaf, weight, bias = make(op)
    input = leaf * 1.0
    output = op(input, weight, bias)
    input.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
def test_backward_twice(op):
    """The saved tensors are freed by the first backward, unless it keeps the graph."""
    inputs = make(op)
    output = op(*inputs).sum()
    first = torch.autograd.grad(output, inputs[0], retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(output, inputs[0]), first)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(output, inputs[0])
