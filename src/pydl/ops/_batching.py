"""Rules of torch.func.vmap: how a batch of calls becomes one call.

A convolution is independent of the number of images and of groups: samples that share the weight become images, samples
with weights of their own become groups of channels. The channels of a batch norm are independent of each other, and
the images of a pooling. Rows that share a matrix are rows of one product, matrices that share the rows are columns of
one, and products of every sample with a matrix of its own are a batch of products. The rows of a layer norm are
independent; what samples have parameters of their own is multiplied after it. Ops of one tensor have their rule in
their own file (``_library.vmap_of_rows``).
Cross entropy, with a linear layer in it or without, has no rule: its loss and its denominator are reduced per call, so
vmap calls it sample by sample.
"""

from functools import partial

import torch

from pydl.ops import (  # noqa: F401  (which define the ops)
    _group_norm_autograd,
    _library,
    avg_pool2d,
    batch_norm,
    conv2d,
    conv3d,
    layer_norm,
    linear,
    matmul,
    max_pool2d,
    pool3d,
)


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


def _convolution_forward(op, ops, info, in_dims, input, weight, bias, stride, padding, dilation, groups, *rest):
    size, shared = info.batch_size, in_dims[1] is None and in_dims[2] is None
    if shared:
        input = _fold(input, in_dims[0], 0, size)
    else:
        input, groups = _fold(input, in_dims[0], 1, size), groups * size
        weight, bias = _fold(weight, in_dims[1], 0, size), _fold(bias, in_dims[2], 0, size)
    output = getattr(ops, f"{op}_forward")(input, weight, bias, stride, padding, dilation, groups, *rest)
    into = 0 if shared else 1
    return _unfold(output, into, size), into


def _convolution_backward_input(op, ops, info, in_dims, grad_output, weight, input_size, *options):
    size, (stride, padding, dilation, groups, channels_last) = info.batch_size, options
    into = 0 if in_dims[1] is None else 1
    if into == 1:
        weight, groups = _fold(weight, in_dims[1], 0, size), groups * size
    input_size = [length * size if d == into else length for d, length in enumerate(input_size)]
    grad_output = _fold(grad_output, in_dims[0], into, size)
    output = getattr(ops, f"{op}_backward_input")(
        grad_output, weight, input_size, stride, padding, dilation, groups, channels_last
    )
    return _unfold(output, into, size), into


def _convolution_backward_weight(op, ops, info, in_dims, grad_output, input, weight_size, *options):
    size, (stride, padding, dilation, groups, channels_last) = info.batch_size, options
    output = getattr(ops, f"{op}_backward_weight")(
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


def _batch_norm_update_stats(ops, info, in_dims, running_mean, running_var, mean, var, count, momentum):
    if (in_dims[0] is None and in_dims[2] is not None) or (in_dims[1] is None and in_dims[3] is not None):
        raise RuntimeError(
            "batch_norm: expected running_mean and running_var to be batched where the input is, since they are "
            "written to, got one that vmap does not batch"
        )
    mean, var = (_fold(t, d, 0, info.batch_size) for t, d in zip((mean, var), in_dims[2:4], strict=True))
    running = [t.movedim(d, 0) for t, d in zip((running_mean, running_var), in_dims[:2], strict=True)]
    flat = [t.flatten() for t in running]  # copies, where the samples do not lie one after the other
    ops.batch_norm_update_stats(*flat, mean, var, count, momentum)
    for t, new in zip(running, flat, strict=True):
        if new.data_ptr() != t.data_ptr():
            t.copy_(new.view_as(t))
    return None, None


def _max_pool(op, ops, info, in_dims, input, *options):
    size, wants_places = info.batch_size, options[-1]
    output, *places = getattr(ops, op)(_fold(input, in_dims[0], 0, size), *options)
    if wants_places:
        places = [_unfold(t, 0, size) for t in places]
    return (_unfold(output, 0, size), *places), (0, *(0 if wants_places else None for _ in places))


def _pool_images(op, tensors, ops, info, in_dims, *args):
    """Of an op whose first arguments are so many tensors of images."""
    size = info.batch_size
    folded = [_fold(t, d, 0, size) for t, d in zip(args[:tensors], in_dims[:tensors], strict=True)]
    return _unfold(getattr(ops, op)(*folded, *args[tensors:]), 0, size), 0


def _pool_backward(op, tensors, ops, info, in_dims, *args):
    """The same with the input's size behind the tensors."""
    batch, *rest = args[tensors]
    args = *args[:tensors], [batch * info.batch_size, *rest], *args[tensors + 1 :]
    return _pool_images(op, tensors, ops, info, in_dims, *args)


def _first(tensor, dim):
    """``tensor`` with its samples in front; as it is, and so for every sample, where it has none."""
    return tensor if dim is None else tensor.movedim(dim, 0)


def _rows(tensor, dim):
    """As a matrix, or one for each sample: all dimensions but the last are rows."""
    tensor = _first(tensor, dim)
    samples = 0 if dim is None else 1
    return tensor.unsqueeze(samples) if tensor.dim() == samples + 1 else tensor.flatten(samples, -2)


def _beside(tensor, dim):
    """The samples' last dimensions one after another: rows of a matrix that has all of them."""
    return tensor.movedim(dim, -2).flatten(-2)


def _product(ops, left, right):
    return ops.matmul(left, right, None, 1.0, 1.0, False)


def _linear_forward(ops, info, in_dims, input, weight, bias, activation):
    of_input, of_weight, of_bias, _ = in_dims
    size = info.batch_size
    if of_weight is None and of_bias is None:
        return ops.linear_forward(input.movedim(of_input, 0), weight, bias, activation), 0
    if of_input is None and of_weight is not None:
        weight, bias = _fold(weight, of_weight, 0, size), _fold(bias, of_bias, 0, size)
        output = ops.linear_forward(input, weight, bias, activation)
        return output.unflatten(-1, (size, output.shape[-1] // size)), output.dim() - 1
    output = _product(ops, _rows(input, of_input), _first(weight, of_weight).mT)
    if bias is not None:
        output = output + (bias if of_bias is None else _first(bias, of_bias).unsqueeze(1))
    output = {"none": lambda x: x, "relu": torch.relu, "sigmoid": torch.sigmoid}[activation](output)
    shape = _first(input, of_input).shape[(of_input is not None) : -1]
    return output.reshape(size, *shape, output.shape[-1]), 0


def _linear_backward_input(ops, info, in_dims, grad_output, weight, column_major):
    of_grad, of_weight, _ = in_dims
    if of_weight is None:
        return ops.linear_backward_input(grad_output.movedim(of_grad, 0), weight, False), 0
    grad_input = _product(ops, _rows(grad_output, of_grad), _first(weight, of_weight))
    shape = _first(grad_output, of_grad).shape[(of_grad is not None) : -1]
    return grad_input.reshape(info.batch_size, *shape, grad_input.shape[-1]), 0


def _linear_backward_weight(ops, info, in_dims, grad_output, input, column_major, in_float32=False):
    of_grad, of_input, *_ = in_dims
    if of_input is None:
        grad_weight = ops.linear_backward_weight(_beside(grad_output, of_grad), input, False, in_float32)
        return _unfold(grad_weight, 0, info.batch_size), 0
    grad_weight = _product(ops, _rows(grad_output, of_grad).mT, _rows(input, of_input))
    return grad_weight.float() if in_float32 and grad_weight.dtype == torch.bfloat16 else grad_weight, 0


def _linear_backward_bias(ops, info, in_dims, grad_output):
    return _unfold(ops.linear_backward_bias(_beside(grad_output, in_dims[0])), 0, info.batch_size), 0


def _matmul(ops, info, in_dims, left, right, addend, beta, alpha, column_major):
    tensors, own = (left, right, addend), in_dims[:3]
    ranks = [0 if t is None else t.dim() - (dim is not None) for t, dim in zip(tensors, own, strict=True)]

    def samples_first(tensor, dim, rank):
        """With the samples in front of all dimensions that any of the tensors has."""
        if dim is None:
            return tensor
        tensor = tensor.movedim(dim, 0)
        return tensor.reshape(tensor.shape[0], *(1,) * (max(ranks) - rank), *tensor.shape[1:])

    tensors = map(samples_first, tensors, own, ranks)
    return ops.matmul(*tensors, beta, alpha, False), 0


def _beside_rows(parameter, dim, rank):
    """A parameter of each sample, so that it broadcasts over the ``rank`` dimensions of a sample."""
    parameter = parameter.movedim(dim, 0)
    return parameter.reshape(parameter.shape[0], *(1,) * (rank + 1 - parameter.dim()), *parameter.shape[1:])


def _norm_forward(op, info, in_dims, input, parameters, dims, eps):
    """``parameters``: weight, and the bias of a layer norm."""
    input, of = _library.samples(input, in_dims[0], info.batch_size), in_dims[1 : 1 + len(parameters)]
    own = any(dim is not None for dim in of)
    output, stats = op(input, *((None,) * len(parameters) if own else parameters), dims, eps)
    if own:
        weight, bias = (
            p if dim is None else _beside_rows(p, dim, input.dim() - 1)
            for p, dim in ((*zip(parameters, of, strict=True), (None, None))[:2])
        )
        output = output if weight is None else output * weight
        output = (output if bias is None else output + bias).to(input.dtype)
    return (output, _unfold(stats, 1, info.batch_size)), (0, 1)


def _norm_backward(op, info, in_dims, grad_output, input, stats, weight, dims, eps, *needs):
    size, (need_input, *of_parameters) = info.batch_size, needs
    grad, input = (_library.samples(t, dim, size) for t, dim in zip((grad_output, input), in_dims[:2], strict=True))
    stats = _library.samples(stats, in_dims[2], size).transpose(0, 1).contiguous()
    upstream, shared = grad, weight
    if in_dims[3] is not None:
        upstream = (grad * _beside_rows(weight, in_dims[3], grad.dim() - 1)).to(grad.dtype)
        shared = None
    none = (False,) * len(of_parameters)
    to_input, *empty = op(upstream, input, stats.flatten(1), shared, dims, eps, need_input, *none)
    rows = list(range(1, input.dim() - dims))
    *mean, scale = (t.reshape(*input.shape[: input.dim() - dims], *(1,) * dims) for t in stats)
    normalised = (input.double() - (mean[0] if mean else 0.0)) * scale
    dtype = input.dtype if weight is None else weight.dtype
    found = []
    for need, product, nothing in zip(of_parameters, (grad * normalised, grad.double()), empty, strict=False):
        total = product.sum(rows) if rows else product
        found.append(total.to(dtype) if need else nothing)
    out_dims = [0 if need else None for need in needs]
    return (to_input, *found), tuple(out_dims)


def _layer_norm_forward(ops, info, in_dims, input, weight, bias, dims, eps):
    return _norm_forward(ops.layer_norm_forward, info, in_dims, input, (weight, bias), dims, eps)


def _rms_norm_forward(ops, info, in_dims, input, weight, dims, eps):
    return _norm_forward(ops.rms_norm_forward, info, in_dims, input, (weight,), dims, eps)


def _layer_norm_backward(ops, info, in_dims, *args):
    return _norm_backward(ops.layer_norm_backward, info, in_dims, *args)


def _rms_norm_backward(ops, info, in_dims, *args):
    return _norm_backward(ops.rms_norm_backward, info, in_dims, *args)


def _of_channels(parameter, dim, rank):
    """A parameter of each sample's channels, so that it broadcasts over samples of ``rank`` dimensions, (N, C, ...)."""
    return parameter.movedim(dim, 0)[(slice(None), None, slice(None), *(None,) * (rank - 2))]


def _group_norm_forward(ops, info, in_dims, input, weight, bias, *options):
    """Samples of vmap are more samples of a group norm; parameters of their own are multiplied after it."""
    size, of = info.batch_size, in_dims[1:3]
    input, own = _library.samples(input, in_dims[0], size), any(dim is not None for dim in of)
    shared = (None, None) if own else (weight, bias)
    output, stats = ops.group_norm_forward(input.flatten(0, 1), *shared, *options)
    output = _unfold(output, 0, size)
    if own:
        weight, bias = (
            p if p is None else _of_channels(p.expand(size, -1) if dim is None else p, dim or 0, input.dim() - 1)
            for p, dim in zip((weight, bias), of, strict=True)
        )
        output = output * weight
        output = (output if bias is None else output + bias).to(input.dtype)
    return (output, _unfold(stats, 1, size)), (0, 1)


def _group_norm_backward(ops, info, in_dims, grad, input, stats, weight, groups, eps, channels_last, *needs):
    size, (need_input, *of_parameters) = info.batch_size, needs
    grad, input = (_library.samples(t, dim, size) for t, dim in zip((grad, input), in_dims[:2], strict=True))
    stats = _library.samples(stats, in_dims[2], size).transpose(0, 1).contiguous()  # (2, size, N, groups)
    upstream, shared = grad, weight
    if in_dims[3] is not None:
        upstream, shared = (grad * _of_channels(weight, in_dims[3], grad.dim() - 1)).to(grad.dtype), None
    folded = (t.flatten(0, 1) for t in (upstream, input))
    to_input, *empty = ops.group_norm_backward(
        *folded, stats.flatten(1, 2), shared, groups, eps, channels_last, need_input, False, False
    )
    mean, scale = stats.unsqueeze(-1)
    normalised = ((input.double().reshape(*mean.shape[:-1], -1) - mean) * scale).reshape(input.shape)
    rows, dtype = [1, *range(3, input.dim())], input.dtype if weight is None else weight.dtype
    found = [
        product.sum(rows).to(dtype) if need else nothing
        for need, product, nothing in zip(of_parameters, (grad * normalised, grad.double()), empty, strict=True)
    ]
    to_input = _unfold(to_input, 0, size) if need_input else to_input
    return (to_input, *found), tuple(0 if need else None for need in needs)


_library.vmap("group_norm_forward", _group_norm_forward)
_library.vmap("group_norm_backward", _group_norm_backward)
_library.vmap("layer_norm_backward", _layer_norm_backward)
_library.vmap("rms_norm_backward", _rms_norm_backward)
_library.vmap("layer_norm_forward", _layer_norm_forward)
_library.vmap("rms_norm_forward", _rms_norm_forward)


_library.vmap("matmul", _matmul)
for _dims, _places in ((2, 1), (3, 2)):
    _library.vmap(f"avg_pool{_dims}d", partial(_pool_images, f"avg_pool{_dims}d", 1))
    _library.vmap(f"avg_pool{_dims}d_backward", partial(_pool_backward, f"avg_pool{_dims}d_backward", 1))
    _library.vmap(f"max_pool{_dims}d", partial(_max_pool, f"max_pool{_dims}d"))
    _library.vmap(f"max_pool{_dims}d_backward", partial(_pool_backward, f"max_pool{_dims}d_backward", 1 + _places))
    _library.vmap(f"max_pool{_dims}d_gather", partial(_pool_images, f"max_pool{_dims}d_gather", 1 + _places))
for _name in ("conv2d", "conv3d"):
    _library.vmap(f"{_name}_forward", partial(_convolution_forward, _name))
    _library.vmap(f"{_name}_backward_input", partial(_convolution_backward_input, _name))
    _library.vmap(f"{_name}_backward_weight", partial(_convolution_backward_weight, _name))
_library.vmap("conv2d_backward_bias", _conv2d_backward_bias)
_library.vmap("batch_norm_forward", _batch_norm_forward)
_library.vmap("batch_norm_update_stats", _batch_norm_update_stats)
_library.vmap("linear_forward", _linear_forward)
_library.vmap("linear_backward_input", _linear_backward_input)
_library.vmap("linear_backward_weight", _linear_backward_weight)
_library.vmap("linear_backward_bias", _linear_backward_bias)
