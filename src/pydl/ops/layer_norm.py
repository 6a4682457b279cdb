"""Normalisation of rows: layer norm (Ba, Kiros, Hinton, 2016; d2l chapter "Transformer") and RMS norm (Zhang, Sennrich,
NeurIPS 2019).

    layer_norm    (x - mean) / sqrt(var + eps) * weight + bias
    rms_norm      x / sqrt(mean of x² + eps) * weight

over the last dimensions, those of ``normalized_shape``. Forward and backward are ops of our own, on the CPU alone. The
derivative of the backward is made of torch's ops.
"""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl._private import alive, below_autograd, functorch_active, suggest_memory_format
from pydl.aside import is_torchs
from pydl.ops import _library, _nodes
from pydl.ops._layer_norm_autograd import layer_norm_gradients, rms_norm_gradients
from pydl.ops._layer_norm_schema import HALF, SUPPORTED, check
from pydl.ops._memory_format import product_strides, row_major
from pydl.ops._nodes import is_compiling
from pydl.ops._options import integer, number

__all__ = ["layer_norm", "rms_norm"]


class _Eager(torch.autograd.Function):
    """Both norms in eager mode with the fewest hops: each op is called below the autograd layer of the dispatcher.

    With create_graph the backward goes through the registered formula, and so can be differentiated again.
    """

    @staticmethod
    def forward(ctx, input, weight, bias, rest):
        # what needs no gradient comes as one tuple: each argument of its own costs on the way in and out
        ctx.rest = ops, centered, ctx.dims, ctx.eps = rest
        with below_autograd():
            output, stats = _forward(_library.quick(ops), centered, input, weight, bias, ctx.dims, ctx.eps)
        ctx.to_save = input, weight, stats  # what ctx.save_for_backward sets
        return output

    @staticmethod
    def backward(ctx, grad):
        ops, centered, *_ = ctx.rest
        if _library.transforms_active():  # torch.func.vmap over the gradient
            return _gradients(_library.transformed(ops), centered, ctx, grad)
        if torch.is_grad_enabled():
            return _gradients(ops, centered, ctx, grad)
        with below_autograd():
            return _gradients(_library.quick(ops), centered, ctx, grad)


def _gradients(ops, centered, ctx, grad):
    *needs, _ = ctx.needs_input_grad
    if centered:
        return *layer_norm_gradients(ops, ctx, grad, needs), None
    return *rms_norm_gradients(ops, ctx, grad, needs[:2]), None, None


_apply = _library.eager(_Eager)


# ---- public functions


def _forward(ops, centered, input, weight, bias, dims, eps):
    if centered:
        return ops.layer_norm_forward(input, weight, bias, dims, eps)
    return ops.rms_norm_forward(input, weight, dims, eps)


def _call(ops, centered, input, weight, bias, dims, eps):
    transforms = functorch_active()
    if transforms:
        ops = _library.transformed(ops)
    if transforms or torch.compiler.is_compiling():
        return _forward(ops, centered, input, weight, bias, dims, eps)[0]
    if torch.is_grad_enabled():
        weight, bias = (None if t is None else alive(t) for t in (weight, bias))
        return _apply(alive(input), weight, bias, (ops, centered, dims, eps))
    with below_autograd():
        return _forward(_library.quick(ops), centered, input, weight, bias, dims, eps)[0]


def _dims(op, input, normalized_shape, too_few):
    """How many dimensions ``normalized_shape`` has, which are the last ones of input."""
    if not isinstance(normalized_shape, tuple | list):
        kind = type(normalized_shape).__name__
        raise TypeError(f"{op}: expected normalized_shape to be a sequence of integers, got {kind}")
    dims = len(normalized_shape)
    for size in normalized_shape:  # 5.0 equals 5 below, and is refused here
        if type(size) is not int and not isinstance(size, torch.SymInt):
            normalized_shape = tuple(integer(op, "normalized_shape", size, "integers") for size in normalized_shape)
            break
    check(op, dims > 0, "normalized_shape to be of at least one dimension, got ()")
    rest = input.dim() - dims
    if rest < 0 or input.shape[rest:] != tuple(normalized_shape):
        error = too_few if rest < 0 else RuntimeError
        ends = f"to end in normalized_shape {tuple(normalized_shape)}"
        raise error(f"{op}: expected input {ends}, got shape {tuple(input.shape)}")
    return dims


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last dimensions.

    As :func:`torch.nn.functional.layer_norm`.

    Args:
        input: ``(..., *normalized_shape)``; float32, float64, bfloat16 or float16 on the CPU, with any strides (other
            dtypes and devices are served by torch). float32 keeps its digits where the mean is much larger than the
            deviation.
        normalized_shape: the sizes of the last dimensions, which are normalised together.
        weight: of ``normalized_shape``, or None for 1; of input's dtype, or float32 beside bfloat16 or float16.
        bias: of ``normalized_shape``, or None for 0; of weight's dtype.
        eps: added to the (biased) variance.

    Returns:
        Of input's shape and dtype, contiguous. The result does not depend on the number of threads.

    Raises:
        RuntimeError: shapes or dtypes that do not fit.
        TypeError: ``normalized_shape`` that is no sequence of integers, ``eps`` that is no number.

    >>> F.layer_norm(torch.tensor([[1.0, 3.0], [10.0, 30.0]]), (2,))
    tensor([[-1.0000,  1.0000],
            [-1.0000,  1.0000]])
    """
    if not is_compiling():
        output = _nodes.layer_norm(input, normalized_shape, weight, bias, eps)
        if output is not NotImplemented:
            return output
    if is_torchs(input, weight, bias):
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    return layer_norm_unasked(input, normalized_shape, weight, bias, eps)


def layer_norm_unasked(input, normalized_shape, weight, bias, eps):
    """:func:`layer_norm` for who has asked whether it is torch's (aside.py)."""
    ops = backend.ops_for(input, "layer_norm") if input.dtype in SUPPORTED else None
    if ops is None or not (_is_tensor(weight) and _is_tensor(bias)):
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    if weight is None and bias is not None and bias.dtype != input.dtype:  # refused, or with dtypes mixed
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    dims = _dims("layer_norm", input, normalized_shape, RuntimeError)
    return _call(ops, True, input, weight, bias, dims, _number("layer_norm", eps))


def _is_tensor(parameter):
    """Whether it is None or a strided tensor; torch says in its own words what else is wrong."""
    return parameter is None or (isinstance(parameter, torch.Tensor) and parameter.layout is torch.strided)


def _number(op, eps):
    return eps if type(eps) is float else float(number(op, "eps", eps))


def rms_norm(input, normalized_shape, weight=None, eps=None):
    """``x / sqrt(mean of x² + eps) * weight`` over the last dimensions, as :func:`torch.nn.functional.rms_norm`.

    Args:
        input: as :func:`layer_norm`'s; in channels_last, or with one number in a row, it is served by torch.
        normalized_shape: the sizes of the last dimensions, which are normalised together.
        weight: of ``normalized_shape``, or None for 1; of input's dtype, or float32 beside bfloat16 or float16. With
            other dtypes it is served by torch.
        eps: added to the mean square; None for the machine epsilon of the dtype that sums are taken in: float64 for
            float64, float32 for the others.

    Returns:
        Of input's shape and dtype, contiguous where it is ours. The result does not depend on the number of threads.

    Raises:
        RuntimeError: shapes or dtypes that do not fit.
        ValueError: an input with fewer dimensions than ``normalized_shape``.
        TypeError: ``normalized_shape`` that is no sequence of integers, ``eps`` that is no number.

    >>> F.rms_norm(torch.tensor([[3.0, 4.0]]), (2,))
    tensor([[0.8485, 1.1314]])
    """
    if not is_compiling():
        output = _nodes.rms_norm(input, normalized_shape, weight, eps)
        if output is not NotImplemented:
            return output
    if is_torchs(input, weight):
        return F.rms_norm(input, normalized_shape, weight, eps)
    return rms_norm_unasked(input, normalized_shape, weight, eps)


def rms_norm_unasked(input, normalized_shape, weight, eps):
    """:func:`rms_norm` for who has asked whether it is torch's (aside.py)."""
    ops = backend.ops_for(input, "rms_norm") if input.dtype in SUPPORTED else None
    if ops is None or not _is_tensor(weight) or _lies_as_torchs_alone(input, weight):
        return F.rms_norm(input, normalized_shape, weight, eps)
    dims = _dims("rms_norm", input, normalized_shape, ValueError)
    if eps is None:
        eps = torch.finfo(torch.float64 if input.dtype == torch.float64 else torch.float32).eps
    if input.shape[-1] == 1 and input.shape[input.dim() - dims :].numel() == 1:
        return F.rms_norm(input, normalized_shape, weight, eps)  # whose strides go by other rules
    return _call(ops, False, input, weight, None, dims, _number("rms_norm", eps))


def _lies_as_torchs_alone(input, weight):
    """Whether the result's strides or dtypes are those of a product as only torch makes it."""
    mixed = weight is not None and weight.dtype != input.dtype
    if mixed and (input.dtype not in HALF or weight.dtype != torch.float32):
        return True
    if input.dim() in (4, 5) and suggest_memory_format(input) is not torch.contiguous_format:
        return True
    # dimensions of size 1 of what is contiguous: their strides are sorted among the others
    odd = 1 in input.shape and input.is_contiguous() and input.stride() != row_major(input.shape)
    return odd and product_strides(input, input.new_empty(())) != row_major(input.shape)
