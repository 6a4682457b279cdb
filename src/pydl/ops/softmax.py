"""Softmax and its logarithm (d2l chapters "Softmax Regression" and "Attention Scoring Functions").

    softmax        exp(x) / sum of exp(x)
    log_softmax    x - log(sum of exp(x))

along a dimension, on the CPU alone; of a softmax along the last one, of the first ``lengths`` numbers of each row. The
ops count ``dim`` from the last, -1, so that dimensions in front change nothing.
"""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl._private import alive, below_autograd, functorch_active
from pydl.aside import is_torchs
from pydl.ops import _library, _nodes
from pydl.ops._nodes import is_compiling

__all__ = ["log_softmax", "softmax"]

_library.define("softmax_forward", "(Tensor input, int dim, Tensor? lengths) -> Tensor")
_library.define("softmax_backward", "(Tensor grad_output, Tensor output, int dim, Tensor? lengths) -> Tensor")
_library.define("log_softmax_forward", "(Tensor input, int dim) -> Tensor")
_library.define("log_softmax_backward", "(Tensor grad_output, Tensor output, int dim) -> Tensor")

SUPPORTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@_library.fake("softmax_forward")
def _(input, dim, lengths):
    return input.new_empty(input.shape)


@_library.fake("softmax_backward")
def _(grad_output, output, dim, lengths):
    return output.new_empty(output.shape)


@_library.fake("log_softmax_forward")
def _(input, dim):
    return input.new_empty(input.shape)


@_library.fake("log_softmax_backward")
def _(grad_output, output, dim):
    return output.new_empty(output.shape)


def _softmax_context(ctx, inputs, output):
    _, ctx.dim, lengths = inputs
    ctx.save_for_backward(output, lengths)


def _softmax_backward(ops, ctx, grad):
    output, lengths = ctx.saved_tensors
    return ops.softmax_backward(grad, output, ctx.dim, lengths), None, None


_library.autograd("softmax_forward", _softmax_context, _softmax_backward)


def _log_softmax_context(ctx, inputs, output):
    ctx.dim = inputs[1]
    ctx.save_for_backward(output)


def _log_softmax_backward(ops, ctx, grad):
    return ops.log_softmax_backward(grad, *ctx.saved_tensors, ctx.dim), None


_library.autograd("log_softmax_forward", _log_softmax_context, _log_softmax_backward)


# Double backward: what the backward gives is linear in grad_output, for a softmax by a symmetric matrix. Where a row
# has ended, the gradient of output may be anything: the backward that made output drops it.
def _softmax_again_context(ctx, inputs, output):
    grad_output, softmax, ctx.dim, lengths = inputs
    ctx.save_for_backward(grad_output, softmax, lengths)


def _softmax_again(ops, ctx, grad):
    grad_output, output, lengths = ctx.saved_tensors
    to_grad = ops.softmax_backward(grad, output, ctx.dim, lengths) if ctx.needs_input_grad[0] else None
    to_output = None
    if ctx.needs_input_grad[1]:
        along, other = ((t * output).sum(ctx.dim, keepdim=True) for t in (grad_output, grad))
        to_output = grad * (grad_output - along) - grad_output * other
    return to_grad, to_output, None, None


_library.autograd("softmax_backward", _softmax_again_context, _softmax_again)


def _log_softmax_again_context(ctx, inputs, output):
    *tensors, ctx.dim = inputs
    ctx.save_for_backward(*tensors)


def _log_softmax_again(ops, ctx, grad):
    grad_output, output = ctx.saved_tensors
    probability = grad * output.exp()
    to_grad = grad - probability.sum(ctx.dim, keepdim=True) if ctx.needs_input_grad[0] else None
    to_output = -probability * grad_output.sum(ctx.dim, keepdim=True) if ctx.needs_input_grad[1] else None
    return to_grad, to_output, None


_library.autograd("log_softmax_backward", _log_softmax_again_context, _log_softmax_again)


_library.vmap_of_rows("softmax_forward", "softmax_backward", "log_softmax_forward", "log_softmax_backward")


class _Eager(torch.autograd.Function):
    """Both in eager mode with the fewest hops: each op is called below the autograd layer of the dispatcher."""

    @staticmethod
    def forward(ctx, input, rest):
        # what needs no gradient comes as one tuple: each argument of its own costs on the way in and out
        ctx.ops, ctx.logarithm, ctx.dim, lengths = ops, logarithm, dim, lengths = rest
        with below_autograd():
            output = _forward(_library.quick(ops), logarithm, input, dim, lengths)
        ctx.to_save = (output,) if logarithm else (output, lengths)  # what ctx.save_for_backward sets
        return output

    @staticmethod
    def backward(ctx, grad):
        backward = _log_softmax_backward if ctx.logarithm else _softmax_backward
        if _library.transforms_active():  # torch.func.vmap over the gradient
            found = backward(_library.transformed(ctx.ops), ctx, grad)
        elif torch.is_grad_enabled():
            found = backward(ctx.ops, ctx, grad)
        else:
            with below_autograd():
                found = backward(_library.quick(ctx.ops), ctx, grad)
        return found[:2]


_apply = _library.eager(_Eager)


def _forward(ops, logarithm, input, dim, lengths):
    return ops.log_softmax_forward(input, dim) if logarithm else ops.softmax_forward(input, dim, lengths)


def _is_served(input, dim, dtype):
    """Whether the call is ours: along a dimension that input has, in its dtype."""
    try:
        if type(dim) is not int or input.dtype not in SUPPORTED or dtype not in (None, input.dtype):
            return False
        return -input.dim() <= dim < input.dim()
    except AttributeError:  # no tensor: torch says so in its own words
        return False


def _call(ops, logarithm, input, dim, lengths=None):
    dim = dim if dim < 0 else dim - input.dim()
    transforms = functorch_active()
    if transforms:
        ops = _library.transformed(ops)
    if transforms or torch.compiler.is_compiling():
        return _forward(ops, logarithm, input, dim, lengths)
    if torch.is_grad_enabled():
        return _apply(alive(input), (ops, logarithm, dim, lengths))
    with below_autograd():
        return _forward(_library.quick(ops), logarithm, input, dim, lengths)


def softmax(input, dim=None, _stacklevel=3, dtype=None, *, lengths=None):
    """``exp(x) / sum of exp(x)`` along a dimension, as :func:`torch.nn.functional.softmax`.

    Args:
        input: any shape and strides; float32, float64, bfloat16 or float16 on the CPU. For other dtypes and devices it
            is served by torch.
        dim: the dimension.
        dtype: the dtype of the result; where it is not input's, the call is torch's.
        lengths: keyword-only: int64, of input's first dimensions (all but the last, or fewer): how many numbers of a
            row count. The others get 0, and a gradient of 0: all of a row of length 0. ``dim`` is the last one then.

    Returns:
        Of input's shape, contiguous. The result does not depend on the number of threads.

    Raises:
        IndexError: a dimension that input does not have.
        RuntimeError: lengths that do not fit.
        ValueError: lengths along another dimension than the last.

    >>> F.softmax(torch.tensor([[1.0, 1.0, 5.0]]), -1, lengths=torch.tensor([2]))
    tensor([[0.5000, 0.5000, 0.0000]])
    """
    if lengths is None and dtype is None and not is_compiling():
        output = _nodes.softmax(input, dim)
        if output is not NotImplemented:
            return output
    if is_torchs(input, lengths):
        return _by_torch(input, dim, _stacklevel + 1, dtype, lengths)
    return softmax_unasked(input, dim, _stacklevel + 1, dtype, lengths)


def softmax_unasked(input, dim, _stacklevel, dtype, lengths=None):
    """:func:`softmax` for who has asked whether it is torch's (aside.py)."""
    if lengths is not None:
        _check_lengths(input, dim, lengths)
        dim = -1
    ops = backend.ops_for(input, "softmax") if _is_served(input, dim, dtype) else None
    if ops is None:
        return _by_torch(input, dim, _stacklevel + 1, dtype, lengths)
    return _call(ops, False, input, dim, lengths)


def _check_lengths(input, dim, lengths):
    if dim not in (None, -1, input.dim() - 1):
        raise ValueError(f"softmax: expected dim to be the last one where lengths are given, got {dim}")
    if lengths.dtype != torch.int64:
        raise RuntimeError(f"softmax: expected lengths to be int64, got {lengths.dtype}")
    if lengths.dim() >= input.dim() or lengths.shape != input.shape[: lengths.dim()]:
        shapes = f"{tuple(input.shape)}, got {tuple(lengths.shape)}"
        raise RuntimeError(f"softmax: expected lengths to have the first dimensions of input, {shapes}")


def _by_torch(input, dim, _stacklevel, dtype, lengths):
    if lengths is None:
        return F.softmax(input, dim, _stacklevel, dtype)
    lengths = lengths.view(*lengths.shape, *(1,) * (input.dim() - lengths.dim()))
    ended = torch.arange(input.shape[-1], device=input.device) >= lengths
    return F.softmax(input.masked_fill(ended & (lengths > 0), -torch.inf), -1, dtype=dtype).masked_fill(ended, 0)


def log_softmax(input, dim=None, _stacklevel=3, dtype=None):
    """``x - log(sum of exp(x))`` along a dimension, as :func:`torch.nn.functional.log_softmax`; see :func:`softmax`.

    >>> F.log_softmax(torch.tensor([1.0, 1.0]), 0)
    tensor([-0.6931, -0.6931])
    """
    if dtype is None and not is_compiling():
        output = _nodes.log_softmax(input, dim)
        if output is not NotImplemented:
            return output
    if is_torchs(input):
        return F.log_softmax(input, dim, _stacklevel + 1, dtype)
    return log_softmax_unasked(input, dim, _stacklevel + 1, dtype)


def log_softmax_unasked(input, dim, _stacklevel, dtype):
    """:func:`log_softmax` for who has asked whether it is torch's (aside.py)."""
    ops = backend.ops_for(input, "log_softmax") if _is_served(input, dim, dtype) else None
    if ops is None:
        return F.log_softmax(input, dim, _stacklevel + 1, dtype)
    return _call(ops, True, input, dim)
