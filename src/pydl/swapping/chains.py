"""Chains of layers that one kernel computes, and the layers that may be links of one.

    convolution or linear → ReLU or sigmoid             the activation is applied as the product stores its result
    batch norm (→ + residual) (→ ReLU or sigmoid)       one pass over the tensor instead of two or three
    convolution → batch norm (→ all of that)            in evaluation without gradients: the batch norm is folded into
                                                        the convolution's weights if there is no residual; else as
                                                        above, and in training one node of the graph
        → mean over 2x2 pixels                          in training, behind an activation: in batch norm's pass

A convolution may be transposed; in training it and the batch norm behind it stay nodes of their own.

What is saved is the reading and writing of whole intermediate tensors, and their allocation. Chains are found among the
neighbours of a ``Sequential`` (container.py), and named by our own models (:func:`normalised`).
"""

from dataclasses import dataclass, field

import torch
from torch.nn.utils.parametrize import is_parametrized

from pydl import aside, backend, functional, nn
from pydl._private import CALL, GLOBAL_HOOKS, tracing_state
from pydl.ops._activations import finished
from pydl.ops.convolution_batch_norm import POOLED, foldable, folded, folding_pays, trained_together
from pydl.swapping.layer import is_swapped, why_aside, why_left
from pydl.swapping.rules import OURS, RULES, class_of, rule_of

FOLLOWERS = {  # role -> the roles that may follow it
    "convolution": ("norm", "activation"),
    "linear": ("activation",),
    "norm": ("activation",),
    "activation": ("pooling",),  # where there are a convolution and a norm: see pools
    "pooling": (),
}
FIRST = ("convolution", "linear", "norm")  # what a chain may begin with


def role(layer):
    """What a layer may be in a chain (see ``FOLLOWERS``), or an empty text.

    Parametrised and lazy layers have the role of what they are made from, so that the report can say why they are left
    alone (:func:`why_not_linked`).
    """
    rule = rule_of(class_of(layer))
    return "" if rule is None else rule.role


def has_hooks(attributes):
    """Whether a module with this ``__dict__`` has hooks of any kind: its call is then more than its forward."""
    return bool(
        attributes["_forward_hooks"]
        or attributes["_forward_pre_hooks"]
        or attributes["_backward_hooks"]
        or attributes["_backward_pre_hooks"]
    )


def is_changed(attributes, own):
    """Whether what stands on an instance, with this ``__dict__``, keeps its call from being torch's forward alone."""
    if (
        attributes["_forward_hooks"]
        or attributes["_forward_pre_hooks"]
        or attributes["_backward_hooks"]
        or attributes["_backward_pre_hooks"]
        or "_compiled_call_impl" in attributes
    ):
        return True
    return any(name in attributes for name, _ in own.methods) if own.methods else False


def is_called_plainly():
    """Whether nothing sees every call of every module."""
    hooks, module = GLOBAL_HOOKS, torch.nn.Module
    return not (hooks[0] or hooks[1] or hooks[2] or hooks[3]) and (
        module.__call__ is CALL[0] and module._call_impl is CALL[1]
    )


def why_no_chains():
    """Why every layer is called by itself at this moment, in words, or None."""
    if any(GLOBAL_HOOKS):
        return "hooks of all modules are to see each layer"
    if (torch.nn.Module.__call__, torch.nn.Module._call_impl) != CALL:
        return "torch.nn.Module's call was replaced"
    return aside.why_now()


def state_of(cls, own):
    """What decides, on a class, whether its instances may be links: compared by identity at each call."""
    methods = [getattr(cls, name) for name, _ in own.methods]
    return (cls.__call__, cls.forward, own.cls.forward, getattr(own.namespace, own.name), *methods)


# as torch has it, and as we do
_STATES = {
    cls: (torch.nn.Module.__call__, cls.forward, rule.own.forward, rule.own.function, *dict(rule.own.methods).values())
    for rule in RULES
    if rule.role
    for cls in (rule.torchs, rule.ours)
}


def why_not_linked(layer):
    """Why a layer that has a role is called by itself; None where it may be a link of a chain."""
    cls, attributes = type(layer), layer.__dict__
    if has_hooks(attributes):
        return "has not seen its first input" if "cls_to_become" in cls.__dict__ else "has hooks"
    if is_parametrized(layer):
        return "parametrised"
    rule = rule_of(cls)
    if "_compiled_call_impl" in attributes and attributes["_compiled_call_impl"] is not None:
        return "compiled by itself"
    if cls is rule.ours:
        if "forward" in attributes:
            return "its forward was replaced on the instance"
    elif not is_swapped(layer):
        return why_left(layer) or "not swapped"
    if state_of(cls, rule.own) != _STATES[cls] or any(name in attributes for name, _ in rule.own.methods):
        return why_aside(layer) or "its call was replaced on the class"
    return None


def _is_link(layer):
    """Whether :func:`why_not_linked` has nothing to say, in a fraction of its time."""
    cls = type(layer)
    state = _STATES.get(cls)
    if state is None:
        return False
    own = rule_of(cls).own
    served = "forward" not in layer.__dict__ if cls in OURS else is_swapped(layer)
    return served and not is_changed(layer.__dict__, own) and state_of(cls, own) == state


def pools(layer, links):
    """Whether a layer whose role is pooling may be computed with ``links``, {role: layer}, before it: in training."""
    convolution, norm = links.get("convolution"), links.get("norm")
    if not isinstance(convolution, torch.nn.Conv2d) or not isinstance(norm, torch.nn.BatchNorm2d):
        return False
    return _takes_means_of_two_by_two(layer)


def _takes_means_of_two_by_two(pooling):
    return (
        _are(pooling.kernel_size, 2)
        and _are(pooling.stride, 2)
        and _are(pooling.padding, 0)
        and pooling.ceil_mode is False
        and pooling.divisor_override is None
    )


def _are(numbers, wanted):
    return numbers == (wanted, wanted) if type(numbers) is tuple else type(numbers) is int and numbers == wanted


def normalised(convolution, norm, input, residual=None, activation="relu"):
    """activation(norm(convolution(input)) + residual), for a model that names its chains.

    Args:
        convolution: a Conv2d or ConvTranspose2d, ours or torch's, or None.
        norm: a BatchNorm2d, or None.
        input: (N, C, H, W).
        residual: a tensor of the result's shape that is added before the activation, or None.
        activation: None, "relu" or "sigmoid".

    Returns:
        What the layers give, called one by one: they are, where hooks or replaced parts are to see each of them.
    """
    layers = [layer for layer in (convolution, norm) if layer is not None]
    # by torch.compile for our backend, which fuses itself, or by torch.jit.trace, which compares the text of two traces
    recorded = (aside.backend_is_loaded and aside.is_rewritten()) or tracing_state() is not None
    if not recorded and is_called_plainly() and all(map(_is_link, layers)):
        return Chain(convolution, norm, activation)(input, residual)
    for layer in layers:
        input = layer(input)
    return finished(input, activation, residual)


@dataclass(eq=False)
class Chain:
    """One call in the place of several; a link that is absent is None."""

    convolution: torch.nn.Module | None = None
    norm: torch.nn.Module | None = None
    activation: str | None = None
    linear: torch.nn.Module | None = None
    pooling: torch.nn.Module | None = None
    names: list = field(default_factory=list)  # of the links in order
    folded: "Folded | None" = None  # by pydl.freeze
    not_frozen: str = ""  # why pydl.freeze could not

    def __call__(self, input, residual=None):
        if self.pooling is None:
            return self._before_pooling(input, residual)
        convolution, norm = self.convolution, self.norm
        parameters = convolution.weight, convolution.bias, norm.weight, norm.bias
        if self._pools() and not aside.is_special(convolution, *parameters):
            output = trained_together(convolution, norm, input, None, self.activation, pools=True)
            if output is not None:
                return output
        return self.pooling(self._before_pooling(input))

    def _pools(self):
        """Whether batch norm's pass may take the pooling, as far as the layers say."""
        norm = self.norm
        learns = norm.training and norm.track_running_stats and norm.momentum is not None
        return learns and self.convolution.weight.dtype in POOLED and _takes_means_of_two_by_two(self.pooling)

    def _before_pooling(self, input, residual=None):
        convolution, norm, activation = self.convolution, self.norm, self.activation
        if self.linear is not None:
            return nn.Linear.forward(self.linear, input, activation=activation)
        if norm is None:
            output = _convolved(convolution, input, activation if residual is None else None)
            return output if residual is None else finished(output, activation, residual)
        if convolution is not None:
            parameters = convolution.weight, convolution.bias, norm.weight, norm.bias
            # torch's transposed convolution refuses any other mode
            refused = _is_transposed(convolution) and convolution.padding_mode != "zeros"
            if not refused and not aside.is_special(convolution, *parameters):
                if self.folded is not None and self.folded.holds(convolution, norm):
                    return self.folded(convolution, input, activation)
                if residual is None and _folding_pays(convolution, norm, input):
                    return Folded(convolution, norm)(convolution, input, activation)
                if norm.training and not _is_transposed(convolution):
                    output = trained_together(convolution, norm, input, residual, activation)
                    if output is not None:
                        return output
            input = _convolved(convolution, input)
        return nn.BatchNorm2d.forward(norm, input, residual=residual, activation=activation)

    def kernels(self):
        """What the report says, for the mode the norm is in: (names of the links that one kernel computes, remark)."""
        layers = [layer for layer in (self.convolution, self.linear, self.norm) if layer is not None]
        if aside.why_tensors(tensor for layer in layers for tensor in layer._parameters.values()):
            return []
        if self.linear is not None and backend.ops_for(self.linear.weight, "linear") is None:
            return []
        if len(layers) == 1:
            return [(self.names, "")]
        names = self.names if self.pooling is None or self._pools() else self.names[:-1]
        if self.norm.training:
            return [(names[1:], "")]
        return [(names, ", frozen" if self.folded is not None else ", folded if it pays")]

    def freeze(self):
        """Folds the norm into the convolution's weights now, to be used as long as neither has changed."""
        if self.convolution is None or self.norm is None or not _foldable(self.convolution, self.norm):
            return
        if any(tensor is not None and tensor.is_inference() for tensor in _tensors(self.convolution, self.norm)):
            # a write to them could not be seen
            self.not_frozen = "tensors made under inference_mode have no version"
            return
        with torch.no_grad():
            self.folded, self.not_frozen = Folded(self.convolution, self.norm), ""


def _is_transposed(convolution):
    return isinstance(convolution, torch.nn.ConvTranspose2d)


def _convolved(convolution, input, activation=None):
    layer = nn.ConvTranspose2d if _is_transposed(convolution) else nn.Conv2d
    return layer.forward(convolution, input, activation=activation)


def _tensors(convolution, norm):
    return convolution.weight, convolution.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var


def _foldable(convolution, norm):
    return not norm.training and foldable(convolution.weight, norm.running_mean, norm.running_var)


def _folding_pays(convolution, norm, input):
    if norm.training or torch.compiler.is_compiling():
        return False
    stride, statistics = convolution.stride, (norm.running_mean, norm.running_var)
    transposed = convolution.groups if _is_transposed(convolution) else None
    return folding_pays(input, convolution.weight, stride, *statistics, transposed)


class Folded:
    """A convolution's weight and bias with an evaluating batch norm in them, kept as long as it holds."""

    def __init__(self, convolution, norm):
        statistics = norm.running_mean, norm.running_var
        rest = norm.weight, norm.bias, norm.eps, convolution.groups if _is_transposed(convolution) else None
        self.weight, self.bias = folded(convolution.weight, convolution.bias, *statistics, *rest)
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
        if _is_transposed(convolution):
            options = convolution.stride, convolution.padding, convolution.output_padding
            options += convolution.groups, convolution.dilation
            return functional.conv_transpose2d(input, self.weight, self.bias, *options, activation=activation)
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
    tensors = _tensors(convolution, norm)
    return [(norm.eps, None), *((t, None if t is None or t.is_inference() else t._version) for t in tensors)]


def _same(before, now):
    return all(t is u and version == other for (t, version), (u, other) in zip(before, now, strict=True))
