"""A model from the options of a run."""

import inspect

import torch

from pydl import backend, models
from pydl.errors import OptionError, did_you_mean
from pydl.training import tuning
from pydl.training.recipes import recipe

# the kind of data set that each kind of model learns from
LEARNS_FROM = {"classifier": "classification", "regression": "regression", "language": "text", "translation": "pairs"}
LEARNS_FROM |= {"vectors": "sentences", "masked": "sentences", "topics": "topics"}
LEARNS_FROM |= {"detector": "objects", "segmenter": "objects"}
LEARNS_FROM |= {"gan": "classification", "style": "pictures"}
LEARNS_FROM |= {"reward": "preferences", "policy": "preferences"}
LEARNS_FROM |= {"contextual": "sentences"}
# options that only some kinds of models take, and what those are called
IMAGES, TEXT, PAIRS = "a model of images", "a language model", "a translator"
VECTORS, ROWS = "word vectors", "BERT"
BOTH_WAYS = "ELMo"
REWARD, POLICY = "a reward model", "a policy"
KIND = {"language": TEXT, "translation": PAIRS, "vectors": VECTORS, "masked": ROWS, "topics": ROWS}
KIND |= {"reward": REWARD, "policy": POLICY, "contextual": BOTH_WAYS}
ONLY = {"size": (IMAGES,), "augment": (IMAGES,), "tokens": (TEXT,)}
ONLY |= {"num_steps": (TEXT, PAIRS, ROWS, BOTH_WAYS, REWARD, POLICY)}
ONLY |= {"partition": (TEXT,), "language": (PAIRS,)}
ONLY |= {"from_": (REWARD, POLICY), "pairs": (REWARD,), "rule": (REWARD,)}
ONLY |= dict.fromkeys(("reward", "method", "rounds", "kl"), (POLICY,))


def own_options(model):
    """The options of the model's own function with their defaults: what ``--option`` takes."""
    parameters = inspect.signature(models.builder(model)).parameters
    given = (
        "num_classes",
        "in_channels",
        "input_size",
        "in_features",
        "vocab_size",
        "source_vocab_size",
        "image_size",
    )  # by the data and by --size
    return {name: parameter.default for name, parameter in parameters.items() if name not in given}


def check(config, dataset):
    """Refuses a data set of another kind than the model's, and options that the model does not have."""
    if LEARNS_FROM[models.kind(config.model)] != dataset.kind:
        raise OptionError(
            f"--data: expected a set that fits {config.model}, got {config.data!r}, which is a {dataset.kind}"
        )
    if models.kind(config.model) == "segmenter" and not dataset.masks:
        raise OptionError(f"--data: expected a set with masks for {config.model}, got {config.data!r}, which has none")
    if config.replace_head not in (None, len(dataset.classes)):
        raise OptionError(
            f"--replace-head: expected the {len(dataset.classes)} classes of {config.data!r}, got {config.replace_head}"
        )
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


def check_kind(config):
    """Refuses options of images for models of text, and the other way round."""
    kind = KIND.get(models.kind(config.model), IMAGES)
    for name, takes in ONLY.items():
        if getattr(config, name) is not None and getattr(config, name) != [] and kind not in takes:
            option = f"--{name.strip('_').replace('_', '-')}"
            *others, last = takes
            words = f"{', '.join(others)} or {last}" if others else last
            raise OptionError(f"{option}: expected {words} to take it, got {config.model}")
    tuned = {"--replace-head": config.replace_head, "--add-layer": config.add_layer, "--freeze": config.freeze}
    tuned |= {"--head-lr-factor": config.head_lr_factor != 1}
    for option, given in tuned.items():
        if given and models.kind(config.model) != "classifier":
            raise OptionError(f"{option}: expected a classifier of images to take it, got {config.model}")
    chooses = models.kind(config.model) not in ("regression", "vectors", "gan", "style", "reward", "policy")
    if config.label_smoothing and not chooses:
        raise OptionError(f"--label-smoothing: expected a model that chooses to take it, got {config.model}")


def build(config, num_classes, preprocessing, features=None):
    """The model of ``config`` on the CPU; lazy layers have taken their shapes, in eval mode, which counts no batch.

    Args:
        num_classes, preprocessing: of a classification; of a language model or a translator, the size of the vocabulary
            that it writes, and None.
        features: of a regression, the number of its inputs; of a translator, the size of the source's vocabulary; of a
            classifier of sentences, that of the vocabulary.

    Raises:
        OptionError: for a size or an option that the model does not take.
    """
    known = inspect.signature(models.builder(config.model)).parameters
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    if models.kind(config.model) == "language":
        given, example = {"vocab_size": num_classes}, (tokens,)
    elif models.kind(config.model) == "translation":
        given = {"vocab_size": num_classes, "source_vocab_size": features}
        # the longest sentence of all, for models that have a place for each token
        example = tokens, torch.tensor([2]), torch.zeros(1, config.num_steps + 1, dtype=torch.int64)
    elif models.kind(config.model) == "vectors":
        given, example = {"vocab_size": num_classes}, (tokens, tokens)
    elif models.kind(config.model) == "masked":
        given, example = {"vocab_size": num_classes}, (tokens, tokens, torch.tensor([2]), tokens[:, :1])
    elif models.kind(config.model) == "reward":
        given, example = {"vocab_size": num_classes}, (tokens, torch.tensor([1]), torch.tensor([2]))
    elif models.kind(config.model) in ("policy", "contextual"):
        given, example = {"vocab_size": num_classes}, (tokens,)
    elif models.kind(config.model) == "topics":
        given = {"num_classes": num_classes, "vocab_size": features}
        example = tokens, tokens, torch.tensor([2])
    elif models.kind(config.model) == "style":
        given, example = {"image_size": features}, ()
    elif features is None:
        given = {"num_classes": config.kept_outputs or num_classes}
        given |= {"in_channels": preprocessing.channels, "input_size": config.size}
        example = (torch.zeros(2, preprocessing.channels, *preprocessing.size),)
    else:
        given, example = {"in_features": features}, (torch.zeros(2, features),)
    given = {name: value for name, value in given.items() if name in known}

    def make(options):
        model = models.get(config.model, **given, **_in_form(options, own))
        with torch.no_grad(), backend.use("torch"):
            model.eval()(*example)
        if config.kept_outputs:
            tuning.extend(model, num_classes)
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
        at = f"--size {config.size}" if "input_size" in given else "its options"
        raise OptionError(f"{config.model} cannot be built with {at}: {reason}")
    typed = " ".join(f"--option {_words(name, value)}" for name, value in asked.items())
    forms = " ".join(_words(name, own[name]) for name in asked)
    raise OptionError(f"{typed}: {reason}; the form is that of {config.model}'s default, {forms}")
