"""The one table of swapping: a rule for each of torch's layers that is served by ours, or fused into one that is.

Who serves a layer (layer.py), what is fused with it (chains.py), which functions ``pydl.swapped()`` replaces (mode.py)
and what the report says of it are all read from here: each layer of ``pydl.nn`` has a rule, made of its name, of what
it says that torch's forward is made of (``own``), and of what ``_MORE`` adds.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.utils.parametrize import is_parametrized

from pydl import nn


@dataclass(frozen=True, eq=False)
class Rule:
    """What pydl does with one of torch's layers."""

    torchs: type
    ours: type  # the class whose forward serves it
    calls: tuple  # torch's functions that mean the same
    role: str = ""  # in a chain: "convolution", "linear", "norm", "activation" or "pooling"
    fuses: tuple = ()  # what our forward takes beside torch's arguments

    @property
    def own(self):
        """What torch's forward is made of."""
        return self.ours.own

    @property
    def name(self):
        """The name of the function, in ``torch.nn.functional`` and in ours; of an activation, our argument."""
        return self.own.name


def _more(*calls, role="", fuses=()):
    return {"calls": calls, "role": role, "fuses": fuses}


# What a layer's own name and the function in which torch's forward ends do not say: which other functions of torch's
# mean the same, with the same arguments; what it is in a chain; what our forward takes beside torch's arguments.
_NORM = _more(torch.batch_norm, role="norm", fuses=("residual", "activation"))
_MORE = {
    "Conv2d": _more(torch.conv2d, role="convolution", fuses=("activation",)),
    "ConvTranspose2d": _more(torch.conv_transpose2d, role="convolution", fuses=("activation",)),
    "Linear": _more(role="linear", fuses=("activation",)),
    "BatchNorm1d": _NORM,
    "BatchNorm2d": _NORM,
    "BatchNorm3d": _NORM,
    "GroupNorm": _more(torch.group_norm),
    "InstanceNorm1d": _more(torch.instance_norm),
    "LayerNorm": _more(torch.layer_norm),
    "RMSNorm": _more(torch.rms_norm),
    "Dropout": _more(torch.dropout),
    "AvgPool2d": _more(role="pooling"),
    "MaxPool1d": _more(torch.max_pool1d, F.max_pool1d_with_indices),
    "MaxPool2d": _more(torch.max_pool2d, F.max_pool2d_with_indices),
    "MaxPool3d": _more(F.max_pool3d_with_indices),
    "AdaptiveMaxPool1d": _more(F.adaptive_max_pool1d_with_indices),
    "AdaptiveMaxPool2d": _more(F.adaptive_max_pool2d_with_indices),
    "AdaptiveMaxPool3d": _more(F.adaptive_max_pool3d_with_indices),
    "ReLU": _more(torch.relu, torch.Tensor.relu, role="activation"),
    "Sigmoid": _more(F.sigmoid, torch.Tensor.sigmoid, role="activation"),
    "Tanh": _more(F.tanh, torch.Tensor.tanh),
}


def _rule(name):
    ours, more = getattr(nn, name), _MORE.get(name, _more())
    function = getattr(ours.own.namespace, ours.own.name)
    return Rule(getattr(torch.nn, name), ours, **more | {"calls": (function, *more["calls"])})


RULES = tuple(_rule(name) for name in nn.__all__ if not name.startswith("Lazy"))

_OF = {cls: rule for rule in RULES for cls in (rule.torchs, rule.ours)}
SERVED = tuple(rule.torchs for rule in RULES)
_SERVED = frozenset(SERVED)
OURS = tuple(rule.ours for rule in RULES)


def rule_of(cls):
    """The rule of a class, torch's or ours, or of a lazy one that will become it; None for any other.

    By exact type: a subclass may mean something else by the same attributes.
    """
    return _OF.get(cls.__dict__.get("cls_to_become", cls))


def is_served(cls):
    """Whether instances of a class of torch's are served by a class of ours."""
    return cls.__dict__.get("cls_to_become", cls) in _SERVED


def class_of(layer):
    """The class of a layer; of a parametrised one, for which torch makes a subclass, the class that it had before."""
    return type(layer).__bases__[0] if is_parametrized(layer) else type(layer)
