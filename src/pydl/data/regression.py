"""The book's made-up sets for regression: linear, high-dimensional linear, polynomial."""

import math

import torch

from pydl.data.dataset import Dataset, Split


def linear(root=None, seed=0):
    """1,000 + 1,000 examples of y = 2 x₁ − 3.4 x₂ + 4.2 + noise of standard deviation 0.01, x from N(0, 1).

    Source: d2l section "Synthetic Regression Data".
    """
    return _affine("linear", torch.tensor([2.0, -3.4]), 4.2, 1000, 1000, seed)


def weight_decay(root=None, seed=0):
    """20 + 100 examples of y = 0.05 + Σ 0.01 xᵢ + noise of standard deviation 0.01, 200 inputs from N(0, 1).

    Source: d2l section "Weight Decay".
    """
    return _affine("weight-decay", torch.full((200,), 0.01), 0.05, 20, 100, seed)


def _affine(name, weight, bias, train, test, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(train + test, len(weight), generator=generator)
    noise = 0.01 * torch.randn(train + test, 1, generator=generator)
    return _split(name, inputs, inputs @ weight.unsqueeze(1) + bias + noise, train)


def polynomial(root=None, seed=0):
    """100 + 100 examples of y = 5 + 1.2 x − 3.4 x²/2! + 5.6 x³/3! + noise of standard deviation 0.1, x from N(0, 1).

    Source: d2l section "Model Selection, Underfitting, and Overfitting".
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 1, generator=generator)
    noise = 0.1 * torch.randn(200, 1, generator=generator)
    terms = (w * x**i / math.factorial(i) for i, w in enumerate((5.0, 1.2, -3.4, 5.6)))
    return _split("polynomial", x, sum(terms) + noise, 100)


def _split(name, inputs, targets, train):
    return Dataset(name, Split(inputs[:train], targets[:train]), Split(inputs[train:], targets[train:]), classes=())
