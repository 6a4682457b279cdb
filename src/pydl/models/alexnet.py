"""AlexNet: the book's, and the narrower one that torchvision has weights for."""

from collections import OrderedDict

from torch.nn import Flatten, Sequential

from pydl.models._registry import check_variant, register
from pydl.nn import AdaptiveAvgPool2d, Conv2d, Dropout, Linear, MaxPool2d, ReLU


@register("classifier")
def alexnet(num_classes=10, in_channels=1, input_size=224, variant="book"):
    """AlexNet: five convolutions, three affine layers, ReLU and dropout.

    Source: d2l section "Deep Convolutional Neural Networks (AlexNet)"; Krizhevsky, Sutskever and Hinton, "ImageNet
    Classification with Deep Convolutional Neural Networks", NeurIPS 2012. ``variant="torchvision"`` is the one-tower
    form of Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014; with
    ``in_channels=3, num_classes=1000`` it loads torchvision's ``alexnet``.
    Input: (N, 1, 224, 224), or (N, in_channels, input_size, input_size), at least 65 wide, 63 for torchvision's.
    Parameters: 46,764,746.
    FLOPs: 1,876,292,352.

    Raises:
        ValueError: for an unknown variant or too small an input.
    """
    check_variant("alexnet", variant, ("book", "torchvision"))
    pooled = (input_size + (2 if variant == "book" else 4) - 11) // 4 + 1
    for _ in range(3):
        pooled = (pooled - 3) // 2 + 1
    if pooled < 1:
        raise ValueError(f"alexnet: expected input_size to be large enough for three poolings, got {input_size}")
    c1, c2, c3, c4, c5 = (96, 256, 384, 384, 256) if variant == "book" else (64, 192, 384, 256, 256)
    features = Sequential(
        # a large window to catch objects, a stride of 4 to shrink the image at once
        Conv2d(in_channels, c1, kernel_size=11, stride=4, padding=1 if variant == "book" else 2),
        ReLU(),
        MaxPool2d(kernel_size=3, stride=2),
        Conv2d(c1, c2, kernel_size=5, padding=2),
        ReLU(),
        MaxPool2d(kernel_size=3, stride=2),
        Conv2d(c2, c3, kernel_size=3, padding=1),
        ReLU(),
        Conv2d(c3, c4, kernel_size=3, padding=1),
        ReLU(),
        Conv2d(c4, c5, kernel_size=3, padding=1),
        ReLU(),
        MaxPool2d(kernel_size=3, stride=2),
    )
    if variant == "torchvision":  # a fixed 6×6 of features, and dropout before each affine layer instead of after
        classifier = Sequential(
            Dropout(0.5),
            Linear(c5 * 6 * 6, 4096),
            ReLU(),
            Dropout(0.5),
            Linear(4096, 4096),
            ReLU(),
            Linear(4096, num_classes),
        )
        parts = {"features": features, "avgpool": AdaptiveAvgPool2d(6), "flatten": Flatten(), "classifier": classifier}
        return Sequential(OrderedDict(parts))
    classifier = Sequential(
        Linear(c5 * pooled**2, 4096),
        ReLU(),
        Dropout(0.5),
        Linear(4096, 4096),
        ReLU(),
        Dropout(0.5),
        Linear(4096, num_classes),
    )
    return Sequential(OrderedDict(features=features, flatten=Flatten(), classifier=classifier))
