"""What maximum and average pooling share: arguments, the size of the output, and the checks, for tracing."""

import torch

from pydl import backend
from pydl._private import dispatch_modes
from pydl.ops._options import pair

SUPPORTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PLAIN = (torch.Tensor, torch.nn.Parameter)


def is_served(input, op):
    """Whether ``op`` of ours serves it: "max_pool2d" or "avg_pool2d", of which 1-D and 3-D pooling are made."""
    return input.dtype in SUPPORTED and backend.ops_for(input, op) is not None


def pairs(op, kernel_size, stride, padding, dilation=1):
    """The four as pairs; a stride of None, or of no numbers, is the kernel's size, as in torch."""
    kernel_size = pair(op, "kernel_size", kernel_size)
    if stride is None or (isinstance(stride, tuple | list) and not stride):
        stride = kernel_size
    return kernel_size, pair(op, "stride", stride), pair(op, "padding", padding), pair(op, "dilation", dilation)


def batched(op, input):
    """``input`` as (N, C, H, W)."""
    if input.dim() == 4:
        return input
    if input.dim() != 3:
        raise RuntimeError(
            f"{op}: expected input to be 3-D (unbatched) or 4-D (batched), got shape {tuple(input.shape)}"
        )
    return input.unsqueeze(0)


def windows(op, lengths, kernel_size, stride, padding, dilation, ceil_mode):
    """How many windows each dimension has, of any number of them, and the checks of csrc/pool2d_call.h once more."""
    for name, value, least in (
        ("kernel_size", kernel_size, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if min(value) < least:
            raise RuntimeError(f"{op}: expected {name} to be at least {least}, got {tuple(value)}")
    found = []
    for length, size, step, pad, apart in zip(lengths, kernel_size, stride, padding, dilation, strict=True):
        reach = apart * (size - 1) + 1
        if pad > reach // 2:
            raise RuntimeError(
                f"{op}: expected padding to be at most half of the kernel's reach, got padding {tuple(padding)} for "
                f"kernel_size {tuple(kernel_size)} and dilation {tuple(dilation)}"
            )
        room = length + 2 * pad - reach + (step - 1 if ceil_mode else 0)
        count = room // step + 1
        # with ceil_mode the last window may hang over the end, but has to begin before it
        if ceil_mode and (count - 1) * step >= length + pad:
            count = count - 1
        if room < 0 or count <= 0:
            padded = " x ".join(str(length + 2 * pad) for length, pad in zip(lengths, padding, strict=True))
            raise RuntimeError(
                f"{op}: expected the kernel to be no larger than the padded input ({padded}), got kernel_size "
                f"{tuple(kernel_size)} with dilation {tuple(dilation)}"
            )
        found.append(count)
    return found


def output_size(op, input_size, *window):
    """[N, C, H', W'], checked, for tracing, which never gets to the checks in C++."""
    shape = tuple(input_size)
    if len(shape) != 4 or any(length == 0 for length in shape[1:]):
        raise RuntimeError(
            f"{op}: expected input to be 3-D (unbatched) or 4-D (batched) and empty in its batch alone, got shape "
            f"{shape}"
        )
    return [*input_size[:2], *windows(op, input_size[2:], *window)]


def empty(like, size, channels_last, dtype=None):
    return like.new_empty(size, dtype=dtype).to(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def quick(input):
    """Whether an autograd.Function of our own may take the place of the registered formula."""
    return type(input) in PLAIN and not torch.compiler.is_compiling() and dispatch_modes() == 0
