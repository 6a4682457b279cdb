"""Densely connected networks: each layer sees what all layers before it in its block put out, side by side."""

import torch
from torch.nn import Flatten, Module, Sequential

from pydl.models._registry import check_at_least, check_input_size, register
from pydl.nn import AdaptiveAvgPool2d, AvgPool2d, BatchNorm2d, Conv2d, Linear, MaxPool2d, ReLU


def normalised_conv(in_channels, channels, **options):
    """Batch normalisation, ReLU, a convolution: the order of pre-activation."""
    return Sequential(BatchNorm2d(in_channels), ReLU(), Conv2d(in_channels, channels, **options))


class DenseBlock(Module):
    """``layers`` 3×3 convolutions of ``growth`` channels each, which are put beside the channels that they saw."""

    def __init__(self, layers, in_channels, growth):
        super().__init__()
        self.net = Sequential(
            *(normalised_conv(in_channels + i * growth, growth, kernel_size=3, padding=1) for i in range(layers))
        )
        self.out_channels = in_channels + layers * growth

    def forward(self, x):
        for layer in self.net:
            x = torch.cat((x, layer(x)), dim=1)
        return x


@register("classifier")
def densenet(num_classes=10, in_channels=1, input_size=96, growth=32, blocks=(4, 4, 4, 4)):
    """DenseNet: a stem, four dense blocks of four layers, between them 1×1 convolutions that halve the channels.

    Source: d2l section "Densely Connected Networks (DenseNet)"; Huang, Liu, van der Maaten and Weinberger, "Densely
    Connected Convolutional Networks", CVPR 2017. ``growth`` is the channels that a layer adds, ``blocks`` the layers of
    each block; height and width are halved between two blocks.
    Input: (N, 1, 96, 96), or (N, in_channels, H, W), at least 29 wide with four blocks.
    Parameters: 758,226.
    FLOPs: 258,154,336.

    Raises:
        ValueError: for a size below 1, no block, or too small an input.
    """
    if not blocks:
        raise ValueError(f"densenet: expected blocks to have a number of layers for each block, got {blocks}")
    check_at_least("densenet", growth=growth, **{f"block {i}": layers for i, layers in enumerate(blocks, start=1)})
    check_input_size("densenet", input_size, smallest=4 * 2 ** (len(blocks) - 1) - 3)
    net, channels = Sequential(), 64
    net.append(
        Sequential(
            Conv2d(in_channels, channels, kernel_size=7, stride=2, padding=3),
            BatchNorm2d(channels),
            ReLU(),
            MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
    )
    for i, layers in enumerate(blocks):
        if i:
            transition = normalised_conv(channels, channels // 2, kernel_size=1)
            net.append(transition.append(AvgPool2d(kernel_size=2, stride=2)))
            channels //= 2
        net.append(DenseBlock(layers, channels, growth))
        channels = net[-1].out_channels
    return net.extend(
        [BatchNorm2d(channels), ReLU(), AdaptiveAvgPool2d((1, 1)), Flatten(), Linear(channels, num_classes)]
    )
