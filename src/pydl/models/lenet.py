"""LeNet-5 as the book has it, without and with batch normalisation."""

from torch.nn import Flatten, Sequential

from pydl.models._registry import check_input_size, register
from pydl.nn import AvgPool2d, BatchNorm1d, BatchNorm2d, Conv2d, Linear, Sigmoid


@register("classifier")
def lenet(num_classes=10, in_channels=1, input_size=28):
    """LeNet: two 5×5 convolutions with sigmoid and average pooling, three affine layers.

    Source: d2l chapter "Convolutional Neural Networks (LeNet)"; LeCun et al., "Gradient-Based Learning Applied to
    Document Recognition", Proc. IEEE 1998.
    Input: (N, 1, 28, 28), or (N, in_channels, input_size, input_size).
    Parameters: 61,706.
    FLOPs: 833,040.

    Raises:
        ValueError: for too small an input.
    """
    return Sequential(
        Conv2d(in_channels, 6, kernel_size=5, padding=2),
        Sigmoid(),
        AvgPool2d(kernel_size=2, stride=2),
        Conv2d(6, 16, kernel_size=5),
        Sigmoid(),
        AvgPool2d(kernel_size=2, stride=2),
        Flatten(),
        Linear(16 * _features(input_size) ** 2, 120),
        Sigmoid(),
        Linear(120, 84),
        Sigmoid(),
        Linear(84, num_classes),
    )


@register("classifier")
def lenet_bn(num_classes=10, in_channels=1, input_size=28):
    """LeNet with batch normalisation before each sigmoid.

    Source: d2l chapter "Batch Normalization"; Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network
    Training by Reducing Internal Covariate Shift", ICML 2015.
    Input: (N, 1, 28, 28), or (N, in_channels, input_size, input_size).
    Parameters: 62,158.
    FLOPs: 833,040.

    Raises:
        ValueError: for too small an input.
    """
    return Sequential(
        Conv2d(in_channels, 6, kernel_size=5, padding=2),
        BatchNorm2d(6),
        Sigmoid(),
        AvgPool2d(kernel_size=2, stride=2),
        Conv2d(6, 16, kernel_size=5),
        BatchNorm2d(16),
        Sigmoid(),
        AvgPool2d(kernel_size=2, stride=2),
        Flatten(),
        Linear(16 * _features(input_size) ** 2, 120),
        BatchNorm1d(120),
        Sigmoid(),
        Linear(120, 84),
        BatchNorm1d(84),
        Sigmoid(),
        Linear(84, num_classes),
    )


def _features(input_size):
    """Height and width after both convolutions and poolings: 5 for 28."""
    check_input_size("lenet", input_size, smallest=12)
    return (input_size // 2 - 4) // 2
