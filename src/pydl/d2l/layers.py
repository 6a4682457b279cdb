"""Convolution by hand, and residual blocks."""

import torch
from torch import nn

from pydl.swapping.chains import normalised


def corr2d(X, K):
    """Cross-correlation of two matrices, without padding, element by element: what ``conv2d`` does, to be read."""
    height, width = K.shape
    rows, columns = X.shape[0] - height + 1, X.shape[1] - width + 1
    found = [(X[i : i + height, j : j + width] * K).sum() for i in range(rows) for j in range(columns)]
    return torch.stack(found).reshape(rows, columns)


class Residual(nn.Module):
    """relu(f(x) + x): f is two 3×3 convolutions with batch norm, x goes through a 1×1 convolution where asked for.

    ``Residual(input_channels, num_channels, use_1x1conv=False, strides=1)`` in the earlier edition;
    ``Residual(num_channels, use_1x1conv=False, strides=1)`` in the later one, which finds the input's channels itself.
    """

    def __init__(self, *args, **kwargs):
        super().__init__()
        # the second of both editions' arguments: channels, or whether there is a 1×1 convolution
        earlier = len(args) > 1 and not isinstance(args[1], bool)
        if earlier or "input_channels" in kwargs or (args and "num_channels" in kwargs):
            self._build(*args, **kwargs)
        else:
            self._build(None, *args, **kwargs)

    def _build(self, input_channels, num_channels, use_1x1conv=False, strides=1):
        def conv(**options):
            if input_channels is None:
                return nn.LazyConv2d(num_channels, stride=strides, **options)
            return nn.Conv2d(input_channels, num_channels, stride=strides, **options)

        self.conv1 = conv(kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(num_channels, num_channels, kernel_size=3, padding=1)
        self.conv3 = conv(kernel_size=1) if use_1x1conv else None
        self.bn1, self.bn2 = nn.BatchNorm2d(num_channels), nn.BatchNorm2d(num_channels)

    def forward(self, X):
        Y = normalised(self.conv1, self.bn1, X)
        return normalised(self.conv2, self.bn2, Y, X if self.conv3 is None else self.conv3(X))


def resnet18(num_classes, in_channels=1):
    """ResNet-18 for small images: a 3×3 convolution in front, and no pooling before the global one."""
    net = nn.Sequential(nn.Conv2d(in_channels, 64, kernel_size=3, padding=1), nn.BatchNorm2d(64), nn.ReLU())
    channels = 64
    for stage, width in enumerate((64, 128, 256, 512)):
        first = Residual(channels, width, use_1x1conv=stage > 0, strides=2 if stage else 1)
        net.append(nn.Sequential(first, Residual(width, width)))
        channels = width
    return net.extend([nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(512, num_classes)])
