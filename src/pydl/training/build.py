"""A model from the options of a run."""

import inspect

import torch

from pydl import backend, models
from pydl.errors import OptionError


def is_regression(model):
    """Whether the model called ``model`` predicts a number: its function then takes no ``num_classes``."""
    return "num_classes" not in inspect.signature(models.builder(model)).parameters


def check(config, dataset):
    """Refuses a regression on a classification's data set and the reverse, and options that the model does not have."""
    if is_regression(config.model) != dataset.regression:
        kind = "a regression" if dataset.regression else "a classification"
        raise OptionError(f"--data: expected a set that fits {config.model}, got {config.data!r}, which is {kind}")
    known = inspect.signature(models.builder(config.model)).parameters
    own = [name for name in known if name not in ("num_classes", "in_channels", "input_size", "in_features")]
    for name in config.options:
        if name not in own:
            raise OptionError(f"--option: expected one of {config.model}'s ({', '.join(own) or 'none'}), got {name!r}")


def build(config, num_classes, preprocessing, features=None):
    """The model of ``config`` on the CPU; lazy layers have taken their shapes, in eval mode, which counts no batch.

    Args:
        num_classes, preprocessing: of a classification.
        features: of a regression, the number of its inputs.

    Raises:
        OptionError: for a size or an option that the model does not take.
    """
    known = inspect.signature(models.builder(config.model)).parameters
    if features is None:
        given = {"num_classes": num_classes, "in_channels": preprocessing.channels, "input_size": config.size}
        example = torch.zeros(2, preprocessing.channels, *preprocessing.size)
    else:
        given, example = {"in_features": features}, torch.zeros(2, features)
    given = {name: value for name, value in given.items() if name in known}
    try:
        model = models.get(config.model, **given, **config.options)
        with torch.no_grad(), backend.use("torch"):
            model.eval()(example)
    except (RuntimeError, TypeError, ValueError) as error:  # torch's words for an input too small, the model's own
        reason = str(error).splitlines()[0]
        at = f"--size {config.size}" if features is None else "its options"
        raise OptionError(f"{config.model} cannot be built with {at}: {reason}") from None
    return model.train()
