"""Forty pairs of words that belong together in the data set ``prose``: what word vectors are tested on.

They were chosen by their meaning (opposites, siblings, parts of one whole) among words that occur five times or more,
with a look at which words the text's own counts put side by side, before any word2vec was trained on it.
"""

PAIRS = """
left right, leading trailing, start stop, enter exit, try finally, except finally, global nonlocal, local global
uppercase lowercase, keys values, key value, mutable immutable, tuples lists, list tuple, integer float
complex imaginary, floating point, single double, args kwargs, foo bar, spam eggs, bacon sausage
addition multiplication, floor division, unary binary, bitwise arithmetic, positional keyword, true false
async await, locals globals, eval exec, two three, equality identity, prefix suffix, square brackets
stack traceback, generator coroutine, sequences mappings, octal hex, iterator iteration
"""
PAIRS = tuple(tuple(pair.split()) for pair in PAIRS.replace("\n", ", ").split(", ") if pair)
NEIGHBOURS = 10  # among which the second word of a pair is looked for


def neighbours(vectors, number, count, first):
    """The ``count`` words nearest to ``number`` by cosine: (numbers, cosines), the nearest first.

    Args:
        vectors: (V, width).
        first: words of lower numbers, such as ``<unk>``, are no neighbours.
    """
    cosines = _cosines(vectors, vectors[number : number + 1])[0]
    cosines[:first] = cosines[number] = -2.0
    values, numbers = cosines.topk(min(count, len(vectors) - first - 1))
    return numbers.tolist(), values.tolist()


def _cosines(vectors, others):
    vectors, others = (part / part.norm(dim=1, keepdim=True).clamp_min(1e-12) for part in (vectors, others))
    return others @ vectors.T


def found(vectors, vocab, pairs, first, count=NEIGHBOURS):
    """The share of ``pairs`` whose second word is among the ``count`` nearest to the first; and how many are known.

    A pair counts only where the vocabulary has both of its words; of none the share is 0.
    """
    known = [pair for pair in pairs if all(word in vocab for word in pair)]
    hits = sum(vocab[b] in neighbours(vectors, vocab[a], count, first)[0] for a, b in known)
    return hits / max(1, len(known)), len(known)
