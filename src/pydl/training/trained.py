"""A model as a checkpoint of ``pydl train`` has it: ``pydl predict``, ``generate`` and ``translate`` begin here."""

import torch

from pydl import backend, models
from pydl.errors import CheckpointError
from pydl.training import checkpoint
from pydl.training.build import build
from pydl.training.config import Config
from pydl.training.place import place

KINDS = {"classifier": "a classifier", "language": "a language model", "translation": "a translator"}
KINDS |= {"vectors": "word vectors", "masked": "BERT", "topics": "a classifier of sentences"}
KINDS |= {"detector": "a detector", "segmenter": "a segmenter"}
KINDS |= {"gan": "a generator of images", "style": "style transfer"}
KINDS |= {"reward": "a reward model", "policy": "a policy"}
KINDS |= {"contextual": "ELMo"}


def config_of(path, content):
    """The :class:`Config` of a checkpoint's ``content``.

    Raises:
        CheckpointError: for options that this version does not know.
    """
    try:
        return Config(**content["config"])
    except (KeyError, TypeError):
        raise CheckpointError(f"{path}: the checkpoint was written by another version of pydl") from None


def read(path, *kinds):
    """(content, config) of the checkpoint at ``path``, which is of a model of one of ``kinds``, of :data:`KINDS`.

    Raises:
        CheckpointError: for any other file.
    """
    content = checkpoint.load(path)
    config = config_of(path, content)
    if models.kind(config.model) not in kinds:
        raise CheckpointError(f"{path}: expected the checkpoint of {KINDS[kinds[0]]}, got one of {config.model}")
    return content, config


def load_model(path, content, config, device, backend_name, *sizes):
    """(model in evaluation, the backend's name, its device).

    Args:
        device, backend_name: in place of those of the training; None for what is best here.
        sizes: what :func:`pydl.training.build.build` takes after the config.

    Raises:
        CheckpointError: for weights that do not fit the model.
    """
    config.device, config.backend = device, backend_name
    name, where = place(config)
    with torch.random.fork_rng(devices=[]), backend.use(name):
        model = build(config, *sizes)
        if hasattr(model, "make_room"):
            model.make_room(content["model"])
        if why := checkpoint.mismatch(model, content["model"]):
            raise CheckpointError(f"{path}: the checkpoint does not fit {config.model}: {why}")
        model.load_state_dict(content["model"])
    return model.to(where).eval(), name, where
