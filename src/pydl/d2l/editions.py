"""Arguments of classes whose constructors differ between the book's editions."""

import inspect


def signature(function):
    """The signature of a function that says which arguments an edition has."""
    return inspect.signature(function)


def bound(name, signatures, args, kwargs):
    """The arguments by name, of the first of the editions' signatures that takes them."""
    for one in signatures:
        try:
            found = one.bind(*args, **kwargs)
        except TypeError:
            continue
        found.apply_defaults()
        return found.arguments
    expected = " or ".join(map(str, signatures))
    raise TypeError(
        f"{name}: expected the arguments to be {expected}, got {len(args)} and {', '.join(kwargs) or 'none'}"
    )


def check_width(name, sizes, *names):
    """That sizes which the earlier edition asks for are the net's width, as they must be: None leaves one out."""
    for one in names:
        if sizes.get(one) not in (None, sizes["num_hiddens"]):
            raise ValueError(f"{name}: expected {one} to be num_hiddens, {sizes['num_hiddens']}, got {sizes[one]}")
