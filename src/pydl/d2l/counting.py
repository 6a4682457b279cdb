"""Sums, seconds, and how well a net does."""

import time

import numpy
import torch
from torch import nn


class Accumulator:
    """``n`` sums that grow together."""

    def __init__(self, n):
        self.data = [0.0] * n

    def add(self, *args):
        """Adds a number to each sum."""
        args = [number.detach() if torch.is_tensor(number) else number for number in args]
        self.data = [total + float(number) for total, number in zip(self.data, args, strict=True)]

    def reset(self):
        """All sums to 0."""
        self.data = [0.0] * len(self.data)

    def __getitem__(self, index):
        return self.data[index]


class Timer:
    """A watch that keeps the seconds of each time it was stopped, in ``times``; it starts at once."""

    def __init__(self):
        self.times = []
        self.start()

    def start(self):
        """Starts (again)."""
        self._began = time.perf_counter()

    def stop(self):
        """Keeps and returns the seconds since the last start."""
        self.times.append(time.perf_counter() - self._began)
        return self.times[-1]

    def avg(self):
        """The mean of all times."""
        return sum(self.times) / len(self.times)

    def sum(self):
        """The sum of all times."""
        return sum(self.times)

    def cumsum(self):
        """The sum up to each time, as a list."""
        return numpy.cumsum(self.times).tolist()


def accuracy(y_hat, y):
    """How many predictions are right, as a float: scores (N, classes), or classes (N), against y."""
    if y_hat.dim() > 1 and y_hat.shape[1] > 1:
        y_hat = y_hat.argmax(dim=1)
    return float((y_hat.type(y.dtype) == y).sum())


def evaluate_accuracy(net, data_iter):
    """The share of right predictions over ``data_iter``; a module is put into evaluation mode."""
    return _share_right(net, data_iter, None)


def evaluate_accuracy_gpu(net, data_iter, device=None):
    """As :func:`evaluate_accuracy`, of batches that are moved to ``device``; to the net's own if None.

    Inputs may be lists of tensors, as BERT's.
    """
    if device is None and isinstance(net, nn.Module):
        device = next((parameter.device for parameter in net.parameters()), None)
    return _share_right(net, data_iter, device)


@torch.no_grad()
def _share_right(net, data_iter, device):
    if isinstance(net, nn.Module):
        net.eval()
    metric = Accumulator(2)
    for X, y in data_iter:
        X, y = moved(X, device), moved(y, device)
        metric.add(accuracy(net(X), y), y.numel())
    return metric[0] / metric[1]


def moved(tensors, device):
    """A tensor, or a list of them, on ``device``; where they are if None."""
    if isinstance(tensors, list | tuple):
        return [moved(tensor, device) for tensor in tensors]
    return tensors if device is None else tensors.to(device)


def check_len(a, n):
    """Raises ValueError unless ``len(a)`` is ``n``."""
    if len(a) != n:
        raise ValueError(f"check_len: expected the length to be {n}, got {len(a)}")


def check_shape(a, shape):
    """Raises ValueError unless the shape of the tensor ``a`` is ``shape``."""
    if a.shape != tuple(shape):
        raise ValueError(f"check_shape: expected the shape to be {tuple(shape)}, got {tuple(a.shape)}")


@torch.no_grad()
def evaluate_loss(net, data_iter, loss):
    """The mean of ``loss(net(X), y)`` over all numbers of ``data_iter``; of a loss that is a mean, over batches."""
    metric = Accumulator(2)
    for X, y in data_iter:
        out = net(X)
        found = loss(out, y.reshape(out.shape) if y.numel() == out.numel() else y)
        metric.add(found.sum(), found.numel())
    return metric[0] / metric[1]
