"""``pydl predict`` for sentences: the classes that a classifier of sentences gives them."""

import torch

from pydl import backend
from pydl.data.sentences import CLS, MASK, PAD, SEP
from pydl.errors import CheckpointError, OptionError
from pydl.text import Vocab, letters
from pydl.text.masked import Labelled
from pydl.training import trained


class SentencePredictor:
    """A trained classifier of sentences with the classes and the vocabulary of its training.

    Args:
        path: the run's folder, or a checkpoint.

    Raises:
        CheckpointError: for what is no checkpoint of one.
    """

    def __init__(self, path, device=None, backend_name=None):
        content, self.config = trained.read(path, "topics")
        self.classes, words = tuple(content["classes"]), content.get("vocabulary", [])
        self.vocab = Vocab(reserved_tokens=words)
        if self.vocab.idx_to_token != words:
            raise CheckpointError(f"{path}: expected a vocabulary of words that differ, <unk> first, got another list")
        sizes = len(self.classes), None, len(words)
        self.model, self.backend, self.device = trained.load_model(
            path, content, self.config, device, backend_name, *sizes
        )

    @torch.no_grad()
    def __call__(self, sentences, top=3):
        """A list for each sentence: (class, probability), the likeliest first, ``top`` of them.

        A sentence is made small letters and blanks; it is cut at the run's ``--num-steps``.

        Raises:
            OptionError: for a sentence without a word that the vocabulary has.
        """
        rows = []
        for sentence in sentences:
            words = letters(sentence).split()
            if not any(word in self.vocab for word in words):
                raise OptionError(
                    f"SENTENCE: expected words out of the run's vocabulary ({len(self.vocab):,}), got {sentence!r}"
                )
            rows.append(self.vocab[words])
        batch = Labelled(rows, [0] * len(rows), self.config.num_steps, (PAD, MASK, CLS, SEP), self.device)
        inputs, _ = batch[torch.arange(len(rows))]
        with backend.use(self.backend):
            found = self.model(*inputs).float().softmax(1).cpu()
        values, numbers = found.topk(min(top, len(self.classes)), dim=1)
        return [
            [(self.classes[i], p) for i, p in zip(*row, strict=True)]
            for row in zip(numbers.tolist(), values.tolist(), strict=True)
        ]
