"""BERT: an encoder of pairs of sentences, and the two tasks that it is trained by.

Source: Devlin et al., NAACL 2019; d2l section "Bidirectional Encoder Representations from Transformers".
"""

import torch
from torch import nn

from pydl.d2l.editions import bound, check_width, signature
from pydl.d2l.transformer import WIDTHS, blocks


def get_tokens_and_segments(tokens_a, tokens_b=None):
    """(tokens, segments): ``<cls> a <sep>`` and, where there is one, ``b <sep>``; segments are 0 for a and 1 for b."""
    tokens = ["<cls>", *tokens_a, "<sep>"]
    segments = [0] * len(tokens)
    if tokens_b is not None:
        tokens += [*tokens_b, "<sep>"]
        segments += [1] * (len(tokens_b) + 1)
    return tokens, segments


_LATER = signature(
    lambda vocab_size, num_hiddens, ffn_num_hiddens, num_heads, num_blks, dropout, max_len=1000: None
)  # fmt: skip


class BERTEncoder(nn.Module):
    """Embeddings of tokens, segments and positions, which are learned, and encoder blocks.

    ``BERTEncoder(vocab_size, num_hiddens, norm_shape, ffn_num_input, ffn_num_hiddens, num_heads, num_layers, dropout,
    max_len=1000, key_size, query_size, value_size)`` in the earlier edition,
    ``BERTEncoder(vocab_size, num_hiddens, ffn_num_hiddens, num_heads, num_blks, dropout, max_len=1000)`` in the later.
    """

    _SIGNATURES = (
        _LATER,
        signature(
            lambda vocab_size, num_hiddens, norm_shape, ffn_num_input, ffn_num_hiddens, num_heads, num_layers, dropout,
            max_len=1000, key_size=None, query_size=None, value_size=None: None
        ),
    )  # fmt: skip

    def __init__(self, *args, **kwargs):
        super().__init__()
        sizes = bound("BERTEncoder", self._SIGNATURES, args, kwargs)
        check_width("BERTEncoder", sizes, *WIDTHS)
        hiddens = sizes["num_hiddens"]
        self.token_embedding = nn.Embedding(sizes["vocab_size"], hiddens)
        self.segment_embedding = nn.Embedding(2, hiddens)
        self.blks = blocks(sizes, sizes.get("num_blks", sizes.get("num_layers")), use_bias=True)
        self.pos_embedding = nn.Parameter(torch.randn(1, sizes["max_len"], hiddens))

    def forward(self, tokens, segments, valid_lens):
        """(N, T, num_hiddens) of numbers (N, T) of tokens and of segments."""
        X = self.token_embedding(tokens) + self.segment_embedding(segments) + self.pos_embedding[:, : tokens.shape[1]]
        for block in self.blks:
            X = block(X, valid_lens)
        return X


class MaskLM(nn.Module):
    """Scores for the tokens at some positions: ``MaskLM(vocab_size, num_hiddens[, num_inputs])``."""

    def __init__(self, vocab_size, num_hiddens, num_inputs=None):
        super().__init__()
        first = nn.LazyLinear(num_hiddens) if num_inputs is None else nn.Linear(num_inputs, num_hiddens)
        self.mlp = nn.Sequential(first, nn.ReLU(), nn.LayerNorm(num_hiddens), nn.Linear(num_hiddens, vocab_size))

    def forward(self, X, pred_positions):
        """(N, predictions, vocab_size) of X (N, T, ·) and positions (N, predictions)."""
        rows = torch.arange(X.shape[0], device=X.device).unsqueeze(1)
        return self.mlp(X[rows, pred_positions])


class NextSentencePred(nn.Module):
    """Two scores, whether the second sentence follows the first: ``NextSentencePred([num_inputs])``."""

    def __init__(self, num_inputs=None):
        super().__init__()
        self.output = nn.LazyLinear(2) if num_inputs is None else nn.Linear(num_inputs, 2)

    def forward(self, X):
        return self.output(X)


class BERTModel(nn.Module):
    """:class:`BERTEncoder`, :class:`MaskLM` and, behind an affine layer and tanh, :class:`NextSentencePred`.

    Arguments are those of :class:`BERTEncoder`; the earlier edition has ``hid_in_features``, ``mlm_in_features`` and
    ``nsp_in_features`` too, which are num_hiddens.
    """

    _SIGNATURES = (
        _LATER,
        signature(
            lambda vocab_size, num_hiddens, norm_shape, ffn_num_input, ffn_num_hiddens, num_heads, num_layers, dropout,
            max_len=1000, key_size=None, query_size=None, value_size=None, hid_in_features=None, mlm_in_features=None,
            nsp_in_features=None: None
        ),
    )  # fmt: skip

    def __init__(self, *args, **kwargs):
        super().__init__()
        sizes = dict(bound("BERTModel", self._SIGNATURES, args, kwargs))
        features = ("hid_in_features", "mlm_in_features", "nsp_in_features")
        check_width("BERTModel", sizes, *features)
        hiddens = sizes["num_hiddens"]
        self.encoder = BERTEncoder(**{name: value for name, value in sizes.items() if name not in features})
        self.hidden = nn.Sequential(nn.Linear(hiddens, hiddens), nn.Tanh())
        self.mlm = MaskLM(sizes["vocab_size"], hiddens, hiddens)
        self.nsp = NextSentencePred(hiddens)

    def forward(self, tokens, segments, valid_lens=None, pred_positions=None):
        """(encoded (N, T, num_hiddens), scores of masked tokens or None, scores of the next sentence (N, 2))."""
        encoded = self.encoder(tokens, segments, valid_lens)
        masked = None if pred_positions is None else self.mlm(encoded, pred_positions)
        return encoded, masked, self.nsp(self.hidden(encoded[:, 0]))
