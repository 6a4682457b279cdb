"""The quick way of a call in eager mode: ``pydl._torch``, where torch's own checks and autograd nodes are in C++.

``_nodes.linear(input, weight, bias, activation)`` and its like give the result of a plain call, and ``NotImplemented``
for every other (csrc/autograd/arguments.h says what is plain), whose caller then goes the long way, through Python's
checks and ``autograd.Function``. Both compute the same, by the same ops; a forward by Python took 1.8 to 6 times as
long at tiny sizes. ``is_small`` and ``is_small_product`` say whether a call is torch's for its size alone, and
nothing else is asked then. torch.compile cannot see into the quick way: who asks it asks ``is_compiling()`` first.

The module needs torch's whole C++ interface, so it is loaded only beside the very torch that it was built with;
elsewhere, and with ``PYDL_NODES=0``, every call is answered with ``NotImplemented``; ``why_not`` says why, and so does
``pydl info``.
"""

import os

import torch

from pydl import _C

NAMES = (
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "attention",
    "avg_pool2d",
    "batch_norm",
    "clip_grad_norm",
    "conv2d",
    "conv_transpose2d",
    "cross_entropy",
    "dropout",
    "embedding",
    "group_norm",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "log_softmax",
    "max_pool2d",
    "optimizer_step",
    "recurrent",
    "recurrent_cell",
    "recurrent_stack",
    "rms_norm",
    "scaled_dot_product_attention",
    "softmax",
    "zero_grad",
)

is_compiling = torch.compiler.is_compiling


def _load():
    """(the module or None, why it is not used, in words, or None)."""
    if os.environ.get("PYDL_NODES") == "0":
        return None, "PYDL_NODES=0"
    if _C.torch_version != torch.__version__:
        return None, f"built beside torch {_C.torch_version}; reinstall pydl beside this one"
    try:
        from pydl import _torch
    except ImportError as error:  # nothing depends on it
        return None, f"pydl._torch cannot be loaded: {error}"
    return _torch, None


_module, why_not = _load()


def _no_call(*args):
    return NotImplemented


def _never(*args):
    return False


def use(on):
    """Takes the quick way from now on, or no longer; for tests and comparisons."""
    found = _module if on else None
    for name in NAMES:
        globals()[name] = getattr(found, name, _no_call)
    for name in ("is_small", "is_small_product"):
        globals()[name] = getattr(found, name, _never)


def serve_cpu(on):
    """Says whether our CPU kernels are the backend of tensors on the CPU (backend.use)."""
    if _module is not None:
        _module.serve_cpu(on)


def serve_memory(pool):
    """Makes the pool in ``pool``, a capsule of ``_C``, torch's allocator for the CPU; whether it is."""
    return _module is not None and _module.serve_memory(pool)


use(True)
