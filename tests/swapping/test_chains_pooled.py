"""Convolution, batch norm, activation and the mean over 2x2 pixels as one chain, against torch in float64."""

import copy

import pytest
import torch
from swap_models import Ops, assert_as_unfused, fused, image, ops_of
from testing import assert_close
from torch import nn

import pydl

TRAIN, BACKWARD = "pydl::batch_norm_pooled_train", "pydl::batch_norm_pooled_backward"
ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}


def pooled(activation=nn.Sigmoid, pool=None, norm=None, channels=3):
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.BatchNorm2d(channels) if norm is None else norm,
        activation(),
        nn.AvgPool2d(2) if pool is None else pool,
    )


def trained_ops(net, x):
    """What a step of training runs."""
    with Ops() as ops:
        net(x).square().sum().backward()
    return {name for name in ops.names if "batch_norm" in name or "avg_pool" in name}


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "shape, channels",
    [
        ((2, 3, 2, 2), 3),  # one window
        ((5, 3, 10, 10), 3),  # LeNet's second
        ((33, 3, 28, 28), 3),  # LeNet's first: blocks of four planes, and one left over
        ((4, 3, 7, 9), 3),  # a last row and a last column in no window
        ((3, 3, 6, 5), 3),
        ((3, 3, 5, 70), 3),  # rows of several vectors
        ((2, 3, 64, 64), 3),  # the largest plane
        ((9, 3, 8, 8), 40),  # more channels than are cut by images, and planes that would be columns
    ],
)
def test_the_chain_equals_its_layers(device, shape, channels, activation):
    net = pooled(ACTIVATIONS[activation], channels=channels)
    scale = 100 + shape[0] * shape[2] * shape[3] / 16  # sums over a channel
    swapped = assert_as_unfused(net, image(*shape), dtype=torch.float32, device=device, scale=scale)
    assert trained_ops(swapped, image(*shape).to(device).requires_grad_()) == {TRAIN, BACKWARD}
    assert fused(swapped) == {"1": "with 2, 3", "2": "in 1", "3": "in 1"}


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("parameters", [torch.bfloat16, torch.float32], ids=str)
def test_bfloat16(device, activation, parameters):
    """A pointwise convolution of the identity hands the same numbers to the norm, in whatever precision."""
    net = pooled(ACTIVATIONS[activation])
    net[0] = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.dirac_(net[0].weight)
    x = image(6, 3, 9, 12).bfloat16()
    net.bfloat16()
    net[1].to(parameters)
    net[1].weight.data.uniform_(0.5, 1.5)
    swapped = pydl.swap(copy.deepcopy(net))
    upstream = torch.randn(6, 3, 4, 6).bfloat16()
    outputs = [m(x.to(t)) for m, t in ((swapped, torch.bfloat16), (net.double(), torch.float64))]
    for output in outputs:
        output.backward(upstream.to(output.dtype))
    assert outputs[0].dtype == torch.bfloat16
    assert_close(*outputs)
    for (name, p), q in zip(swapped.named_parameters(), net.parameters(), strict=True):
        assert_close(p.grad, q.grad, torch.bfloat16, scale=8 if name.startswith("1") else 40)
    for a, b in zip(swapped.buffers(), net.buffers(), strict=True):
        assert_close(a, b, torch.bfloat16)
    assert trained_ops(swapped, x) == {TRAIN, BACKWARD}


CASES = {
    "no parameters": lambda: pooled(norm=nn.BatchNorm2d(3, affine=False)),
    "a momentum and eps of its own": lambda: pooled(norm=nn.BatchNorm2d(3, eps=0.1, momentum=0.7)),
    "options as pairs": lambda: pooled(pool=nn.AvgPool2d((2, 2), (2, 2), (0, 0), count_include_pad=False)),
    "torch's strided convolution": lambda: nn.Sequential(nn.Conv2d(3, 4, 2, 2), *pooled(channels=4)[1:]),
    "twice": lambda: nn.Sequential(*pooled(), *pooled(nn.ReLU)),
    "the same layers twice": lambda: (lambda net: nn.Sequential(*net, *net))(pooled()),
    "the same norm twice": lambda: (lambda net: nn.Sequential(*net, nn.Conv2d(3, 3, 1), *net[1:]))(pooled()),
}


@pytest.mark.parametrize("name", CASES)
def test_served(name):
    net = CASES[name]()
    swapped = assert_as_unfused(net, image(3, 3, 12, 12), dtype=torch.float32)
    assert TRAIN in trained_ops(swapped, image(3, 3, 12, 12))


NOT = {
    "evaluation": lambda: pooled().eval(),
    "a norm in evaluation": lambda: (lambda net: (net[1].eval(), net)[1])(pooled()),
    "cumulative statistics": lambda: pooled(norm=nn.BatchNorm2d(3, momentum=None)),
    "no statistics": lambda: pooled(norm=nn.BatchNorm2d(3, track_running_stats=False)),
    "windows of three": lambda: pooled(pool=nn.AvgPool2d(3)),
    "windows that overlap": lambda: pooled(pool=nn.AvgPool2d(2, 1)),
    "padding": lambda: pooled(pool=nn.AvgPool2d(2, padding=1)),
    "windows over the end": lambda: pooled(pool=nn.AvgPool2d(2, ceil_mode=True)),
    "a divisor": lambda: pooled(pool=nn.AvgPool2d(2, divisor_override=3)),
    "maxima": lambda: pooled(pool=nn.MaxPool2d(2)),
    "no activation": lambda: (lambda net: nn.Sequential(net[0], net[1], net[3]))(pooled()),
    "no norm": lambda: (lambda net: nn.Sequential(net[0], net[2], net[3]))(pooled()),
    "no convolution": lambda: pooled()[1:],
    "a transposed convolution": lambda: nn.Sequential(nn.ConvTranspose2d(3, 3, 3), *pooled()[1:]),
}


@pytest.mark.parametrize("name", NOT)
def test_layer_by_layer(name):
    net = NOT[name]()
    swapped = pydl.swap(copy.deepcopy(net))
    if name != "evaluation":
        swapped = assert_as_unfused(net, image(3, 3, 9, 9), dtype=torch.float32)
    assert TRAIN not in trained_ops(swapped, image(3, 3, 9, 9))
    assert not any("3" in row.fused for row in pydl.report(swapped).rows[:2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_dtypes_are_pooled_by_themselves(dtype):
    net, x = pooled().to(dtype), image(3, 3, 9, 9).to(dtype)
    swapped = pydl.swap(copy.deepcopy(net))
    assert_close(swapped(x), net.double()(x.double()), dtype, scale=4)
    assert TRAIN not in trained_ops(swapped, x)
    assert "3" not in fused(swapped)


@pytest.mark.parametrize("what", ["input", "weight"])
def test_channels_last(what):
    net, x = pooled(), image(3, 3, 9, 9)
    if what == "weight":
        net = net.to(memory_format=torch.channels_last)
    else:
        x = x.to(memory_format=torch.channels_last)
    swapped = assert_as_unfused(net, x, dtype=torch.float32)
    assert TRAIN not in trained_ops(swapped, x)
    assert swapped(x).is_contiguous(memory_format=torch.channels_last)


def test_large_planes():
    net, x = pooled(), image(2, 3, 65, 64)
    assert TRAIN not in trained_ops(assert_as_unfused(net, x, dtype=torch.float32), x)


def test_without_gradients():
    """A training mode without gradients, as statistics are gathered anew."""
    net, x = pooled(), image(3, 3, 9, 9)
    swapped = pydl.swap(copy.deepcopy(net))
    assert TRAIN not in ops_of(swapped, x)
    net(x)
    assert_close(swapped[1].running_var, net[1].running_var.double())
    assert swapped[1].num_batches_tracked == 1


@pytest.mark.parametrize("kind", ["forward", "pre", "full backward", "backward pre"])
@pytest.mark.parametrize("of", range(4))
def test_a_hook_sees_its_layer(of, kind):
    net, x = pydl.swap(pooled()), image(3, 3, 9, 9).requires_grad_()
    seen = []
    register = {
        "forward": "register_forward_hook",
        "pre": "register_forward_pre_hook",
        "full backward": "register_full_backward_hook",
        "backward pre": "register_full_backward_pre_hook",
    }[kind]
    net(x).sum().backward()
    handle = getattr(net[of], register)(lambda *args: seen.append(args[-1]))
    assert TRAIN not in trained_ops(net, x)
    assert len(seen) == 1
    if kind == "forward":
        assert seen[0].shape == (3, 3, *((4, 4) if of == 3 else (9, 9)))
    handle.remove()
    assert trained_ops(net, x) == {TRAIN, BACKWARD}
    assert len(seen) == 1


def test_what_changes_after_the_swap():
    net, x = pydl.swap(pooled()), image(3, 3, 12, 12)

    def agrees(uses):
        assert_as_unfused(pydl.unswap(copy.deepcopy(net)), x, dtype=torch.float32)
        assert (TRAIN in trained_ops(net, x)) is uses
        twin = pydl.unswap(copy.deepcopy(net)).double()
        assert_close(net(x), twin(x.double()), scale=10)

    agrees(True)
    for name, value, before in (("kernel_size", 3, 2), ("stride", 1, 2), ("padding", 1, 0), ("ceil_mode", True, False)):
        setattr(net[3], name, value)
        agrees(False)
        setattr(net[3], name, before)
        agrees(True)
    net[1].eval()
    agrees(False)
    net[1].train()
    net[3] = nn.AvgPool2d(3)
    agrees(False)
    net[3] = nn.AvgPool2d(2)
    agrees(False)
    pydl.swap(net)
    agrees(True)
    net[3].forward = lambda x: x * 2
    agrees(False)


@pytest.mark.parametrize("frozen", ["convolution", "norm", "both"])
def test_frozen_layers(frozen):
    net = pooled()
    if frozen != "norm":
        net[0].requires_grad_(False)
    if frozen != "convolution":
        net[1].requires_grad_(False)
    assert_as_unfused(net, image(3, 3, 9, 9), dtype=torch.float32)
    if frozen == "convolution":  # whose input needs no gradient: sums alone
        twin = copy.deepcopy(net).double()
        swapped, x = pydl.swap(net), image(3, 3, 9, 9)
        swapped(x).square().sum().backward()
        twin(x.double()).square().sum().backward()
        assert_close(swapped[1].weight.grad, twin[1].weight.grad, scale=100)
        assert_close(swapped[1].bias.grad, twin[1].bias.grad, scale=100)


@pytest.mark.parametrize("upstream", ["expanded", "transposed"])
def test_gradients_of_any_strides(upstream):
    net, x = pooled(), image(3, 3, 9, 9)
    twin, swapped = copy.deepcopy(net).double(), pydl.swap(net)
    grad = torch.randn(1).expand(3, 3, 4, 4) if upstream == "expanded" else torch.randn(3, 3, 4, 4).mT
    swapped(x).backward(grad)
    twin(x.double()).backward(grad.double())
    for p, q in zip(swapped.parameters(), twin.parameters(), strict=True):
        assert_close(p.grad, q.grad, scale=100)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_second_derivatives(activation):
    net, x = pooled(ACTIVATIONS[activation]), image(2, 3, 6, 6)
    twin, swapped = copy.deepcopy(net).double(), pydl.swap(net)

    def second(net, x):
        x = x.requires_grad_()
        grads = torch.autograd.grad(net(x).square().sum(), (x, *net.parameters()), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), (x, *net.parameters()), allow_unused=True)

    for found, expected in zip(second(swapped, x.clone()), second(twin, x.double()), strict=True):
        assert found is not None or expected is None or expected.abs().max() < 1e-9
        if found is not None:
            assert_close(found, expected, torch.float32, scale=1000)


def test_gradients_in_a_batch():
    net, x = pooled(), image(2, 3, 6, 6)
    twin, swapped = copy.deepcopy(net).double(), pydl.swap(net)
    upstream = torch.randn(4, 2, 3, 3, 3)
    found = torch.autograd.grad(swapped(x), swapped[1].weight, upstream, is_grads_batched=True)
    expected = torch.autograd.grad(twin(x.double()), twin[1].weight, upstream.double(), is_grads_batched=True)
    assert_close(found[0], expected[0], scale=100)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_not_finite(value):
    net, x = pooled(), image(3, 3, 8, 8)
    x[1, 2, 3, 4] = value
    twin, swapped = copy.deepcopy(net), pydl.swap(net)
    assert torch.equal(swapped(x).isnan(), twin(x).isnan())


def test_far_from_zero():
    """A mean far above the deviation costs no digits."""
    net, x = pooled(nn.Sigmoid), image(3, 3, 10, 10)
    net[0].bias.data.fill_(1e4)
    twin, swapped = copy.deepcopy(net).double(), pydl.swap(net)
    between = swapped[0](x).detach()  # whose rounding is the convolution's
    assert_close(swapped(x), twin[1:](between.double()), scale=10)
