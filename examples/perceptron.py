"""Rosenblatt's perceptron: its rule learns what a line can separate, and fails on XOR, which a hidden layer solves.

The rule looks at one example at a time and moves the line only where it errs: w += y x, b += y. Where a line separates
the classes it stops after finitely many errors; where none does it never stops.

d2l section "Multilayer Perceptrons"; Rosenblatt, "The Perceptron", Psychological Review 65, 1958; Minsky and Papert,
"Perceptrons", 1969, for XOR. Run: python examples/perceptron.py
"""

import torch
from torch.nn import Sequential

import pydl
from pydl import nn


def perceptron(X, y, epochs=100):
    """(w, b, epochs until one went by without an error, or None) for X (N, d) and y (N), each 1 or -1."""
    w, b = torch.zeros(X.shape[1]), torch.zeros(())
    for epoch in range(1, epochs + 1):
        errors = 0
        for i in torch.randperm(len(X)).tolist():  # batch size 1
            if y[i] * (X[i] @ w + b) <= 0:
                w, b, errors = w + y[i] * X[i], b + y[i], errors + 1
        if errors == 0:
            return w, b, epoch
    return w, b, None


def right(scores, y):
    return (scores.sign() == y).float().mean().item()


torch.manual_seed(0)
points = torch.randn(200, 2)
side = points @ torch.tensor([2.0, -1.0]) + 0.5
points, y = points[side.abs() > 0.3], side[side.abs() > 0.3].sign()  # two clouds with a gap between them
w, b, epochs = perceptron(points, y)
print(f"two clouds: without an error after {epochs} epochs, right: {right(points @ w + b, y):.2f}")

X, y = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), torch.tensor([-1.0, 1.0, 1.0, -1.0])
w, b, epochs = perceptron(X, y)
print(f"XOR by the perceptron: an epoch without an error: {epochs}; right: {right(X @ w + b, y):.2f}")

net = Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer, loss = pydl.optim.SGD(net.parameters(), lr=0.5), nn.BCEWithLogitsLoss()
for _ in range(500):
    optimizer.zero_grad()
    loss(net(X).flatten(), (y + 1) / 2).backward()
    optimizer.step()
print(f"XOR by a hidden layer of 8: right: {right(net(X).detach().flatten(), y):.2f}")
