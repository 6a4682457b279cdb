"""Residual networks: blocks that compute relu(x + f(x)); the book's ResNet-18, ResNet-50 and ResNeXt-50."""

from torch.nn import Module, Sequential

from pydl.models._registry import check_input_size, check_variant, register
from pydl.nn import BatchNorm2d, Conv2d, Linear, MaxPool2d
from pydl.swapping.chains import normalised

WIDTHS = (64, 128, 256, 512)  # of the four stages


class BasicBlock(Module):
    """Two 3×3 convolutions around the identity (or a 1×1 convolution where the shape changes)."""

    expansion = 1

    def __init__(self, in_channels, channels, stride, variant):
        super().__init__()
        bias = variant == "book"  # redundant before batch normalisation, but the book has it
        self.conv1 = Conv2d(in_channels, channels, kernel_size=3, padding=1, stride=stride, bias=bias)
        self.bn1 = BatchNorm2d(channels)
        self.conv2 = Conv2d(channels, channels, kernel_size=3, padding=1, bias=bias)
        self.bn2 = BatchNorm2d(channels)
        self.downsample = shortcut(in_channels, channels, stride, variant)

    def forward(self, x):
        y = normalised(self.conv1, self.bn1, x)
        return normalised(self.conv2, self.bn2, y, x if self.downsample is None else self.downsample(x))


class Bottleneck(Module):
    """1×1 down, 3×3, 1×1 up to four times the width; ``groups`` of ``base_width`` channels make it ResNeXt's."""

    expansion = 4

    def __init__(self, in_channels, channels, stride, variant, groups=1, base_width=64):
        super().__init__()
        width = channels * base_width // 64 * groups
        self.conv1 = Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, kernel_size=3, padding=1, stride=stride, groups=groups, bias=False)
        self.bn2 = BatchNorm2d(width)
        self.conv3 = Conv2d(width, channels * 4, kernel_size=1, bias=False)
        self.bn3 = BatchNorm2d(channels * 4)
        self.downsample = shortcut(in_channels, channels * 4, stride, variant)

    def forward(self, x):
        y = normalised(self.conv1, self.bn1, x)
        y = normalised(self.conv2, self.bn2, y)
        return normalised(self.conv3, self.bn3, y, x if self.downsample is None else self.downsample(x))


def shortcut(in_channels, channels, stride, variant):
    """The 1×1 convolution that brings x to the block's output shape; None where it has it already."""
    if stride == 1 and in_channels == channels:
        return None
    if variant == "book":
        return Sequential(Conv2d(in_channels, channels, kernel_size=1, stride=stride))
    return Sequential(Conv2d(in_channels, channels, kernel_size=1, stride=stride, bias=False), BatchNorm2d(channels))


class ResNet(Module):
    """A stem that quarters height and width, four stages of blocks, global average pooling, one affine layer."""

    def __init__(self, block, depths, num_classes, in_channels, variant, **options):
        super().__init__()
        self.conv1 = Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=variant == "book")
        self.bn1 = BatchNorm2d(64)
        self.maxpool = MaxPool2d(kernel_size=3, stride=2, padding=1)
        channels = 64
        for stage, (depth, width) in enumerate(zip(depths, WIDTHS, strict=True), start=1):
            blocks = Sequential()
            for i in range(depth):
                stride = 2 if stage > 1 and i == 0 else 1
                blocks.append(block(channels, width, stride, variant, **options))
                channels = width * block.expansion
            self.add_module(f"layer{stage}", blocks)
        self.fc = Linear(channels, num_classes)

    def forward(self, x):
        x = self.maxpool(normalised(self.conv1, self.bn1, x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))


@register("classifier")
def resnet18(num_classes=10, in_channels=1, input_size=96, variant="book"):
    """ResNet-18: four stages of two blocks of two 3×3 convolutions.

    Source: d2l section "Residual Networks (ResNet) and ResNeXt"; He, Zhang, Ren and Sun, "Deep Residual Learning for
    Image Recognition", CVPR 2016. The book's convolutions have a bias and its shortcuts no batch normalisation;
    ``variant="torchvision"`` is the paper's, and with ``in_channels=3, num_classes=1000`` loads torchvision's weights.
    Input: (N, 1, 96, 96), or (N, in_channels, H, W).
    Parameters: 11,178,378.
    FLOPs: 637,315,072.

    Raises:
        ValueError: for an unknown variant or too small an input.
    """
    check_input_size("resnet18", input_size, smallest=1)
    check_variant("resnet18", variant, ("book", "torchvision"))
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, in_channels, variant)


@register("classifier")
def resnet50(num_classes=10, in_channels=1, input_size=224):
    """ResNet-50: bottleneck blocks, with the stride in the 3×3 convolution.

    Source: d2l section "Residual Networks (ResNet) and ResNeXt"; He, Zhang, Ren and Sun, "Deep Residual Learning for
    Image Recognition", CVPR 2016. With ``in_channels=3, num_classes=1000`` it loads torchvision's ``resnet50``.
    Input: (N, 1, 224, 224), or (N, in_channels, H, W).
    Parameters: 23,522,250.
    FLOPs: 8,016,961,536.

    Raises:
        ValueError: for too small an input.
    """
    check_input_size("resnet50", input_size, smallest=1)
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels, "torchvision")


@register("classifier")
def resnext50(num_classes=10, in_channels=1, input_size=224):
    """ResNeXt-50 (32×4d): bottleneck blocks whose 3×3 convolution works in 32 groups of 4 channels and up.

    Source: d2l section "Residual Networks (ResNet) and ResNeXt"; Xie et al., "Aggregated Residual Transformations for
    Deep Neural Networks", CVPR 2017. With ``in_channels=3, num_classes=1000`` it loads torchvision's
    ``resnext50_32x4d``.
    Input: (N, 1, 224, 224), or (N, in_channels, H, W).
    Parameters: 22,994,122.
    FLOPs: 8,299,552,768.

    Raises:
        ValueError: for too small an input.
    """
    check_input_size("resnext50", input_size, smallest=1)
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels, "torchvision", groups=32, base_width=4)
