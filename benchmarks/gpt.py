"""GPT of torch's own layers and functions, with the parameters' names of ``pydl.models.gpt``."""

import torch
import torch.nn.functional as F
from torch import nn

SIZES = {"vocab_size": 28, "hidden": 128, "layers": 4, "heads": 4, "positions": 128}


class Attention(nn.Module):
    def __init__(self, hidden, heads, dropout):
        super().__init__()
        self.heads, self.p = heads, dropout
        self.qkv, self.output = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2).chunk(3, 1)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.0, is_causal=True)
        return self.output(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, hidden, heads, dropout):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(hidden), Attention(hidden, heads, dropout)
        self.norm2, self.feed_forward = nn.LayerNorm(hidden), nn.Module()
        self.feed_forward.up, self.feed_forward.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        x = x + self.dropout(self.attention(self.norm1(x)))
        wide = F.gelu(self.feed_forward.up(self.norm2(x)), approximate="tanh")
        return x + self.dropout(self.feed_forward.down(wide))


class GPT(nn.Module):
    """Tokens (N, T) to logits (N·T, V)."""

    def __init__(self, vocab_size, hidden, layers, heads, positions, dropout):
        super().__init__()
        self.embedding, self.position_embedding = nn.Embedding(vocab_size, hidden), nn.Embedding(positions, hidden)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(hidden, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)

    def forward(self, tokens):
        x = self.dropout(self.embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight).flatten(0, 1)


class Ours(nn.Module):
    """The logits of a model of ``pydl.models`` as that of GPT above gives them."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens)[0].flatten(0, 1)


def of_torch(dropout):
    """The model with first weights that keep its numbers of ordinary size."""
    net = GPT(**SIZES, dropout=dropout)
    for embedding in (net.embedding, net.position_embedding):
        nn.init.normal_(embedding.weight, std=0.02)
    return net


def tokens(rows):
    """Random tokens (rows, T) and targets (rows · T,)."""
    x, target = torch.randint(SIZES["vocab_size"], (2, rows, SIZES["positions"]))
    return x, target.flatten()
