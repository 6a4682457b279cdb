"""VGG: blocks of 3×3 convolutions."""

from collections import OrderedDict

from torch.nn import Flatten, Sequential

from pydl.models._registry import check_variant, register
from pydl.nn import AdaptiveAvgPool2d, Conv2d, Dropout, Linear, MaxPool2d, ReLU

# (convolutions, channels) of each block
VGG11 = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))
VGG16 = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
VGG19 = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))


def vgg_block(num_convs, in_channels, channels):
    """Layers of one block: 3×3 convolutions with ReLU, then max pooling that halves height and width."""
    layers = []
    for _ in range(num_convs):
        layers += [Conv2d(in_channels, channels, kernel_size=3, padding=1), ReLU()]
        in_channels = channels
    return [*layers, MaxPool2d(kernel_size=2, stride=2)]


@register("classifier")
def vgg11(num_classes=10, in_channels=1, input_size=224, ratio=1):
    """VGG-11: eight 3×3 convolutions in five blocks, three affine layers.

    Source: d2l section "Networks Using Blocks (VGG)"; Simonyan and Zisserman, "Very Deep Convolutional Networks for
    Large-Scale Image Recognition", ICLR 2015. The book trains it with ``ratio=4``: a quarter of the channels. With
    ``in_channels=3, num_classes=1000`` it loads torchvision's ``vgg11``.
    Input: (N, 1, 224, 224), or (N, in_channels, input_size, input_size), input_size a multiple of 32.
    Parameters: 128,806,154.
    FLOPs: 15,094,464,512.

    Raises:
        ValueError: when input_size is no multiple of 32, or ratio does not divide the channels.
    """
    return _vgg("vgg11", VGG11, num_classes, in_channels, input_size, ratio)


@register("classifier")
def vgg16(num_classes=10, in_channels=1, input_size=224, ratio=1, variant="book"):
    """VGG-16: thirteen 3×3 convolutions in five blocks, three affine layers.

    Source: d2l section "Networks Using Blocks (VGG)", exercises; Simonyan and Zisserman, as of :func:`vgg11`. With
    ``in_channels=3, num_classes=1000`` it loads torchvision's ``vgg16``; ``variant="torchvision"`` pools the features
    to 7×7 before the affine layers, as torchvision does, so that those weights fit every input_size.
    Input: (N, 1, 224, 224), or (N, in_channels, input_size, input_size), input_size a multiple of 32.
    Parameters: 134,300,362.
    FLOPs: 30,816,813,056.

    Raises:
        ValueError: for an unknown variant, when input_size is no multiple of 32, or ratio does not divide the channels.
    """
    check_variant("vgg16", variant, ("book", "torchvision"))
    return _vgg("vgg16", VGG16, num_classes, in_channels, input_size, ratio, pooled=variant == "torchvision")


def _vgg(name, blocks, num_classes, in_channels, input_size, ratio, pooled=False):
    """The network of ``blocks``; ``pooled``: its features are brought to 7×7."""
    if input_size < 32 or input_size % 32:
        raise ValueError(f"{name}: expected input_size to be a multiple of 32, got {input_size}")
    if ratio < 1 or any(channels % ratio for _, channels in blocks):
        raise ValueError(f"{name}: expected ratio to be a divisor of 64, got {ratio}")
    features = []
    for num_convs, channels in blocks:
        features += vgg_block(num_convs, in_channels, channels // ratio)
        in_channels = channels // ratio
    places = (7 if pooled else input_size // 32) ** 2
    classifier = Sequential(
        Linear(in_channels * places, 4096),
        ReLU(),
        Dropout(0.5),
        Linear(4096, 4096),
        ReLU(),
        Dropout(0.5),
        Linear(4096, num_classes),
    )
    parts = {"features": Sequential(*features), "flatten": Flatten(), "classifier": classifier}
    if pooled:
        parts = {"features": parts.pop("features"), "avgpool": AdaptiveAvgPool2d(7), **parts}
    return Sequential(OrderedDict(parts))
