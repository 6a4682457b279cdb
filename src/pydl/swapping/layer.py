"""The forward of a swapped layer, which layers get one, and why the others are left to torch."""

import torch

from pydl import aside
from pydl.ops.conv3d import is_of_few
from pydl.swapping.bound import BoundForward, is_bound
from pydl.swapping.rules import OURS, SERVED, class_of, is_served, rule_of

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class SwappedForward(BoundForward):
    """The ``forward`` of a swapped layer: that of pydl.nn's class, on torch's instance."""

    def __init__(self, function, module):
        super().__init__(function, module)
        # by method resolution order: parametrised modules are instances of a subclass that torch makes on the fly
        self._torchs = next(rule.own.forward for rule in map(rule_of, type(module).__mro__) if rule is not None)

    def __call__(self, *args, **kwargs):
        module = self._module()  # not self.module(): a call less on every forward
        if module is None:
            module = self.module()
        if aside.backend_is_loaded and aside.is_rewritten():  # before all else: torch.compile guards what is read here
            return type(module).forward(module, *args, **kwargs)
        if type(module).forward is not self._torchs:
            return type(module).forward(module, *args, **kwargs)
        return self.__func__(module, *args, **kwargs)


def is_swapped(module):
    """Whether ``module`` is a layer that our forward serves."""
    return is_bound(module, SwappedForward)


def why_left(layer):
    """Why swap leaves ``layer`` to torch, in words; None where it is served."""
    cls = class_of(layer)
    if not is_served(cls):
        return _why_not_served(layer, cls)
    if not isinstance(layer.__dict__.get("forward"), SwappedForward | None):
        return "its forward was replaced on the instance"
    return why_not_dtype(layer)


def why_aside(layer):
    """Why torch's own forward computes a layer that is served, in words; None where ours does."""
    rule = next(rule for rule in map(rule_of, type(layer).__mro__) if rule is not None)
    if isinstance(layer, SERVED) and not isinstance(layer, OURS) and type(layer).forward is not rule.own.forward:
        return "forward was replaced on the class"
    return aside.why(layer, rule.own) or aside.why_now()


def _why_not_served(layer, cls):
    if isinstance(layer, torch.jit.ScriptModule):
        return "compiled by TorchScript"
    if ".quantized" in cls.__module__:
        return "quantized"
    for base in SERVED:
        if issubclass(cls, base):
            return f"a subclass of {base.__name__}, which may compute something else"
    return f"pydl has no kernel for {cls.__name__}"


def why_not_channels(layer):
    """Why the channels of a layer leave it to torch, in words, or None."""
    if not isinstance(layer, torch.nn.Conv3d) or layer.in_channels == 0:  # 0: lazy
        return None
    groups = layer.groups
    few = is_of_few(layer.in_channels // groups, layer.out_channels // groups, groups)
    return "of few channels, which torch convolves faster" if few else None


def why_not_dtype(layer):
    """Why the dtype of its parameters leaves a layer to torch, in words, or None."""
    # the parameters themselves, not layer.weight: a parametrised weight would be computed here
    dtypes = {tensor.dtype for tensor in layer.parameters()} - set(_DTYPES)
    return f"{str(dtypes.pop()).removeprefix('torch.')} parameters are served by torch" if dtypes else None
