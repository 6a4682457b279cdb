"""GoogLeNet: Inception blocks of four parallel branches, concatenated."""

import torch
from torch.nn import Module, Sequential

from pydl.models._registry import check_input_size, check_variant, register
from pydl.nn import BatchNorm2d, Conv2d, Dropout, Linear, MaxPool2d
from pydl.swapping.chains import normalised

# channels of each block: 1×1 | 1×1 then 3×3 | 1×1 then 5×5 | 1×1 after pooling
BLOCKS = {
    "3a": (64, (96, 128), (16, 32), 32),
    "3b": (128, (128, 192), (32, 96), 64),
    "4a": (192, (96, 208), (16, 48), 64),
    "4b": (160, (112, 224), (24, 64), 64),
    "4c": (128, (128, 256), (24, 64), 64),
    "4d": (112, (144, 288), (32, 64), 64),
    "4e": (256, (160, 320), (32, 128), 128),
    "5a": (256, (160, 320), (32, 128), 128),
    "5b": (384, (192, 384), (48, 128), 128),
}


class BasicConv2d(Module):
    """A convolution and ReLU, with batch normalisation between them in torchvision's variant."""

    def __init__(self, in_channels, channels, variant, **options):
        super().__init__()
        normalised = variant == "torchvision"
        self.conv = Conv2d(in_channels, channels, bias=not normalised, **options)
        self.bn = BatchNorm2d(channels, eps=0.001) if normalised else None

    def forward(self, x):
        return normalised(self.conv, self.bn, x)


class Inception(Module):
    """Four views of the same input at different scales, concatenated along the channels; height and width stay."""

    def __init__(self, in_channels, c1, c2, c3, c4, variant):
        super().__init__()
        # torchvision's weights were trained with 3×3 where the paper has 5×5
        wide = {"kernel_size": 5, "padding": 2} if variant == "book" else {"kernel_size": 3, "padding": 1}
        self.branch1 = BasicConv2d(in_channels, c1, variant, kernel_size=1)
        self.branch2 = Sequential(
            BasicConv2d(in_channels, c2[0], variant, kernel_size=1),
            BasicConv2d(c2[0], c2[1], variant, kernel_size=3, padding=1),
        )
        self.branch3 = Sequential(
            BasicConv2d(in_channels, c3[0], variant, kernel_size=1), BasicConv2d(c3[0], c3[1], variant, **wide)
        )
        self.branch4 = Sequential(
            MaxPool2d(kernel_size=3, stride=1, padding=1), BasicConv2d(in_channels, c4, variant, kernel_size=1)
        )
        self.out_channels = c1 + c2[1] + c3[1] + c4

    def forward(self, x):
        return torch.cat((self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)), dim=1)


class GoogLeNet(Module):
    """See :func:`googlenet`."""

    def __init__(self, num_classes, in_channels, variant):
        super().__init__()
        # the book rounds down and pads, torchvision rounds up; both halve height and width
        halve = {"padding": 1} if variant == "book" else {"ceil_mode": True}
        self.conv1 = BasicConv2d(in_channels, 64, variant, kernel_size=7, stride=2, padding=3)
        self.maxpool1 = MaxPool2d(kernel_size=3, stride=2, **halve)
        self.conv2 = BasicConv2d(64, 64, variant, kernel_size=1)
        self.conv3 = BasicConv2d(64, 192, variant, kernel_size=3, padding=1)
        self.maxpool2 = MaxPool2d(kernel_size=3, stride=2, **halve)
        self.maxpool3 = MaxPool2d(kernel_size=3, stride=2, **halve)
        self.maxpool4 = (
            MaxPool2d(kernel_size=3, stride=2, padding=1) if variant == "book" else MaxPool2d(2, ceil_mode=True)
        )
        channels = 192
        for name, widths in BLOCKS.items():
            block = Inception(channels, *widths, variant)
            self.add_module(f"inception{name}", block)
            channels = block.out_channels
        self.dropout = Dropout(0.2) if variant == "torchvision" else None
        self.fc = Linear(channels, num_classes)

    def forward(self, x):
        x = self.maxpool1(self.conv1(x))
        x = self.maxpool2(self.conv3(self.conv2(x)))
        for name in BLOCKS:
            x = getattr(self, f"inception{name}")(x)
            if name == "3b":
                x = self.maxpool3(x)
            elif name == "4e":
                x = self.maxpool4(x)
        x = x.mean(dim=(2, 3))  # global average pooling
        return self.fc(x if self.dropout is None else self.dropout(x))


@register("classifier")
def googlenet(num_classes=10, in_channels=1, input_size=96, variant="book"):
    """GoogLeNet: a stem of three convolutions, nine Inception blocks, global average pooling, one affine layer.

    Source: d2l section "Multi-Branch Networks (GoogLeNet)"; Szegedy et al., "Going Deeper with Convolutions", CVPR
    2015. ``variant="torchvision"`` has batch normalisation and dropout; with ``in_channels=3, num_classes=1000`` it
    loads the weights of torchvision's ``googlenet`` (without its auxiliary classifiers, ``aux1`` and ``aux2``).
    Input: (N, 1, 96, 96), or (N, in_channels, H, W).
    Parameters: 5,977,530.
    FLOPs: 552,132,608.

    Raises:
        ValueError: for an unknown variant or too small an input.
    """
    check_input_size("googlenet", input_size, smallest=1)
    check_variant("googlenet", variant, ("book", "torchvision"))
    return GoogLeNet(num_classes, in_channels, variant)
