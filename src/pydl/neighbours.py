"""``pydl neighbours``: the words that a run's word vectors put nearest to a word."""

from pydl.data.sentences import FIRST_WORD
from pydl.errors import CheckpointError, OptionError, did_you_mean
from pydl.text import Vocab
from pydl.text.word_pairs import neighbours
from pydl.training import trained


class Vectors:
    """Trained word vectors with the vocabulary of their training.

    Args:
        path: the run's folder, or a checkpoint.

    Attributes:
        vectors: (V, width).

    Raises:
        CheckpointError: for what is no checkpoint of word vectors.
    """

    def __init__(self, path):
        content, self.config = trained.read(path, "vectors")
        self.vocab = Vocab(reserved_tokens=content["classes"])
        if self.vocab.idx_to_token != content["classes"]:
            raise CheckpointError(f"{path}: expected a vocabulary of words that differ, <unk> first, got another list")
        model, _, _ = trained.load_model(path, content, self.config, "cpu", "torch", len(self.vocab), None)
        self.vectors = model.inputs.weight.detach()

    def __call__(self, word, top=10):
        """The ``top`` nearest words by cosine, [(word, cosine)], the nearest first.

        Raises:
            OptionError: for a word that the vocabulary lacks, and for ``top`` below 1.
        """
        if top < 1:
            raise OptionError(f"--top: expected a number of at least 1, got {top}")
        word = word.strip().lower()
        words = self.vocab.idx_to_token[FIRST_WORD:]
        if word not in words:
            raise OptionError(
                f"WORD: expected one of the run's {len(words):,} words, got {word!r}" + did_you_mean(word, words)
            )
        numbers, cosines = neighbours(self.vectors, self.vocab[word], top, FIRST_WORD)
        return list(zip(self.vocab.to_tokens(numbers), cosines, strict=True))
