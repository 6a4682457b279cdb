"""Schemas, fakes and derivatives of the losses of two tensors: for each, an op forward and an op backward."""

import torch

from pydl.ops import _library

# reduction: torch's numbers, 0 none, 1 mean, 2 sum. The numbers and weights are those of kernels/losses.h.
_OPTIONS = {
    "difference_loss": "float limit, float square, float linear, float offset",
    "binary_cross_entropy_with_logits": "Tensor? weight, Tensor? pos_weight",
}


def _second_of_difference(x, t, limit, square, linear, offset):
    return torch.where((x - t).abs() <= limit, 2 * square, 0)


def _second_of_cross_entropy(x, t, weight, pos_weight):
    s = torch.sigmoid(x)
    second = s * (1 - s) * (1 if pos_weight is None else 1 - t + pos_weight * t)
    return second if weight is None else second * weight


_SECOND = {
    "difference_loss": _second_of_difference,
    "binary_cross_entropy_with_logits": _second_of_cross_entropy,
}


def _forward_fake(input, target, reduction, *options):
    return input.new_empty(input.shape if reduction == 0 else ())


def _backward_fake(grad_output, input, *rest):
    return input.new_empty(input.shape)


def _of_input_alone(name, needs):
    """A gradient of anything else would be a zero without a word."""
    if any(needs):
        raise RuntimeError(f"{name}: expected input alone to need a gradient, got another tensor that does")


def _register(name, options):
    _library.define(f"{name}_forward", f"(Tensor input, Tensor target, int reduction, {options}) -> Tensor")
    _library.define(
        f"{name}_backward", f"(Tensor grad_output, Tensor input, Tensor target, int reduction, {options}) -> Tensor"
    )
    _library.fake(f"{name}_forward")(_forward_fake)
    _library.fake(f"{name}_backward")(_backward_fake)
    of_tensors = name != "difference_loss"

    def keep(ctx, tensors, reduction, options):
        ctx.reduction, ctx.options = reduction, None if of_tensors else options
        ctx.save_for_backward(*tensors, *(options if of_tensors else ()))

    def kept(ctx, tensors):
        saved = ctx.saved_tensors
        return *saved[:tensors], ctx.reduction, saved[tensors:] if of_tensors else ctx.options

    def context(ctx, inputs, output):
        input, target, reduction, *options = inputs
        keep(ctx, (input, target), reduction, options)

    def backward(ops, ctx, grad):
        input, target, reduction, options = kept(ctx, 2)
        nothing = (None,) * (2 + len(options))
        _of_input_alone(name, ctx.needs_input_grad[1:])
        return getattr(ops, f"{name}_backward")(grad, input, target, reduction, *options), *nothing

    def again_context(ctx, inputs, output):
        grad_output, input, target, reduction, *options = inputs
        keep(ctx, (grad_output, input, target), reduction, options)

    def again(ops, ctx, grad):
        grad_output, input, target, reduction, options = kept(ctx, 3)
        of_backward = getattr(ops, f"{name}_backward")
        _of_input_alone(name, ctx.needs_input_grad[2:])
        to_grad = to_input = None
        if ctx.needs_input_grad[0]:
            if reduction == 0:
                to_grad = of_backward(grad, input, target, reduction, *options)
            else:
                to_grad = (grad * of_backward(torch.ones_like(grad_output), input, target, reduction, *options)).sum()
        if ctx.needs_input_grad[1]:
            scale = 1 / max(input.numel(), 1) if reduction == 1 else 1
            to_input = grad * grad_output * scale * _SECOND[name](input, target, *options)
        return to_grad, to_input, None, None, *(None,) * len(options)

    _library.autograd(f"{name}_forward", context, backward)
    _library.autograd(f"{name}_backward", again_context, again)


for _name, _options in _OPTIONS.items():
    _register(_name, _options)
