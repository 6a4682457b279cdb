"""Softmax regression from scratch: two parameters, a loss, minibatch descent, and our op in place of torch's loss.

d2l chapter "Linear Neural Networks for Classification". Run: python examples/softmax_regression.py
"""

import torch

from pydl import data
from pydl.functional import cross_entropy

digits = data.get("digits")
train_x, test_x = digits.train.images.flatten(1), digits.test.images.flatten(1)  # (N, 64), in [0, 1]
train_y, test_y = digits.train.targets, digits.test.targets

torch.manual_seed(0)
W = torch.normal(0, 0.01, size=(64, 10), requires_grad=True)
b = torch.zeros(10, requires_grad=True)


def net(x):
    return x @ W + b  # logits: the loss takes their softmax itself, without overflow


def accuracy(x, y):
    return (net(x).argmax(1) == y).float().mean().item()


lr, batch_size = 0.5, 64
for epoch in range(1, 16):
    total = 0.0
    for batch in torch.randperm(len(train_x)).split(batch_size):
        loss = cross_entropy(net(train_x[batch]), train_y[batch])
        loss.backward()
        with torch.no_grad():
            for parameter in (W, b):
                parameter -= lr * parameter.grad
                parameter.grad = None
        total += loss.item() * len(batch)
    if epoch % 5 == 0:
        print(f"epoch {epoch}  loss {total / len(train_x):.4f}  test accuracy {accuracy(test_x, test_y):.4f}")
