"""The schemas of the norms of rows, and their fakes: shapes, dtypes and strides without data."""

import torch

from pydl.ops import _library

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
HALF = (torch.bfloat16, torch.float16)


def check(op, condition, message):
    if not condition:
        raise RuntimeError(f"{op}: expected {message}")


def _check_parameter(op, name, input, parameter, dims):
    normalised = tuple(input.shape[input.dim() - dims :])
    check(
        op,
        tuple(parameter.shape) == normalised,
        f"{name} to be of shape {normalised}, got {tuple(parameter.shape)}",
    )
    is_half = input.dtype in HALF
    check(
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
        check("layer_norm", bias.dtype == like.dtype, message)
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
