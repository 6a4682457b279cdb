"""One affine layer: the regressions and softmax regression."""

import torch
from torch.nn import Flatten, Module, Parameter, Sequential

from pydl.models._registry import check_variant, register
from pydl.nn import Linear


class Affine(Module):
    """X w + b from nothing but two parameters: w drawn from N(0, 0.01²), b = 0."""

    def __init__(self, in_features):
        super().__init__()
        self.weight = Parameter(0.01 * torch.randn(in_features, 1))
        self.bias = Parameter(torch.zeros(1))

    def forward(self, x):
        return x @ self.weight + self.bias


@register("regression")
def linear_regression(in_features=2, variant="concise"):
    """Linear regression: the prediction is an affine function of the inputs.

    Source: d2l chapter "Linear Neural Networks for Regression", section "Concise Implementation";
    ``variant="scratch"`` is that of "from Scratch", with its own parameters instead of a layer.
    Input: (N, 2), or (N, in_features). Output: (N, 1).
    Parameters: 3.
    FLOPs: 4.

    Raises:
        ValueError: for an unknown variant.
    """
    check_variant("linear_regression", variant, ("concise", "scratch"))
    return Sequential(Linear(in_features, 1) if variant == "concise" else Affine(in_features))


@register("regression")
def weight_decay(in_features=200):
    """Linear regression with more inputs than training examples, which overfits unless the weights are penalised.

    Source: d2l section "Weight Decay"; the penalty is the optimizer's.
    Input: (N, 200), or (N, in_features). Output: (N, 1).
    Parameters: 201.
    FLOPs: 400.
    """
    return Sequential(Linear(in_features, 1))


class Polynomial(Module):
    """A number x to its features x^i / i!, i = 0 … degree; divided by i! they stay small for large exponents."""

    def __init__(self, degree):
        super().__init__()
        exponents = torch.arange(degree + 1, dtype=torch.get_default_dtype())
        self.register_buffer("exponents", exponents, persistent=False)
        self.register_buffer("factorials", torch.lgamma(exponents + 1).exp(), persistent=False)

    def forward(self, x):
        return x.pow(self.exponents) / self.factorials

    def extra_repr(self):
        return f"degree={len(self.exponents) - 1}"


@register("regression")
def polynomial_regression(degree=3):
    """Polynomial regression: degree 3 fits the book's data, degree 1 underfits it, degree 19 overfits it.

    Source: d2l section "Model Selection, Underfitting, and Overfitting".
    Input: (N, 1). Output: (N, 1).
    Parameters: 4.
    FLOPs: 8.

    Raises:
        ValueError: for a negative degree.
    """
    if degree < 0:
        raise ValueError(f"polynomial_regression: expected degree to be at least 0, got {degree}")
    return Sequential(Polynomial(degree), Linear(degree + 1, 1, bias=False))  # x^0 is the bias


@register("classifier")
def softmax_regression(num_classes=10, in_channels=1, input_size=28):
    """Softmax regression: logits are an affine function of the pixels.

    Source: d2l chapter "Linear Neural Networks for Classification".
    Input: (N, 1, 28, 28), or (N, in_channels, input_size, input_size).
    Parameters: 7,850.
    FLOPs: 15,680.
    """
    return Sequential(Flatten(), Linear(in_channels * input_size**2, num_classes))
