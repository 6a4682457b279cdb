"""The small network for CIFAR-10."""

from torch.nn import Flatten, Sequential

from pydl.models._registry import check_input_size, register
from pydl.nn import Conv2d, Linear, MaxPool2d, ReLU


@register("classifier")
def cifar_net(num_classes=10, in_channels=3, input_size=32):
    """Three 5×5 convolutions 3→32→32→64, each with ReLU and max pooling, and two affine layers.

    Source: d2l section "Image Classification (CIFAR-10) on Kaggle" for the data; the shape of the quick CIFAR-10 model
    of Krizhevsky's cuda-convnet, 2011.
    Input: (N, 3, 32, 32), or (N, in_channels, input_size, input_size).
    Parameters: 145,578.
    FLOPs: 24,708,352.

    Raises:
        ValueError: for too small an input.
    """
    check_input_size("cifar_net", input_size, smallest=8)
    return Sequential(
        Conv2d(in_channels, 32, kernel_size=5, padding=2),
        ReLU(),
        MaxPool2d(2),
        Conv2d(32, 32, kernel_size=5, padding=2),
        ReLU(),
        MaxPool2d(2),
        Conv2d(32, 64, kernel_size=5, padding=2),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        Linear(64 * (input_size // 8) ** 2, 64),
        Linear(64, num_classes),
    )
