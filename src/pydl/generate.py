"""``pydl generate``: what a language model of ``pydl train`` writes after a prefix."""

import math

import torch

from pydl import backend, models
from pydl.errors import CheckpointError, OptionError
from pydl.text import Tokenizer, continued
from pydl.training import checkpoint
from pydl.training.build import build
from pydl.training.config import Config
from pydl.training.place import place


class Writer:
    """A trained language model with the vocabulary of its training.

    Args:
        path: the run's folder, or a checkpoint.

    Raises:
        CheckpointError: for what is no checkpoint of a language model.
    """

    def __init__(self, path, device=None, backend_name=None):
        content = checkpoint.load(path)
        try:
            config = Config(**content["config"])
        except TypeError:
            raise CheckpointError(f"{path}: the checkpoint was written by another version of pydl") from None
        if config.model not in models.names("language"):
            raise CheckpointError(f"{path}: expected the checkpoint of a language model, got one of {config.model}")
        self.tokenizer = Tokenizer(config.tokens, content["classes"])
        if self.tokenizer.vocab.idx_to_token != content["classes"]:
            raise CheckpointError(f"{path}: expected a vocabulary of tokens that differ, <unk> first, got another list")
        config.device, config.backend = device, backend_name
        self.backend, self.device = place(config)
        with torch.random.fork_rng(devices=[]), backend.use(self.backend):
            model = build(config, len(self.tokenizer.vocab), None)
            if hasattr(model, "make_room"):
                model.make_room(content["model"])
            if why := checkpoint.mismatch(model, content["model"]):
                raise CheckpointError(f"{path}: the checkpoint does not fit {config.model}: {why}")
            model.load_state_dict(content["model"])
        self.config, self.model = config, model.to(self.device).eval()

    def __call__(self, prefix, length=200, temperature=1.0, top_k=None, seed=0):
        """``prefix`` and the text of the ``length`` tokens that the model writes after it.

        Args:
            temperature, top_k: as of :func:`pydl.text.continued`.
            seed: of what is drawn.

        Raises:
            OptionError: for a prefix without tokens or with one that the vocabulary lacks, and for numbers that cannot
                be taken.
        """
        if not (temperature >= 0 and math.isfinite(temperature)):
            raise OptionError(f"--temperature: expected a finite number of at least 0, got {temperature}")
        for name, value in (("--length", length), ("--top-k", top_k)):
            if value is not None and value < 1:
                raise OptionError(f"{name}: expected a number of at least 1, got {value}")
        if not 0 <= seed < 2**63:
            raise OptionError(f"--seed: expected a number from 0 to 2**63 - 1, got {seed}")
        numbers = self.tokenizer.encode_known(prefix)
        generator = torch.Generator().manual_seed(seed)
        with backend.use(self.backend):
            more = continued(self.model, numbers, length, temperature, top_k, generator)
        return self.tokenizer.decode(numbers + more)
