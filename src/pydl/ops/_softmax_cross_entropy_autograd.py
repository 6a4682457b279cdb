"""The schemas, fakes and derivatives of softmax_cross_entropy's ops."""

from types import SimpleNamespace

import torch

from pydl.ops import _library

# reduction: torch's numbers, 0 none, 1 mean, 2 sum. weight is in the dtype that sums are kept in (float32, or float64
# for float64 input). float_output: the loss of half inputs in float32, as under autocast. norm (2, *rows) holds max
# and log Σ exp(x - max) of each row, in the dtype of the sums; denominator (float64) is what the mean divides by.
_library.define(
    "softmax_cross_entropy_forward",
    "(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index, float label_smoothing, "
    "float z_loss, bool float_output=False) -> (Tensor output, Tensor norm, Tensor denominator)",
    triton="softmax.softmax_cross_entropy",
)
# The same, and the input's gradient for an upstream gradient of 1 (mean and sum, class indices).
_library.define(
    "softmax_cross_entropy_forward_backward",
    "(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index, float label_smoothing, "
    "float z_loss, bool float_output=False) -> (Tensor output, Tensor norm, Tensor denominator, Tensor grad_input)",
    triton="softmax.softmax_cross_entropy",
)
_library.define(
    "softmax_cross_entropy_backward",
    "(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, Tensor norm, Tensor denominator, int reduction, "
    "int ignore_index, float label_smoothing, float z_loss) -> Tensor",
    triton="softmax.softmax_cross_entropy",
)
# The gradient of class probabilities.
_library.define(
    "softmax_cross_entropy_backward_target",
    "(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, Tensor norm, Tensor denominator, int reduction, "
    "float label_smoothing) -> Tensor",
    triton="softmax.softmax_cross_entropy",
)


@_library.fake("softmax_cross_entropy_forward")
def _fake_forward(input, target, weight, reduction, ignore_index, label_smoothing, z_loss, float_output=False):
    rows = _row_sizes(input)
    dtype = torch.float32 if float_output and input.dtype != torch.float64 else input.dtype
    output = input.new_empty(rows if reduction == 0 else (), dtype=dtype)
    return output, input.new_empty((2, *rows), dtype=kept_dtype(input.dtype)), input.new_empty((), dtype=torch.float64)


@_library.fake("softmax_cross_entropy_forward_backward")
def _(input, *args):
    return *_fake_forward(input, *args), input.new_empty(input.shape)  # row-major, as torch's always is


@_library.fake("softmax_cross_entropy_backward")
def _(grad_output, input, target, *_):
    return input.new_empty(input.shape)


@_library.fake("softmax_cross_entropy_backward_target")
def _(grad_output, input, target, *_):
    return target.new_empty(target.shape)


def kept_dtype(dtype):
    """The dtype that sums are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _row_sizes(input):
    """The input's sizes without its classes."""
    return input.shape[:0] if input.dim() == 1 else input.shape[:1] + input.shape[2:]


def _setup_context(ctx, inputs, output):
    input, target, weight, ctx.reduction, ctx.ignore_index, ctx.label_smoothing, ctx.z_loss, _ = inputs
    _, norm, denominator = output
    ctx.mark_non_differentiable(norm, denominator)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, target, weight, norm, denominator)


def backward(ops, ctx, grad_output, *_, first=0):
    input, target, weight, norm, denominator = ctx.saved_tensors
    needs_input, needs_target = ctx.needs_input_grad[first : first + 2]
    grad_input = grad_target = None
    if grad_output is None:
        pass
    elif torch.is_grad_enabled() or _library.transforms_active():  # a gradient to be differentiated or batched
        grad_input, grad_target = differentiable_backward(
            ctx, grad_output, input, target, weight, needs_input, needs_target
        )
    else:
        if needs_input:
            grad_input = ops.softmax_cross_entropy_backward(
                grad_output,
                input,
                target,
                weight,
                norm,
                denominator,
                ctx.reduction,
                ctx.ignore_index,
                ctx.label_smoothing,
                ctx.z_loss,
            )
        if needs_target:
            grad_target = ops.softmax_cross_entropy_backward_target(
                grad_output, input, target, weight, norm, denominator, ctx.reduction, ctx.label_smoothing
            )
    return grad_input, grad_target, None, None, None, None, None, None


def differentiable_backward(ctx, grad_output, input, target, weight, needs_input, needs_target):
    """The formulas of kernels/softmax_cross_entropy.h in torch's own functions, which autograd can follow further.

    ``ctx`` has the options as attributes.
    """
    dim = 0 if input.dim() == 1 else 1
    dtype = kept_dtype(input.dtype)
    classes = input.shape[dim]
    x = input.to(dtype)
    w = 1.0 if weight is None else weight.view([-1 if d == dim else 1 for d in range(input.dim())])
    hit, smooth = 1.0 - ctx.label_smoothing, ctx.label_smoothing / max(classes, 1)
    if target.is_floating_point():
        valid = None
        q = w * (hit * target.to(dtype) + smooth)
        denominator = x.numel() / max(classes, 1)
    else:
        index = target.reshape(()) if dim == 0 else target
        valid = (index != ctx.ignore_index).unsqueeze(dim)
        index = torch.where(index != ctx.ignore_index, index, 0).unsqueeze(dim)
        one_hot = torch.zeros_like(x).scatter(dim, index, 1.0)
        q = hit * w * one_hot + smooth * w
        denominator = (w * one_hot * valid).sum()
    lse = torch.logsumexp(x, dim, keepdim=True)
    grad = grad_output.to(dtype)
    grad = grad.unsqueeze(dim) if ctx.reduction == 0 else grad / denominator if ctx.reduction == 1 else grad
    grad_input = grad_target = None
    if needs_input:
        grad_input = grad * ((q.sum(dim, keepdim=True) + 2 * ctx.z_loss * lse) * torch.exp(x - lse) - q)
        grad_input = (grad_input if valid is None else torch.where(valid, grad_input, 0.0)).to(input.dtype)
    if needs_target:
        grad_target = (grad * hit * w * (lse - x)).to(target.dtype)
    return grad_input, grad_target


def input_gradient(grad_output, input, target, reduction, ignore_index, label_smoothing, z_loss):
    """The input's gradient of class indices without weights, for csrc/autograd: see differentiable_backward."""
    options = SimpleNamespace(
        reduction=reduction, ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss
    )
    return differentiable_backward(options, grad_output, input, target, None, True, False)[0]


_library.autograd("softmax_cross_entropy_forward", _setup_context, backward)


def _refuse_double_backward(ops, ctx, *grads):
    raise RuntimeError(
        "cross_entropy: expected gradients of gradients to be taken with create_graph=True through cross_entropy, got "
        "a derivative of its backward op"
    )


# Without this a second derivative of the backward ops would be zero, in silence.
_library.autograd("softmax_cross_entropy_backward", lambda ctx, inputs, output: None, _refuse_double_backward)
_library.autograd("softmax_cross_entropy_backward_target", lambda ctx, inputs, output: None, _refuse_double_backward)


class Transformable(torch.autograd.Function):
    """The op for torch.func's transforms, which take no other form; vmap runs it sample by sample."""

    generate_vmap_rule = True

    @staticmethod
    def forward(ops, *args):
        return ops.softmax_cross_entropy_forward(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.ops = inputs[0]
        _setup_context(ctx, inputs[1:], output)

    @staticmethod
    def backward(ctx, *grads):
        return None, *backward(ctx.ops, ctx, *grads, first=1)

    @staticmethod
    def jvp(ctx, *tangents):
        raise NotImplementedError("cross_entropy: expected gradients in reverse mode, got a forward-mode tangent")
