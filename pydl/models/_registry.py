"""Models by name: a file of this package decorates each builder with :func:`register`."""

_BUILDERS = {}


def register(builder):
    """Decorator: makes ``builder(**options) -> module`` known under its own name."""
    _BUILDERS[builder.__name__] = builder
    return builder


def names():
    """The names of the models, sorted."""
    return sorted(_BUILDERS)


def builder(name):
    """The function that builds the model ``name``; its docstring says what the model is.

    Raises:
        ValueError: for an unknown name; the message lists those there are.
    """
    if name not in _BUILDERS:
        raise ValueError(f"models: expected the name to be one of {', '.join(names())}, got {name!r}")
    return _BUILDERS[name]


def get(name, **options):
    """Builds a model by name: ``get("lenet", num_classes=10, in_channels=1)``.

    Args:
        name: one of :func:`names`.
        options: arguments of the model's own function. Every image classifier takes ``num_classes`` (outputs of the
            last layer, 10 by default) and ``in_channels`` (channels of its input; 1 by default, 3 for the models of
            small colour images); the regressions take their number of inputs instead.

    Returns:
        A ``torch.nn.Module`` built from ``pydl.nn``, in training mode, with torch's default initial weights.

    Raises:
        ValueError: for an unknown name; the message lists those there are.
        TypeError: for an option that the model does not have.
    """
    return builder(name)(**options)


def check_variant(name, variant, variants):
    """``variant`` must be one of ``variants``: the error of the models that come in more than one."""
    if variant not in variants:
        raise ValueError(f"{name}: expected variant to be one of {', '.join(variants)}, got {variant!r}")
