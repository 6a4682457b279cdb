"""Residual networks with pre-activation, x + f(relu(bn(x))): nothing stands on the path of the identity."""

from torch.nn import Module, Sequential

from pydl.models._registry import check_input_size, register
from pydl.nn import BatchNorm2d, Conv2d, Dropout, Linear, MaxPool2d
from pydl.swapping.chains import normalised


class PreActBlock(Module):
    """Batch normalisation, ReLU, 3×3 convolution, twice, with dropout between where it is asked for."""

    def __init__(self, in_channels, channels, stride, dropout=0.0):
        super().__init__()
        self.bn1 = BatchNorm2d(in_channels)
        self.conv1 = Conv2d(in_channels, channels, kernel_size=3, padding=1, stride=stride, bias=False)
        self.bn2 = BatchNorm2d(channels)
        self.dropout = Dropout(dropout) if dropout else None
        self.conv2 = Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.shortcut = None
        if stride != 1 or in_channels != channels:
            self.shortcut = Conv2d(in_channels, channels, kernel_size=1, stride=stride, bias=False)

    def forward(self, x):
        y = normalised(None, self.bn1, x)
        if self.shortcut is not None:
            x = self.shortcut(y)  # where the shape changes there is no identity to keep clear, and y is ready
        y = normalised(self.conv1, self.bn2, y)
        if self.dropout is not None:
            y = self.dropout(y)
        return x + self.conv2(y)


class PreActResNet(Module):
    """A stem, stages of pre-activation blocks, a last batch normalisation and ReLU, pooling, one affine layer."""

    def __init__(self, stem, channels, depths, widths, num_classes, dropout=0.0):
        super().__init__()
        self.stem = stem
        self.stages = Sequential()
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = Sequential()
            for i in range(depth):
                blocks.append(PreActBlock(channels, width, 2 if stage and i == 0 else 1, dropout))
                channels = width
            self.stages.append(blocks)
        self.bn = BatchNorm2d(channels)
        self.fc = Linear(channels, num_classes)

    def forward(self, x):
        x = normalised(None, self.bn, self.stages(self.stem(x)))
        return self.fc(x.mean(dim=(2, 3)))


@register("classifier")
def preact_resnet18(num_classes=10, in_channels=1, input_size=96):
    """ResNet-18 with full pre-activation.

    Source: d2l section "Residual Networks (ResNet) and ResNeXt", exercises; He, Zhang, Ren and Sun, "Identity Mappings
    in Deep Residual Networks", ECCV 2016.
    Input: (N, 1, 96, 96), or (N, in_channels, H, W).
    Parameters: 11,173,578.
    FLOPs: 637,315,072.

    Raises:
        ValueError: for too small an input.
    """
    check_input_size("preact_resnet18", input_size, smallest=1)
    stem = Sequential(
        Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False),
        MaxPool2d(kernel_size=3, stride=2, padding=1),
    )
    return PreActResNet(stem, 64, (2, 2, 2, 2), (64, 128, 256, 512), num_classes)


@register("classifier")
def wide_resnet(num_classes=10, in_channels=3, input_size=32, depth=16, width=4, dropout=0.0):
    """Wide residual network WRN-depth-width: few blocks of many channels, for small images.

    Source: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016; the paper's best is ``depth=28, width=10``
    with ``dropout=0.3``.
    Input: (N, 3, 32, 32), or (N, in_channels, H, W).
    Parameters: 2,748,890.
    FLOPs: 785,224,704.

    Raises:
        ValueError: when depth is not 6 n + 4, width is below 1, or the input too small.
    """
    check_input_size("wide_resnet", input_size, smallest=1)
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"wide_resnet: expected depth to be 6 n + 4 with n of at least 1, got {depth}")
    if width < 1:
        raise ValueError(f"wide_resnet: expected width to be at least 1, got {width}")
    stem = Conv2d(in_channels, 16, kernel_size=3, padding=1, bias=False)
    blocks = (depth - 4) // 6
    return PreActResNet(stem, 16, (blocks,) * 3, (16 * width, 32 * width, 64 * width), num_classes, dropout)
