"""What a rewritten graph calls beside the functions of ``pydl.functional``, in eager mode."""

import torch

from pydl import functional
from pydl.aside import is_torchs
from pydl.ops.convolution_batch_norm import folded, folding_pays, trained

# From this many logits on, the last layer and the loss are one call: below, two small calls are as quick (NOTES.md).
WORTH_ONE_CALL = 1 << 20


def convolution_batch_norm(
    input,
    weight,
    bias,
    options,
    running_mean,
    running_var,
    norm_weight,
    norm_bias,
    training,
    momentum,
    eps,
    residual,
    activation,
    num_batches_tracked,
    transposed=False,
):
    """activation(batch_norm(conv2d(input)) + residual), as ``swap`` computes a chain of layers.

    In training one node of the autograd graph, two if the convolution is transposed. In evaluation without gradients
    the batch norm is folded into the weights, at each call from what they hold then, where that costs less than the
    pass over the output that it saves.

    Args:
        options: stride, padding, dilation and groups of the convolution; of a transposed one stride, padding,
            output_padding, groups and dilation.
    """
    norm = (running_mean, running_var, norm_weight, norm_bias)
    convolve = functional.conv_transpose2d if transposed else functional.conv2d
    rest = {"residual": residual, "activation": activation, "num_batches_tracked": num_batches_tracked}
    if not is_torchs(input, weight, bias, norm_weight, norm_bias, residual):
        groups = options[3] if transposed else None
        if training is True and not transposed:
            output = trained(input, weight, bias, options, *norm, momentum, eps, *rest.values())
            if output is not None:
                return output
        elif (
            training is False
            and residual is None
            and folding_pays(input, weight, options[0], running_mean, running_var, groups)
        ):
            weight, bias = folded(weight, bias, *norm, eps, groups)
            return convolve(input, weight, bias, *options, activation=activation)
    output = convolve(input, weight, bias, *options)
    return functional.batch_norm(output, *norm, training, momentum, eps, **rest)


def linear_cross_entropy(input, linear_weight, linear_bias, target, *arguments):
    """cross_entropy(linear(input, ...), target, *arguments), in one call where the logits are large.

    Args:
        arguments: of :func:`pydl.functional.cross_entropy` behind the target.
    """
    class_weight, _, ignore_index, _, reduction, label_smoothing = arguments
    if input.dim() == 2 and not target.is_floating_point() and input.shape[0] * linear_weight.shape[0] > WORTH_ONE_CALL:
        return functional.linear_cross_entropy(
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=class_weight,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
        )
    logits = functional.linear(input, linear_weight, linear_bias)
    return functional.cross_entropy(logits, target, *arguments)


def checkpointed(changed, body, *args, context_fn=None, **options):
    """What ``torch.utils.checkpoint`` does with a graph that TorchDynamo recorded inside it.

    Args:
        changed: the numbers of those ``args`` that the graph writes to: buffers, which were the function's own, and
            which its second run finds as they are then.
        body: the graph module.
        context_fn: of a selective checkpoint.
        options: of ``torch.utils.checkpoint.checkpoint``.
    """
    options |= {} if context_fn is None else {"context_fn": context_fn}
    options["use_reentrant"] = False  # as under torch.compile with any backend
    buffers = [args[i] for i in changed]

    def function(*inputs):
        inputs = list(inputs)
        for i, buffer in zip(changed, buffers, strict=True):
            inputs.insert(i, buffer)
        return body.forward(*inputs)

    inputs = (argument for i, argument in enumerate(args) if i not in changed)
    return torch.utils.checkpoint.checkpoint(function, *inputs, **options)
