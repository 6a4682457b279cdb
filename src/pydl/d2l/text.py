"""Text for language models: lines, tokens, a vocabulary, and batches of neighbouring tokens."""

import collections
import itertools
import re

import torch

from pydl.d2l.images import folders, say_once
from pydl.errors import DataError

FILE = "timemachine.txt"


def read_time_machine():
    """Lines of prose in small letters and blanks alone.

    They are those of ``timemachine.txt`` where it is in the folder that ``PYDL_DATA`` names, ``data`` or ``../data``;
    else of Python's own reference, which comes with Python: each of its paragraphs once, about twice as long as the
    novel.
    """
    path = next((folder / FILE for folder in folders() if (folder / FILE).is_file()), None)
    if path is not None:
        lines = path.read_text(encoding="utf-8").splitlines()
    else:
        say_once(
            f"d2l: no {FILE} in " + ", ".join(map(str, folders())) + ": the prose is that of Python's reference manual."
        )
        lines = _manual()
    return [re.sub("[^A-Za-z]+", " ", line).strip().lower() for line in lines]


def _manual():
    """Lines of the paragraphs of Python's topics, which repeat each other."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError(
            f"read_time_machine: this Python comes without its reference (pydoc_data); put {FILE} into the folder data"
        ) from None
    seen = set()
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            if (plain := " ".join(paragraph.split())) not in seen:
                seen.add(plain)
                yield from paragraph.splitlines()


def tokenize(lines, token="word"):
    """Lists of words, or of characters (``token="char"``), one per line."""
    if token not in ("word", "char"):
        raise ValueError(f"tokenize: expected token to be word or char, got {token!r}")
    return [line.split() if token == "word" else list(line) for line in lines]


def count_corpus(tokens):
    """How often each token occurs: a ``Counter`` of a list of tokens, or of lists of them."""
    if len(tokens) == 0 or isinstance(tokens[0], list):
        tokens = [token for line in tokens for token in line]
    return collections.Counter(tokens)


class Vocab:
    """Numbers for tokens: 0 is ``<unk>``, then the reserved ones, then all from the most frequent on.

    Args:
        tokens: a list of tokens, or of lists of them.
        min_freq: a token that occurs less often is unknown.
        reserved_tokens: such as ``<pad>``, which get a number whether they occur or not.

    Attributes:
        idx_to_token, token_to_idx: a list and a dictionary.
        token_freqs: (token, how often), the most frequent first.
    """

    def __init__(self, tokens=None, min_freq=0, reserved_tokens=None):
        counter = count_corpus([] if tokens is None else tokens)
        self.token_freqs = sorted(counter.items(), key=lambda pair: -pair[1])
        frequent = (token for token, count in self.token_freqs if count >= min_freq)
        self.idx_to_token = list(dict.fromkeys(["<unk>", *(reserved_tokens or ()), *frequent]))
        self.token_to_idx = {token: number for number, token in enumerate(self.idx_to_token)}

    def __len__(self):
        return len(self.idx_to_token)

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


def load_corpus_time_machine(max_tokens=-1):
    """(corpus, vocab): all characters of :func:`read_time_machine` as numbers, or the first ``max_tokens``."""
    tokens = tokenize(read_time_machine(), "char")
    vocab = Vocab(tokens)
    wanted = itertools.islice(itertools.chain.from_iterable(tokens), max_tokens if max_tokens > 0 else None)
    return [vocab[token] for token in wanted], vocab


def seq_data_iter_random(corpus, batch_size, num_steps):
    """Yields (X, Y), each (batch_size, num_steps): stretches of the corpus in random order, Y one token further.

    They begin at a random one of the first ``num_steps`` tokens, and no two of them overlap.
    """
    corpus = torch.as_tensor(corpus)
    corpus = corpus[_below(num_steps) :]
    count = (len(corpus) - 1) // num_steps
    starts = torch.randperm(count) * num_steps
    steps = torch.arange(num_steps)
    for chosen in starts[: count // batch_size * batch_size].view(-1, batch_size):
        places = chosen.unsqueeze(1) + steps
        yield corpus[places], corpus[places + 1]


def seq_data_iter_sequential(corpus, batch_size, num_steps):
    """As :func:`seq_data_iter_random`, but a row of a batch goes on where that row of the batch before ended."""
    corpus = torch.as_tensor(corpus)
    corpus = corpus[_below(num_steps) :]
    length = (len(corpus) - 1) // batch_size
    X, Y = (corpus[i : i + batch_size * length].reshape(batch_size, length) for i in (0, 1))
    for start in range(0, length // num_steps * num_steps, num_steps):
        yield X[:, start : start + num_steps], Y[:, start : start + num_steps]


def _below(count):
    return int(torch.randint(count, ()))


class SeqDataLoader:
    """Batches of the prose's characters, anew each time it is iterated over."""

    def __init__(self, batch_size, num_steps, use_random_iter, max_tokens):
        self.data_iter_fn = seq_data_iter_random if use_random_iter else seq_data_iter_sequential
        self.corpus, self.vocab = load_corpus_time_machine(max_tokens)
        self.batch_size, self.num_steps = batch_size, num_steps

    def __iter__(self):
        return self.data_iter_fn(self.corpus, self.batch_size, self.num_steps)


def load_data_time_machine(batch_size, num_steps, use_random_iter=False, max_tokens=10000):
    """(batches, vocab) of the prose's characters; the batches are :class:`SeqDataLoader`'s."""
    loader = SeqDataLoader(batch_size, num_steps, use_random_iter, max_tokens)
    return loader, loader.vocab
