"""Modules and layers that the tests of swapping share."""

import torch
from torch import nn
from torch.nn import functional as F

import pydl


def small_sequential():
    """A chain of three, dropout and an affine layer on (N, 3, 8, 8)."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(144, 5),
        nn.BatchNorm1d(5),
    )


class Residual(nn.Module):
    """d2l's listing ("Residual Networks"), word for word but for the lazy layers."""

    def __init__(self, in_channels, num_channels, use_1x1conv=False, strides=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, num_channels, kernel_size=3, padding=1, stride=strides)
        self.conv2 = nn.Conv2d(num_channels, num_channels, kernel_size=3, padding=1)
        if use_1x1conv:
            self.conv3 = nn.Conv2d(in_channels, num_channels, kernel_size=1, stride=strides)
        else:
            self.conv3 = None
        self.bn1 = nn.BatchNorm2d(num_channels)
        self.bn2 = nn.BatchNorm2d(num_channels)

    def forward(self, X):
        Y = F.relu(self.bn1(self.conv1(X)))
        Y = self.bn2(self.conv2(Y))
        if self.conv3:
            X = self.conv3(X)
        Y += X
        return F.relu(Y)


# name of the class -> (layer, shape of its input, the function that torch's forward ends in)
LAYERS = {
    "Conv2d": (lambda: nn.Conv2d(5, 7, (3, 2), padding=1), (3, 5, 9, 6), "conv2d"),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6), (4, 6, 5), "batch_norm"),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(6), (4, 6, 5, 3), "batch_norm"),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(2), (3, 2, 5, 3, 4), "batch_norm"),
    "Dropout": (lambda: nn.Dropout(0.3), (11, 13), "dropout"),
    "Dropout1d": (lambda: nn.Dropout1d(0.3), (5, 6, 7), "dropout1d"),
    "Dropout2d": (lambda: nn.Dropout2d(0.3), (5, 6, 7, 2), "dropout2d"),
    "Dropout3d": (lambda: nn.Dropout3d(0.3), (5, 6, 3, 2, 4), "dropout3d"),
    "MaxPool2d": (lambda: nn.MaxPool2d(3, 2, 1), (2, 3, 11, 8), "max_pool2d"),
    "AvgPool2d": (lambda: nn.AvgPool2d((2, 3)), (2, 3, 11, 8), "avg_pool2d"),
}


class Watching(torch.Tensor):
    """A tensor that notes the functions of torch that it is given to."""

    seen = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(function)
        return super().__torch_function__(function, types, args, kwargs or {})


def reasons(net):
    """All that the report says of why layers are not served, or not fused."""
    return " / ".join(f"{row.reason} {row.fused}" for row in pydl.report(net).rows)
