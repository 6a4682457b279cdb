"""The Transformer's encoder."""

import math

from torch import nn

from pydl.d2l.attention import MultiHeadAttention, PositionalEncoding
from pydl.d2l.editions import bound, check_width, signature
from pydl.d2l.seq2seq import Encoder

WIDTHS = ("key_size", "query_size", "value_size", "ffn_num_input")


class PositionWiseFFN(nn.Module):
    """Two affine layers with ReLU between them, at each position.

    ``PositionWiseFFN(ffn_num_input, ffn_num_hiddens, ffn_num_outputs)`` in the earlier edition,
    ``PositionWiseFFN(ffn_num_hiddens, ffn_num_outputs)`` in the later one, which finds the width itself.
    """

    _SIGNATURES = (
        signature(lambda ffn_num_hiddens, ffn_num_outputs: None),
        signature(lambda ffn_num_input, ffn_num_hiddens, ffn_num_outputs: None),
    )

    def __init__(self, *args, **kwargs):
        super().__init__()
        sizes = bound("PositionWiseFFN", self._SIGNATURES, args, kwargs)
        inputs, hiddens = sizes.get("ffn_num_input"), sizes["ffn_num_hiddens"]
        self.dense1 = nn.LazyLinear(hiddens) if inputs is None else nn.Linear(inputs, hiddens)
        self.relu = nn.ReLU()
        self.dense2 = nn.Linear(hiddens, sizes["ffn_num_outputs"])

    def forward(self, X):
        return self.dense2(self.relu(self.dense1(X)))


class AddNorm(nn.Module):
    """``LayerNorm(X + dropout(Y))``."""

    def __init__(self, norm_shape, dropout):
        super().__init__()
        self.dropout, self.ln = nn.Dropout(dropout), nn.LayerNorm(norm_shape)

    def forward(self, X, Y):
        return self.ln(self.dropout(Y) + X)


class TransformerEncoderBlock(nn.Module):
    """Attention of several heads and a net at each position, each with :class:`AddNorm`."""

    def __init__(self, num_hiddens, ffn_num_hiddens, num_heads, dropout, use_bias=False, *, norm_shape=None):
        super().__init__()
        norm_shape = num_hiddens if norm_shape is None else norm_shape
        widths = (num_hiddens,) * 4
        self.attention = MultiHeadAttention(*widths, num_heads, dropout, use_bias)
        self.addnorm1 = AddNorm(norm_shape, dropout)
        self.ffn = PositionWiseFFN(num_hiddens, ffn_num_hiddens, num_hiddens)
        self.addnorm2 = AddNorm(norm_shape, dropout)

    def forward(self, X, valid_lens=None):
        """(N, T, num_hiddens)."""
        Y = self.addnorm1(X, self.attention(X, X, X, valid_lens))
        return self.addnorm2(Y, self.ffn(Y))


class EncoderBlock(TransformerEncoderBlock):
    """:class:`TransformerEncoderBlock` with the earlier edition's arguments; all sizes are num_hiddens."""

    def __init__(
        self, key_size, query_size, value_size, num_hiddens, norm_shape, ffn_num_input, ffn_num_hiddens, num_heads,
        dropout, use_bias=False,
    ):  # fmt: skip
        check_width("EncoderBlock", locals(), *WIDTHS)
        super().__init__(num_hiddens, ffn_num_hiddens, num_heads, dropout, use_bias, norm_shape=norm_shape)


def blocks(sizes, count, use_bias):
    """So many encoder blocks, by either edition's arguments."""
    return nn.Sequential(
        *(
            TransformerEncoderBlock(
                sizes["num_hiddens"], sizes["ffn_num_hiddens"], sizes["num_heads"], sizes["dropout"], use_bias,
                norm_shape=sizes.get("norm_shape"),
            )
            for _ in range(count)
        )
    )  # fmt: skip


class TransformerEncoder(Encoder):
    """Embedding, positions and encoder blocks.

    ``TransformerEncoder(vocab_size, key_size, query_size, value_size, num_hiddens, norm_shape, ffn_num_input,
    ffn_num_hiddens, num_heads, num_layers, dropout, use_bias=False)`` in the earlier edition,
    ``TransformerEncoder(vocab_size, num_hiddens, ffn_num_hiddens, num_heads, num_blks, dropout, use_bias=False)`` in
    the later one.

    Attributes:
        attention_weights: of the last call, (N · heads, T, T) of each block.
    """

    _SIGNATURES = (
        signature(
            lambda vocab_size, num_hiddens, ffn_num_hiddens, num_heads, num_blks, dropout, use_bias=False: None
        ),
        signature(
            lambda vocab_size, key_size, query_size, value_size, num_hiddens, norm_shape, ffn_num_input,
            ffn_num_hiddens, num_heads, num_layers, dropout, use_bias=False: None
        ),
    )  # fmt: skip

    def __init__(self, *args, **kwargs):
        super().__init__()
        sizes = bound("TransformerEncoder", self._SIGNATURES, args, kwargs)
        check_width("TransformerEncoder", sizes, *WIDTHS)
        self.num_hiddens = sizes["num_hiddens"]
        self.embedding = nn.Embedding(sizes["vocab_size"], self.num_hiddens)
        self.pos_encoding = PositionalEncoding(self.num_hiddens, sizes["dropout"])
        self.blks = blocks(sizes, sizes.get("num_blks", sizes.get("num_layers")), sizes["use_bias"])

    @property
    def attention_weights(self):
        return [block.attention.attention.attention_weights for block in self.blks]

    def forward(self, X, valid_lens, *args):
        """(N, T, num_hiddens) of token numbers (N, T)."""
        X = self.pos_encoding(self.embedding(X) * math.sqrt(self.num_hiddens))
        for block in self.blks:
            X = block(X, valid_lens)
        return X
