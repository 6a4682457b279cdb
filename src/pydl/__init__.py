"""pydl: hand-written kernels for PyTorch, forward and backward.

>>> net = pydl.swap(torch.nn.Sequential(torch.nn.Conv2d(1, 6, 5), torch.nn.ReLU()))  # the same model, our kernels
>>> print(pydl.report(net))  # which kernel serves which layer  # doctest: +ELLIPSIS
name  layer   served by ...
"""

from pydl import _importing

with _importing.in_words(), _importing.uncollected():
    from importlib.util import find_spec as _find_spec

    import torch  # loads the libraries that pydl._C links to

    from pydl import _torch_range
    from pydl.errors import InstallationError

    if _why_not := _torch_range.why_not(torch.__version__):  # before the module that such a torch could not even load
        raise InstallationError(_why_not)
    if _find_spec("pydl._C") is None:
        raise InstallationError(
            "pydl was imported from its source folder, where nothing is compiled; "
            "take that folder off Python's path, or install with: pip install -e ."
        )

    from pydl import backend, functional, memory, models, nn, optim
    from pydl.compiling import explain
    from pydl.swapping import freeze, report, swap, swapped, unswap

__version__ = "0.1.0"
__all__ = [
    "backend",
    "explain",
    "freeze",
    "functional",
    "memory",
    "models",
    "nn",
    "optim",
    "report",
    "swap",
    "swapped",
    "unswap",
]
