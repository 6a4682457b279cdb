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


def output_size(op, input_size, kernel_size, stride, padding, dilation, ceil_mode):
    """[N, C, H', W'], and the checks of csrc/pool2d_call.h once more, for tracing, which never gets there."""

    def check(condition, message):
        if not condition:
            raise RuntimeError(f"{op}: expected {message}")

    for name, value, least in (
        ("kernel_size", kernel_size, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        check(min(value) >= least, f"{name} to be at least {least}, got {tuple(value)}")
    shape = tuple(input_size)
    what = f"input to be 3-D (unbatched) or 4-D (batched) and empty in its batch alone, got shape {shape}"
    check(len(shape) == 4 and all(length > 0 for length in shape[1:]), what)
    size = [input_size[0], input_size[1]]
    for d in range(2):
        reach = dilation[d] * (kernel_size[d] - 1) + 1
        check(
            padding[d] <= reach // 2,
            f"padding to be at most half of the kernel's reach, got padding {tuple(padding)} for kernel_size "
            f"{tuple(kernel_size)} and dilation {tuple(dilation)}",
        )
        length = input_size[2 + d]
        room = length + 2 * padding[d] - reach + (stride[d] - 1 if ceil_mode else 0)
        windows = room // stride[d] + 1
        # with ceil_mode the last window may hang over the end, but has to begin before it
        if ceil_mode and (windows - 1) * stride[d] >= length + padding[d]:
            windows = windows - 1
        check(
            room >= 0 and windows > 0,
            f"the kernel to be no larger than the padded input ({shape[2] + 2 * padding[0]} x "
            f"{shape[3] + 2 * padding[1]}), got kernel_size {tuple(kernel_size)} with dilation {tuple(dilation)}",
        )
        size.append(windows)
    return size


def empty(like, size, channels_last, dtype=None):
    return like.new_empty(size, dtype=dtype).to(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def quick(input):
    """Whether an autograd.Function of our own may take the place of the registered formula."""
    return type(input) in PLAIN and not torch.compiler.is_compiling() and dispatch_modes() == 0
