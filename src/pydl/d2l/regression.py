"""Linear regression from scratch: made-up data, batches, the model, its loss and its optimizer."""

import torch
from torch.utils.data import TensorDataset

from pydl.d2l.images import Loader


def synthetic_data(w, b, num_examples):
    """(X, y): X (num_examples, len(w)) from N(0, 1), and y = Xw + b + noise of standard deviation 0.01, (…, 1)."""
    inputs = torch.randn(num_examples, len(w), dtype=w.dtype, device=w.device)
    targets = inputs @ w.reshape(-1, 1) + b
    return inputs, targets + 0.01 * torch.randn_like(targets)


def data_iter(batch_size, features, labels):
    """Yields batches of (features, labels) in a random order; the last one may be smaller."""
    for indices in torch.randperm(len(features)).split(batch_size):
        yield features[indices], labels[indices]


def load_array(data_arrays, batch_size, is_train=True):
    """A ``DataLoader`` over tensors of equal length; in a new order each time where ``is_train``."""
    return Loader(TensorDataset(*data_arrays), batch_size, shuffle=is_train)


def linreg(X, w, b):
    """``Xw + b``."""
    return X @ w + b


def squared_loss(y_hat, y):
    """``(y_hat - y)² / 2`` of each example, in the shape of y_hat."""
    return (y_hat - y.reshape(y_hat.shape)) ** 2 / 2


@torch.no_grad()
def sgd(params, lr, batch_size):
    """A step of stochastic gradient descent, in place: gradients are of a sum over the batch, and are zeroed."""
    for param in params:
        param -= lr * param.grad / batch_size
        param.grad.zero_()
