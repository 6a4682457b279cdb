"""Network in network: 1×1 convolutions act as affine layers at each pixel."""

from torch.nn import Flatten, Sequential

from pydl.models._registry import check_input_size, register
from pydl.nn import AdaptiveAvgPool2d, Conv2d, Dropout, MaxPool2d, ReLU


def nin_block(in_channels, channels, kernel_size, stride, padding):
    """A convolution and two 1×1 convolutions, each with ReLU."""
    return Sequential(
        Conv2d(in_channels, channels, kernel_size, stride, padding),
        ReLU(),
        Conv2d(channels, channels, kernel_size=1),
        ReLU(),
        Conv2d(channels, channels, kernel_size=1),
        ReLU(),
    )


@register("classifier")
def nin(num_classes=10, in_channels=1, input_size=224):
    """NiN: four blocks; the last one has a channel per class, averaged over the image, instead of affine layers.

    Source: d2l section "Network in Network (NiN)"; Lin, Chen and Yan, "Network In Network", ICLR 2014.
    Input: (N, 1, 224, 224), or (N, in_channels, input_size, input_size), at least 67 wide.
    Parameters: 1,992,166.
    FLOPs: 1,524,594,704.

    Raises:
        ValueError: for too small an input.
    """
    check_input_size("nin", input_size, smallest=67)
    return Sequential(
        nin_block(in_channels, 96, kernel_size=11, stride=4, padding=0),
        MaxPool2d(kernel_size=3, stride=2),
        nin_block(96, 256, kernel_size=5, stride=1, padding=2),
        MaxPool2d(kernel_size=3, stride=2),
        nin_block(256, 384, kernel_size=3, stride=1, padding=1),
        MaxPool2d(kernel_size=3, stride=2),
        Dropout(0.5),
        nin_block(384, num_classes, kernel_size=3, stride=1, padding=1),
        AdaptiveAvgPool2d((1, 1)),
        Flatten(),
    )
