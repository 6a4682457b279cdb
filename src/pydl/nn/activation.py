"""The functions of one number that torch has as layers."""

import torch
import torch.nn.functional as F

from pydl.aside import Own, steps_aside
from pydl.nn._common import _Eager
from pydl.ops.elementwise import is_plain, is_small, served

__all__ = ["GELU", "LeakyReLU", "ReLU", "SiLU", "Sigmoid", "Softplus", "Tanh"]


class ReLU(_Eager, torch.nn.ReLU):
    """``torch.nn.ReLU`` over :func:`pydl.functional.relu` (d2l chapter "Multilayer Perceptrons"); on the CPU.

    >>> nn.ReLU()(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0., 0., 1.])
    """

    own = Own(torch.nn.ReLU, "relu")

    def forward(self, input):
        if is_small("relu", input):
            return torch.nn.ReLU.forward(self, input)
        aside = steps_aside(self, ReLU.own, F.relu, input) or self.inplace
        output = None if aside else served("relu", input)
        return torch.nn.ReLU.forward(self, input) if output is None else output


class LeakyReLU(_Eager, torch.nn.LeakyReLU):
    """``torch.nn.LeakyReLU`` over :func:`pydl.functional.leaky_relu`; on the CPU.

    >>> nn.LeakyReLU(0.1)(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.1000,  0.0000,  1.0000])
    """

    own = Own(torch.nn.LeakyReLU, "leaky_relu")

    def forward(self, input):
        if is_small("leaky_relu", input):
            return torch.nn.LeakyReLU.forward(self, input)
        slope = self.negative_slope
        aside = steps_aside(self, LeakyReLU.own, F.leaky_relu, input) or self.inplace or not is_plain(slope)
        output = None if aside else served("leaky_relu", input, slope)
        return torch.nn.LeakyReLU.forward(self, input) if output is None else output


class Sigmoid(_Eager, torch.nn.Sigmoid):
    """``torch.nn.Sigmoid`` over :func:`pydl.functional.sigmoid` (d2l chapter "Multilayer Perceptrons"); on the CPU.

    >>> nn.Sigmoid()(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0.2689, 0.5000, 0.7311])
    """

    own = Own(torch.nn.Sigmoid, "sigmoid", namespace=torch)

    def forward(self, input):
        if is_small("sigmoid", input):
            return torch.nn.Sigmoid.forward(self, input)
        aside = steps_aside(self, Sigmoid.own, torch.sigmoid, input)
        output = None if aside else served("sigmoid", input)
        return torch.nn.Sigmoid.forward(self, input) if output is None else output


class Tanh(_Eager, torch.nn.Tanh):
    """``torch.nn.Tanh`` over :func:`pydl.functional.tanh` (d2l chapter "Multilayer Perceptrons"); on the CPU.

    >>> nn.Tanh()(torch.tensor([-1.0, 0.5, 1.0]))
    tensor([-0.7616,  0.4621,  0.7616])
    """

    own = Own(torch.nn.Tanh, "tanh", namespace=torch)

    def forward(self, input):
        if is_small("tanh", input):
            return torch.nn.Tanh.forward(self, input)
        aside = steps_aside(self, Tanh.own, torch.tanh, input)
        output = None if aside else served("tanh", input)
        return torch.nn.Tanh.forward(self, input) if output is None else output


class GELU(_Eager, torch.nn.GELU):
    """``torch.nn.GELU`` over :func:`pydl.functional.gelu` (d2l chapter "Transformers for Vision"); on the CPU.

    >>> nn.GELU()(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.1587,  0.0000,  0.8413])
    """

    own = Own(torch.nn.GELU, "gelu")

    def forward(self, input):
        if is_small("gelu", input):
            return torch.nn.GELU.forward(self, input)
        how = self.approximate
        aside = steps_aside(self, GELU.own, F.gelu, input) or how not in ("none", "tanh")
        output = None if aside else served("gelu", input, how == "tanh")
        return torch.nn.GELU.forward(self, input) if output is None else output


class SiLU(_Eager, torch.nn.SiLU):
    """``torch.nn.SiLU`` over :func:`pydl.functional.silu`; on the CPU.

    >>> nn.SiLU()(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.2689,  0.0000,  0.7311])
    """

    own = Own(torch.nn.SiLU, "silu")

    def forward(self, input):
        if is_small("silu", input):
            return torch.nn.SiLU.forward(self, input)
        aside = steps_aside(self, SiLU.own, F.silu, input) or self.inplace
        output = None if aside else served("silu", input)
        return torch.nn.SiLU.forward(self, input) if output is None else output


class Softplus(_Eager, torch.nn.Softplus):
    """``torch.nn.Softplus`` over :func:`pydl.functional.softplus`; on the CPU.

    >>> nn.Softplus()(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0.3133, 0.6931, 1.3133])
    """

    own = Own(torch.nn.Softplus, "softplus")

    def forward(self, input):
        if is_small("softplus", input):
            return torch.nn.Softplus.forward(self, input)
        beta, threshold = self.beta, self.threshold
        aside = steps_aside(self, Softplus.own, F.softplus, input) or not is_plain(beta, threshold)
        output = None if aside else served("softplus", input, beta, threshold)
        return torch.nn.Softplus.forward(self, input) if output is None else output
