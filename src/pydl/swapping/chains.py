"""Chains of layers that one kernel computes, and the layers that may be links of one.

    convolution → ReLU or sigmoid                       the activation is applied as the convolution stores its result
    batch norm (→ + residual) (→ ReLU or sigmoid)       one pass over the tensor instead of two or three
    convolution → batch norm (→ all of that)            in evaluation without gradients: the batch norm is folded into
                                                        the convolution's weights if there is no residual; else as
                                                        above, and in training one node of the graph (training.py)

What is saved is the reading and writing of whole intermediate tensors, and their allocation.
"""

from dataclasses import dataclass, field

import torch
from torch.nn.utils.parametrize import is_parametrized

from pydl import functional, nn
from pydl.ops import _library
from pydl.swapping.binding import is_swapped
from pydl.swapping.served import why_left
from pydl.swapping.training import trained_together

_CONVOLUTIONS = {torch.nn.Conv2d, nn.Conv2d}
_NORMS = {
    cls
    for name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
    for cls in (getattr(torch.nn, name), getattr(nn, name))
}
_ROLES = {
    **dict.fromkeys(_CONVOLUTIONS, "convolution"),
    **dict.fromkeys(_NORMS, "norm"),
    torch.nn.ReLU: "relu",
    torch.nn.Sigmoid: "sigmoid",
}
ACTIVATIONS = ("relu", "sigmoid")
_LAZY = {torch.nn.LazyConv2d, torch.nn.LazyBatchNorm1d, torch.nn.LazyBatchNorm2d, torch.nn.LazyBatchNorm3d}
_LAZY |= {getattr(nn, cls.__name__) for cls in _LAZY}


def has_hooks(attributes):
    """Whether a module with this ``__dict__`` has hooks of any kind: its call is then more than its forward."""
    return bool(
        attributes["_forward_hooks"]
        or attributes["_forward_pre_hooks"]
        or attributes["_backward_hooks"]
        or attributes["_backward_pre_hooks"]
    )


def role(layer):
    """``convolution``, ``norm``, ``relu`` or ``sigmoid`` for a layer that may be a link of a chain, else None.

    By exact type, since a subclass may compute something else; parametrised and lazy layers have the role of what they
    are made from, so that the report can say why they are left alone (:func:`why_not_linked`).
    """
    cls = type(layer)
    if cls in _LAZY:
        return _ROLES[cls.cls_to_become]
    return _ROLES.get(cls.__bases__[0] if is_parametrized(layer) else cls)


def why_not_linked(layer):
    """Why a layer that has a role is called by itself; None where it may be a link of a chain."""
    if has_hooks(layer.__dict__):
        return "has not seen its first input" if type(layer) in _LAZY else "has hooks"
    if is_parametrized(layer):
        return "parametrised"
    if type(layer) in _ROLES and type(layer).__module__.startswith("torch.") and role(layer) not in ACTIVATIONS:
        return None if is_swapped(layer) else why_left(layer) or "not swapped"
    return "its forward was replaced on the instance" if "forward" in layer.__dict__ else None


@dataclass(eq=False)
class Chain:
    """One call in the place of several; a link that is absent is None."""

    convolution: torch.nn.Module | None = None
    norm: torch.nn.Module | None = None
    add: object = None  # the function that adds the residual to the norm's result: operator.add, or in place
    activation: str | None = None
    names: list = field(default_factory=list)  # of the links in order: paths of layers, and "relu()" for functions
    folded: "Folded | None" = None  # by pydl.freeze

    def __call__(self, input, residual=None):
        convolution, norm = self.convolution, self.norm
        if norm is None:
            return nn.Conv2d.forward(convolution, input, activation=self.activation)
        if convolution is not None:
            if self.folded is not None and self.folded.holds(convolution, norm):
                return self.folded(convolution, input, self.activation)
            if self.add is None and _folding_pays(convolution, norm, input):
                return Folded(convolution, norm)(convolution, input, self.activation)
            if norm.training and (residual is None) == (self.add is None):
                output = trained_together(convolution, norm, input, residual, self.activation)
                if output is not None:
                    return output
            input = nn.Conv2d.forward(convolution, input)
        if self.add is None:
            return nn.BatchNorm2d.forward(norm, input, activation=self.activation)
        if (
            isinstance(residual, torch.Tensor)
            and residual.shape == input.shape
            and residual.dtype == input.dtype
            and residual.device == input.device
        ):
            return nn.BatchNorm2d.forward(norm, input, residual=residual, activation=self.activation)
        output = self.add(nn.BatchNorm2d.forward(norm, input), residual)  # it broadcasts or promotes: torch's to decide
        return output if self.activation is None else getattr(torch, self.activation)(output)

    def kernels(self):
        """What the report says, for the mode the norm is in: (names of the links that one kernel computes, remark)."""
        if self.convolution is None or self.norm is None:
            return [(self.names, "")]
        if self.norm.training or self.add is not None:
            return [(self.names[1:], "")]
        if self.folded is not None:
            return [(self.names, ", folded into the weights by freeze")]
        return [(self.names, ", folded into the weights where no gradient is asked for and it pays")]

    def freeze(self):
        """Folds the norm into the convolution's weights now, to be used as long as neither has changed."""
        if self.convolution is None or self.norm is None or self.add is not None:
            return
        if _foldable(self.convolution, self.norm):
            with torch.no_grad():
                self.folded = Folded(self.convolution, self.norm)


def _foldable(convolution, norm):
    return (
        not norm.training
        and norm.running_mean is not None
        and norm.running_var is not None
        and type(convolution.weight) in (torch.Tensor, torch.nn.Parameter)
        and convolution.weight.dtype == norm.running_var.dtype
        and convolution.weight.is_floating_point()
    )


def _folding_pays(convolution, norm, input):
    """Whether folding at this call costs less than the pass over the output that it saves.

    Measured on two cores: folding takes 30 µs and a nanosecond for 15 weights, the pass 14 µs and a nanosecond for 15
    numbers. Gradients would have to flow through the folding, so it waits for evaluation without them.
    """
    if norm.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or input.dim() != 4:
        return False
    weight = convolution.weight
    y, x = convolution.stride
    output = input.numel() // (convolution.in_channels * y * x) * convolution.out_channels
    return (
        output > weight.numel() + (1 << 18)
        and input.dtype == weight.dtype
        and not torch.is_autocast_enabled(input.device.type)
        and not _library.transforms_active()
        and _foldable(convolution, norm)
    )


class Folded:
    """A convolution's weight and bias with an evaluating batch norm in them.

    With s = weight / sqrt(running_var + eps): norm(conv(x)) = conv(x; W s) + (b - running_mean) s + bias.
    """

    def __init__(self, convolution, norm):
        dtype = norm.running_var.dtype
        # in float64 the square root and the product are exact to the last place of the result
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        shift = -norm.running_mean.double() * scale
        if convolution.bias is not None:
            shift = shift + convolution.bias.double() * scale
        if norm.bias is not None:
            shift = shift + norm.bias.double()
        self.weight = convolution.weight * scale.to(dtype).view(-1, 1, 1, 1)
        self.bias = shift.to(dtype)
        self.made_of = _made_of(convolution, norm)

    def holds(self, convolution, norm):
        """Whether it may be used now: evaluation without gradients, and the same tensors, not written to since."""
        return (
            not norm.training
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled(self.weight.device.type)
            and _same(self.made_of, _made_of(convolution, norm))
        )

    def __call__(self, convolution, input, activation):
        padding = convolution.padding
        if convolution.padding_mode != "zeros":
            pad = convolution._reversed_padding_repeated_twice
            input, padding = torch.nn.functional.pad(input, pad, mode=convolution.padding_mode), (0, 0)
        return functional.conv2d(
            input,
            self.weight,
            self.bias,
            convolution.stride,
            padding,
            convolution.dilation,
            convolution.groups,
            activation=activation,
        )


def _made_of(convolution, norm):
    tensors = convolution.weight, convolution.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var
    return [(norm.eps, None), *((t, None if t is None or t.is_inference() else t._version) for t in tensors)]


def _same(before, now):
    return all(t is u and version == other for (t, version), (u, other) in zip(before, now, strict=True))
