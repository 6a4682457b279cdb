"""Schemas, fakes and derivatives of the functions of one number: for each, an op forward and an op backward."""

import math

import torch

from pydl.ops import _library
from pydl.ops._memory_format import product_strides

OPTIONS = {  # what an op takes beside its tensors
    "relu": "",
    "leaky_relu": ", float negative_slope",
    "sigmoid": "",
    "tanh": "",
    "gelu": ", bool tanh",  # by the approximation with a hyperbolic tangent
    "silu": "",
    "softplus": ", float beta, float threshold",
}
OF_OUTPUT = frozenset(("relu", "sigmoid", "tanh"))  # whose backward reads the output; the others' reads the input
OF_TWO_LINES = frozenset(("relu", "leaky_relu"))


def _forward_fake(input, *options):
    return input.new_empty_strided(input.shape, product_strides(input, input))


def _backward_fake(grad_output, saved, *options):
    return saved.new_empty_strided(saved.shape, product_strides(grad_output, saved))


def _of_two_lines_fake(grad_output, saved, *options):
    return saved.new_empty_strided(saved.shape, product_strides(saved, grad_output))  # torch's own order


# ---- second derivatives, in torch's ops: of input, or of output by output, whichever is saved


def _of_two_lines(saved, *options):
    return None


def _of_sigmoid(y):
    return 1 - 2 * y


def _of_tanh(y):
    return -2 * y


def _of_gelu(x, tanh):
    if not tanh:
        return (2 - x * x) * torch.exp(x * x * -0.5) / math.sqrt(2 * math.pi)
    linear = math.sqrt(2 / math.pi)
    cubic = 0.044715 * linear
    t = torch.tanh(x * (linear + cubic * x * x))
    slope = linear + 3 * cubic * x * x  # of what the hyperbolic tangent is given
    return (1 - t * t) * (slope + x * (3 * cubic * x - t * slope * slope))


def _of_silu(x):
    s = torch.sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def _of_softplus(x, beta, threshold):
    s = torch.sigmoid(x * beta)
    return torch.where(x * beta > threshold, 0, beta * s * (1 - s))


_SECOND = {
    "relu": _of_two_lines,
    "leaky_relu": _of_two_lines,
    "sigmoid": _of_sigmoid,
    "tanh": _of_tanh,
    "gelu": _of_gelu,
    "silu": _of_silu,
    "softplus": _of_softplus,
}


def _register(name, options):
    _library.define(f"{name}_forward", f"(Tensor input{options}) -> Tensor")
    _library.define(f"{name}_backward", f"(Tensor grad_output, Tensor saved{options}) -> Tensor")
    _library.fake(f"{name}_forward")(_forward_fake)
    _library.fake(f"{name}_backward")(_of_two_lines_fake if name in OF_TWO_LINES else _backward_fake)

    def context(ctx, inputs, output):
        ctx.options = inputs[1:]
        ctx.save_for_backward(output if name in OF_OUTPUT else inputs[0])

    def backward(ops, ctx, grad):
        return getattr(ops, f"{name}_backward")(grad, *ctx.saved_tensors, *ctx.options), *(None,) * len(ctx.options)

    def again_context(ctx, inputs, output):
        grad_output, saved, *ctx.options = inputs
        ctx.save_for_backward(grad_output, saved)

    def again(ops, ctx, grad):
        grad_output, saved = ctx.saved_tensors
        needs_grad, needs_saved = ctx.needs_input_grad[:2]
        to_grad = getattr(ops, f"{name}_backward")(grad, saved, *ctx.options) if needs_grad else None
        slope = _SECOND[name](saved, *ctx.options) if needs_saved else None
        to_saved = None if slope is None else grad * grad_output * slope
        return to_grad, to_saved, *(None,) * len(ctx.options)

    _library.autograd(f"{name}_forward", context, backward)
    _library.autograd(f"{name}_backward", again_context, again)
    _library.vmap_of_rows(f"{name}_forward", f"{name}_backward")


for _name, _options in OPTIONS.items():
    _register(_name, _options)
