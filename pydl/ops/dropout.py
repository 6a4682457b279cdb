"""Dropout (Srivastava et al., JMLR 2014; d2l chapter "Dropout"): zero with probability p, scale the rest by 1/(1-p).

A pure function of (input, p, seed): the mask is recomputed from the seed by a counter-based generator and never
stored, so backward is the same op on the gradient, and manual_seed, checkpointing, graph capture and torch.compile
need no code of their own.
"""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl.ops import _library

# seed is a tensor on the input's device, so that a captured graph draws a new mask at each replay.
_library.define("dropout", "(Tensor input, float p, Tensor seed, int shared_dims=0) -> Tensor")


@_library.fake("dropout")
def _(input, p, seed, shared_dims=0):
    return torch.empty_like(input)


def _setup_context(ctx, inputs, output):
    _, ctx.p, seed, ctx.shared_dims = inputs
    ctx.save_for_backward(seed)


def _backward(ops, ctx, grad_output):
    (seed,) = ctx.saved_tensors
    return ops.dropout(grad_output, ctx.p, seed, ctx.shared_dims), None, None, None


_library.autograd("dropout", _setup_context, _backward)

_SUPPORTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def dropout(input, p=0.5, training=True, inplace=False, *, seed=None):
    """Zeroes each element of ``input`` with probability ``p`` and scales the others by ``1 / (1 - p)``.

    Args:
        input: any shape; float32, float64, bfloat16 or float16 (other dtypes are served by torch).
        p: probability of an element to be zeroed.
        training: without it the input itself is returned.
        inplace: writes the result over ``input``.
        seed: int64 tensor of one element on the input's device that determines the mask; drawn from torch's generator
            when not given. The same (shape, p, seed) gives the same mask on every device and backend of pydl.

    Returns:
        A tensor of ``input``'s shape, dtype and memory format. A dropped inf or nan is 0.

    Raises:
        ValueError: when p is not in [0, 1].
    """
    return _dropout("dropout", F.dropout, input, p, training, inplace, seed, shared_dims=0)


def _dropout(name, torch_function, input, p, training, inplace, seed, shared_dims):
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{name}: expected p to be a probability in [0, 1], got {p}")
    if not training or p == 0.0:
        return input
    ops = backend.ops_for(input) if input.dtype in _SUPPORTED else None
    if ops is None:
        if seed is not None:
            raise ValueError(f"{name}: expected seed to be None where torch's own kernel runs, got {seed}")
        return torch_function(input, p, training, inplace)
    if seed is None:
        # torch.randint even under compile: a seed op of our own would be merged by common-subexpression elimination,
        # and two dropouts would share a mask
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=input.device)
    output = ops.dropout(input, p, seed, shared_dims)
    return input.copy_(output) if inplace else output
