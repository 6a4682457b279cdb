"""Models by name: a file of this package decorates each builder with :func:`register`."""

_BUILDERS = {}


def register(builder):
    """Decorator: makes ``builder(num_classes, in_channels, **options) -> module`` known under its own name."""
    _BUILDERS[builder.__name__] = builder
    return builder


def names():
    """The names of the models, sorted."""
    return sorted(_BUILDERS)


def builder(name):
    """The function that builds the model ``name``.

    Raises:
        ValueError: for an unknown name; the message lists those there are.
    """
    if name not in _BUILDERS:
        raise ValueError(f"models: expected the name to be one of {', '.join(names())}, got {name!r}")
    return _BUILDERS[name]


def get(name, num_classes=10, in_channels=1, **options):
    """Builds a model by name.

    Args:
        name: one of :func:`names`.
        num_classes: outputs of the last layer.
        in_channels: channels of the input images.
        options: further arguments of the model's own function.

    Returns:
        A ``torch.nn.Module`` built from ``pydl.nn``, in training mode, with torch's default initial weights.

    Raises:
        ValueError: for an unknown name; the message lists those there are.
        TypeError: for an option that the model does not have.
    """
    return builder(name)(num_classes=num_classes, in_channels=in_channels, **options)
