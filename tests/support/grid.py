"""The ops of one tensor: a row for each, which all grids over all ops read.

By the name of the function, torch's and ours: what they are called with beside the tensor, which options
tests/ops/test_options.py gives them in every form, and the layer that means the same. The tensor may have any shape of
two dimensions or more.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """What the grids call an op with."""

    layer: str  # the class, in torch.nn and in ours
    of_layer: dict = field(default_factory=dict)  # its arguments
    given: dict = field(default_factory=dict)  # arguments of each call of the function
    options: tuple = ()  # names of arguments that take several forms


ROWS = {
    "relu": Row("ReLU", options=("inplace",)),
    "leaky_relu": Row("LeakyReLU", {"negative_slope": 0.3}, options=("negative_slope", "inplace")),
    "sigmoid": Row("Sigmoid"),
    "tanh": Row("Tanh"),
    "gelu": Row("GELU", {"approximate": "tanh"}, options=("approximate",)),
    "silu": Row("SiLU", options=("inplace",)),
    "softplus": Row("Softplus", {"beta": 2, "threshold": 1}, options=("beta", "threshold")),
    "softmax": Row("Softmax", {"dim": -1}, {"dim": -1}, ("dim", "dtype")),
    "log_softmax": Row("LogSoftmax", {"dim": 1}, {"dim": 1}, ("dim", "dtype")),
}


def _call(name):
    given = ROWS[name].given

    def call(library, x, **options):
        return getattr(library, name)(x, **(given | options))

    call.__name__ = name
    return call


CALLS = {name: _call(name) for name in ROWS}  # name -> call(library, x, **options): by torch.nn.functional or ours
