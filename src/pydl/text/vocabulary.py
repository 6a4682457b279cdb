"""Tokens of lines, how often they occur, and their numbers."""

import collections


def tokenize(lines, token="word"):
    """Lists of words, or of characters (``token="char"``), one per line.

    Raises:
        ValueError: for another kind of token.

    >>> text.tokenize(["the time machine"])
    [['the', 'time', 'machine']]
    """
    if token not in ("word", "char"):
        raise ValueError(f"tokenize: expected token to be word or char, got {token!r}")
    return [line.split() if token == "word" else list(line) for line in lines]


def count_corpus(tokens):
    """How often each token occurs: a ``Counter`` of a list of tokens, or of lists of them.

    >>> text.count_corpus(["a", "b", "a"])
    Counter({'a': 2, 'b': 1})
    """
    if len(tokens) == 0 or isinstance(tokens[0], list):
        tokens = [token for line in tokens for token in line]
    return collections.Counter(tokens)


class Vocab:
    """Numbers for tokens: 0 is ``<unk>``, then the reserved ones, then all from the most frequent on.

    Source: d2l section "Converting Raw Text into Sequence Data".

    Args:
        tokens: a list of tokens, or of lists of them.
        min_freq: a token that occurs less often is unknown.
        reserved_tokens: such as ``<pad>``, which get a number whether they occur or not.

    Attributes:
        idx_to_token, token_to_idx: a list and a dictionary.
        token_freqs: (token, how often), the most frequent first.

    >>> vocab = text.Vocab(["a", "b", "a"])
    >>> vocab["a"], vocab["never seen"], vocab.to_tokens([1, 2])
    (1, 0, ['a', 'b'])
    """

    def __init__(self, tokens=None, min_freq=0, reserved_tokens=None):
        counter = count_corpus([] if tokens is None else tokens)
        self.token_freqs = sorted(counter.items(), key=lambda pair: -pair[1])
        frequent = (token for token, count in self.token_freqs if count >= min_freq)
        self.idx_to_token = list(dict.fromkeys(["<unk>", *(reserved_tokens or ()), *frequent]))
        self.token_to_idx = {token: number for number, token in enumerate(self.idx_to_token)}

    def __len__(self):
        return len(self.idx_to_token)

    def __contains__(self, token):
        return token in self.token_to_idx

    def __getitem__(self, tokens):
        """The number of a token, or those of a list."""
        if isinstance(tokens, list | tuple):
            return [self[token] for token in tokens]
        return self.token_to_idx.get(tokens, self.unk)

    def to_tokens(self, indices):
        """The token of a number, or those of a list or a tensor."""
        if isinstance(indices, list | tuple) or getattr(indices, "ndim", 0):
            return [self.to_tokens(index) for index in indices]
        return self.idx_to_token[int(indices)]

    @property
    def unk(self):
        """The number of unknown tokens."""
        return 0
