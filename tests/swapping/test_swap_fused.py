"""Fused containers: each chain against the unfused model in float64, forward, running statistics and all gradients."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from swap_models import (
    Inception,
    InPlaceResidual,
    Residual,
    TorchvisionBlock,
    small_sequential,
)
from testing import assert_close
from torch import nn

import pydl
from pydl.swapping import FusedForward


def fused(net):
    """{name: what the report says is computed with it or where it is computed} of the layers that are fused."""
    return {row.name: row.fused for row in pydl.report(net).rows if row.fused.startswith(("with", "in "))}


def outcome(net, *inputs):
    """Output, gradients of inputs and parameters for a gradient that is not all ones, buffers: everything by name."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    net.zero_grad()
    output = net(*inputs)
    found = {"output": output.detach().clone()}
    if output.requires_grad:
        output.backward(torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view(output.shape).to(output.device))
        found |= {f"input {i}": x.grad for i, x in enumerate(inputs)}
        found |= {f"gradient of {name}": p.grad for name, p in net.named_parameters()}
    return found | {f"buffer {name}": b.clone() for name, b in net.named_buffers()}


def assert_as_unfused(net, *inputs, dtype=torch.float64, device="cpu", scale=100):
    """The model, swapped, computes what torch computes in float64; both are copies."""
    oracle = copy.deepcopy(net).double()
    swapped = pydl.swap(copy.deepcopy(net).to(device, dtype))
    expected = outcome(oracle, *(x.double() for x in inputs))
    actual = outcome(swapped, *(x.to(device, dtype) for x in inputs))
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        assert (actual[name] is None) == (value is None), name
        if value is not None:
            assert_close(actual[name], value, dtype, scale=scale)
    return swapped


def image(*shape):
    return torch.randn(shape or (4, 3, 8, 8))


def after(*layers):
    return nn.Sequential(*layers)


CASES = {
    "conv + ReLU": (lambda: after(nn.Conv2d(3, 4, 3), nn.ReLU()), {"0": "with 1", "1": "in 0"}),
    "conv + ReLU in place": (lambda: after(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)), {"0": "with 1", "1": "in 0"}),
    "conv + sigmoid": (lambda: after(nn.Conv2d(3, 4, 3), nn.Sigmoid()), {"0": "with 1", "1": "in 0"}),
    "reflected conv + ReLU": (
        lambda: after(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
        {"0": "with 1", "1": "in 0"},
    ),
    "BN + ReLU": (lambda: after(nn.BatchNorm2d(3), nn.ReLU()), {"0": "with 1", "1": "in 0"}),
    "BN + sigmoid": (lambda: after(nn.BatchNorm2d(3), nn.Sigmoid()), {"0": "with 1", "1": "in 0"}),
    "conv + BN + ReLU": (
        lambda: after(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        {"1": "with 2", "2": "in 1"},
    ),
    "cumulative BN without parameters + ReLU": (
        lambda: after(nn.BatchNorm2d(3, affine=False, momentum=None), nn.ReLU()),
        {"0": "with 1", "1": "in 0"},
    ),
    "untracked BN + ReLU": (
        lambda: after(nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU()),
        {"0": "with 1", "1": "in 0"},
    ),
    "linear + BN1d + sigmoid": (
        lambda: after(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5), nn.Sigmoid()),
        {"2": "with 3", "3": "in 2"},
    ),
    "shared ReLU": (
        lambda: (lambda relu: after(nn.Conv2d(3, 3, 3), relu, nn.BatchNorm2d(3), relu))(nn.ReLU()),
        {"0": "with 1", "1": "in 0; in 2", "2": "with 1"},
    ),
    "shared convolution": (
        lambda: (lambda conv: after(conv, nn.ReLU(), conv, nn.Sigmoid()))(nn.Conv2d(3, 3, 3)),
        {"0": "with 1; with 3", "1": "in 0", "3": "in 0"},
    ),
    "d2l's Residual": (
        lambda: Residual(3, 3),
        {"bn1": "with relu()", "bn2": "with +, relu()"},
    ),
    "d2l's Residual with a 1×1 convolution": (
        lambda: Residual(3, 5, use_1x1conv=True, strides=2),
        {"bn1": "with relu()", "bn2": "with +, relu()"},
    ),
    "torchvision's block": (
        lambda: TorchvisionBlock(3, 6, 2),
        {"bn1": "with relu", "relu": "in bn1; in bn2", "bn2": "with +, relu"},
    ),
    "in place throughout": (lambda: InPlaceResidual(3), {"bn1": "with relu()", "bn2": "with +, relu()"}),
    "Inception": (
        lambda: Inception(3, 2, (2, 3), (2, 3), 2),
        {name: "with relu()" for name in ("b1_1", "b2_1", "b2_2", "b3_1", "b3_2", "b4_2")},
    ),
}


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
    from test_swap import OurOps

    net, x = pydl.swap(Residual(3, 3)), image()
    names = []

    class Names(OurOps):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(function.name().partition("::")[2].partition(".")[0])
            return super().__torch_dispatch__(function, types, args, kwargs)

    with Names(), torch.no_grad():
        net(x)
    assert not {"relu", "clamp_min", "add", "relu_", "clamp_min_"} & set(names)
    names.clear()
    with Names(), torch.no_grad():
        pydl.swap(net, fuse=False)(x)
    assert "relu" in names or "clamp_min" in names


def test_a_batch_norm_takes_the_gradient_of_the_bias_before_it():
    """It is zero whatever follows; what is summed up otherwise is rounding."""
    net, x = after(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), image(16, 3, 12, 12)
    pydl.swap(net)(x).square().mean().backward()
    assert not net[0].bias.grad.any()
    assert net[0].weight.grad.any()
    pydl.unswap(net)
    net.zero_grad()
    net(x).square().mean().backward()
    assert net[0].bias.grad.any()  # torch's rounding
    assert_close(net[0].bias.grad, torch.zeros(4), torch.float32)


def test_the_gradient_of_the_bias_before_an_evaluating_batch_norm():
    net = after(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
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


# ---- hooks and other reasons to leave a layer alone


@pytest.mark.parametrize("kind", ["forward", "pre", "full backward", "backward pre"])
@pytest.mark.parametrize("model", ["Sequential", "traced"])
def test_a_hook_sees_its_layer_and_fusing_comes_back(model, kind):
    net = pydl.swap(after(nn.BatchNorm2d(3), nn.ReLU()) if model == "Sequential" else Residual(3, 3))
    layer = net[0] if model == "Sequential" else net.bn1
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
    name = "0" if model == "Sequential" else "bn1"
    assert {row.name: row.fused for row in pydl.report(net).rows}[name] == "not fused: has hooks"
    handle.remove()
    net(x).sum().backward()
    assert len(seen) == 1
    assert fused(net) == before


def test_hooks_in_a_dict_that_was_replaced_are_seen():
    net = pydl.swap(after(nn.BatchNorm2d(3), nn.ReLU()))
    net(image())
    net[0]._forward_hooks = type(net[0]._forward_hooks)()
    seen = []
    net[0].register_forward_hook(lambda *_: seen.append(1))
    net(image())
    assert seen == [1]


def test_a_hook_on_the_activation_sees_it():
    net = pydl.swap(after(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
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


NEVER = {
    "subclass of a norm": lambda: after(nn.Conv2d(3, 3, 3), Doubling(3), nn.ReLU()),
    "subclass of an activation": lambda: after(nn.BatchNorm2d(3), OwnReLU()),
    "parametrised convolution": lambda: after(parametrised(nn.Conv2d(3, 3, 3)), nn.ReLU()),
    "pruned convolution": lambda: after(nn.utils.prune.l1_unstructured(nn.Conv2d(3, 3, 3), "weight", 0.5), nn.ReLU()),
    "replaced forward": lambda: after(nn.BatchNorm2d(3), replaced(nn.ReLU())),
    "SyncBatchNorm": lambda: after(nn.SyncBatchNorm(3).eval(), nn.ReLU()),
    "ReLU6": lambda: after(nn.Conv2d(3, 3, 3), nn.ReLU6()),
    "ReLU first": lambda: after(nn.ReLU(), nn.Conv2d(3, 3, 3)),
    "something between": lambda: after(nn.BatchNorm2d(3), nn.Identity(), nn.ReLU()),
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
    net = pydl.swap(after(torch.ao.nn.quantized.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 2, 3), nn.ReLU()))
    assert fused(net) == {"2": "with 3", "3": "in 2"}


def test_a_layer_parametrised_after_the_swap():
    net = pydl.swap(after(nn.Conv2d(3, 3, 3), nn.ReLU()))
    assert fused(net)
    parametrised(net[0])
    assert fused(net) == {}
    assert pydl.report(net).rows[0].fused == "not fused: parametrised"
    nn.utils.parametrize.remove_parametrizations(net[0], "weight")
    assert fused(net)
    x = image()
    assert_close(net(x), F.relu(F.conv2d(x, net[0].weight, net[0].bias)).double(), scale=10)


# ---- traced forwards that must not be fused, or not further than said


class TwoConsumers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        z = self.bn(F.relu(y))
        return F.relu(z) + y + z


class Returned(TwoConsumers):
    def forward(self, x):
        y = self.bn(x)
        F.relu(y, inplace=True)  # its result is not used, y is
        return self.conv(y)


class WrittenInput(TwoConsumers):
    def forward(self, x):
        y = self.bn(x)
        x = x.clone()
        x += y  # the clone is written, not the norm's result
        return F.relu(x)


class WrittenBetween(TwoConsumers):
    def forward(self, x):
        x = self.conv(x)
        y = self.bn(x)
        x.mul_(2)  # what the norm has read already
        return F.relu(y) + x


class Alias(TwoConsumers):
    def forward(self, x):
        y = self.bn(self.conv(x))
        z = y
        y += x
        return F.relu(y) * z


class TwiceTheSame(TwoConsumers):
    def forward(self, x):
        y = self.bn(x)
        return F.relu(y + y)


class Scaled(TwoConsumers):
    def forward(self, x):
        return torch.relu(torch.add(self.bn(x), x, alpha=2))


class SameNormTwice(TwoConsumers):
    def forward(self, x):
        y = self.bn(self.conv(x))
        z = self.bn(x)
        return F.relu(y + z)


TRACED_NEVER = [TwoConsumers, WrittenInput, WrittenBetween, TwiceTheSame, Scaled]


@pytest.mark.parametrize("cls", TRACED_NEVER, ids=lambda cls: cls.__name__)
def test_traced_and_never_fused(cls):
    if cls is WrittenBetween:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # by torch's own norm, too
            outcome(cls(), image())
        net = pydl.swap(cls().eval())
        with torch.no_grad():
            x = image()
            assert_close(net(x), pydl.unswap(copy.deepcopy(net))(x).double(), scale=10)
    else:
        net = assert_as_unfused(cls(), image())
    assert fused(net) == {}


def test_what_is_written_in_place_and_used_under_its_old_name():
    assert fused(assert_as_unfused(Returned(), image())) == {"bn": "with relu()"}
    assert fused(assert_as_unfused(Alias(), image())) == {"bn": "with +"}


def test_the_order_of_updates_of_a_norm_that_is_called_twice():
    net = SameNormTwice()
    swapped = assert_as_unfused(net, image())
    assert "with" in fused(swapped).get("bn", "with")


class Broadcasting(TwoConsumers):
    def forward(self, x):
        return F.relu(self.bn(x) + x.mean(dim=(2, 3), keepdim=True))


def test_a_residual_that_broadcasts_is_torchs_to_add():
    assert fused(assert_as_unfused(Broadcasting(), image())) == {"bn": "with +, relu()"}


def test_a_residual_of_another_dtype_is_promoted_as_torch_does():
    class Promoting(TwoConsumers):
        def forward(self, x, y):
            return F.relu(self.bn(x) + y)

    net = pydl.swap(Promoting())
    assert net(image(), image().double()).dtype == torch.float64
    assert net(image(), image().bfloat16()).dtype == torch.float32


# ---- forwards that cannot be traced, with the reason


def module_with(forward, **attributes):
    """A module with a batch norm ``bn`` whose forward is ``forward``."""
    cls = type("Made", (nn.Module,), {"forward": forward})
    net = cls()
    net.bn = nn.BatchNorm2d(3)
    for name, value in attributes.items():
        setattr(net, name, value)
    return net


FLAG = True


def decides(self, x):
    return F.relu(self.bn(x)) if x.sum() > 0 else x


def decides_by_shape(self, x):
    return F.relu(self.bn(x)) if x.shape[0] > 2 else x


def reads_global(self, x):
    return F.relu(self.bn(x)) if FLAG else x


def draws(self, x):
    return F.relu(self.bn(x)) + torch.randn(1)


def without_gradient(self, x):
    with torch.no_grad():
        return F.relu(self.bn(x))


def counts(self, x):
    self.count += 1
    return F.relu(self.bn(x))


def remembers(self, x):
    self.seen.append(x)
    return F.relu(self.bn(x))


def prints(self, x):
    print("here")
    return F.relu(self.bn(x))


def asks_for_types(self, x):
    return F.relu(self.bn(x)) if isinstance(x, torch.Tensor) else x


def writes_a_part(self, x):
    y = self.bn(x)
    y[:, 0] = 0
    return F.relu(y)


def optional(self, x, y=None):
    return F.relu(self.bn(x)) if y is None else y


def keyword(self, x, *, scale=1.0):
    return F.relu(self.bn(x)) * scale


UNTRACEABLE = {
    decides: "decides by the values or the shape of its input",
    decides_by_shape: "decides by the values or the shape of its input",
    reads_global: "uses FLAG",
    draws: "uses torch.randn",
    without_gradient: "uses torch.no_grad",
    counts: "writes to an attribute",
    remembers: "reads self.seen, a list, which may change",
    prints: "uses print",
    asks_for_types: "uses isinstance",
    writes_a_part: "writes to a part of a tensor",
}


@pytest.mark.parametrize("forward", UNTRACEABLE, ids=lambda f: f.__name__)
def test_left_layer_by_layer_with_the_reason(forward):
    net = pydl.swap(module_with(forward, count=0, seen=[]))
    report = pydl.report(net)
    assert report.left == {"": UNTRACEABLE[forward]}
    assert f"the model is called layer by layer: its forward {UNTRACEABLE[forward]}" in str(report)
    assert fused(net) == {}
    plain = pydl.unswap(copy.deepcopy(net))
    x = image()
    torch.manual_seed(1)
    expected = plain(x)
    torch.manual_seed(1)
    assert_close(net(x), expected.double(), scale=10)
    net(x)
    if forward is counts:
        assert net.count == 2
    if forward is remembers:
        assert len(net.seen) == 2


@pytest.mark.parametrize("forward", [optional, keyword], ids=lambda f: f.__name__)
def test_arguments_that_are_given_go_to_the_forward_itself(forward):
    net = pydl.swap(module_with(forward))
    assert fused(net) == {"bn": "with relu()"}
    x = image()
    expected = F.relu(pydl.unswap(copy.deepcopy(net)).bn(x))
    assert_close(net(x), expected.double(), scale=10)
    if forward is optional:
        assert net(x, x) is x
        assert net(x, y=x) is x
        assert_close(net(x=x), expected.double(), scale=10)
    else:
        assert_close(net(x, scale=2.0), 2 * expected.double(), scale=10)


def test_attributes_that_a_forward_reads_are_watched():
    def forward(self, x):
        y = self.bn(x)
        if self.activated:
            y = F.relu(y)
        return F.dropout(y, self.p, self.training)

    net = pydl.swap(module_with(forward, activated=True, p=1.0))
    x = image()
    assert (net(x) == 0).all()
    net.p = 0.0
    assert (net(x) >= 0).all()
    assert net(x).any()
    net.activated = False
    assert (net(x) < 0).any()
    net.activated, net.p = True, 1.0
    net.eval()
    assert net(x).any()
    net.train()
    assert not net(x).any()
    assert len(net.forward.plans) == 4


def test_attributes_that_change_at_every_call_end_the_fusing():
    def forward(self, x):
        return F.relu(self.bn(x)) * self.scale

    net = pydl.swap(module_with(forward, scale=0.0))
    x = image()
    for i in range(20):
        net.scale = float(i)
        expected = F.relu(nn.BatchNorm2d(3)(x)) * i
        assert_close(net(x), expected.double(), scale=100)
    assert "changes from call to call" in pydl.report(net).left[""]


# ---- changes after the swap


def test_children_that_are_replaced_added_or_removed():
    net = pydl.swap(after(nn.BatchNorm2d(3), nn.ReLU()))
    x = image()
    net(x)
    net[1] = nn.Sigmoid()
    assert_close(net(x), torch.sigmoid(F.batch_norm(x, None, None, training=True)).double(), scale=100)
    net.append(nn.Flatten())
    assert net(x).dim() == 2
    del net[2], net[1]
    assert (net(x) < 0).any()
    block = pydl.swap(Residual(3, 3))
    block(x)
    block.conv3 = nn.Conv2d(3, 3, 1)
    expected = pydl.unswap(copy.deepcopy(block))(x)
    assert_close(block(x), expected.double(), scale=100)
    block.conv3 = None
    assert_close(block(x), pydl.unswap(copy.deepcopy(block))(x).double(), scale=100)


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
    import io
    import pickle

    for build in (small_sequential, lambda: Residual(3, 3)):
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
            assert twin.forward.plans[0].chains[0] is not net.forward.plans[0].chains[0]
            assert fused(twin) == fused(net)
            pydl.unswap(twin)
            assert "forward" not in twin.__dict__
        shallow = copy.copy(net)
        assert shallow.forward.module() is shallow
        assert torch.equal(shallow(x), expected)


def test_replicas_of_data_parallel_are_swapped_layer_by_layer():
    net = pydl.swap(Residual(3, 3)).eval()
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


def test_autocast_of_a_residual_block():
    net = pydl.swap(Residual(3, 3))
    plain = pydl.unswap(copy.deepcopy(net))
    x = image()
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = net(x), plain(x)
    assert actual.dtype == expected.dtype
    assert_close(actual, expected.double(), torch.bfloat16, scale=2)
    actual.float().sum().backward()
    assert {p.grad.dtype for p in net.parameters()} == {torch.float32}


def test_children_that_were_replaced_are_freed():
    import weakref

    net = pydl.swap(Residual(3, 3))
    net(image())
    old = weakref.ref(net.bn1)
    net.bn1 = pydl.swap(nn.BatchNorm2d(3))
    net(image())
    assert old() is None
    assert fused(net)["bn1"] == "with relu()"


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
    net = pydl.swap(after(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU()))
    assert pydl.report(net).rows[1].fused == "not fused: has not seen its first input"
    net(image())
    assert fused(net) == {"1": "with 2", "2": "in 1"}
    assert_as_unfused(pydl.unswap(net), image())


def test_the_backend_torch_is_layer_by_layer():
    net = pydl.swap(Residual(3, 3))
    x = image()
    expected = pydl.unswap(copy.deepcopy(net))(x)
    with pydl.backend.use("torch"):
        assert fused(net) == {}
        assert torch.equal(net(x), expected)


def test_tensor_subclasses_are_not_intercepted():
    calls = []

    class Watching(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            calls.append(function)
            return super().__torch_function__(function, types, args, kwargs)

    net = pydl.swap(after(nn.Conv2d(3, 3, 1), nn.ReLU()))
    net(image().as_subclass(Watching))
    assert F.relu in calls or torch.relu in calls


def test_a_model_in_many_threads():
    net = pydl.swap(Residual(3, 3)).eval()
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
    import gc
    import weakref

    gc.collect()
    gc.disable()
    try:
        for net in (pydl.swap(small_sequential()), pydl.swap(Residual(3, 3, use_1x1conv=True))):
            net(image())
        weights = [weakref.ref(p) for p in net.parameters()]
        del net
        assert [w() for w in weights] == [None] * len(weights)
    finally:
        gc.enable()


def test_a_class_that_copies_itself_is_left_alone():
    class Own(Residual):
        def __getstate__(self):
            return self.__dict__

    net = pydl.swap(Own(3, 3))
    assert "forward" not in net.__dict__
    assert pydl.report(net).left == {"": "cannot be bound to the instance: its class has a __getstate__ of its own"}


# ---- batch norm folded into the convolution


@pytest.mark.large
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Identity])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_folded_at_the_call_and_by_freeze(bias, affine, activation, device):
    net = after(nn.Conv2d(3, 6, 3, padding=1, bias=bias), nn.BatchNorm2d(6, affine=affine), activation())
    for _ in range(3):
        net(image() * 2 + 1)
    if affine:
        nn.init.normal_(net[1].weight)
        nn.init.normal_(net[1].bias)
    net.eval()
    oracle = copy.deepcopy(net).double()
    large, small = image(8, 3, 80, 80), image(2, 3, 5, 5)
    net = pydl.swap(net.to(device))
    with torch.no_grad():
        for x in (large, small):
            assert_close(net(x.to(device)), oracle(x.double()), scale=10)
        pydl.freeze(net)
        assert "folded into the weights by freeze" in pydl.report(net).rows[0].fused
        for x in (large, small):
            assert_close(net(x.to(device)), oracle(x.double()), scale=10)


def ops_of(net, x):
    from torch.utils._python_dispatch import TorchDispatchMode

    names = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(function.name())
            return function(*args, **(kwargs or {}))

    with Names(), torch.no_grad():
        net(x)
    return [name for name in names if name.startswith("pydl::")]


def test_what_folding_runs():
    net = pydl.swap(after(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())).eval()
    small = image(2, 3, 5, 5)
    assert ops_of(net, image(8, 3, 80, 80)) == ["pydl::conv2d_forward"]
    assert ops_of(net, small) == ["pydl::conv2d_forward", "pydl::batch_norm_forward"]
    pydl.freeze(net)
    assert ops_of(net, small) == ["pydl::conv2d_forward"]


def test_a_frozen_model_notices_new_weights_and_trains_on():
    net = after(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    x = image(2, 3, 5, 5)
    assert pydl.freeze(net) is net
    assert not net.training
    keys = list(after(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()).state_dict())
    assert list(net.state_dict()) == keys

    def agrees():
        with torch.no_grad():
            assert_close(net(x), pydl.unswap(copy.deepcopy(net)).double()(x.double()), scale=10)

    agrees()
    with torch.no_grad():
        net[0].weight.mul_(2)
    agrees()
    pydl.freeze(net)
    net[1].running_mean.add_(1)
    agrees()
    pydl.freeze(net)
    net.load_state_dict({name: value + 0.5 for name, value in net.state_dict().items()})
    agrees()
    pydl.freeze(net)
    net[1].eps = 0.5
    agrees()
    net.train()
    assert_as_unfused(pydl.unswap(net), image())
    pydl.freeze(pydl.swap(net))
    net(x).sum().backward()  # with gradients: through convolution and batch norm
    assert net[0].weight.grad is not None


def test_signature():
    import inspect

    assert list(inspect.signature(pydl.swap(Residual(3, 3)).forward).parameters) == ["X"]


class Reading(nn.Module):
    """Takes its layers from lists and dicts, and by methods of its own."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])
        self.convs = nn.ModuleDict({"a": nn.Conv2d(3, 3, 1), "b": nn.Conv2d(3, 3, 1)})
        self.gain = nn.Parameter(torch.full((1,), 2.0))
        self.act = F.relu

    def stage(self, x):
        for norm in self.norms:
            x = self.act(norm(x))
        return x

    def forward(self, x):
        return torch.relu(self.convs["a"](self.stage(x))) + self.convs["b"](x).sigmoid() * self.gain


def test_lists_dicts_methods_and_parameters():
    net = assert_as_unfused(Reading(), image())
    assert fused(net) == {
        "norms.0": "with relu()",
        "norms.1": "with relu()",
        "convs.a": "with relu()",
        "convs.b": "with sigmoid()",
    }
    x = image()
    net.norms.append(nn.BatchNorm2d(3).double())
    assert_close(net(x.double()), pydl.unswap(copy.deepcopy(net))(x.double()), scale=100)
    net.act = torch.sigmoid
    assert_close(net(x.double()), pydl.unswap(copy.deepcopy(net))(x.double()), scale=100)


# ---- pooling


@pytest.mark.parametrize("training", [True, False], ids=["gradients", "values"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": (3, 2), "ceil_mode": True}],
    ids=str,
)
def test_max_pooling_is_torchs_to_the_last_bit(options, dtype, training):
    layer = nn.MaxPool2d(**options)
    net = pydl.swap(nn.Sequential(copy.deepcopy(layer)))
    x = image(4, 8, 25, 31).to(dtype).round(decimals=1)  # with ties
    x[0, 0, :3, :3] = torch.nan
    assert pydl.report(net).rows[0].served_by == f"cpu {pydl.backend.current_isa()}"
    if not training:
        with torch.no_grad():
            assert torch.equal(net(x).nan_to_num(7), layer(x).nan_to_num(7))
        return
    expected, actual = outcome(layer, x), outcome(net, x)
    if dtype == torch.bfloat16:  # torch rounds at each addition where windows overlap; we add in float32 and round once
        leaf = x.float().requires_grad_()
        y = layer(leaf)
        y.backward(torch.linspace(-1, 2, y.numel(), dtype=dtype).view(y.shape).float())
        expected["input 0"] = leaf.grad.to(dtype)
    for name, value in expected.items():
        assert torch.equal(actual[name].nan_to_num(7), value.nan_to_num(7)), name
    assert actual["output"].is_contiguous()


def test_average_pooling(device):
    for shape in ((8, 6, 28, 28), (8, 6, 27, 28), (2, 3, 4, 4)):  # even; odd; small
        for options in ({"kernel_size": 2}, {"kernel_size": 2, "stride": 1}, {"kernel_size": 2, "divisor_override": 3}):
            assert_as_unfused(nn.Sequential(nn.AvgPool2d(**options)), image(*shape), dtype=torch.float32)
    net = pydl.swap(nn.Sequential(nn.AvgPool2d(2)))
    x = image(8, 6, 28, 28).double().requires_grad_()
    assert torch.autograd.gradcheck(net, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(net, x, fast_mode=True)


def test_pooling_inside_a_traced_forward_and_in_channels_last():
    class Stem(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.pool = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.MaxPool2d(3, 2, 1)

        def forward(self, x):
            return self.pool(F.relu(self.bn(self.conv(x))))

    x = image(8, 3, 32, 32)
    net = assert_as_unfused(Stem(), x)
    assert fused(net) == {"bn": "with relu()"}
    assert pydl.report(net).rows[2].served_by == f"cpu {pydl.backend.current_isa()}"
    net = pydl.swap(Stem()).eval()
    y = net(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, net(x).double(), scale=10)
