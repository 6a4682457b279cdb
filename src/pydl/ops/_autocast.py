"""What autocast makes of the arguments of an op.

In the functions of the ops rather than by torch.library.register_autocast, which fixes the dtype once and for all. The
quick way (_nodes.py) has the same rules in csrc/autograd/lowered.h.
"""

import torch

from pydl.ops import _library
from pydl.ops._memory_format import product_strides
from pydl.ops._nodes import is_compiling

_LOWERED = (torch.float32, torch.bfloat16, torch.float16)
_POOLED_BYTES = 1 << 20  # smaller results come from torch's allocator anyway (csrc/memory.h)

_library.define("cast", "(Tensor input, str dtype) -> Tensor")


@_library.fake("cast")
def _cast_fake(input, dtype):
    return input.new_empty_strided(input.shape, product_strides(input, input), dtype=getattr(torch, dtype))


def _setup_context(ctx, inputs, output):
    ctx.dtype = _name(inputs[0].dtype)


def _backward(ops, ctx, grad):
    return ops.cast(grad, ctx.dtype), None


_library.autograd("cast", _setup_context, _backward)


def _name(dtype):
    return str(dtype).removeprefix("torch.")


def lowered(device_type, *tensors):
    """The tensors in the dtype of the autocast that is at work, but for those of float64 and of no floating point.

    On the CPU large ones, and their gradients, are in recycled memory (:mod:`pydl.memory`). None stays None.
    """
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(None if t is None else _lowered(t, dtype) for t in tensors)


def _lowered(tensor, dtype):
    if tensor.dtype == dtype or tensor.dtype not in _LOWERED:
        return tensor
    large = tensor.is_cpu and tensor.numel() * dtype.itemsize >= _POOLED_BYTES
    if large and dtype in _LOWERED and not is_compiling() and not _library.transforms_active():
        return torch.ops.pydl.cast(tensor, _name(dtype))
    return tensor.to(dtype)
