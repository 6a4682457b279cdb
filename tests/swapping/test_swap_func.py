"""Swapped models under torch.func."""

import copy

import pytest
import torch
import torch.nn.functional as F
from swap_models import (
    Residual,
    image,
    torchs,
)
from testing import assert_close
from torch import nn

import pydl
from pydl.models.resnet import BasicBlock


@pytest.mark.parametrize("which", ["input", "weight", "both", "weight without bias"])
@pytest.mark.parametrize("groups", [1, 2])
def test_vmap_of_convolution(which, groups, recwarn):
    x, w, b = image(5, 2, 4, 6, 6), image(5, 6, 4 // groups, 3, 3), image(5, 6)
    dims = {
        "input": (1, None, None),
        "weight": (None, 2, 0),
        "both": (0, 0, 0),
        "weight without bias": (None, 0, None),
    }[which]
    args = [t.movedim(0, d) if d is not None else t[0] for t, d in zip((x, w, b), dims, strict=True)]

    def run(function, args):
        def loss(x, w, b):
            return function(x, w, b, stride=2, padding=1, groups=groups).sin().sum()

        values = torch.func.vmap(lambda *a: function(*a, stride=2, padding=1, groups=groups), dims)(*args)
        grads = torch.func.vmap(torch.func.grad(loss, (0, 1, 2)), dims)(*args)
        return values, *grads

    expected = run(F.conv2d, [t.double() for t in args])
    for p, q in zip(run(pydl.functional.conv2d, args), expected, strict=True):
        assert_close(p, q, scale=20)
    assert not any("performance drop" in str(w.message) for w in recwarn)


def test_vmap_of_second_derivatives_and_of_batch_norm(recwarn):
    x, w = image(3, 2, 4, 5, 5).double(), image(3, 4, 3, 3).double()[None].expand(3, 3, 4, 3, 3)

    def penalty(function):
        def first(x, w):
            return function(x, w).square().sum()

        def second(x, w):
            return torch.func.grad(first)(x, w).square().sum()

        return torch.func.vmap(torch.func.grad(second, (0, 1)))(x, w)

    for p, q in zip(penalty(pydl.functional.conv2d), penalty(F.conv2d), strict=True):
        assert_close(p, q, scale=10)

    def normed(function):
        weight = torch.linspace(1, 2, 4).double()
        return torch.func.vmap(lambda x: function(x, None, None, weight, weight, training=True), 1)(x)

    assert_close(normed(pydl.functional.batch_norm), normed(F.batch_norm), scale=10)
    assert not any("performance drop" in str(w.message) for w in recwarn)


@pytest.mark.parametrize("model", ["Sequential", "layers", "named"])
def test_fused_models_differentiate_twice_and_under_torch_func(model):
    net = {
        "Sequential": lambda: nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Sigmoid()),
        "layers": lambda: Residual(3, 3),
        "named": lambda: BasicBlock(3, 3, 1, "book"),
    }[model]()
    net = net.double().eval()
    plain = torchs(copy.deepcopy(net))
    pydl.swap(net)
    x = image().double()
    params = {name: p.detach() for name, p in net.named_parameters()}

    def penalty(module):
        def loss(params, x):
            return torch.func.functional_call(module, params, (x,)).square().sum()

        def second(params, x):
            return torch.func.grad(loss, 1)(params, x).square().sum()

        return torch.func.grad(second)(params, x)

    ours, theirs = penalty(net), penalty(plain)
    for name in params:
        assert_close(ours[name], theirs[name], scale=1000)
    for module in (net, plain):
        module.zero_grad()
        image_ = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(module(image_).square().sum(), image_, create_graph=True)
        grad.square().sum().backward()
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        assert_close(p.grad, q.grad, scale=1000)
    assert any(p.grad.abs().max() > 0 for p in net.parameters())
