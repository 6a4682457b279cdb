"""Swapped models train as torch's do: the same losses, as far as float32 and another order of summation allow."""

import copy

import pytest
import torch
from swap_models import torchs
from torch import nn

import pydl
from pydl import models

SMALL = {
    "lenet": (32, 1, 28),
    "lenet_bn": (32, 1, 28),
    "mlp": (64, 1, 28),
    "cifar_net": (8, 3, 32),
}
LARGE = {
    "lenet": (256, 1, 28),
    "lenet_bn": (256, 1, 28),
    "mlp": (256, 1, 28),
    "cifar_net": (64, 3, 32),
    "resnet18": (32, 1, 96),
}


def without_dropout(model):
    """Whose masks would differ."""
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return model


# With ReLU and max pooling two roundings of one activation can lie on either side of a kink, after which the
# trajectories part although every gradient is right at its own weights: small steps, and a wider bound.
KINKED = {"cifar_net", "resnet18"}


def losses(net, criterion, x, target, steps, lr):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    found = []
    for i in range(steps):
        part = slice(i % 2 * len(x) // 2, (i % 2 + 1) * len(x) // 2)
        optimizer.zero_grad()
        loss = criterion(net(x[part]), target[part])
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found, dtype=torch.float64)


def assert_same_losses(name, batch, channels, size, steps=50):
    plain = without_dropout(torchs(getattr(models, name)(input_size=size)))
    swapped = pydl.swap(copy.deepcopy(plain))
    reference = copy.deepcopy(plain).double()
    x, target = torch.randn(2 * batch, channels, size, size), torch.randint(10, (2 * batch,))
    lr, slack = (5e-3, 1e-3) if name in KINKED else (5e-2, 1e-5)
    exact = losses(reference, nn.CrossEntropyLoss(), x.double(), target, steps, lr)
    ours = losses(swapped, pydl.swap(nn.CrossEntropyLoss()), x, target, steps, lr)
    theirs = losses(plain, nn.CrossEntropyLoss(), x, target, steps, lr)
    assert exact[-1] < exact[0]
    errors = [((found - exact).abs() / exact.abs()).max().item() for found in (ours, theirs)]
    print(f"{name}: largest relative error of a loss in {steps} steps: pydl {errors[0]:.2g}, torch {errors[1]:.2g}")
    assert errors[0] < 4 * errors[1] + slack


@pytest.mark.parametrize("name", SMALL)
def test_fifty_steps(name):
    assert_same_losses(name, *SMALL[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_fifty_steps_at_full_size(name):
    assert_same_losses(name, *LARGE[name])
