"""Arguments of two numbers, one for each dimension of an image."""

from operator import index


def pair(op, name, value):
    """(y, x) of an argument that is one integer, or a sequence of one or two."""
    if type(value) is int:  # the common cases, kept short: they are paid on every call
        return (value, value)
    if type(value) is tuple and len(value) == 2 and type(value[0]) is int is type(value[1]):
        return value
    if hasattr(value, "__index__"):  # numpy's integers too
        return (index(value), index(value))
    try:
        numbers = tuple(index(v) for v in value)
    except TypeError:
        raise TypeError(f"{op}: expected {name} to be an integer or two, got {value!r}") from None
    if len(numbers) not in (1, 2):
        raise RuntimeError(f"{op}: expected {name} to be one number or 2, got {numbers}")
    return numbers if len(numbers) == 2 else numbers * 2
