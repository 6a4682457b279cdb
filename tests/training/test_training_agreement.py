"""A model trained with pydl and with torch from the same weights: the same losses, as far as float32 goes."""

import copy

import pytest
import torch
from torch import nn

import pydl

STEPS = 20


def train(net, criterion, images, labels, optimizer):
    losses = []
    for step in range(STEPS):
        batch = slice(16 * step % 128, 16 * step % 128 + 16)
        loss = criterion(net(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def run(net, criterion, images, labels, dtype, lr):
    net = net.to(dtype)
    return train(net, criterion, images.to(dtype), labels, torch.optim.SGD(net.parameters(), lr=lr))


@pytest.mark.large
@pytest.mark.parametrize("name, lr", [("lenet", 0.9), ("lenet_bn", 0.5)])
def test_lenet_trains_as_with_torch(device, name, lr):
    net = pydl.models.get(name)
    for layer in net:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    labels = torch.randint(10, (128,))
    images = torch.randn(128, 1, 28, 28) + torch.randn(10, 1, 28, 28)[labels]
    images, labels = images.to(device), labels.to(device)
    ours = run(copy.deepcopy(net).to(device), pydl.nn.CrossEntropyLoss(), images, labels, torch.float32, lr)
    with pydl.backend.use("torch"):
        theirs = run(copy.deepcopy(net).to(device), nn.CrossEntropyLoss(), images, labels, torch.float32, lr)
        exact = run(copy.deepcopy(net).to(device), nn.CrossEntropyLoss(), images, labels, torch.float64, lr)
    assert exact[-5:].mean() < 0.95 * exact[:5].mean()  # it learns, so the losses mean something
    # float32 rounds differently with each order of summation, and training amplifies that: the measure is how far
    # torch's own float32 run strays from the float64 one
    stray = (theirs - exact).abs().max().item()
    assert (ours - exact).abs().max().item() <= max(4 * stray, 1e-5)
