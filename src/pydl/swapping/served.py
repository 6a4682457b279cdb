"""Which layers are served by pydl, and why the others are left to torch."""

import torch
from torch.nn.utils.parametrize import type_before_parametrizations

from pydl import nn

# torch's class -> ours. Exact types only: a subclass may mean something else by the same attributes.
OURS = {getattr(torch.nn, name): getattr(nn, name) for name in nn.__all__}
PYDL_NN = tuple(OURS.values())
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def why_left(layer):
    """Why swap leaves ``layer`` to torch, in words; None where it is served."""
    from pydl.swapping.binding import SwappedForward  # which needs this file

    cls = type_before_parametrizations(layer)
    if cls not in OURS:
        return _why_not_served(layer, cls)
    if not isinstance(layer.__dict__.get("forward"), SwappedForward | None):
        return "its forward was replaced on the instance"
    return why_not_dtype(layer)


def _why_not_served(layer, cls):
    if isinstance(layer, torch.jit.ScriptModule):
        return "compiled by TorchScript"
    if ".quantized" in cls.__module__:
        return "quantized"
    for base in OURS:
        if issubclass(cls, base):
            return f"a subclass of {base.__name__}, which may compute something else"
    return f"pydl has no kernel for {cls.__name__}"


def why_not_dtype(layer):
    # the parameters themselves, not layer.weight: a parametrised weight would be computed here
    dtypes = {tensor.dtype for tensor in layer.parameters()} - set(_DTYPES)
    return f"{str(dtypes.pop()).removeprefix('torch.')} parameters are served by torch" if dtypes else None
