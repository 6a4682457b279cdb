"""Byte pair encoding over bytes by the ``tokenizers`` library, behind the interface of the lesson in bpe.py.

Its alphabet is the 256 bytes, so that it cuts every text and gives back the very same one, blanks and line ends too;
it merges and encodes in Rust, by other rules than ours (the merges in the order that they were learnt in).

Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.2.
"""

from pydl.errors import MissingExtra
from pydl.text.bpe import UNKNOWN


class BytePairs:
    """Pieces of bytes.

    Args:
        state: what :meth:`state` gave.

    Attributes:
        pieces: all tokens by number: ``<unk>``, which nothing but these very characters is cut into, the bytes, then
            one per merge, in the library's own writing of bytes.
    """

    def __init__(self, state):
        self._library = _library().Tokenizer.from_str(state)
        self.pieces = [self._library.id_to_token(number) for number in range(self._library.get_vocab_size())]

    @classmethod
    def train(cls, text, merges):
        """Joins the most frequent pair of neighbouring pieces of ``text``, at most ``merges`` times."""
        tokenizers = _library()
        level = tokenizers.pre_tokenizers.ByteLevel
        fresh = tokenizers.Tokenizer(tokenizers.models.BPE())
        fresh.pre_tokenizer, fresh.decoder = level(add_prefix_space=False), tokenizers.decoders.ByteLevel()
        alphabet = sorted(level.alphabet())
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=1 + len(alphabet) + merges,
            special_tokens=[UNKNOWN],
            initial_alphabet=alphabet,
            show_progress=False,
        )
        fresh.train_from_iterator(text.splitlines(keepends=True), trainer)
        return cls(fresh.to_str())

    def encode(self, text):
        """The pieces of ``text``."""
        return self._library.encode(text).tokens

    def decode(self, pieces):
        """The text of pieces; bytes that are no character, as when a text ends inside one, are shown as U+FFFD."""
        numbers = [self._library.token_to_id(piece) for piece in pieces]
        return self._library.decode(numbers, skip_special_tokens=False)

    def state(self):
        """All of it as text, for a checkpoint."""
        return self._library.to_str()


def _library():
    try:
        import tokenizers
    except ImportError:
        raise MissingExtra("--tokens byte-bpe", "tokenizers") from None
    return tokenizers
