"""Chains that end in a pool: its gradient is taken through the activation before it is spread over the image."""

import copy
import itertools

import pytest
import torch
from testing import assert_close
from torch import nn

import pydl
from pydl.ops import _nodes
from pydl.swapping.container import FusedForward

FORMATS = [torch.contiguous_format, torch.channels_last]
PAIRS = {  # name -> (activation, pool)
    "relu, maximum": (nn.ReLU, lambda: nn.MaxPool2d(2)),
    "relu, overlapping maximum": (nn.ReLU, lambda: nn.MaxPool2d(3, 2, 1)),
    "relu, dilated maximum": (nn.ReLU, lambda: nn.MaxPool2d(2, 1, 0, 2, ceil_mode=True)),
    "sigmoid, maximum": (nn.Sigmoid, lambda: nn.MaxPool2d(3, 2)),
    "sigmoid, average": (nn.Sigmoid, lambda: nn.AvgPool2d(2)),
    "sigmoid, average with padding": (
        nn.Sigmoid,
        lambda: nn.AvgPool2d(2, 2, 1, ceil_mode=True, count_include_pad=False),
    ),
    "sigmoid, average of rows": (nn.Sigmoid, lambda: nn.AvgPool2d((1, 2), (3, 2), divisor_override=3)),
    "sigmoid, overlapping average": (nn.Sigmoid, lambda: nn.AvgPool2d(3, 2, 1)),
    "sigmoid, average of all": (nn.Sigmoid, lambda: nn.AvgPool2d(2, ceil_mode=True)),
}


def sequential(pair):
    activation, pool = PAIRS[pair]
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), activation(), pool(), nn.Flatten()).double()


def gradients(net, x, **options):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = net(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *net.parameters()], gradient(y), **options)]


def gradient(y):
    return torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(y.dtype)


def pooled(net):
    """The steps of a swapped Sequential that are chains with a pool."""
    return [chain for chain in net.forward.plan(net).chains if chain.pool is not None]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("pair", PAIRS)
def test_gradients_are_torchs(device, pair, memory_format):
    net = sequential(pair)
    least = 3 if "maximum" in pair else 2
    for size in ((2, 3, 13, 11), (1, 3, least, least), (3, 3, 8, 40), (0, 3, 8, 8)):
        x = torch.randn(size, dtype=torch.float64).to(memory_format=memory_format)
        expected = gradients(net, x)
        swapped = pydl.swap(copy.deepcopy(net))
        assert isinstance(swapped.forward, FusedForward)
        assert len(pooled(swapped)) == 1
        for actual, exact in zip(gradients(swapped, x), expected, strict=True):
            assert_close(actual, exact)
        single = swapped.float()
        for actual, exact in zip(gradients(single, x.float()), expected, strict=True):
            assert_close(actual, exact)


def kernels_of(function):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return {event.key for event in profile.key_averages()}


@pytest.mark.skipif(_nodes.why_not is not None, reason=f"no nodes in C++: {_nodes.why_not}")
def test_no_pass_over_the_whole_image_goes_through_the_activation():
    x = torch.randn(64, 3, 64, 64, dtype=torch.float64)  # large enough for our own kernel of ReLU's gradient
    seen = kernels_of(lambda: gradients(pydl.swap(sequential("relu, maximum")), x))
    assert "pydl::max_pool2d_backward" in seen
    sizes = []
    with torch.profiler.profile(record_shapes=True) as profile:
        gradients(pydl.swap(sequential("relu, maximum")), x)
    for event in profile.events():
        if event.name in ("pydl::relu_backward", "aten::threshold_backward"):
            sizes.append(event.input_shapes[0])
    assert sizes == [[64, 5, 32, 32]]
    seen = kernels_of(lambda: gradients(pydl.swap(sequential("sigmoid, average")), x))
    assert "pydl::sigmoid_avg_pool2d_backward" in seen
    assert not {"aten::sigmoid_backward", "pydl::avg_pool2d_backward"} & seen


@pytest.mark.parametrize("pair", ["relu, overlapping maximum", "sigmoid, maximum", "sigmoid, average"])
def test_second_derivatives(pair):
    net, x = sequential(pair), torch.randn(2, 3, 7, 6, dtype=torch.float64)
    results = []
    for one in (net, pydl.swap(copy.deepcopy(net))):
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad((one(leaf) ** 3).sum(), leaf, create_graph=True)
        results.append(torch.autograd.grad((first**2).sum(), [leaf, *one.parameters()]))
    for ours, theirs in zip(results[1], results[0], strict=True):
        assert_close(ours, theirs)
    assert torch.autograd.gradcheck(pydl.swap(copy.deepcopy(net)), x.clone().requires_grad_())


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("pair", ["relu, maximum", "relu, overlapping maximum", "sigmoid, average"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 0.0])
def test_what_is_not_finite_and_what_is_equal(pair, memory_format, value):
    """Of ReLU the very numbers of torch: nothing is rounded on the way. Whole windows of zeros among them."""
    net = sequential(pair).float()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randint(-2, 3, p.shape))
    x = torch.randint(-2, 3, (2, 3, 9, 10)).float().to(memory_format=memory_format)
    x[0, 1, 3:6, 4] = value
    x[1] = -abs(x[1])
    results = []
    for one in (net, pydl.swap(copy.deepcopy(net))):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = one(leaf)
        g = torch.arange(y.numel()).view(y.shape) % 5 - 2.0
        results.append([y.detach(), *torch.autograd.grad(y, [leaf, *one.parameters()], g)])
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_what_changes_after_the_plan_is_seen():
    net, x = sequential("relu, maximum"), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    swapped = pydl.swap(copy.deepcopy(net))
    swapped(x)
    seen = []
    hook = swapped[1].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    for actual, exact in zip(gradients(swapped, x), gradients(net, x), strict=True):
        assert_close(actual, exact)
    assert seen == [(2, 5, 9, 9)]
    hook.remove()
    for one in (net, swapped):
        one[0].padding_mode, one[2].kernel_size = "reflect", 3
        one[0]._reversed_padding_repeated_twice = [1, 1, 1, 1]
    for actual, exact in zip(gradients(swapped, x), gradients(net, x), strict=True):
        assert_close(actual, exact)
    for one in (net, swapped):
        one[3] = nn.Identity()
        one[2].return_indices = True
    (values, places), (expected, indices) = swapped(x), net(x)
    assert_close(values, expected)
    assert torch.equal(places, indices)


@pytest.mark.parametrize("pair", ["relu, maximum", "sigmoid, average"])
def test_other_ways_to_train(pair):
    """Under autocast, compiled, checkpointed, by torch.func, and backward twice over one graph."""
    net, x = sequential(pair).float(), torch.randn(4, 3, 10, 10)
    swapped = pydl.swap(copy.deepcopy(net))
    expected = gradients(net, x)
    again = gradients(swapped, x, retain_graph=True)
    again += gradients(lambda_of(swapped, torch.utils.checkpoint.checkpoint), x)
    parameters = dict(swapped.named_parameters())
    g = gradient(net(x))
    by_func = torch.func.grad(lambda p: (torch.func.functional_call(swapped, p, (x,)) * g).sum())(parameters)
    for actual, exact in zip([*again, *by_func.values()], [*expected, *expected, *expected[2:]], strict=True):
        assert_close(actual, exact)
    with torch.autocast("cpu", torch.bfloat16):
        lowered, theirs = gradients(swapped, x), gradients(net, x)
    for actual, exact in zip(lowered, theirs, strict=True):
        assert_close(actual.float(), exact.float(), torch.bfloat16)


def lambda_of(net, checkpoint):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return checkpoint(self.net, x, use_reentrant=False)

    return Checkpointed()


def test_bad_input_says_what_it_says_layer_by_layer():
    net = pydl.swap(sequential("relu, maximum").float())
    for x in (torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8, 8, dtype=torch.float64)):
        messages = []
        for call in (net, lambda x: net[2](net[0](x).relu())):
            with pytest.raises(RuntimeError) as raised:
                call(x)
            messages.append(str(raised.value))
        assert messages[0] == messages[1]


def test_chains_of_other_links_take_no_pool():
    for layers in itertools.product(
        [nn.Linear(4, 4), nn.BatchNorm2d(3)], [nn.ReLU()], [nn.MaxPool2d(2), nn.AvgPool2d(2)]
    ):
        net = pydl.swap(nn.Sequential(*layers))
        assert not pooled(net)
    assert not pooled(pydl.swap(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(2))))
    assert not pooled(pydl.swap(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))))
