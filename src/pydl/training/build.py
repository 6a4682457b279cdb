"""A model from the options of a run."""

import inspect

import torch

from pydl import backend, models
from pydl.errors import OptionError, did_you_mean
from pydl.training.recipes import recipe


def is_regression(model):
    """Whether the model called ``model`` predicts a number: its function then takes no ``num_classes``."""
    return "num_classes" not in inspect.signature(models.builder(model)).parameters


def own_options(model):
    """The options of the model's own function with their defaults: what ``--option`` takes."""
    parameters = inspect.signature(models.builder(model)).parameters
    given = ("num_classes", "in_channels", "input_size", "in_features")  # by the data and by --size
    return {name: parameter.default for name, parameter in parameters.items() if name not in given}


def check(config, dataset):
    """Refuses a regression on a classification's data set and the reverse, and options that the model does not have."""
    if is_regression(config.model) != dataset.regression:
        kind = "a regression" if dataset.regression else "a classification"
        raise OptionError(f"--data: expected a set that fits {config.model}, got {config.data!r}, which is {kind}")
    own = own_options(config.model)
    for name in config.options:
        if name not in own:
            forms = ", ".join(_words(each, default) for each, default in own.items()) or "none"
            raise OptionError(
                f"--option: expected one of {config.model}'s ({forms}), got {name!r}" + did_you_mean(name, own)
            )


def _words(name, value):
    """An option as it is typed: ``dropout=0.2,0.5``."""
    return f"{name}={','.join(map(str, value)) if isinstance(value, tuple | list) else value}"


def _in_form(options, own):
    """``options`` with a single value where the model's default has several: ``hidden=64`` means ``hidden=64,``."""
    return {
        name: (value,) if isinstance(own.get(name), tuple) and not isinstance(value, tuple | list) else value
        for name, value in options.items()
    }


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

    def make(options):
        model = models.get(config.model, **given, **_in_form(options, own))
        with torch.no_grad(), backend.use("torch"):
            model.eval()(example)
        return model.train()

    own, usual = own_options(config.model), recipe(config.model).options
    try:
        return make(config.options)
    except (RuntimeError, TypeError, ValueError) as error:  # torch's words for an input too small, the model's own
        reason = str(error).splitlines()[0]
    asked = {name: value for name, value in config.options.items() if usual.get(name, own.get(name)) != value}
    try:
        make(usual)
    except (RuntimeError, TypeError, ValueError):
        asked = {}  # the size is at fault, or has its share in it
    if not asked:
        at = f"--size {config.size}" if features is None else "its options"
        raise OptionError(f"{config.model} cannot be built with {at}: {reason}")
    typed = " ".join(f"--option {_words(name, value)}" for name, value in asked.items())
    forms = " ".join(_words(name, own[name]) for name in asked)
    raise OptionError(f"{typed}: {reason}; the form is that of {config.model}'s default, {forms}")
