"""The later edition's data sets and models of chapters 3 and 4."""

import torch
from torch import nn

from pydl import functional
from pydl.d2l.drawing import show_images
from pydl.d2l.images import Loader, get_fashion_mnist_labels, load_data_fashion_mnist
from pydl.d2l.objects import DataModule, HyperParameters, Module


class SyntheticRegressionData(DataModule):
    """``y = Xw + b`` with noise, X from N(0, 1): ``num_train`` examples, then ``num_val``.

    Attributes:
        X, y: (num_train + num_val, len(w)) and (…, 1).
    """

    def __init__(self, w, b, noise=0.01, num_train=1000, num_val=1000, batch_size=32):
        super().__init__()
        self.save_hyperparameters()
        self.X = torch.randn(num_train + num_val, len(w), dtype=w.dtype)
        self.y = self.X @ w.reshape(-1, 1) + b + noise * torch.randn(num_train + num_val, 1, dtype=w.dtype)

    def get_dataloader(self, train):
        """A loader of one of both parts."""
        return self.get_tensorloader(
            (self.X, self.y), train, slice(0, self.num_train) if train else slice(self.num_train, None)
        )


class SGD(HyperParameters):
    """Stochastic gradient descent, as small as it gets."""

    def __init__(self, params, lr):
        self.save_hyperparameters()

    @torch.no_grad()
    def step(self):
        """A step against the gradients."""
        for param in self.params:
            param -= self.lr * param.grad

    def zero_grad(self):
        """Gradients to 0."""
        for param in self.params:
            if param.grad is not None:
                param.grad.zero_()


class LinearRegressionScratch(Module):
    """``Xw + b`` and the mean of half the squared errors."""

    def __init__(self, num_inputs, lr, sigma=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.w = (sigma * torch.randn(num_inputs, 1)).requires_grad_()
        self.b = torch.zeros(1, requires_grad=True)

    def forward(self, X):
        return X @ self.w + self.b

    def loss(self, y_hat, y):
        """Of a batch."""
        return ((y_hat - y) ** 2 / 2).mean()

    def configure_optimizers(self):
        """:class:`SGD`."""
        return SGD([self.w, self.b], self.lr)


class LinearRegression(Module):
    """An affine layer and the mean squared error."""

    def __init__(self, lr):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.LazyLinear(1)

    def loss(self, y_hat, y):
        """Of a batch."""
        return nn.functional.mse_loss(y_hat, y)

    def get_w_b(self):
        """(weights, bias)."""
        return self.net.weight.data, self.net.bias.data


class FashionMNIST(DataModule):
    """Fashion-MNIST, or the digits in its place: see :func:`load_data_fashion_mnist`.

    Attributes:
        train, val: the data sets.
    """

    def __init__(self, batch_size=64, resize=(28, 28)):
        super().__init__()
        self.save_hyperparameters()
        loaders = load_data_fashion_mnist(batch_size, resize)
        self.train, self.val = (loader.dataset for loader in loaders)

    def text_labels(self, indices):
        """Names of classes."""
        return get_fashion_mnist_labels(indices)

    def get_dataloader(self, train):
        """A loader of one of both parts."""
        return Loader(self.train if train else self.val, self.batch_size, shuffle=train)

    def visualize(self, batch, nrows=1, ncols=8, labels=()):
        """Draws the first images of a batch under their names, or under ``labels``."""
        X, y = batch
        count = min(nrows * ncols, len(X))
        show_images(X[:count, 0], nrows, ncols, titles=list(labels) or self.text_labels(y[:count]))


class Classifier(Module):
    """A module whose loss is cross entropy, and which plots the accuracy too."""

    def validation_step(self, batch):
        """Plots the loss and the accuracy of a batch."""
        Y_hat = self(*batch[:-1])
        self.plot("loss", self.loss(Y_hat, batch[-1]), train=False)
        self.plot("acc", self.accuracy(Y_hat, batch[-1]), train=False)

    def accuracy(self, Y_hat, Y, averaged=True):
        """The share of right predictions, or 1 and 0 of each."""
        found = (Y_hat.reshape(-1, Y_hat.shape[-1]).argmax(dim=1) == Y.reshape(-1)).float()
        return found.mean() if averaged else found

    def loss(self, Y_hat, Y, averaged=True):
        """Cross entropy of scores (..., classes)."""
        scores = Y_hat.reshape(-1, Y_hat.shape[-1])
        return functional.cross_entropy(scores, Y.reshape(-1), reduction="mean" if averaged else "none")

    def layer_summary(self, X_shape):
        """Prints the shape after each layer of ``net``, of an input of this shape."""
        X = torch.randn(*X_shape)
        for layer in self.net:
            X = layer(X)
            print(layer.__class__.__name__, "output shape:\t", X.shape)


class SoftmaxRegression(Classifier):
    """An affine layer over the pixels."""

    def __init__(self, num_outputs, lr):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_outputs))
