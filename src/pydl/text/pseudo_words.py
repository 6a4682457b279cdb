"""Pseudo-words: two words of a text written as one, so that what each occurrence means is known.

The standard device of the disambiguation of word senses, where a text has too few labelled uses of words with several
meanings: the meanings are made, and the task is to tell from the context alone which of the two words stood there.

Source: Schütze, "Context Space", AAAI Fall Symposium 1992; Gale, Church and Yarowsky, "Work on Statistical Methods for
Word Sense Disambiguation", AAAI Fall Symposium 1992.
"""

import torch

from pydl.text.vocabulary import count_corpus

# All words of four letters or more that ``prose`` has often enough, by part of speech; others' texts may have few.
NOUNS = "attribute class exception expression instance list method module name object sequence statement type value"
OTHERS = "called defined from that this used when will with"
TRAINED, TESTED = 100, 20  # occurrences of a word at least, to train on and to test on


def chosen(train, test):
    """Pairs of words, [(noun, no noun)], by their counts: the most frequent of both lists, the next ones, and so on.

    The parts of speech differ, as they do in the text's own words of two meanings (``set``, ``left``, ``call``). A word
    must occur 100 times or more in ``train``, by which they are ordered (those of one count by the alphabet), and 20
    times or more in ``test``.

    Args:
        train, test: lists of sentences, each a list of words.
    """
    counts, tested = (count_corpus([word for line in part for word in line]) for part in (train, test))

    def frequent(words):
        known = [word for word in words.split() if counts[word] >= TRAINED and tested[word] >= TESTED]
        return sorted(known, key=lambda word: (-counts[word], word))

    return list(zip(frequent(NOUNS), frequent(OTHERS), strict=False))


def written(pairs):
    """{word: its pseudo-word} of ``pairs``: ``value/this`` for both."""
    return {word: "/".join(pair) for pair in pairs for word in pair}


def occurrences(words, pairs, most=None):
    """(places, numbers of pairs, meanings), int64 of shape (N,), of where a word of ``pairs`` stands in a text.

    A meaning is 0 for the first word of its pair and 1 for the second.

    Args:
        words: the text as it was, before two words were written as one.
        most: of each word take at most so many, evenly over the text.
    """
    found = {word: [] for pair in pairs for word in pair}
    for place, word in enumerate(words):
        if word in found:
            found[word].append(place)
    rows = []
    for number, pair in enumerate(pairs):
        for meaning, word in enumerate(pair):
            places = found[word]
            if most is not None and len(places) > most:
                places = [places[i * len(places) // most] for i in range(most)]
            rows += [(place, number, meaning) for place in places]
    return tuple(torch.tensor(rows, dtype=torch.int64).view(-1, 3).T)
