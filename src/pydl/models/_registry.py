"""Models by name: a file of this package decorates each builder with :func:`register`."""

KINDS = ("classifier", "regression", "language", "translation", "vectors", "masked", "topics", "detector", "segmenter")
KINDS += ("gan", "style", "reward", "policy", "contextual")
_BUILDERS, _KINDS = {}, {}


def register(kind):
    """Decorator: makes ``builder(**options) -> module`` known under its own name, as one of :data:`KINDS`."""

    def known(builder):
        _BUILDERS[builder.__name__], _KINDS[builder.__name__] = builder, kind
        return builder

    return known


def names(kind=None):
    """The names of the models, sorted; with ``kind``, one of :data:`KINDS`, of those alone.

    >>> pydl.models.names("detector")
    ['ssd']
    """
    if kind not in (None, *KINDS):
        raise ValueError(f"models: expected kind to be one of {', '.join(KINDS)}, got {kind!r}")
    return sorted(name for name in _BUILDERS if kind in (None, _KINDS[name]))


def builder(name):
    """The function that builds the model ``name``; its docstring says what the model is.

    Raises:
        ValueError: for an unknown name; the message lists those there are.
    """
    if name not in _BUILDERS:
        raise ValueError(f"models: expected the name to be one of {', '.join(names())}, got {name!r}")
    return _BUILDERS[name]


def kind(name):
    """What the model ``name`` is, one of :data:`KINDS`; the errors are those of :func:`builder`.

    >>> pydl.models.kind("gpt")
    'language'
    """
    builder(name)
    return _KINDS[name]


def get(name, **options):
    """Builds a model by name: ``get("lenet", num_classes=10, in_channels=1)``.

    Args:
        name: one of :func:`names`.
        options: arguments of the model's own function. Every image classifier takes ``num_classes`` (outputs of the
            last layer, 10 by default), ``in_channels`` (channels of its input; 1 by default, 3 for the models of
            small colour images) and ``input_size`` (height and width, where no layer depends on it only checked); the
            regressions take their number of inputs instead, the language models ``vocab_size``, the translators
            ``source_vocab_size`` too.

    Returns:
        A ``torch.nn.Module`` built from ``pydl.nn``, in training mode, with torch's default initial weights.

    Raises:
        ValueError: for an unknown name; the message lists those there are.
        TypeError: for an option that the model does not have.

    >>> pydl.models.get("lenet", num_classes=3)(torch.randn(2, 1, 28, 28)).shape
    torch.Size([2, 3])
    """
    return builder(name)(**options)


def check_variant(name, variant, variants, what="variant"):
    """``variant`` must be one of ``variants``: the error of the models that come in more than one."""
    if variant not in variants:
        raise ValueError(f"{name}: expected {what} to be one of {', '.join(variants)}, got {variant!r}")


def check_at_least(name, **sizes):
    """Each of ``sizes`` must be at least 1."""
    for what, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: expected {what} to be at least 1, got {size}")


def check_input_size(name, input_size, smallest):
    """``input_size`` must leave something to pool: the error of the models that have no layer of that size."""
    if input_size < smallest:
        raise ValueError(f"{name}: expected input_size to be at least {smallest}, got {input_size}")
