"""One affine layer."""

from torch.nn import Flatten, Linear, Sequential

from pydl.models._registry import register


@register
def softmax_regression(num_classes=10, in_channels=1, input_size=28):
    """Softmax regression: logits are an affine function of the pixels.

    Source: d2l chapter "Linear Neural Networks for Classification".
    Input: (N, 1, 28, 28), or (N, in_channels, input_size, input_size).
    Parameters: 7,850.
    FLOPs: 15,680 per example, forward, a multiply-add counted as two.
    """
    return Sequential(Flatten(), Linear(in_channels * input_size**2, num_classes))
