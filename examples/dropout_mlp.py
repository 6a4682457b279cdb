"""What dropout does: the same multilayer perceptron with and without it, trained on few examples.

d2l section "Dropout". Run: python examples/dropout_mlp.py
"""

import torch
from torch.nn import Flatten, Linear, ReLU, Sequential

import pydl
from pydl import data

digits = data.get("digits")
train_x, train_y = digits.train.images[:200], digits.train.targets[:200]  # few, so that there is something to overfit
test_x, test_y = digits.test.images, digits.test.targets
criterion = pydl.nn.CrossEntropyLoss()


def mlp(p1, p2):
    return Sequential(
        Flatten(),
        Linear(64, 256),
        ReLU(),
        pydl.nn.Dropout(p1),  # less near the input
        Linear(256, 256),
        ReLU(),
        pydl.nn.Dropout(p2),
        Linear(256, 10),
    )


for name, probabilities in (("without dropout", (0.0, 0.0)), ("dropout 0.2, 0.5", (0.2, 0.5))):
    torch.manual_seed(0)
    net = mlp(*probabilities)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    net.train()
    for _ in range(60):
        for batch in torch.randperm(len(train_x)).split(50):
            optimizer.zero_grad()
            criterion(net(train_x[batch]), train_y[batch]).backward()
            optimizer.step()
    net.eval()  # dropout lets everything through
    with torch.no_grad():
        losses = [criterion(net(x), y).item() for x, y in ((train_x, train_y), (test_x, test_y))]
        accuracy = (net(test_x).argmax(1) == test_y).float().mean().item()
    print(f"{name:17} train loss {losses[0]:.4f}  test loss {losses[1]:.4f}  test accuracy {accuracy:.4f}")
