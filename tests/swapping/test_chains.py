"""Chains: each against its layers called one by one in float64, forward, running statistics and all gradients."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from swap_models import Ops, assert_as_unfused, fused, image, small_sequential
from testing import assert_close
from torch import nn
from torch.nn.utils import prune

import pydl
from pydl.swapping import FusedForward

CASES = {
    "conv + ReLU": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), {"0": "with 1", "1": "in 0"}),
    "conv + ReLU in place": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)),
        {"0": "with 1", "1": "in 0"},
    ),
    "conv + sigmoid": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid()), {"0": "with 1", "1": "in 0"}),
    "reflected conv + ReLU": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
        {"0": "with 1", "1": "in 0"},
    ),
    "BN + ReLU": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), {"0": "with 1", "1": "in 0"}),
    "BN + sigmoid": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Sigmoid()), {"0": "with 1", "1": "in 0"}),
    "conv + BN + ReLU": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        {"1": "with 2", "2": "in 1"},
    ),
    "transposed conv + ReLU in place": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1), nn.ReLU(inplace=True)),
        {"0": "with 1", "1": "in 0"},
    ),
    "transposed conv + sigmoid": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 6, (2, 3), (3, 1), groups=3, output_padding=(2, 0)), nn.Sigmoid()),
        {"0": "with 1", "1": "in 0"},
    ),
    "transposed conv + BN + ReLU in place": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        {"1": "with 2", "2": "in 1"},
    ),
    "cumulative BN without parameters + ReLU": (
        lambda: nn.Sequential(nn.BatchNorm2d(3, affine=False, momentum=None), nn.ReLU()),
        {"0": "with 1", "1": "in 0"},
    ),
    "untracked BN + ReLU": (
        lambda: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU()),
        {"0": "with 1", "1": "in 0"},
    ),
    "linear + ReLU": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 20), nn.ReLU(inplace=True), nn.Linear(20, 5)),
        {"1": "with 2", "2": "in 1"},
    ),
    "linear + sigmoid": (
        lambda: nn.Sequential(nn.Linear(8, 5, bias=False), nn.Sigmoid()),
        {"0": "with 1", "1": "in 0"},
    ),
    "linear + BN1d + sigmoid": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5), nn.Sigmoid()),
        {"2": "with 3", "3": "in 2"},
    ),
    "shared ReLU": (
        lambda: (lambda relu: nn.Sequential(nn.Conv2d(3, 3, 3), relu, nn.BatchNorm2d(3), relu))(nn.ReLU()),
        {"0": "with 1", "1": "in 0; in 2", "2": "with 1"},
    ),
    "shared convolution": (
        lambda: (lambda conv: nn.Sequential(conv, nn.ReLU(), conv, nn.Sigmoid()))(nn.Conv2d(3, 3, 3)),
        {"0": "with 1; with 3", "1": "in 0", "3": "in 0"},
    ),
    "shared transposed convolution": (
        lambda: (lambda conv: nn.Sequential(conv, nn.ReLU(), conv, nn.Sigmoid()))(nn.ConvTranspose2d(3, 3, 3)),
        {"0": "with 1; with 3", "1": "in 0", "3": "in 0"},
    ),
}


@pytest.mark.best_isa
@pytest.mark.large
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", CASES)
def test_a_chain_equals_its_layers(name, training, device):
    build, expected = CASES[name]
    net = build().train(training)
    swapped = assert_as_unfused(net, image(), device=device)
    assert_as_unfused(net, image(), dtype=torch.float32, device=device)
    assert isinstance(swapped.forward, FusedForward)
    if training:
        assert fused(swapped) == expected
    else:
        assert fused(swapped).keys() >= expected.keys()


def test_the_fused_kernels_are_what_runs():
    net = pydl.swap(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Sigmoid()))
    for fuse, expected in ((True, False), (False, True)):
        with Ops() as ops, torch.no_grad():
            pydl.swap(net, fuse=fuse)(image())
        names = {name.partition("::")[2] for name in ops.names}
        assert ("relu_forward" in names) is expected
        assert ("sigmoid_forward" in names) is expected


def test_the_fused_kernels_are_what_runs_of_a_transposed_convolution():
    net = nn.Sequential(nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3), nn.BatchNorm2d(2))
    net = pydl.swap(net.append(nn.Sigmoid()))
    for training in (True, False):
        with Ops() as ops, torch.no_grad():
            net.train(training)(image())
        names = [name.partition("::")[2] for name in ops.names]
        assert {"conv_transpose2d", "batch_norm_train" if training else "batch_norm_forward"} <= set(names)
        assert not {"relu_forward", "sigmoid_forward"} & set(names)


def test_a_batch_norm_takes_the_gradient_of_the_bias_before_it():
    """It is zero whatever follows; what is summed up otherwise is rounding."""
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), image(16, 3, 12, 12)
    pydl.swap(net)(x).square().mean().backward()
    assert not net[0].bias.grad.any()
    assert net[0].weight.grad.any()
    pydl.unswap(net)
    net.zero_grad()
    net(x).square().mean().backward()
    assert net[0].bias.grad.any()  # torch's rounding
    assert_close(net[0].bias.grad, torch.zeros(4), torch.float32)


def test_the_gradient_of_the_bias_before_an_evaluating_batch_norm():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    pydl.swap(net)(image()).sum().backward()
    assert net[0].bias.grad.all()


def test_fuse_false_is_layer_by_layer():
    net = pydl.swap(small_sequential(), fuse=False)
    assert fused(net) == {}
    assert "forward" not in net.__dict__
    assert fused(pydl.swap(net)) != {}
    pydl.swap(net, fuse=False)
    assert "forward" not in net.__dict__
    assert_as_unfused(small_sequential().eval(), image())


def test_each_layer_and_each_slice_still_gives_its_own_output():
    net = pydl.swap(small_sequential()).eval()
    plain = pydl.unswap(copy.deepcopy(net))
    x = y = image()
    for ours, theirs in zip(net, plain, strict=True):
        x, y = ours(x), theirs(y)
        assert_close(x, y.double(), scale=10)
    for cut in (slice(1), slice(2), slice(1, 3), slice(3)):
        assert net[cut][0] is net[cut.start or 0]
        value = image(4, 4, 6, 6) if cut.start else image()
        assert_close(net[cut](value), plain[cut](value).double(), scale=10)


def test_a_slice_is_fused_by_its_own_swap():
    net = pydl.swap(small_sequential())
    part = net[:2]
    assert fused(part) == {}
    pydl.swap(part)
    assert fused(part) == {}  # convolution and batch norm are two kernels in training
    assert fused(part.eval()).keys() == {"0", "1"}


class Doubling(nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input) * 2


class OwnReLU(nn.ReLU):
    def forward(self, input):
        return super().forward(input) + 1


def parametrised(layer):
    return nn.utils.parametrizations.weight_norm(layer)


def replaced(layer):
    layer.forward = lambda input: input * 3
    return layer


def pruned(layer):
    return prune.l1_unstructured(layer, "weight", 0.5)


class OwnSequential(nn.Sequential):
    """By exact type: a subclass may walk over its layers in another way."""


NEVER = {
    "subclass of Sequential": lambda: OwnSequential(nn.BatchNorm2d(3), nn.ReLU()),
    "subclass of a norm": lambda: nn.Sequential(nn.Conv2d(3, 3, 3), Doubling(3), nn.ReLU()),
    "subclass of an activation": lambda: nn.Sequential(nn.BatchNorm2d(3), OwnReLU()),
    "parametrised convolution": lambda: nn.Sequential(parametrised(nn.Conv2d(3, 3, 3)), nn.ReLU()),
    "pruned convolution": lambda: nn.Sequential(prune.l1_unstructured(nn.Conv2d(3, 3, 3), "weight", 0.5), nn.ReLU()),
    "parametrised transposed convolution": lambda: nn.Sequential(parametrised(nn.ConvTranspose2d(3, 3, 3)), nn.ReLU()),
    "replaced forward": lambda: nn.Sequential(nn.BatchNorm2d(3), replaced(nn.ReLU())),
    "SyncBatchNorm": lambda: nn.Sequential(nn.SyncBatchNorm(3).eval(), nn.ReLU()),
    "ReLU6": lambda: nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU6()),
    "ReLU first": lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 3)),
    "something between": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Identity(), nn.ReLU()),
}


@pytest.mark.parametrize("name", NEVER)
def test_never_fused(name):
    net = NEVER[name]()
    net.train(name != "SyncBatchNorm")
    if name == "pruned convolution":  # torch copies no pruned modules
        plain = pydl.unswap(net)
        expected = plain(x := image()).detach()
        assert_close(pydl.swap(net)(x), expected.double(), scale=10)
    else:
        net = assert_as_unfused(net, image())
    assert fused(net) == {}


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation")
def test_quantized_layers_are_left_alone():
    net = pydl.swap(nn.Sequential(torch.ao.nn.quantized.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 2, 3), nn.ReLU()))
    assert fused(net) == {"2": "with 3", "3": "in 2"}


def test_autocast_of_chains():
    net = pydl.swap(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Sigmoid()))
    plain = pydl.unswap(copy.deepcopy(net))
    x = image()
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = net(x), plain(x)
    assert actual.dtype == expected.dtype
    assert_close(actual, expected.double(), torch.bfloat16, scale=2)
    actual.float().sum().backward()
    assert {p.grad.dtype for p in net.parameters()} == {torch.float32}


def test_the_backend_torch_is_layer_by_layer():
    net = pydl.swap(small_sequential()).eval()
    x = image()
    expected = pydl.unswap(copy.deepcopy(net))(x)
    with pydl.backend.use("torch"):
        assert fused(net) == {}
        assert torch.equal(net(x), expected)


def test_a_model_in_many_threads():
    net = pydl.swap(small_sequential()).eval()
    twin = copy.deepcopy(net)  # without a plan: the threads make it
    x = image()
    expected = net(x)
    results = []
    threads = [threading.Thread(target=lambda: results.append(torch.equal(twin(x), expected))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8


def test_memory_of_a_fused_model_is_freed_without_the_garbage_collector():
    gc.collect()
    gc.disable()
    try:
        for net in (pydl.swap(small_sequential()), nn.Sequential(small_sequential()[:2], nn.ReLU())):
            net(image())
        weights = [weakref.ref(p) for p in net.parameters()]
        del net
        assert [w() for w in weights] == [None] * len(weights)
    finally:
        gc.enable()
