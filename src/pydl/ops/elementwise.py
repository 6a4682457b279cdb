"""Functions of one number (d2l chapters "Multilayer Perceptrons" and "Transformers"): ReLU and its kin, GELU, SiLU.

    relu         max(x, 0)                          silu         x sigmoid(x)
    leaky_relu   x, or negative_slope x below 0     gelu         x Φ(x), or its approximation by a tanh
    sigmoid      1 / (1 + exp(-x))                  softplus     log(1 + exp(beta x)) / beta
    tanh

On the CPU alone. The backward reads what torch's reads: the output of relu, sigmoid and tanh, the input of the others.
What is over in torch before a call of ours has begun is left to torch (``WORTH_A_CALL``), and so is what is computed in
place, which needs no memory for its result.
"""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl._private import alive, below_autograd, functorch_active
from pydl.aside import is_torchs
from pydl.ops import _library, _nodes
from pydl.ops._elementwise_autograd import OF_OUTPUT
from pydl.ops._nodes import is_compiling

__all__ = ["gelu", "leaky_relu", "relu", "sigmoid", "silu", "softplus", "tanh"]

SUPPORTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Numbers below which the time is that of the call; measured, kernels/cpu/elementwise/NOTES.md.
WORTH_A_CALL = {
    "relu": 1 << 21,
    "leaky_relu": 1 << 21,
    "sigmoid": 1 << 17,
    "tanh": 1 << 15,
    "gelu": 1 << 15,
    "silu": 1 << 17,
    "softplus": 1 << 17,
}


class _Eager(torch.autograd.Function):
    """All of them in eager mode with the fewest hops: each op is called below the autograd layer of the dispatcher."""

    @staticmethod
    def forward(ctx, input, rest):
        # what needs no gradient comes as one tuple: each argument of its own costs on the way in and out
        ops, name, options = ctx.rest = rest
        with below_autograd():
            output = getattr(_library.quick(ops), f"{name}_forward")(input, *options)
        ctx.to_save = (output if name in OF_OUTPUT else input,)  # what ctx.save_for_backward sets
        return output

    @staticmethod
    def backward(ctx, grad):
        ops, name, options = ctx.rest
        (saved,) = ctx.saved_tensors
        name = f"{name}_backward"
        if _library.transforms_active():  # torch.func.vmap over the gradient
            return getattr(_library.transformed(ops), name)(grad, saved, *options), None
        if torch.is_grad_enabled():
            return getattr(ops, name)(grad, saved, *options), None
        with below_autograd():
            return getattr(_library.quick(ops), name)(grad, saved, *options), None


_apply = _library.eager(_Eager)


def is_small(name, input):
    """Whether the function is torch's for the tensor's size alone: the most frequent reason, seen most cheaply."""
    return not is_compiling() and _nodes.is_small(input, WORTH_A_CALL[name])


def served(name, input, *options):
    """The function ``name`` of a tensor of which aside.py was asked; None where torch's is to compute it."""
    if input.dtype not in SUPPORTED or input.numel() < WORTH_A_CALL[name]:
        return None
    ops = backend.ops_for(input, name)
    if ops is None:
        return None
    transforms = functorch_active()
    if transforms:
        ops = _library.transformed(ops)
    if transforms or torch.compiler.is_compiling():
        return getattr(ops, f"{name}_forward")(input, *options)
    if torch.is_grad_enabled():
        return _apply(alive(input), (ops, name, options))
    with below_autograd():
        return getattr(_library.quick(ops), f"{name}_forward")(input, *options)


def _served(name, input, *options):
    """:func:`served`, for who has not asked."""
    try:
        if input.numel() < WORTH_A_CALL[name]:  # the most frequent reason, and the cheapest to see
            return None
    except AttributeError:  # no tensor: torch says so in its own words
        return None
    return None if is_torchs(input) else served(name, input, *options)


def relu(input, inplace=False):
    """``max(x, 0)``, as :func:`torch.nn.functional.relu`.

    Args:
        input: any shape and strides; float32, float64, bfloat16 or float16 on the CPU, of 2^21 numbers or more. Smaller
            ones, other dtypes and devices are served by torch.
        inplace: writes the result over ``input``; by torch.

    Returns:
        Of input's shape and dtype, with the strides that torch's result has. nan stays nan.

    >>> F.relu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0., 0., 1.])
    """
    output = None if inplace else _served("relu", input)
    return F.relu(input, inplace) if output is None else output


def leaky_relu(input, negative_slope=0.01, inplace=False):
    """``x`` where it is positive, ``negative_slope * x`` elsewhere, as :func:`torch.nn.functional.leaky_relu`.

    ``negative_slope`` is a number; otherwise see :func:`relu`.

    >>> F.leaky_relu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.0100,  0.0000,  1.0000])
    """
    output = None if inplace or not is_plain(negative_slope) else _served("leaky_relu", input, negative_slope)
    return F.leaky_relu(input, negative_slope, inplace) if output is None else output


def is_plain(*numbers):
    """Whether these are Python's numbers; torch says in its own words which others it takes."""
    return all(type(number) in (int, float) for number in numbers)


def sigmoid(input):
    """``1 / (1 + exp(-x))``, as :func:`torch.sigmoid`; of 2^17 numbers or more, otherwise see :func:`relu`.

    Neither tail overflows.

    >>> F.sigmoid(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0.2689, 0.5000, 0.7311])
    """
    output = _served("sigmoid", input)
    return torch.sigmoid(input) if output is None else output


def tanh(input):
    """The hyperbolic tangent, as :func:`torch.tanh`; of 2^15 numbers or more, otherwise see :func:`relu`.

    Small numbers keep their digits.

    >>> F.tanh(torch.tensor([-1.0, 0.5, 1.0]))
    tensor([-0.7616,  0.4621,  0.7616])
    """
    output = _served("tanh", input)
    return torch.tanh(input) if output is None else output


def gelu(input, approximate="none"):
    """``x Φ(x)`` with Φ the normal distribution, as :func:`torch.nn.functional.gelu` (Hendrycks and Gimpel, 2016).

    Args:
        input: as :func:`relu`'s, of 2^15 numbers or more.
        approximate: ``"none"``, or ``"tanh"`` for ``0.5 x (1 + tanh(sqrt(2 / π) (x + 0.044715 x³)))``.

    Returns:
        Of input's shape and dtype, with the strides that torch's result has.

    Raises:
        RuntimeError: another ``approximate``.

    >>> F.gelu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.1587,  0.0000,  0.8413])
    """
    output = _served("gelu", input, approximate == "tanh") if approximate in ("none", "tanh") else None
    return F.gelu(input, approximate=approximate) if output is None else output


def silu(input, inplace=False):
    """``x sigmoid(x)``, also called swish, as :func:`torch.nn.functional.silu` (Elfwing et al., 2018).

    Of 2^17 numbers or more; otherwise see :func:`relu`.

    >>> F.silu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.2689,  0.0000,  0.7311])
    """
    output = None if inplace else _served("silu", input)
    return F.silu(input, inplace) if output is None else output


def softplus(input, beta=1, threshold=20):
    """``log(1 + exp(beta x)) / beta``, and ``x`` where ``beta x > threshold``, as :func:`torch.nn.functional.softplus`.

    Of 2^17 numbers or more; ``beta`` and ``threshold`` are numbers. Otherwise see :func:`relu`.

    >>> F.softplus(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0.3133, 0.6931, 1.3133])
    """
    output = _served("softplus", input, beta, threshold) if is_plain(beta, threshold) else None
    return F.softplus(input, beta, threshold) if output is None else output
