"""Options in every form that torch's layers take, set after construction and after the swap, alone and in chains."""

import copy

import numpy as np
import pytest
import torch
from swap_models import outcome
from testing import assert_close
from torch import nn

import pydl


def conv():
    return nn.Conv2d(4, 6, (3, 5), stride=2, padding=1)


# attributes of the convolution
CONVOLUTION = {
    "a number": {"stride": 1, "padding": 2, "dilation": 1},
    "lists": {"stride": [2, 1], "padding": [0, 2], "dilation": [1, 2]},
    "one in a list": {"stride": [2], "padding": [1], "dilation": [1]},
    "same beside a list": {"stride": [1, 1], "padding": "same"},
    "same beside a number": {"stride": 1, "padding": "same", "dilation": 2},
    "valid beside a tuple": {"stride": (3, 2), "padding": "valid"},
    "numpy's integers": {"stride": np.int64(2), "padding": (np.int32(1), np.int64(0))},
    "torch.Size": {"stride": torch.Size([2, 2])},
}
NORM = {
    "no momentum": {"momentum": None},
    "a whole momentum": {"momentum": 1},
    "numpy's momentum": {"momentum": np.float64(0.25)},
    "another eps": {"eps": np.float32(0.5)},
    "untracked": {"track_running_stats": False},
}
MAX_POOLING = {
    "a tuple for a number": {"kernel_size": (2, 2)},
    "lists": {"kernel_size": [3, 2], "stride": [1, 2], "padding": [1, 0], "dilation": [1, 2]},
    "no stride": {"stride": None, "ceil_mode": True},
}
MODELS = {
    "convolution": (conv, CONVOLUTION),
    "convolution + ReLU": (lambda: nn.Sequential(conv(), nn.ReLU()), CONVOLUTION),
    "convolution + norm + sigmoid": (lambda: nn.Sequential(conv(), nn.BatchNorm2d(6), nn.Sigmoid()), CONVOLUTION),
    "norm": (lambda: nn.BatchNorm2d(4), NORM),
    "norm + ReLU": (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), NORM),
    "norm in a chain": (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Sigmoid(), conv()), NORM),
    "pooling": (lambda: nn.MaxPool2d(2, 2), MAX_POOLING),
    "pooling in a Sequential": (lambda: nn.Sequential(nn.MaxPool2d(2, 2), conv(), nn.ReLU()), MAX_POOLING),
    "average": (lambda: nn.AvgPool2d(3, 1), {"lists": {"kernel_size": [2, 3], "stride": [2, 1], "padding": [1, 0]}}),
}
CASES = [(model, form) for model, (_, forms) in MODELS.items() for form in forms]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("model,form", CASES)
def test_the_form_of_an_option(model, form, when, training):
    build, forms = MODELS[model]
    net = build().double().train(training)
    x = torch.randn(3, 4, 12, 13).double()
    if when == "after":
        pydl.swap(net)(x)
    for name, value in forms[form].items():
        setattr(net[0] if isinstance(net, nn.Sequential) else net, name, value)
    pydl.swap(net)
    plain = pydl.unswap(copy.deepcopy(net))
    actual, expected = outcome(net, x), outcome(plain, x)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(actual[name], value, torch.float64, scale=100)
    assert actual["output"].stride() == expected["output"].stride()
    # without gradients, an image that is large enough to be folded for
    with torch.no_grad():
        x = torch.randn(4, 4, 120, 130).double()
        assert_close(net(x), plain(x), scale=100)
