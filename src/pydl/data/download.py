"""``--download``: the standard files of a set, fetched by torchvision where that is installed."""

from pydl.errors import DataError, MissingExtra, OptionError

CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}


def download(name, root):
    """Puts the files of set ``name`` under ``root``, where :func:`pydl.data.get` finds them; those there are kept.

    Raises:
        OptionError: for a set that is not fetched by anybody.
        MissingExtra: without torchvision.
        DataError: when the files cannot be fetched.
    """
    if name not in CLASSES:
        raise OptionError(f"--download: expected a data set out of {', '.join(CLASSES)}, got {name!r}")
    try:
        from torchvision import datasets
    except ImportError:
        raise MissingExtra("--download", "torchvision", extra="download") from None
    try:
        getattr(datasets, CLASSES[name])(str(root), download=True)
    except (OSError, RuntimeError) as error:  # no network, a full disk, a file whose checksum is not the known one
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"data set {name!r} could not be fetched to {root}: {reason}") from None
