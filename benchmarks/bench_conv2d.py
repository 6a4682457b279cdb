"""Convolution: forward, input gradient and weight gradient, each alone, beside torch eager.

torch.compile takes no part: for a single convolution it calls the same library. Images are channels_last unless the
row says NCHW. After the table of chosen shapes: every distinct convolution of well-known networks (networks.py), each
for a fraction of a second, in both memory formats.
"""

import functools

import networks
import pytest
import torch
import torch.nn.functional as F
from runner import Case

import pydl.functional as PF


def forward(function):
    def run(x, weight, grad):
        return (function(x, weight),)

    return run


def gradient(of):
    """Times one gradient alone: the graph is built at the first call and kept."""

    def timed(function):
        graph = {}

        def run(x, weight, grad):
            if graph.get("weight") is not weight:
                graph.update(weight=weight, output=function(x, weight))
            return torch.autograd.grad(graph["output"], x if of == "input" else weight, grad, retain_graph=True)

        return run

    return timed


def case(
    name,
    what,
    shape,
    out_channels,
    kernel,
    target=None,
    quick=False,
    channels_last=True,
    dtype=torch.float32,
    case_options=None,
    **options,
):
    batch, channels, height, width = shape
    groups = options.get("groups", 1)
    kernel_shape = (out_channels, channels // groups, kernel, kernel)
    padding, stride = options.get("padding", 0), options.get("stride", 1)
    out = [(n + 2 * padding - kernel) // stride + 1 for n in (height, width)]
    out_shape = (batch, out_channels, *out)

    def inputs():
        tensors = [t.detach() for t in random_tensors((shape, kernel_shape, out_shape), dtype, channels_last)]
        tensors[0].requires_grad_(what == "input")
        tensors[1].requires_grad_(what == "weight")
        return tensors

    sizes = [torch.Size(s).numel() * dtype.itemsize for s in (shape, kernel_shape, out_shape)]
    written = sizes[{"input": 0, "weight": 1, "forward": 2}[what]]
    return Case(
        "conv2d",
        f"{name}, {'forward' if what == 'forward' else f'{what} gradient'}{'' if channels_last else ', NCHW'}",
        inputs,
        lambda x, weight: PF.conv2d(x, weight, **options),
        lambda x, weight: F.conv2d(x, weight, **options),
        forward if what == "forward" else gradient(what),
        read=sum(sizes) - written,
        written=written,
        operations=2 * torch.Size(out_shape).numel() * channels // groups * kernel * kernel,
        dtype=dtype,
        compile=False,
        target=target and (target, target),
        quick=quick,
        scale=30.0,
        **{"seconds": 1.5, **(case_options or {})},
    )


@functools.lru_cache(maxsize=1)  # the passes of a shape follow one another
def random_tensors(shapes, dtype, channels_last):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return [torch.randn(shape).to(dtype).to(memory_format=memory_format) for shape in shapes]


def trio(name, shape, out_channels, kernel, forward=None, input=None, weight=None, quick=False, **options):
    """The three passes of a shape."""
    return [
        case(name, "forward", shape, out_channels, kernel, forward, quick=quick, **options),
        case(name, "input", shape, out_channels, kernel, input, **options),
        case(name, "weight", shape, out_channels, kernel, weight, quick=quick, **options),
    ]


CASES = [
    *trio("3×3 64@56, N 8", (8, 64, 56, 56), 64, 3, 2.5, 2.5, 2.5, padding=1, quick=True),
    *trio("3×3 128@28, N 8", (8, 128, 28, 28), 128, 3, 2.5, 2.5, 2.5, padding=1),
    *trio("3×3 256@14, N 8", (8, 256, 14, 14), 256, 3, 2, 2, 2, padding=1),
    *trio("3×3 512@7, N 8", (8, 512, 7, 7), 512, 3, 1.9, 1.9, 1.7, padding=1),
    *trio("3×3 64@56, N 8", (8, 64, 56, 56), 64, 3, padding=1, channels_last=False),
    *trio("LeNet 5×5 1→6@28, N 256", (256, 1, 28, 28), 6, 5, 4, None, 2, padding=2, channels_last=False, quick=True),
    *trio("LeNet 5×5 6→16@14, N 256", (256, 6, 14, 14), 16, 5, 1.3, 3, 1.5, channels_last=False),
    *trio("5×5 3→32@32, N 64", (64, 3, 32, 32), 32, 5, 1.2, 1.2, 1.2, padding=2),
    *trio("5×5 32→32@16, N 64", (64, 32, 16, 16), 32, 5, 1.2, 1.2, 1.2, padding=2),
    *trio("5×5 32→64@8, N 64", (64, 32, 8, 8), 64, 5, 1.2, 1.2, 1.2, padding=2),
    *trio("1×1 64→256@56, N 8", (8, 64, 56, 56), 256, 1, 1.2, 1.3, 3),
    *trio("7×7 stride 2 3→64@224, N 8", (8, 3, 224, 224), 64, 7, 1.1, None, 2, stride=2, padding=3),
    *trio("3×3 stride 2 64→128@56, N 8", (8, 64, 56, 56), 128, 3, 1.1, 1.1, 1.5, stride=2, padding=1),
    *trio("depthwise 3×3 128@56, N 8", (8, 128, 56, 56), 128, 3, 1.5, 1.5, 1.5, padding=1, groups=128),
]


def of_network(network, dtype):
    """The layers of a network, in both memory formats and all passes."""
    batch, layers = networks.networks()[network]
    for layer in layers:
        shape = (batch, layer.channels, layer.size, layer.size)
        for channels_last in (False, True):
            for what in ("forward", "input", "weight"):
                yield case(
                    f"{network}, N {batch}: {networks.name(layer)}",
                    what,
                    shape,
                    layer.out_channels,
                    layer.kernel,
                    channels_last=channels_last,
                    dtype=dtype,
                    case_options={
                        "oracle": torch.float32,
                        "seconds": 0.08,
                        "network": {"name": network, "pass": what, "channels_last": channels_last},
                    },
                    stride=layer.stride,
                    padding=layer.padding,
                    groups=layer.groups,
                )


for name in networks.networks():
    CASES += of_network(name, torch.float32)
CASES += of_network("ResNet-18", torch.bfloat16)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_conv2d(case, compare):
    compare(case)
