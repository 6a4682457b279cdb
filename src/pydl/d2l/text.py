"""Text for language models: lines, tokens, a vocabulary, and batches of neighbouring tokens."""

import itertools
import re

import torch

from pydl.d2l.images import folders, say_once
from pydl.errors import DataError
from pydl.text import Vocab, Windows, letters, random_starts, sequential_starts, tokenize

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
    return [letters(line) for line in lines]


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
    windows = Windows(torch.as_tensor(corpus), num_steps)
    yield from map(windows.__getitem__, random_starts(len(windows), batch_size, num_steps))


def seq_data_iter_sequential(corpus, batch_size, num_steps):
    """As :func:`seq_data_iter_random`, but a row of a batch goes on where that row of the batch before ended."""
    windows = Windows(torch.as_tensor(corpus), num_steps)
    yield from map(windows.__getitem__, sequential_starts(len(windows), batch_size, num_steps))


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
