"""The activations that our kernels apply as they store a result, and what torch does in their place."""

import torch
import torch.nn.functional as F

from pydl.ops import _library
from pydl.ops._nodes import is_compiling

# Numbers from which on the gradient is our op's, in recycled memory (csrc/autograd/activation.cpp has it once more).
RECYCLED = 1 << 18

_FUNCTIONS = {"relu": F.relu, "sigmoid": torch.sigmoid}


def check(op, activation):
    """Raises ValueError for an activation that there is not."""
    if activation is not None and activation not in _FUNCTIONS:
        raise ValueError(f"{op}: expected activation to be None, 'relu' or 'sigmoid', got {activation!r}")


def finished(output, activation, residual=None):
    """What our kernels do in the same pass, where torch made ``output``."""
    if residual is not None:
        output = output + residual
    return output if activation is None else _FUNCTIONS[activation](output)


def backward(grad, output, activation):
    """The gradient of what the activation was given, from that of its ``output``; "none" is the schemas' None."""
    if activation == "none":
        return grad
    if grad.is_cpu and grad.numel() >= RECYCLED and not is_compiling() and not _library.transforms_active():
        return getattr(torch.ops.pydl, f"{activation}_backward")(grad, output)
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, output, 0)
    return torch.ops.aten.sigmoid_backward(grad, output)
