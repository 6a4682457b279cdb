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
from pydl.ops import _library
from pydl.ops._memory_format import product_strides, row_major
from pydl.ops._options import integer, number

# dims: how many of the last dimensions are normalised together. stats: float64 (2, rows), mean and 1 / deviation of
# each row; (1, rows) for RMS norm. A gradient that is not needed comes back as an empty tensor; eps is what the
# backward's own derivative needs beside stats.
_library.define(
    "layer_norm_forward",
    "(Tensor input, Tensor? weight, Tensor? bias, int dims, float eps) -> (Tensor output, Tensor stats)",
)
_library.define(
    "layer_norm_backward",
    "(Tensor grad_output, Tensor input, Tensor stats, Tensor? weight, int dims, float eps, bool need_input, "
    "bool need_weight, bool need_bias) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
)
_library.define(
    "rms_norm_forward", "(Tensor input, Tensor? weight, int dims, float eps) -> (Tensor output, Tensor stats)"
)
_library.define(
    "rms_norm_backward",
    "(Tensor grad_output, Tensor input, Tensor stats, Tensor? weight, int dims, float eps, bool need_input, "
    "bool need_weight) -> (Tensor grad_input, Tensor grad_weight)",
)

SUPPORTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_HALF = (torch.bfloat16, torch.float16)


def _check(op, condition, message):
    if not condition:
        raise RuntimeError(f"{op}: expected {message}")


def _check_parameter(op, name, input, parameter, dims):
    normalised = tuple(input.shape[input.dim() - dims :])
    _check(
        op,
        tuple(parameter.shape) == normalised,
        f"{name} to be of shape {normalised}, got {tuple(parameter.shape)}",
    )
    is_half = input.dtype in _HALF
    _check(
        op,
        parameter.dtype == input.dtype or (is_half and parameter.dtype == torch.float32),
        f"{name} to be of the dtype of input{', or float32' if is_half else ''}, "
        f"got {parameter.dtype} and {input.dtype}",
    )


# ---- fakes: the checks of csrc/layer_norm.cpp once more, for tracing, which never gets there


def _rows(input, dims):
    rows = 1
    for size in input.shape[: input.dim() - dims]:
        rows = rows * size
    return rows


def _row_major(like):
    return like.new_empty(like.shape)


@_library.fake("layer_norm_forward")
def _(input, weight, bias, dims, eps):
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            _check_parameter("layer_norm", name, input, parameter, dims)
    if bias is not None:
        like, of = (input, "input") if weight is None else (weight, "weight")
        message = f"bias to be of the dtype of {of}, got {bias.dtype} and {like.dtype}"
        _check("layer_norm", bias.dtype == like.dtype, message)
    return _row_major(input), input.new_empty((2, _rows(input, dims)), dtype=torch.float64)


@_library.fake("rms_norm_forward")
def _(input, weight, dims, eps):
    if weight is not None:
        _check_parameter("rms_norm", "weight", input, weight, dims)
    return _row_major(input), input.new_empty((1, _rows(input, dims)), dtype=torch.float64)


def _empty_parameter(input, weight, dims, need):
    return (input if weight is None else weight).new_empty(input.shape[input.dim() - dims :] if need else 0)


@_library.fake("layer_norm_backward")
def _(grad_output, input, stats, weight, dims, eps, need_input, need_weight, need_bias):
    return (
        _row_major(input) if need_input else input.new_empty(0),
        _empty_parameter(input, weight, dims, need_weight),
        _empty_parameter(input, weight, dims, need_bias),
    )


@_library.fake("rms_norm_backward")
def _(grad_output, input, stats, weight, dims, eps, need_input, need_weight):
    return (
        _row_major(input) if need_input else input.new_empty(0),
        _empty_parameter(input, weight, dims, need_weight),
    )


# ---- derivatives


def _layer_norm_context(ctx, inputs, output):
    input, weight, _, ctx.dims, ctx.eps = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, weight, output[1])


def _layer_norm_gradients(ops, ctx, grad, needs):
    """The gradients of input, weight and bias, or None."""
    input, weight, stats = ctx.saved_tensors
    needs_input, needs_weight, needs_bias = needs
    to_input, to_weight, to_bias = ops.layer_norm_backward(
        grad, input, stats, weight, ctx.dims, ctx.eps, needs_input, needs_weight, needs_bias
    )
    return to_input if needs_input else None, to_weight if needs_weight else None, to_bias if needs_bias else None


def _layer_norm_backward(ops, ctx, grad, _grad_stats):
    if grad is None:
        return (None,) * 5
    return *_layer_norm_gradients(ops, ctx, grad, ctx.needs_input_grad[:3]), None, None


_library.autograd("layer_norm_forward", _layer_norm_context, _layer_norm_backward)


def _rms_norm_context(ctx, inputs, output):
    input, weight, ctx.dims, ctx.eps = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, weight, output[1])


def _rms_norm_gradients(ops, ctx, grad, needs):
    """The gradients of input and weight, or None."""
    input, weight, stats = ctx.saved_tensors
    to_input, to_weight = ops.rms_norm_backward(grad, input, stats, weight, ctx.dims, ctx.eps, *needs)
    return _as_product(to_input, grad) if needs[0] else None, to_weight if needs[1] else None


def _as_product(to_input, grad):
    """``to_input`` with the strides that torch's has, which is a product of ``grad`` and what broadcasts to it."""
    if (grad.is_contiguous() and 1 not in grad.shape) or functorch_active():
        return to_input
    strides = product_strides(grad, grad.new_empty(()))
    if strides == to_input.stride():
        return to_input
    return to_input.new_empty_strided(grad.shape, strides).copy_(to_input)


def _rms_norm_backward(ops, ctx, grad, _grad_stats):
    if grad is None:
        return (None,) * 4
    return *_rms_norm_gradients(ops, ctx, grad, ctx.needs_input_grad[:2]), None, None


_library.autograd("rms_norm_forward", _rms_norm_context, _rms_norm_backward)


def _second_derivatives(ctx, centered, to_input, to_weight, to_bias):
    """Of grad_output, input and weight, in torch's ops, whatever is differentiated how often.

    ``to_input``, ``to_weight`` and ``to_bias`` are the gradients of the backward's results (None: none). With P the
    projection by which layer norm takes mean and xhat out of a row, grad_input = scale P(g), and both xhat and scale
    are functions of the input: d xhat = scale P(d input), d scale = -scale² / n xhat · d input.
    """
    grad, input, weight = ctx.saved_tensors
    dims, rows = list(range(-ctx.dims, 0)), list(range(input.dim() - ctx.dims))
    accumulate = torch.float64 if input.dtype == torch.float64 else torch.float32

    def mean(t):
        return t.mean(dims, keepdim=True)

    def wide(t):
        return None if t is None else t.to(accumulate)

    def total(t):
        return t.sum(rows) if rows else t

    x, dy, w, u, v, t = map(wide, (input, grad, weight, to_input, to_weight, to_bias))
    deviation = x - mean(x) if centered else x
    scale = (mean(deviation.square()) + ctx.eps).rsqrt()
    xhat = deviation * scale

    def project(t):
        t = t - xhat * mean(t * xhat)
        return t - mean(t) if centered else t

    of_grad = of_weight = of_xhat = of_scale = None
    if u is not None:
        g = dy if w is None else dy * w
        of_g = scale * project(u)
        of_grad = of_g if w is None else of_g * w
        of_weight = total(of_g * dy)
        along_g, along_u = mean(g * xhat), mean(u * xhat)
        of_xhat = -scale * (u * along_g + g * along_u)
        of_scale = mean(u * g) - along_u * along_g
        if centered:
            of_scale = of_scale - mean(u) * mean(g)
    if v is not None:
        of_grad = v * xhat if of_grad is None else of_grad + v * xhat
        of_xhat = v * dy if of_xhat is None else of_xhat + v * dy
    if t is not None:
        of_grad = t.expand(grad.shape) if of_grad is None else of_grad + t
    of_input = None if of_xhat is None else scale * project(of_xhat)
    if of_scale is not None:
        of_input = of_input - scale.square() * xhat * of_scale
    found = (of_grad, of_input, of_weight)
    asked = ctx.needs_input_grad[0], ctx.needs_input_grad[1], weight is not None and ctx.needs_input_grad[3]
    likes = (grad, input, weight)
    return [
        None if result is None or not need else result.to(like.dtype)
        for result, need, like in zip(found, asked, likes, strict=True)
    ]


def _backward_context(ctx, inputs, output):
    grad, input, _, weight, ctx.dims, ctx.eps, *_ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad, input, weight)


def _derivative(name, centered):
    """Registers the derivative of a backward; the gradients of what was not needed are those of empty tensors."""

    def backward(ops, ctx, *grads):
        input = ctx.saved_tensors[1]
        normalised = input.shape[input.dim() - ctx.dims :]
        shapes = input.shape, normalised, normalised
        grads = [
            None if grad is None or grad.shape != shape else grad for grad, shape in zip(grads, shapes, strict=False)
        ]
        of_grad, of_input, of_weight = _second_derivatives(ctx, centered, *grads, *(None,) * (3 - len(grads)))
        return of_grad, of_input, None, of_weight, *(None,) * (len(ctx.needs_input_grad) - 4)

    _library.autograd(name, _backward_context, backward)


_derivative("layer_norm_backward", centered=True)
_derivative("rms_norm_backward", centered=False)


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
        return *_layer_norm_gradients(ops, ctx, grad, needs), None
    return *_rms_norm_gradients(ops, ctx, grad, needs[:2]), None, None


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
    _check(op, dims > 0, "normalized_shape to be of at least one dimension, got ()")
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
        input: (..., *normalized_shape); float32, float64, bfloat16 or float16 on the CPU, with any strides (other
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
    """
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
    """
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
    if mixed and (input.dtype not in _HALF or weight.dtype != torch.float32):
        return True
    if input.dim() in (4, 5) and suggest_memory_format(input) is not torch.contiguous_format:
        return True
    # dimensions of size 1 of what is contiguous: their strides are sorted among the others
    odd = 1 in input.shape and input.is_contiguous() and input.stride() != row_major(input.shape)
    return odd and product_strides(input, input.new_empty(())) != row_major(input.shape)
