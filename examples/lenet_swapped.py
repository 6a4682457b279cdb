"""LeNet as you have it, in torch's layers, with our kernels put under it by one line and taken away by another.

d2l section "Convolutional Neural Networks (LeNet)". Run: python examples/lenet_swapped.py
"""

import time

import torch
from torch import nn

import pydl
from pydl import data

digits = data.get("digits")
preprocessing = data.Preprocessing.fit(digits.train.images, size=(28, 28))
train_x, test_x = preprocessing(digits.train.images), preprocessing(digits.test.images)
train_y, test_y = digits.train.targets, digits.test.targets

torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(1, 6, kernel_size=5, padding=2),
    nn.Sigmoid(),
    nn.AvgPool2d(kernel_size=2, stride=2),
    nn.Conv2d(6, 16, kernel_size=5),
    nn.Sigmoid(),
    nn.AvgPool2d(kernel_size=2, stride=2),
    nn.Flatten(),
    nn.Linear(400, 120),
    nn.Sigmoid(),
    nn.Linear(120, 84),
    nn.Sigmoid(),
    nn.Linear(84, 10),
)
criterion = nn.CrossEntropyLoss()
for layer in net:
    if type(layer) in (nn.Linear, nn.Conv2d):
        nn.init.xavier_uniform_(layer.weight)


def train(epochs):
    """Seconds that the epochs took."""
    begin = time.perf_counter()
    for _ in range(epochs):
        for batch in torch.randperm(len(train_x)).split(64):
            optimizer.zero_grad()
            criterion(net(train_x[batch]), train_y[batch]).backward()
            optimizer.step()
    return time.perf_counter() - begin


optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
print(f"torch: {train(2):.2f} s for two epochs")

pydl.swap(net), pydl.swap(criterion)  # the same layers, parameters and optimizer: training goes on
print(pydl.report(net))
print(f"pydl:  {train(2):.2f} s for two epochs")
train(8)
with torch.no_grad():
    print(f"test accuracy {(net(test_x).argmax(1) == test_y).float().mean().item():.4f}")

pydl.unswap(net)  # and it is torch's again
with torch.no_grad():
    print(f"the same on torch's kernels: {(net(test_x).argmax(1) == test_y).float().mean().item():.4f}")
