"""``pydl translate``: what a translator of ``pydl train`` makes of a sentence, and where it looked."""

import torch

from pydl import backend
from pydl.data.translation import CLEANED
from pydl.errors import CheckpointError, MissingExtra, OptionError
from pydl.text import Vocab, beam_search
from pydl.training import curves, heatmaps, trained
from pydl.training.translation import weights_of


class Translator:
    """A trained translator with the vocabularies of its training.

    Args:
        path: the run's folder, or a checkpoint.

    Raises:
        CheckpointError: for what is no checkpoint of a translator.
    """

    def __init__(self, path, device=None, backend_name=None):
        content, self.config = trained.read(path, "translation")
        lists = content.get("source"), content["classes"]
        self.vocabs = [Vocab(reserved_tokens=tokens) for tokens in lists]
        if any(vocab.idx_to_token != tokens for vocab, tokens in zip(self.vocabs, lists, strict=True)):
            raise CheckpointError(f"{path}: expected vocabularies of words that differ, <unk> first, got other lists")
        source_vocab, vocab = self.vocabs
        sizes = len(vocab), None, len(source_vocab)
        self.model, self.backend, self.device = trained.load_model(
            path, content, self.config, device, backend_name, *sizes
        )

    def words(self, sentence):
        """The words of ``sentence``, cleaned as the data set's.

        Raises:
            OptionError: for one without words, with one that the vocabulary lacks, or of more than ``--num-steps``.
        """
        words, vocab = CLEANED[self.config.data](sentence).split(), self.vocabs[0]
        for word in words:
            if word not in vocab or word in ("<unk>", "<pad>", "<bos>", "<eos>"):
                raise OptionError(
                    f"SENTENCE: expected words out of the run's vocabulary ({len(vocab)}), got {word!r} that it lacks"
                )
        if not 1 <= len(words) <= self.config.num_steps:
            raise OptionError(
                f"SENTENCE: expected from 1 to {self.config.num_steps} words (--num-steps of the run), got {len(words)}"
            )
        return words

    def __call__(self, sentence, beam=1):
        """The translation of ``sentence``: the likeliest word again and again, or the best sentence of a beam search.

        Raises:
            OptionError: as :meth:`words`, and for a beam below 1.
        """
        if beam < 1:
            raise OptionError(f"--beam: expected a number of at least 1, got {beam}")
        source_vocab, vocab = self.vocabs
        source = torch.tensor([source_vocab[[*self.words(sentence), "<eos>"]]], device=self.device)
        lengths = torch.tensor([source.shape[1]], device=self.device)
        with backend.use(self.backend):
            numbers = beam_search(self.model, source, lengths, self.config.num_steps, beam)
        return " ".join(vocab.to_tokens(numbers))

    def attention(self, sentence, translation):
        """(words of the source, words of ``translation``, weights (heads, written, source)), each with ``<eos>``.

        Raises:
            OptionError: for a model without attention.
        """
        source, written = self.words(sentence), translation.split()
        with backend.use(self.backend):
            weights = weights_of(self.model, *self.vocabs, source, written)
        if weights is None:
            raise OptionError(f"--attention: expected a model with attention, got a run of {self.config.model}")
        return [*source, "<eos>"], [*written, "<eos>"], weights

    def draw(self, path, sentence, translation):
        """The heat map of :meth:`attention`, as the picture ``path``.

        Raises:
            OptionError: as :meth:`attention`, and for a name that is no picture's.
            MissingExtra: without matplotlib.
        """
        found = self.attention(sentence, translation)
        if not curves.available():
            raise MissingExtra("a picture", "matplotlib")
        try:
            heatmaps.draw(path, [found], self.config.model)
        except ValueError as error:  # matplotlib's, for a kind of file that it does not write
            raise OptionError(f"--attention: expected the name of a picture, such as map.png: {error}") from None
