"""What changes after the swap: hooks, layers, parameters, modes, copies; a chain is what the model is now."""

import copy
import io
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from swap_models import assert_as_unfused, fused, image, ops_of, small_sequential
from testing import assert_close
from torch import nn

import pydl
from pydl.swapping import FusedForward


@pytest.mark.parametrize("kind", ["forward", "pre", "full backward", "backward pre"])
def test_a_hook_sees_its_layer_and_fusing_comes_back(kind):
    net = pydl.swap(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    layer = net[0]
    before = fused(net)
    seen = []
    register = {
        "forward": lambda: layer.register_forward_hook(lambda m, args, output: seen.append(output.min())),
        "pre": lambda: layer.register_forward_pre_hook(lambda m, args: seen.append(args[0])),
        "full backward": lambda: layer.register_full_backward_hook(lambda m, i, o: seen.append(o)),
        "backward pre": lambda: layer.register_full_backward_pre_hook(lambda m, o: seen.append(o)),
    }[kind]
    x = image().requires_grad_()
    net(x).sum().backward()
    assert not seen
    handle = register()
    net(x).sum().backward()
    assert len(seen) == 1
    if kind == "forward":
        assert seen[0] < 0  # before the activation
    assert pydl.report(net).rows[0].fused == "not fused: has hooks"
    handle.remove()
    net(x).sum().backward()
    assert len(seen) == 1
    assert fused(net) == before


def test_hooks_in_a_dict_that_was_replaced_are_seen():
    net = pydl.swap(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    net(image())
    net[0]._forward_hooks = type(net[0]._forward_hooks)()
    seen = []
    net[0].register_forward_hook(lambda *_: seen.append(1))
    net(image())
    assert seen == [1]


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_hook_on_a_convolution_sees_it(layer):
    net = pydl.swap(nn.Sequential(layer(3, 4, 3), nn.ReLU()))
    seen = []
    handle = net[0].register_forward_hook(lambda m, args, output: seen.append(output.min()))
    net(image())
    assert seen[0] < 0  # before the activation
    assert fused(net) == {}
    handle.remove()
    assert fused(net) == {"0": "with 1", "1": "in 0"}


def test_a_transposed_convolution_whose_method_is_replaced_is_called_by_itself():
    net = pydl.swap(nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2), nn.ReLU()))
    calls = []
    padding = net[0]._output_padding
    net[0]._output_padding = lambda *args: calls.append(args) or padding(*args)
    assert net(image()).min() == 0
    assert len(calls) == 1
    assert fused(net) == {}


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_hook_on_the_activation_sees_it(layer):
    net = pydl.swap(nn.Sequential(layer(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    seen = []
    net[2].register_forward_hook(lambda m, args, output: seen.append((args[0].min(), output.min())))
    net(image())
    assert seen[0][0] < 0
    assert seen[0][1] == 0
    assert fused(net) == {}


def test_global_hooks_see_every_module():
    net = pydl.swap(small_sequential())
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m).__name__))
    try:
        net(image())
    finally:
        handle.remove()
    assert seen == ["Conv2d", "BatchNorm2d", "ReLU", "Dropout", "Flatten", "Linear", "BatchNorm1d", "Sequential"]
    assert fused(net) == {"1": "with 2", "2": "in 1"}


def test_a_layer_parametrised_after_the_swap():
    net = pydl.swap(nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()))
    assert fused(net)
    nn.utils.parametrizations.weight_norm(net[0])
    assert fused(net) == {}
    assert pydl.report(net).rows[0].fused == "not fused: parametrised"
    nn.utils.parametrize.remove_parametrizations(net[0], "weight")
    assert fused(net)
    x = image()
    assert_close(net(x), F.relu(F.conv2d(x, net[0].weight, net[0].bias)).double(), scale=10)


def test_children_that_are_replaced_added_or_removed():
    net = pydl.swap(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    x = image()
    net(x)
    net[1] = nn.Sigmoid()
    assert_close(net(x), torch.sigmoid(F.batch_norm(x, None, None, training=True)).double(), scale=100)
    net.append(nn.Flatten())
    assert net(x).dim() == 2
    del net[2], net[1]
    assert (net(x) < 0).any()


def test_parameters_that_are_replaced_or_loaded():
    net = pydl.swap(small_sequential()).eval()
    x = image()
    net(x)
    other = small_sequential().eval()
    net.load_state_dict(other.state_dict())
    assert_close(net(x), other(x).double(), scale=10)
    net[0].weight = nn.Parameter(torch.zeros_like(net[0].weight))
    other[0].weight.data.zero_()
    assert_close(net(x), other(x).double(), scale=10)
    values = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    assert not torch.func.functional_call(net, values, (x,)).any()


def test_copies_and_loaded_models_make_their_own_plans():
    for build in (small_sequential, lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten())):
        net = pydl.swap(build()).eval()
        x = image()
        expected = net(x)
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(file, weights_only=False)):
            assert isinstance(twin.forward, FusedForward)
            assert twin.forward.module() is twin
            assert torch.equal(twin(x), expected)
            assert twin.forward.current is not net.forward.current
            assert fused(twin) == fused(net) != {}
            pydl.unswap(twin)
            assert "forward" not in twin.__dict__
        shallow = copy.copy(net)
        assert shallow.forward.module() is shallow
        assert torch.equal(shallow(x), expected)


def test_replicas_of_data_parallel_are_swapped_layer_by_layer():
    net = pydl.swap(nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))).eval()
    replica = net._replicate_for_data_parallel()
    for name, child in net._modules.items():  # as torch.nn.parallel.replicate does, without its broadcast
        twin = None if child is None else child._replicate_for_data_parallel()
        if twin is not None:
            for key, tensor in [*child._parameters.items(), *child._buffers.items()]:
                setattr(twin, key, tensor) if key in child._parameters else twin._buffers.update({key: tensor})
        replica._modules[name] = twin
    assert "forward" not in replica.__dict__
    assert isinstance(net.forward, FusedForward)
    x = image()
    assert_close(replica(x), net(x).double(), scale=10)
    assert ops_of(replica, x).count("pydl::conv2d_forward") == 2


def test_children_that_were_replaced_are_freed():
    net = pydl.swap(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    net(image())
    old = weakref.ref(net[0])
    net[0] = pydl.swap(nn.BatchNorm2d(3))
    net(image())
    assert old() is None
    assert fused(net)["0"] == "with 1"


def test_modes_switch_between_kernels():
    net = small_sequential()
    net[3].p = 0.0  # so that training is a function of the input alone
    oracle = copy.deepcopy(net).double()
    pydl.swap(net)
    x = image()
    for training in (True, False, True, False):
        net.train(training)
        oracle.train(training)
        with torch.set_grad_enabled(training):
            assert_close(net(x), oracle(x.double()), scale=100)


def test_lazy_layers_are_fused_once_they_have_taken_shape():
    net = pydl.swap(nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU()))
    assert pydl.report(net).rows[1].fused == "not fused: has not seen its first input"
    net(image())
    assert fused(net) == {"1": "with 2", "2": "in 1"}
    assert_as_unfused(pydl.unswap(net), image())
