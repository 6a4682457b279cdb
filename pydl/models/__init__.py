"""The models of the book, built from ``pydl.nn``: one file per family, each model a function and a registered name.

>>> net = pydl.models.get("lenet", num_classes=10, in_channels=1)
"""

from pydl.models._registry import builder, get, names
from pydl.models.lenet import lenet, lenet_bn
from pydl.models.linear import softmax_regression
from pydl.models.mlp import mlp

__all__ = ["builder", "get", "lenet", "lenet_bn", "mlp", "names", "softmax_regression"]
