"""Copies of swapped models: deepcopy, pickle, torch.save, replicas, lazy layers, other processes."""

import copy
import gc
import io
import multiprocessing
import pickle
import weakref

import pytest
import torch
from swap_models import (
    small_net,
)
from testing import assert_close
from torch import nn

import pydl
from pydl.swapping import is_swapped


def assert_independent_twin(net, twin):
    """``twin`` is swapped, computes with its own parameters and switches, and ``net`` is untouched by it."""
    x = torch.randn(4, 1, 8, 8)
    net.eval()
    twin.eval()
    assert is_swapped(twin[0])
    assert twin[0].forward.module() is twin[0]
    assert torch.equal(net(x), twin(x))
    expected = net(x)
    with torch.no_grad():
        twin[0].weight.add_(1)
    assert not torch.equal(net(x), twin(x))
    assert torch.equal(net(x), expected)
    twin(x).sum().backward()
    assert net[0].weight.grad is None
    assert twin[0].weight.grad is not None


def test_deepcopy():
    net = pydl.swap(small_net())
    twin = copy.deepcopy(net)
    assert_independent_twin(net, twin)
    pydl.unswap(twin)
    assert is_swapped(net[0])


def test_copy_of_a_layer_has_its_own_switches():
    layer = pydl.swap(nn.Conv2d(1, 2, 3))
    twin = copy.copy(layer)
    assert is_swapped(twin)
    twin.padding, twin._reversed_padding_repeated_twice = (1, 1), [1, 1, 1, 1]
    x = torch.randn(1, 1, 6, 6)
    assert twin(x).shape == (1, 2, 6, 6)
    assert layer(x).shape == (1, 2, 4, 4)
    dropout = pydl.swap(nn.Dropout(0.5))
    twin = copy.copy(dropout).eval()
    assert twin(x) is x
    assert dropout(x) is not x


def test_copies_share_parameters_as_torchs_do():
    layer = pydl.swap(nn.Conv2d(1, 2, 3))
    assert copy.copy(layer).weight is layer.weight
    assert copy.deepcopy(layer).weight is not layer.weight


def through_save(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copier", [through_save, lambda net: pickle.loads(pickle.dumps(net))], ids=["torch", "pickle"])
@pytest.mark.parametrize("compact", [False, True], ids=["", "old protocol"])
def test_save_and_load_of_a_whole_model(copier, compact):
    if compact:
        copier = lambda net: pickle.loads(pickle.dumps(net, protocol=2))  # noqa: E731
    net = pydl.swap(small_net())
    assert_independent_twin(net, copier(net))


def test_load_with_weights_only_needs_our_name_among_the_safe_ones():
    from collections import OrderedDict

    net = pydl.swap(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))
    file = io.BytesIO()
    torch.save(net, file)
    safe = [nn.Sequential, nn.Conv2d, nn.ReLU, OrderedDict, set]
    with torch.serialization.safe_globals(safe):
        file.seek(0)
        with pytest.raises(pickle.UnpicklingError, match=r"pydl\.swapping\.rebuild"):
            torch.load(file, weights_only=True)
    with torch.serialization.safe_globals([*safe, pydl.swapping.rebuild]):
        file.seek(0)
        twin = torch.load(file, weights_only=True)
    assert twin[0].forward.module() is twin[0]


def test_state_dicts_pass_between_swapped_and_plain():
    net, plain = pydl.swap(small_net()), small_net()
    x = torch.randn(4, 1, 8, 8)
    net(x)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    plain.load_state_dict(torch.load(file, weights_only=True))
    assert_close(plain.eval()(x), net.eval()(x).double(), scale=5)
    net.load_state_dict(small_net().state_dict())


def test_data_parallel_replicas_use_their_own_parameters():
    # What torch.nn.parallel.replicate does with each module, without its broadcast, which needs GPUs: a shallow copy
    # whose parameters are then set as plain attributes.
    layer = pydl.swap(nn.Conv2d(1, 2, 3, bias=False))
    replica = layer._replicate_for_data_parallel()
    replica.weight, replica._parameters["bias"] = torch.full((2, 1, 3, 3), 0.5, requires_grad=True) * 2, None
    assert replica._is_replica
    assert not hasattr(layer, "_is_replica")
    assert replica.forward.module() is replica
    assert_close(replica(torch.ones(1, 1, 3, 3)), torch.full((1, 2, 1, 1), 9.0).double())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs on this machine")
def test_data_parallel():
    net = pydl.swap(small_net()).cuda()
    x = torch.randn(8, 1, 8, 8, device="cuda")
    nn.DataParallel(net)(x).sum().backward()
    assert net[0].weight.grad is not None


def test_lazy_layers_are_swapped_before_they_take_shape():
    def build():
        torch.manual_seed(3)
        return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))

    x = torch.randn(4, 2, 7, 7)
    net, plain = pydl.swap(build()), build()
    twin = through_save(net)  # torch has no deepcopy of lazy buffers
    torch.manual_seed(4)
    expected = plain(x)
    for swapped in (net, twin):
        torch.manual_seed(4)
        assert_close(swapped(x), expected.double(), scale=5)
        assert type(swapped[0]) is nn.Conv2d
        assert type(swapped[1]) is nn.BatchNorm2d
        assert swapped[0].forward.module() is swapped[0]
    assert repr(net) == repr(plain)
    assert [row.served_by.split()[0] for row in pydl.report(net).rows[:2]] == ["cpu", "cpu"]
    pydl.unswap(net)
    assert [set(m.__dict__) for m in net.modules()] == [set(m.__dict__) for m in plain.modules()]


def _loss_in_child(net, x, queue):
    queue.put((is_swapped(net[0]), net(x).sum().item()))


def test_pickling_to_another_process():
    net, x = pydl.swap(small_net()).eval(), torch.randn(2, 1, 8, 8)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_loss_in_child, args=(net, x, queue))
    process.start()
    try:
        swapped, loss = queue.get(timeout=60)
    finally:
        process.join(timeout=30)
    assert swapped
    assert loss == pytest.approx(net(x).sum().item(), rel=1e-5)


def test_memory_is_freed_without_the_garbage_collector():
    gc.disable()
    try:
        net = pydl.swap(small_net())
        weight = weakref.ref(net[0].weight)
        del net
        assert weight() is None
    finally:
        gc.enable()


def test_a_forward_that_outlives_its_layer_says_so():
    forward = pydl.swap(nn.Dropout(0.5)).forward
    with pytest.raises(ReferenceError, match="keep the module"):
        forward(torch.ones(3))


def test_a_dict_taken_over_from_another_layer_is_repaired_by_swap():
    layer = pydl.swap(nn.Dropout(0.5))
    twin = nn.Dropout.__new__(nn.Dropout)
    twin.__dict__ = layer.__dict__.copy()
    assert pydl.report(twin).rows[0].reason == "not swapped"
    assert pydl.swap(twin).forward.module() is twin
    assert layer.forward.module() is layer


def test_shared_layers_and_slices():
    shared = nn.Conv2d(2, 2, 3, padding=1)
    net = pydl.swap(nn.Sequential(shared, nn.ReLU(), shared))
    x = torch.randn(1, 2, 5, 5)
    assert_close(net(x), pydl.unswap(copy.deepcopy(net))(x).double(), scale=5)
    assert net[:2][0] is shared
    assert copy.deepcopy(net)[0] is not shared
    twin = copy.deepcopy(net)
    assert twin[0] is twin[2]
