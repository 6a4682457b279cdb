"""Fully connected layer (Rosenblatt, 1958; d2l chapters "Linear Neural Networks" and "Multilayer Perceptrons").

    output[..., o] = act(bias[o] + sum over i of input[..., i] * weight[o, i])

Forward, input gradient and weight gradient are ops of our own, on the CPU alone. Each is linear in its two tensors, and
the gradients of each are the other two, so that the three are closed under differentiation to any order.
"""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl._private import alive, below_autograd, functorch_active
from pydl._torch_range import release
from pydl.aside import is_torchs
from pydl.ops import _activations, _library, _nodes
from pydl.ops._autocast import lowered
from pydl.ops._nodes import is_compiling

__all__ = ["linear"]

# column_major: the columns of the result lie one after another in memory, as torch leaves some gradients: decided once,
# by `layouts` below, so that kernel and fake agree.
_library.define("linear_forward", "(Tensor input, Tensor weight, Tensor? bias, str activation) -> Tensor")
_library.define("linear_backward_input", "(Tensor grad_output, Tensor weight, bool column_major) -> Tensor")
# in_float32: the numbers of bfloat16 as float32, for the gradient of what autocast lowered: no cast after it.
_library.define(
    "linear_backward_weight",
    "(Tensor grad_output, Tensor input, bool column_major, bool in_float32=False) -> Tensor",
)
_library.define("linear_backward_bias", "(Tensor grad_output) -> Tensor")


def _check(condition, message):
    if not condition:
        raise RuntimeError(f"linear: expected {message}")


# The checks of csrc/linear.cpp once more, for tracing, which never gets there.
@_library.fake("linear_forward")
def _(input, weight, bias, activation):
    _check(input.dim() >= 1, f"input to be at least 1-D, got shape {tuple(input.shape)}")
    _check(weight.dim() == 2, f"weight to be 2-D, got shape {tuple(weight.shape)}")
    features, width = weight.shape
    _check(
        input.shape[-1] == width,
        f"input's last dimension to be {width} (weight of shape {tuple(weight.shape)}), got shape {tuple(input.shape)}",
    )
    _check(weight.dtype == input.dtype, f"weight to be of the dtype of input, got {weight.dtype} and {input.dtype}")
    if bias is not None:
        _check(bias.dtype == input.dtype, f"bias to be of the dtype of input, got {bias.dtype} and {input.dtype}")
        _check(bias.device == input.device, f"bias to be on {input.device} as input is, got {bias.device}")
        _check(tuple(bias.shape) == (features,), f"bias to be of shape ({features}), got {tuple(bias.shape)}")
    return input.new_empty((*input.shape[:-1], features))


def _empty_matrix(like, rows, columns, column_major):
    return like.new_empty((columns, rows)).t() if column_major else like.new_empty((rows, columns))


@_library.fake("linear_backward_input")
def _(grad_output, weight, column_major):
    if column_major:  # of a matrix: see _forward_backward
        return _empty_matrix(grad_output, grad_output.shape[0], weight.shape[1], True)
    return grad_output.new_empty((*grad_output.shape[:-1], weight.shape[1]))


@_library.fake("linear_backward_weight")
def _(grad_output, input, column_major, in_float32=False):
    grad = _empty_matrix(grad_output, grad_output.shape[-1], input.shape[-1], column_major)
    return grad.float() if in_float32 and grad.dtype == torch.bfloat16 else grad


@_library.fake("linear_backward_bias")
def _(grad_output):
    return grad_output.new_empty(grad_output.shape[-1])


SIZE_ONE_COUNTS = release(torch.__version__) < (2, 14)  # see lies_in_columns


def lies_in_columns(input, weight, bias):
    """Whether torch lays the input's gradient in columns: that of a matrix whose columns lie one after another.

    More dimensions than two are a matrix where one stride leads through all rows. Where the weight needs no gradient,
    torch before 2.14 makes a matrix of them only if the strides of dimensions of size 1, which mean nothing, say so too
    (or if the input is contiguous and there is a bias).
    """
    stride, size = input.stride(), input.shape
    if len(size) == 2:
        return stride == (1, size[0])
    if len(size) == 1 or stride[-1] == 1 or input.numel() == 0:
        return False
    strict = SIZE_ONE_COUNTS and not (weight.requires_grad or (bias is not None and input.is_contiguous()))
    rows = 1
    for d in range(len(size) - 2, -1, -1):
        if stride[d] != rows and (size[d] != 1 or strict):
            return False
        rows *= size[d]
    return stride[-1] == rows


def layouts(input, weight, bias):
    """Whether the gradients of input and weight are column-major, as torch's are.

    torch multiplies by the weight's transpose, whose gradient is column-major if it lies so itself: if the rows of the
    weight lie one after another without a gap. The gradient of any other weight, a slice or a transpose, is row-major
    in the transpose, and column-major in the weight's own shape.
    """
    return lies_in_columns(input, weight, bias), weight.stride() != (weight.shape[1], 1)


def _forward_context(ctx, inputs, output):
    input, weight, bias, ctx.activation = inputs
    ctx.layouts, ctx.input_size = layouts(input, weight, bias), input.shape
    needs_input, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(
        input if needs_weight else None,
        weight if needs_input else None,
        output if ctx.activation != "none" else None,
    )


def _forward_backward(ops, ctx, grad, needs=None):
    input, weight, output = ctx.saved_tensors
    needs_input, needs_weight, needs_bias = needs or ctx.needs_input_grad[:3]
    grad = _activations.backward(grad, output, ctx.activation)
    input_in_columns, weight_in_columns = ctx.layouts
    grad_input = grad_weight = grad_bias = None
    if needs_input:
        if input_in_columns and len(ctx.input_size) > 2:  # the op writes matrices in columns, and no other tensors
            grad_input = ops.linear_backward_input(grad.flatten(0, -2), weight, True).view(ctx.input_size)
        else:
            grad_input = ops.linear_backward_input(grad, weight, input_in_columns)
    if needs_weight:
        grad_weight = ops.linear_backward_weight(grad, input, weight_in_columns)
    if needs_bias:
        grad_bias = ops.linear_backward_bias(grad)
    return grad_input, grad_weight, grad_bias, None


_library.autograd("linear_forward", _forward_context, _forward_backward)


# Double backward. grad_input(grad_output, weight) is linear in both: with g the gradient of its result, the gradient of
# grad_output is the forward of g, and that of weight is the weight gradient with g in the input's place.
def _input_context(ctx, inputs, output):
    grad_output, weight, _ = inputs
    ctx.column_major = _is_column_major(weight)
    ctx.save_for_backward(*(t if need else None for t, need in zip((grad_output, weight), _swap(ctx), strict=True)))


def _swap(ctx):
    """Of a bilinear op: which of its two tensors the gradient of the other one needs."""
    return ctx.needs_input_grad[1], ctx.needs_input_grad[0]


def _is_column_major(matrix):
    return matrix.dim() == 2 and matrix.stride() == (1, matrix.shape[0])


def _input_backward(ops, ctx, grad):
    grad_output, weight = ctx.saved_tensors
    to_grad_output = to_weight = None
    if ctx.needs_input_grad[0]:
        to_grad_output = ops.linear_forward(grad, weight, None, "none")
    if ctx.needs_input_grad[1]:
        to_weight = ops.linear_backward_weight(grad_output, grad, ctx.column_major)
    return to_grad_output, to_weight, None


_library.autograd("linear_backward_input", _input_context, _input_backward)


# grad_weight(grad_output, input): with g the gradient of its result, g stands in the weight's place.
def _weight_context(ctx, inputs, output):
    grad_output, input, *_ = inputs
    ctx.column_major = _is_column_major(input)
    ctx.save_for_backward(*(t if need else None for t, need in zip((grad_output, input), _swap(ctx), strict=True)))


def _weight_backward(ops, ctx, grad):
    grad_output, input = ctx.saved_tensors
    grad = grad.to((input if grad_output is None else grad_output).dtype)  # in_float32
    to_grad_output = to_input = None
    if ctx.needs_input_grad[0]:
        to_grad_output = ops.linear_forward(input, grad, None, "none")
    if ctx.needs_input_grad[1]:
        to_input = ops.linear_backward_input(grad_output, grad, ctx.column_major)
    return to_grad_output, to_input, None, None


_library.autograd("linear_backward_weight", _weight_context, _weight_backward)


def _bias_context(ctx, inputs, output):
    ctx.size = inputs[0].shape


def _bias_backward(ops, ctx, grad):
    return grad.expand(ctx.size)


_library.autograd("linear_backward_bias", _bias_context, _bias_backward)


WORTH_ASKING = 1 << 20  # multiplications: from there on, a gradient costs more than to ask whether it is wanted


class _EagerLinear(torch.autograd.Function):
    """The same in eager mode with the fewest hops: each op is called below the autograd layer of the dispatcher.

    With create_graph the backward goes through the registered formula, and so can be differentiated again.
    """

    @staticmethod
    def forward(ctx, input, weight, bias, rest):
        # what needs no gradient comes as one tuple: each argument of its own costs on the way in and out
        ctx.ops, ctx.activation = ops, activation = rest
        with below_autograd():
            output = _library.quick(ops).linear_forward(input, weight, bias, activation)
        ctx.layouts, ctx.input_size = layouts(input, weight, bias), input.shape
        ctx.to_save = (  # what ctx.save_for_backward sets
            input if weight.requires_grad else None,
            weight if input.requires_grad else None,
            output if activation != "none" else None,
        )
        return output

    @staticmethod
    def backward(ctx, grad):
        *needs, _ = ctx.needs_input_grad
        if needs[0] and needs[1] and grad.numel() * ctx.input_size[-1] > WORTH_ASKING:
            needs[0], needs[1] = _library.wanted(ctx, 0), _library.wanted(ctx, 1)
        if _library.transforms_active():  # torch.func.vmap over the gradient
            return _forward_backward(_library.transformed(ctx.ops), ctx, grad, needs)
        if torch.is_grad_enabled():
            return _forward_backward(ctx.ops, ctx, grad, needs)
        with below_autograd():
            return _forward_backward(_library.quick(ctx.ops), ctx, grad, needs)


_apply = _library.eager(_EagerLinear)

SUPPORTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _is_served(input, weight, bias):
    """Whether the call is ours: of matrices and vectors; what broadcasts, or is no strided tensor, is left to torch."""
    try:
        if input.dtype not in SUPPORTED or weight.dim() == 1 or weight.layout is not torch.strided:
            return False
        # of a bias of another length, ours says so
        return bias is None or bias.shape == weight.shape[:1] or (bias.dim() == 1 and bias.shape[0] != 1)
    except AttributeError:  # no tensor: torch says so in its own words
        return False


def _by_torch(input, weight, bias, activation):
    _activations.check("linear", activation)
    return _activations.finished(F.linear(input, weight, bias), activation)


def linear(input, weight, bias=None, *, activation=None):
    """``input @ weight.T + bias``, as :func:`torch.nn.functional.linear`.

    Args:
        input: (..., in_features); float32, float64, bfloat16 or float16 on the CPU, with any strides (other dtypes and
            devices are served by torch). Sums are accumulated in float32 (float64 for float64), in blocks; float16 is
            copied to float32 and back.
        weight: (out_features, in_features), with any strides: a transpose is read where it lies.
        bias: (out_features,) or None. A bias that broadcasts and a weight of one dimension are served by torch.
        activation: keyword-only: None, ``"relu"`` or ``"sigmoid"``, applied to the result in the same pass.

    Returns:
        (..., out_features), contiguous. The result does not depend on the number of threads.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit.
        ValueError: an unknown activation.

    >>> F.linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([0.5]))
    tensor([[11.5000]])
    """
    if not is_compiling():
        output = _nodes.linear(input, weight, bias, activation)
        if output is not NotImplemented:
            return output
    if is_torchs(input, weight, bias):
        return _by_torch(input, weight, bias, activation)
    return linear_unasked(input, weight, bias, activation)


def linear_unasked(input, weight, bias, activation=None):
    """:func:`linear` for who has asked whether it is torch's (aside.py)."""
    _activations.check("linear", activation)
    ops = backend.ops_for(input, "linear") if _is_served(input, weight, bias) else None
    if ops is None:
        return _by_torch(input, weight, bias, activation)
    transforms = functorch_active()
    if transforms:
        ops = _library.transformed(ops)
    device_type = input.device.type
    if torch.is_autocast_enabled(device_type):
        input, weight, bias = lowered(device_type, input, weight, bias)
    adds = bias is not None and input.dim() != 2 and not input.is_contiguous()  # torch adds the bias by itself then
    if adds and (bias.dtype != input.dtype or input.dim() == 1):  # with dtypes promoted; the gradient of one row as is
        return _by_torch(input, weight, bias, activation)
    activation = activation or "none"
    if transforms or torch.compiler.is_compiling():
        return ops.linear_forward(input, weight, bias, activation)
    if torch.is_grad_enabled():
        return _apply(alive(input), alive(weight), None if bias is None else alive(bias), (ops, activation))
    with below_autograd():
        return _library.quick(ops).linear_forward(input, weight, bias, activation)
