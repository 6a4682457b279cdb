"""Options in all forms that torch takes: numbers, pairs, switches; what torch refuses is a TypeError here too."""

from operator import index

import torch

from pydl._private import reduction_names

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def reduction_number(op, reduction):
    """torch's number of a reduction by name."""
    if isinstance(reduction, str) and reduction in REDUCTIONS:
        return REDUCTIONS[reduction]
    if reduction != "elementwise_mean":  # the old name of mean, which torch takes with a warning
        raise ValueError(f"{op}: expected reduction to be none, mean or sum, got {reduction!r}")
    return reduction_names.get_enum(reduction)


def pair(op, name, value):
    """(y, x) of an argument that is one integer, or a sequence of one or two."""
    if type(value) is int:  # the common cases, kept short: they are paid on every call
        return (value, value)
    if type(value) is tuple and len(value) == 2 and type(value[0]) is int is type(value[1]):
        return value
    return _several(op, name, value, 2, "an integer or two")


def triple(op, name, value):
    """(z, y, x) of an argument that is one integer, or a sequence of one or three."""
    return _several(op, name, value, 3, "an integer or three")


def _several(op, name, value, count, what):
    if not isinstance(value, tuple | list):
        return (integer(op, name, value, what),) * count
    try:
        numbers = tuple(index(v) for v in value)
    except TypeError:
        raise TypeError(f"{op}: expected {name} to be {what}, got {value!r}") from None
    if len(numbers) not in (1, count):
        raise RuntimeError(f"{op}: expected {name} to be one number or {count}, got {numbers}")
    return numbers if len(numbers) == count else numbers * count


def integer(op, name, value, what="an integer"):
    """An argument that is one integer: numpy's and tensors of no dimensions too, but no truth value."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or not hasattr(value, "__index__") or not _scalar(value):
        raise TypeError(f"{op}: expected {name} to be {what}, got {value!r}")
    try:
        return index(value)
    except TypeError:  # a tensor of a floating point dtype
        raise TypeError(f"{op}: expected {name} to be {what}, got {value!r}") from None


def one_integer(op, name, value):
    """An argument of a 1-D op that is one integer, or a sequence of one."""
    if isinstance(value, tuple | list):
        numbers = tuple(integer(op, name, number) for number in value)
        if len(numbers) != 1:
            raise RuntimeError(f"{op}: expected {name} to be one number, got {numbers}")
        return numbers[0]
    return integer(op, name, value)


def number(op, name, value):
    """An argument that is one number: numpy's and tensors of no dimensions too."""
    if type(value) is float or isinstance(value, int | torch.SymFloat | torch.SymInt):
        return value
    if not hasattr(value, "__float__") or not _scalar(value):
        raise TypeError(f"{op}: expected {name} to be a number, got {value!r}")
    return float(value)


def switch(op, name, value):
    """An argument that is True or False, and nothing that merely counts as such."""
    if value is True or value is False:
        return value
    raise TypeError(f"{op}: expected {name} to be True or False, got {value!r}")


def _scalar(value):
    """Whether it is one number by itself: numpy's arrays are none, whatever their dimensions."""
    return value.dim() == 0 if isinstance(value, torch.Tensor) else not hasattr(value, "__len__")
