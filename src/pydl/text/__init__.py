"""Text as tokens: vocabularies, tokenizers, byte pair encoding, and windows of neighbouring tokens.

What reads files is in :mod:`pydl.data`, what predicts in :mod:`pydl.models`.
"""

from pydl.text.bpe import BytePairEncoding
from pydl.text.byte_bpe import BytePairs
from pydl.text.contexts import ContextWords, Noise, contexts, subsampled
from pydl.text.continuation import continued, perplexity
from pydl.text.decoding import beam_search, greedy
from pydl.text.pairs import SentencePairs, buckets, spaced
from pydl.text.prose import letters, sentences
from pydl.text.tokenizer import KINDS, Tokenizer
from pydl.text.vocabulary import Vocab, count_corpus, tokenize
from pydl.text.windows import Windows, random_starts, sequential_starts

__all__ = [
    "KINDS",
    "BytePairEncoding",
    "BytePairs",
    "ContextWords",
    "Noise",
    "SentencePairs",
    "Tokenizer",
    "Vocab",
    "Windows",
    "beam_search",
    "buckets",
    "contexts",
    "continued",
    "count_corpus",
    "greedy",
    "letters",
    "perplexity",
    "random_starts",
    "sentences",
    "sequential_starts",
    "spaced",
    "subsampled",
    "tokenize",
]
