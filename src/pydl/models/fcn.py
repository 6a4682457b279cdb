"""Semantic segmentation by a fully convolutional network on the body of ResNet-18."""

import torch

from pydl.models._registry import register
from pydl.models.resnet import WIDTHS, BasicBlock, ResNet
from pydl.nn import Conv2d, ConvTranspose2d
from pydl.swapping.chains import normalised

STRIDES = (32, 16, 8, 4, 2)  # of the body's maps, the last one first


def bilinear_kernel(in_channels, out_channels, kernel_size):
    """(in_channels, out_channels, k, k): a transposed convolution of this weight enlarges each channel bilinearly.

    Source: d2l section "Fully Convolutional Networks".
    """
    centre = (kernel_size - 1) / 2 if kernel_size % 2 else kernel_size / 2 - 0.5
    ramp = 1 - (torch.arange(kernel_size) - centre).abs() / ((kernel_size + 1) // 2)
    return torch.eye(in_channels, out_channels)[:, :, None, None] * ramp[:, None] * ramp


def enlarging(channels, factor):
    """The transposed convolution that makes height and width ``factor`` times as large, bilinear to begin with."""
    layer = ConvTranspose2d(channels, channels, kernel_size=2 * factor, stride=factor, padding=factor // 2)
    with torch.no_grad():
        layer.weight.copy_(bilinear_kernel(channels, channels, 2 * factor))
    return layer


class FCN(ResNet):
    """ResNet-18 without its last two layers, a score of each class in each place of a map, and its enlargement.

    Scores of finer maps are added on the way where ``stride`` is below 32.
    """

    def __init__(self, num_classes, in_channels, stride):
        super().__init__(BasicBlock, (2, 2, 2, 2), num_classes, in_channels, "torchvision")
        del self.fc
        self.final_conv = Conv2d(WIDTHS[-1], num_classes + 1, kernel_size=1)
        self.skips = STRIDES.index(stride)
        for i, width in enumerate((*WIDTHS[-2::-1], WIDTHS[0])[: self.skips]):
            self.add_module(f"enlarge{STRIDES[i]}", enlarging(num_classes + 1, 2))
            self.add_module(f"score{STRIDES[i + 1]}", Conv2d(width, num_classes + 1, kernel_size=1))
        self.transpose_conv = enlarging(num_classes + 1, stride)

    def forward(self, x):
        height, width = x.shape[2:]
        if height % 32 or width % 32:
            raise ValueError(f"fcn: expected height and width to be multiples of 32, got {height} and {width}")
        maps = [normalised(self.conv1, self.bn1, x)]
        maps.append(self.layer1(self.maxpool(maps[0])))
        for layer in (self.layer2, self.layer3, self.layer4):
            maps.append(layer(maps[-1]))
        scores = self.final_conv(maps.pop())
        for i in range(self.skips):
            scores = getattr(self, f"enlarge{STRIDES[i]}")(scores)
            scores = scores + getattr(self, f"score{STRIDES[i + 1]}")(maps.pop())
        return self.transpose_conv(scores)


@register("segmenter")
def fcn(num_classes=10, in_channels=3, input_size=256, stride=32):
    """A fully convolutional network: ResNet-18, a 1×1 convolution and a transposed one, bilinear to begin with.

    Source: d2l section "Fully Convolutional Networks"; Long, Shelhamer and Darrell, CVPR 2015. ``stride`` 32 is the
    book's, whose smallest detail is 32 pixels; 16 and 8 are the paper's FCN-16s and FCN-8s, and 4 and 2 go on so: the
    scores of finer maps are added. The body's parameters have torchvision's names.
    Input: (N, 3, 256, 256), or (N, in_channels, H, W) of multiples of 32.
    Output: (N, num_classes + 1, H, W) scores, the ground first.
    Parameters: 11,677,782.
    FLOPs: 4,801,626,112.

    Raises:
        ValueError: for an unknown stride or an input that is no multiple of 32.
    """
    if stride not in STRIDES:
        raise ValueError(f"fcn: expected stride to be one of {', '.join(map(str, STRIDES))}, got {stride}")
    if input_size % 32:
        raise ValueError(f"fcn: expected input_size to be a multiple of 32, got {input_size}")
    return FCN(num_classes, in_channels, stride)
