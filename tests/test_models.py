"""pydl.models: the registry, and each model's shape, parameters, FLOPs and gradients."""

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import pydl

NAMES = pydl.models.names()


def inputs(name, batch=2):
    size = [int(n) for n in re.search(r"Input: \(N, ([\d, ]+)\)", pydl.models.builder(name).__doc__)[1].split(",")]
    return torch.randn(batch, *size)


def build(name, **options):
    options.setdefault("in_channels", inputs(name).shape[1])
    return pydl.models.get(name, **options)


def number(name, label):
    """The figure that a model's docstring gives after ``label``."""
    return int(re.search(label + r": ([\d,]+)", pydl.models.builder(name).__doc__)[1].replace(",", ""))


def test_names():
    assert {"softmax_regression", "mlp", "lenet", "lenet_bn"} <= set(NAMES)
    assert sorted(NAMES) == NAMES


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match=r"expected the name to be one of .*lenet, lenet_bn.*, got 'lenet5'"):
        pydl.models.get("lenet5")


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match=r"lenet\(\) .*'depth'"):
        pydl.models.get("lenet", depth=3)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_flops_are_those_of_the_docstring(name):
    net, x = build(name), inputs(name, batch=1)
    assert sum(p.numel() for p in net.parameters()) == number(name, "Parameters")
    with pydl.backend.use("torch"), FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(x)
    assert counter.get_total_flops() == number(name, "FLOPs")


@pytest.mark.parametrize("name", NAMES)
def test_docstring_names_its_source(name):
    assert re.search(r"Source: .*(chapter|section) \"", pydl.models.builder(name).__doc__)


@pytest.mark.parametrize("name", NAMES)
def test_one_step_reaches_every_parameter(name):
    net = build(name, num_classes=7)
    output = net(inputs(name))
    assert output.shape == (2, 7)
    pydl.functional.cross_entropy(output, torch.tensor([1, 5])).backward()
    for key, p in net.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key


@pytest.mark.parametrize("name", NAMES)
def test_same_outputs_as_with_torchs_kernels(name):
    torch.manual_seed(5)
    net, x = build(name).eval(), inputs(name)
    with torch.no_grad():
        actual = net(x)
        with pydl.backend.use("torch"):
            expected = net(x)
    scale = expected.abs().max()
    torch.testing.assert_close(actual / scale, expected / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_layers_that_pydl_has_are_pydls(name):
    for row in pydl.report(build(name)).rows:
        assert row.reason == "" or row.reason.startswith("pydl has no kernel"), row


@pytest.mark.parametrize("name", ["softmax_regression", "mlp", "lenet", "lenet_bn"])
def test_channels_and_input_size(name):
    net = pydl.models.get(name, in_channels=3, input_size=20)
    assert net(torch.randn(2, 3, 20, 20)).shape == (2, 10)


def test_mlp_options():
    net = pydl.models.get("mlp", hidden=(30,), dropout=(0.1,))
    assert [m.p for m in net if isinstance(m, pydl.nn.Dropout)] == [0.1]
    with pytest.raises(ValueError, match="expected dropout to have 1 probabilities"):
        pydl.models.get("mlp", hidden=(30,))
