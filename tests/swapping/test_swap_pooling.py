"""Swapped pooling layers."""

import copy

import pytest
import torch
from swap_models import assert_as_unfused, image, outcome
from torch import nn

import pydl


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
