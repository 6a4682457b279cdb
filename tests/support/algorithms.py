"""Asking for one of conv2d's algorithms by name, which `pydl._C` lists."""

import contextlib

from pydl import _C

PASSES = ("forward", "backward_input", "backward_weight")
NAMES = {which: _C.conv2d_algorithms(which) for which in PASSES}
REFUSED = "conv2d: expected the algorithm asked for to serve this convolution"


@contextlib.contextmanager
def asked(name, *passes):
    """Asks for an algorithm, in these passes or in all that have it."""
    try:
        for which in passes or (None,):
            _C.use_conv2d_algorithm(name, which)
        yield
    finally:
        _C.use_conv2d_algorithm(None)


@contextlib.contextmanager
def forced(name):
    """Asks for an algorithm, ``"auto"`` for none; a body that it cannot serve has to end in the refusal."""
    with asked(None if name == "auto" else name):
        try:
            yield
        except RuntimeError as error:
            if name == "auto" or REFUSED not in str(error):
                raise
