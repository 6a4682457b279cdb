"""Rules of torch.func.vmap: how a batch of calls becomes one call.

A convolution is independent of the number of images and of groups: samples that share the weight become images, samples
with weights of their own become groups of channels. The channels of a batch norm are independent of each other.
Cross entropy has no rule: its loss and its denominator are reduced per call, so vmap calls it sample by sample.
"""

from pydl.ops import _library, batch_norm, conv2d  # noqa: F401  (which define the ops)


def _fold(tensor, dim, into, size):
    """The samples of ``tensor`` in front of what dimension ``into`` counts; a tensor without samples is repeated."""
    if tensor is None:
        return None
    tensor = tensor.unsqueeze(into).expand(*tensor.shape[:into], size, *tensor.shape[into:]) if dim is None else (
        tensor.movedim(dim, into)
    )  # fmt: skip
    return tensor.flatten(into, into + 1)


def _unfold(tensor, into, size):
    return tensor.unflatten(into, (size, tensor.shape[into] // size))


def _conv2d_forward(ops, info, in_dims, input, weight, bias, stride, padding, dilation, groups, *rest):
    size, shared = info.batch_size, in_dims[1] is None and in_dims[2] is None
    if shared:
        input = _fold(input, in_dims[0], 0, size)
    else:
        input, groups = _fold(input, in_dims[0], 1, size), groups * size
        weight, bias = _fold(weight, in_dims[1], 0, size), _fold(bias, in_dims[2], 0, size)
    output = ops.conv2d_forward(input, weight, bias, stride, padding, dilation, groups, *rest)
    into = 0 if shared else 1
    return _unfold(output, into, size), into


def _conv2d_backward_input(ops, info, in_dims, grad_output, weight, input_size, *options):
    size, (stride, padding, dilation, groups, channels_last) = info.batch_size, options
    into = 0 if in_dims[1] is None else 1
    if into == 1:
        weight, groups = _fold(weight, in_dims[1], 0, size), groups * size
    input_size = [length * size if d == into else length for d, length in enumerate(input_size)]
    grad_output = _fold(grad_output, in_dims[0], into, size)
    output = ops.conv2d_backward_input(
        grad_output, weight, input_size, stride, padding, dilation, groups, channels_last
    )
    return _unfold(output, into, size), into


def _conv2d_backward_weight(ops, info, in_dims, grad_output, input, weight_size, *options):
    size, (stride, padding, dilation, groups, channels_last) = info.batch_size, options
    output = ops.conv2d_backward_weight(
        _fold(grad_output, in_dims[0], 1, size),
        _fold(input, in_dims[1], 1, size),
        [weight_size[0] * size, *weight_size[1:]],
        stride,
        padding,
        dilation,
        groups * size,
        channels_last,
    )
    return _unfold(output, 0, size), 0


def _conv2d_backward_bias(ops, info, in_dims, grad_output):
    output = ops.conv2d_backward_bias(_fold(grad_output, in_dims[0], 1, info.batch_size))
    return _unfold(output, 0, info.batch_size), 0


def _batch_norm_forward(ops, info, in_dims, input, mean, var, weight, bias, residual, *rest):
    size = info.batch_size
    images = (_fold(t, d, 1, size) for t, d in ((input, in_dims[0]), (residual, in_dims[5])))
    channels = (_fold(t, d, 0, size) for t, d in zip((mean, var, weight, bias), in_dims[1:5], strict=True))
    input, residual = images
    output, mean, var = ops.batch_norm_forward(input, *channels, residual, *rest)
    return (_unfold(output, 1, size), _unfold(mean, 0, size), _unfold(var, 0, size)), (1, 0, 0)


_library.vmap("conv2d_forward", _conv2d_forward)
_library.vmap("conv2d_backward_input", _conv2d_backward_input)
_library.vmap("conv2d_backward_weight", _conv2d_backward_weight)
_library.vmap("conv2d_backward_bias", _conv2d_backward_bias)
_library.vmap("batch_norm_forward", _batch_norm_forward)
