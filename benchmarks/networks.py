"""The convolutions of well-known networks: what users meet, each distinct shape once.

The book's networks come from pydl.models, whose layers are asked for their shapes; torchvision's two, which need no
torchvision here, are written down.
"""

import collections
import functools

import torch

from pydl import backend, models

# size: height and width of the input; square kernels, strides and paddings throughout
Convolution = collections.namedtuple("Convolution", "channels size out_channels kernel stride padding groups")


def name(c):
    """What a row of a table says: ``3×3 64→128@56, stride 2``."""
    depthwise = c.groups == c.channels == c.out_channels > 1
    words = f"{'depthwise ' if depthwise else ''}{c.kernel}×{c.kernel} "
    words += f"{c.channels}@{c.size}" if depthwise else f"{c.channels}→{c.out_channels}@{c.size}"
    if c.groups > 1 and not depthwise:
        words += f", {c.groups} groups"
    return (
        words
        + (f", stride {c.stride}" if c.stride > 1 else "")
        + ("" if 2 * c.padding + 1 == c.kernel else f", padding {c.padding}")
    )


def of_model(model, size, channels=1):
    """The distinct convolutions of a model of pydl.models, in order, from one pass of shapes through it."""
    found = {}

    def note(layer, arguments, output):
        x = arguments[0]
        pairs = (layer.kernel_size, layer.stride, layer.padding)
        if x.shape[2] != x.shape[3] or any(a != b for a, b in pairs):
            raise ValueError(f"bench: expected the layers of {model} to be square, got {layer}")
        found[Convolution(x.shape[1], x.shape[2], layer.out_channels, *(a for a, _ in pairs), layer.groups)] = None

    with torch.device("meta"), backend.use("torch"), torch.no_grad():
        net = models.get(model, in_channels=channels, input_size=size).eval()
        for layer in net.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(note)
        net(torch.empty(1, channels, size, size))
    return list(found)


def resnet50():
    """torchvision's ResNet-50 at 224: the stride of a bottleneck sits in its 3×3."""
    layers = [Convolution(3, 224, 64, 7, 2, 3, 1)]
    channels, size = 64, 56
    for stage, width in enumerate((64, 128, 256, 512)):
        stride = 1 if stage == 0 else 2
        layers += [
            Convolution(channels, size, width, 1, 1, 0, 1),
            Convolution(width, size, width, 3, stride, 1, 1),
            Convolution(width, size // stride, 4 * width, 1, 1, 0, 1),
            Convolution(channels, size, 4 * width, 1, stride, 0, 1),  # the way around
        ]
        channels, size = 4 * width, size // stride
        layers += [Convolution(channels, size, width, 1, 1, 0, 1), Convolution(width, size, width, 3, 1, 1, 1)]
    return list(dict.fromkeys(layers))


def mobilenet_v2():
    """torchvision's MobileNet-V2 at 224: expansion, channels, repeats and stride of each stage."""
    layers = [Convolution(3, 224, 32, 3, 2, 1, 1)]
    channels, size = 32, 112
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, out_channels, repeats, stride in stages:
        for i in range(repeats):
            wide, step = channels * expansion, stride if i == 0 else 1
            if expansion > 1:
                layers.append(Convolution(channels, size, wide, 1, 1, 0, 1))
            layers.append(Convolution(wide, size, wide, 3, step, 1, wide))
            size //= step
            layers.append(Convolution(wide, size, out_channels, 1, 1, 0, 1))
            channels = out_channels
    layers.append(Convolution(channels, size, 1280, 1, 1, 0, 1))
    return list(dict.fromkeys(layers))


@functools.cache
def networks():
    """{network: (batch, its distinct convolutions)}."""
    return {
        "LeNet": (256, of_model("lenet", 28)),
        "AlexNet": (8, of_model("alexnet", 224)),
        "VGG-11": (8, of_model("vgg11", 224)),
        "NiN": (8, of_model("nin", 224)),
        "GoogLeNet": (8, of_model("googlenet", 96)),
        "ResNet-18": (8, of_model("resnet18", 96)),
        "ResNet-50": (8, resnet50()),
        "MobileNet-V2": (8, mobilenet_v2()),
    }
