"""Asking for one of conv2d's algorithms by name, which `pydl._C` lists."""

import contextlib

import pytest

from pydl import _C, backend

PASSES = ("forward", "backward_input", "backward_weight")
NAMES = {which: _C.conv2d_algorithms(which) for which in PASSES}
REFUSED = "conv2d: expected the algorithm asked for to serve this convolution"


def _is_left_out(name, passes):
    """Whether the instruction set in use is the baseline, built with plain algorithms alone, of which this is none."""
    here = [known for which in passes for known in _C.conv2d_algorithms(which)]
    is_here = any(known == name or known.startswith(name + ".") for known in here)
    return backend.current_isa() == "baseline" and not is_here


@contextlib.contextmanager
def asked(name, *passes):
    """Asks for an algorithm, in these passes or in all that have it."""
    if name is not None and _is_left_out(name, passes or PASSES):
        pytest.skip(f"{backend.current_isa()} has no {name}")
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
