"""``pydl judge``: the scores that a reward model gives to texts."""

import torch

from pydl import backend
from pydl.errors import OptionError
from pydl.rlhf import Preference
from pydl.rlhf.preferences import PairRows
from pydl.text import Tokenizer
from pydl.training import trained
from pydl.training.feedback import positions


class Judge:
    """A trained reward model with the vocabulary of its training.

    Args:
        path: the run's folder, or a checkpoint.

    Raises:
        CheckpointError: for what is no checkpoint of one.
    """

    def __init__(self, path, device=None, backend_name=None):
        content, self.config = trained.read(path, "reward")
        self.tokenizer = Tokenizer(self.config.tokens, content["classes"], content["tokenizer"])
        sizes = len(self.tokenizer.vocab), None
        self.model, self.backend, self.device = trained.load_model(
            path, content, self.config, device, backend_name, *sizes
        )

    @torch.no_grad()
    def __call__(self, prompt, responses):
        """A list of the scores of ``responses``, what may be written after ``prompt``; only differences mean something.

        Raises:
            OptionError: for a text that is empty or has tokens that the vocabulary lacks.
            DataError: for one that is longer, with the prompt, than the model's positions.
        """
        for what, text in (("PROMPT", prompt), *(("TEXT", text) for text in responses)):
            try:
                self.tokenizer.encode_known(text)
            except OptionError as error:
                raise OptionError(str(error).replace("PREFIX", what)) from None
        pairs = [Preference(prompt, text, text) for text in responses]
        rows = PairRows(pairs, self.tokenizer, positions(self.config.options), self.device)
        with backend.use(self.backend):
            return self.model(*rows[torch.arange(len(rows))][0])[:, 0].tolist()
