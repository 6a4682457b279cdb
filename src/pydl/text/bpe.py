"""Byte pair encoding from scratch: the pieces of words that occur most often become tokens.

Source: d2l section "Subword Embedding"; Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with
Subword Units", ACL 2016.
"""

import collections
import itertools

END, UNKNOWN = "</w>", "<unk>"


def symbols(word):
    """The characters of a word, then the mark of its end."""
    return [*word, END]


def pairs(word):
    """The neighbouring symbols of a word."""
    return itertools.pairwise(word)


def merge(word, pair):
    """``word``, a list of symbols, with every occurrence of ``pair`` joined, from the left."""
    out, place = [], 0
    while place < len(word):
        if tuple(word[place : place + 2]) == pair:
            out.append(pair[0] + pair[1])
            place += 2
        else:
            out.append(word[place])
            place += 1
    return out


class BytePairEncoding:
    """Pieces of words. Training merges pairs; encoding looks for the longest pieces first, whatever merged them.

    Args:
        pieces: the tokens, such as those of another's training.

    Attributes:
        merges: the pairs that :meth:`train` joined, in order.
        pieces: all tokens: single characters and the mark ``</w>`` first, then one per merge.
    """

    def __init__(self, pieces=()):
        self.pieces, self.merges = list(pieces), []
        self._known, self._encoded = set(self.pieces), {}
        self._longest = max(map(_length, self.pieces), default=0)

    @classmethod
    def train(cls, counts, merges, least=2):
        """Joins the most frequent pair of neighbouring symbols, at most ``merges`` times.

        Of equally frequent pairs the one that comes first, in the order of the words, is joined; a pair that occurs
        less often than ``least`` is not.

        Args:
            counts: {word: how often it occurs}.
        """
        words, frequency = [symbols(word) for word in counts], list(counts.values())
        count, where = collections.Counter(), collections.defaultdict(set)  # of each pair: how often, in which words

        def add(index, sign):
            for pair in pairs(words[index]):
                count[pair] += sign * frequency[index]
                where[pair].add(index)

        for index in range(len(words)):
            add(index, 1)
        alphabet, done = list(dict.fromkeys(symbol for word in words for symbol in word)), []
        while len(done) < merges and count:
            most = max(count.values())
            if most < least:
                break
            best = min((p for p in count if count[p] == most), key=lambda p: _first(p, words, where))
            for index in where.pop(best):
                add(index, -1)
                words[index] = merge(words[index], best)
                add(index, 1)
            del count[best]
            done.append(best)
        encoding = cls(dict.fromkeys([*alphabet, *(a + b for a, b in done)]))
        encoding.merges = done
        return encoding

    def encode_word(self, word):
        """The pieces of one word: the longest piece that it contains, the leftmost of equals, then left and right of
        it alike; a stretch without any piece is ``<unk>``.
        """
        if word not in self._encoded:
            self._encoded[word] = self._cut(symbols(word))
        return self._encoded[word]

    def _cut(self, word):
        if not word:
            return []
        for length in range(min(self._longest, len(word)), 0, -1):
            for start in range(len(word) - length + 1):
                end = start + length
                if (piece := "".join(word[start:end])) in self._known:
                    return [*self._cut(word[:start]), piece, *self._cut(word[end:])]
        return [UNKNOWN]

    def encode(self, text):
        """The pieces of all words of ``text``, which blanks part."""
        return [piece for word in text.split() for piece in self.encode_word(word)]

    @staticmethod
    def decode(pieces):
        """The text of pieces: joined up to each ``</w>``, where a blank stands."""
        return "".join(pieces).replace(END, " ").rstrip(" ")


def _length(piece):
    """Symbols of a piece: the mark of the end is one."""
    return len(piece.removesuffix(END)) + piece.endswith(END)


def _first(pair, words, where):
    """(word, place) of the first occurrence of ``pair``; words that have lost it are forgotten on the way."""
    for index in sorted(where[pair]):
        for place, each in enumerate(pairs(words[index])):
            if each == pair:
                return index, place
        where[pair].discard(index)
    raise AssertionError(f"bpe: {pair} is counted and nowhere")
