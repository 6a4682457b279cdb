"""``pydl generate``: what a language model of ``pydl train`` writes after a prefix."""

import math
import time

import torch

from pydl import backend
from pydl.errors import CheckpointError, OptionError
from pydl.text import Tokenizer, continued
from pydl.training import trained


class Writer:
    """A trained language model with the vocabulary of its training.

    Args:
        path: the run's folder, or a checkpoint.

    Attributes:
        rate: tokens per second of the last text that was written.

    Raises:
        CheckpointError: for what is no checkpoint of a language model.
    """

    def __init__(self, path, device=None, backend_name=None):
        content, self.config = trained.read(path, "language", "policy")
        self.tokenizer = Tokenizer(self.config.tokens, content["classes"], content.get("tokenizer"))
        if self.tokenizer.vocab.idx_to_token != content["classes"]:
            raise CheckpointError(f"{path}: expected a vocabulary of tokens that differ, <unk> first, got another list")
        sizes = len(self.tokenizer.vocab), None
        self.model, self.backend, self.device = trained.load_model(
            path, content, self.config, device, backend_name, *sizes
        )

    def __call__(self, prefix, length=200, temperature=1.0, top_k=None, seed=0, top_p=None):
        """``prefix`` and the text of the ``length`` tokens that the model writes after it.

        Args:
            temperature, top_k, top_p: as of :func:`pydl.text.continued`.
            seed: of what is drawn.

        Raises:
            OptionError: for a prefix without tokens or with one that the vocabulary lacks, and for numbers that cannot
                be taken; for a prefix that is longer than the model's window.
        """
        if not (temperature >= 0 and math.isfinite(temperature)):
            raise OptionError(f"--temperature: expected a finite number of at least 0, got {temperature}")
        for name, value in (("--length", length), ("--top-k", top_k)):
            if value is not None and value < 1:
                raise OptionError(f"{name}: expected a number of at least 1, got {value}")
        if top_p is not None and not 0 < top_p <= 1:
            raise OptionError(f"--top-p: expected a probability above 0, got {top_p}")
        if not 0 <= seed < 2**63:
            raise OptionError(f"--seed: expected a number from 0 to 2**63 - 1, got {seed}")
        numbers = self.tokenizer.encode_known(prefix)
        positions = getattr(self.model, "positions", None)
        if positions is not None and len(numbers) > positions:
            raise OptionError(f"PREFIX: expected at most {positions} tokens, got {len(numbers)}")
        generator, begin = torch.Generator().manual_seed(seed), time.perf_counter()
        with backend.use(self.backend):
            more = continued(self.model, numbers, length, temperature, top_k, generator, top_p)
        self.rate = len(more) / (time.perf_counter() - begin)
        return self.tokenizer.decode(numbers + more)
