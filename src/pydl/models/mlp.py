"""The multilayer perceptron with dropout."""

from torch.nn import Flatten, Sequential

from pydl.models._registry import register
from pydl.nn import Dropout, Linear, ReLU


@register("classifier")
def mlp(num_classes=10, in_channels=1, input_size=28, hidden=(256, 256), dropout=(0.2, 0.5)):
    """A multilayer perceptron 784-256-256-10 with ReLU and dropout after each hidden layer, less near the input.

    Source: d2l chapter "Dropout"; Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from
    Overfitting", JMLR 2014. ``dropout=(0, 0)`` gives the chapter "Multilayer Perceptrons".
    Input: (N, 1, 28, 28), or (N, in_channels, input_size, input_size).
    Parameters: 269,322.
    FLOPs: 537,600.

    Raises:
        ValueError: when ``hidden`` and ``dropout`` differ in length.
    """
    if len(hidden) != len(dropout):
        raise ValueError(
            f"mlp: expected dropout to have {len(hidden)} probabilities, one per hidden layer, got {dropout}"
        )
    net = Sequential(Flatten())
    width = in_channels * input_size**2
    for features, p in zip(hidden, dropout, strict=True):
        net.extend([Linear(width, features), ReLU(), Dropout(p)])
        width = features
    return net.append(Linear(width, num_classes))
