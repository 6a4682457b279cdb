"""GPT: a Transformer's decoder alone, which writes on from what it has read."""

import torch
from torch import nn
from torch.nn import Module, ModuleList

from pydl.aside import is_torchs
from pydl.functional import linear, scaled_dot_product_attention
from pydl.models._registry import check_at_least, check_variant, register
from pydl.nn import GELU, Dropout, Embedding, LayerNorm, Linear, RMSNorm, SiLU
from pydl.ops.multi_head_attention import attention_of_heads

NORMS = {"layer": LayerNorm, "rms": RMSNorm}
LAST = 0.02  # standard deviation of the first weights of a block's last layers, times the root of their number
BASE = 10_000.0  # of the wavelengths of rotary positions

# GPT-2's names, of the whole and of a block, and ours; those with a star are stored as (in, out)
GPT2 = {"wte": "embedding", "wpe": "position_embedding", "ln_f": "norm"}
GPT2_BLOCK = {
    "ln_1": "norm1",
    "attn.c_attn*": "attention.qkv",
    "attn.c_proj*": "attention.output",
    "ln_2": "norm2",
    "mlp.c_fc*": "feed_forward.up",
    "mlp.c_proj*": "feed_forward.down",
}


def _angles(positions, width, base):
    """(positions, half of the width, rounded up): each position times frequencies from 1 down to almost 1 / base."""
    return torch.arange(positions).unsqueeze(1) * float(base) ** -(torch.arange(0, width, 2) / width)


class Rotary(Module):
    """Turns each pair of numbers of a head by an angle that grows with the position.

    A product of two heads then depends on their distance alone. The pairs are numbers i and i + width / 2.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
    """

    def __init__(self, positions, width):
        super().__init__()
        angles = _angles(positions, width, BASE).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x, first):
        """(N, H, T, width), the first of which stands at place ``first``, turned."""
        places = slice(first, first + x.shape[2])
        low, high = x.chunk(2, 3)
        turned = x * self.cos[places] + torch.cat([-high, low], 3) * self.sin[places]
        return turned.to(x.dtype)  # under autocast the angles stay float32


class Attention(Module):
    """Causal attention of several heads; each head of key and value serves ``heads / kv_heads`` heads of the query.

    Source: Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models", EMNLP 2023, for grouped queries.
    """

    def __init__(self, hidden, heads, kv_heads, dropout, rotary):
        super().__init__()
        self.heads, self.kv_heads, self.width, self.dropout = heads, kv_heads, hidden // heads, dropout
        self.qkv = Linear(hidden, (heads + 2 * kv_heads) * self.width)
        self.rotary = rotary
        self.output = Linear(hidden, hidden)

    def forward(self, x, past=None):
        """(N, T, hidden), and the keys and values (N, kv_heads, S, width) of all S tokens so far."""
        rows, steps, hidden = x.shape
        widths = [heads * self.width for heads in (self.heads, self.kv_heads, self.kv_heads)]
        # cut before the heads are: the gradients then lie as the product before them takes them
        q, k, v = (x.view(rows, steps, -1, self.width).transpose(1, 2) for x in self.qkv(x).split(widths, 2))
        before = 0 if past is None else past[0].shape[2]
        if self.rotary is not None:
            q, k = self.rotary(q, before), self.rotary(k, before)
        if past is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(past, (k, v), strict=True))
        mask = None
        if before and steps > 1:  # row i sees all that stood before, and what comes up to itself
            mask = torch.ones(steps, before + steps, dtype=torch.bool, device=x.device).tril(before)
        arguments = q, k, v, mask, self.dropout if self.training else 0.0, not before
        grouped = self.kv_heads != self.heads
        if is_torchs(q, k, v):
            out = scaled_dot_product_attention(*arguments, enable_gqa=grouped)
        else:
            out = attention_of_heads(*arguments, grouped)
        return self.output(out.transpose(1, 2).reshape(rows, steps, hidden)), (k, v)


class FeedForward(Module):
    """Two affine layers with GELU (its tanh form, GPT-2's) between them; gated, three with SiLU: SwiGLU.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016; Shazeer, "GLU Variants Improve Transformer",
    2020, which makes the gated one two thirds as wide, so that both have as many parameters.
    """

    def __init__(self, hidden, gated):
        super().__init__()
        self.gated, wide = gated, 4 * hidden
        if gated:
            wide = -(-2 * wide // 24) * 8  # two thirds, in eights
        self.up = Linear(hidden, 2 * wide if gated else wide)  # gated: the gate first
        self.activation = SiLU() if gated else GELU("tanh")
        self.down = Linear(wide, hidden)

    def forward(self, x):
        x = self.up(x)
        if not self.gated:
            return self.down(self.activation(x))
        gate, x = x.chunk(2, -1)
        return self.down(self.activation(gate) * x)


class Block(Module):
    """A norm before each of the two layers, and a way around both."""

    def __init__(self, hidden, norm, attention, feed_forward, dropout):
        super().__init__()
        self.norm1, self.attention = norm(hidden), attention
        self.norm2, self.feed_forward = norm(hidden), feed_forward
        self.dropout = Dropout(dropout)

    def forward(self, x, past=None):
        out, keys_and_values = self.attention(self.norm1(x), past)
        x = x + self.dropout(out)
        return x + self.dropout(self.feed_forward(self.norm2(x))), keys_and_values


class GPT(Module):
    """Embeddings of tokens and positions, blocks, a norm, and the transposed embedding as the last layer.

    The state is what stands in the window: the tokens (N, S), then keys and values (N, kv_heads, S, width) block by
    block. Where new tokens do not fit into the ``positions`` any more, the last half of the window (less, where many
    come) is read anew as its beginning, and the rest is forgotten.

    Attributes:
        positions: the most tokens that are seen at a time.
    """

    def __init__(self, vocab_size, positions, hidden, blocks, norm, dropout, rotary):
        super().__init__()
        self.positions = positions
        self.embedding = Embedding(vocab_size, hidden)
        self.position_embedding = None if rotary else Embedding(positions, hidden)
        self.dropout = Dropout(dropout)
        self.blocks, self.norm = ModuleList(blocks), norm(hidden)
        self._initialise()

    @torch.no_grad()
    def _initialise(self):
        """GPT-2's zeros and its small last layers of each block, and beginnings that a short training asks for.

        GPT-2's 0.02 for all else is for 768 numbers and weeks. At 128 numbers the first block then drowns the token,
        and all tokens are attended to alike: for 700 steps nothing is learnt but pairs of characters. Here the scale of
        a layer goes with its width; embeddings are large, and positions begin as sinusoids, by which neighbours are
        told apart at once.
        """
        hidden = self.embedding.embedding_dim
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("attention.output.weight", "down.weight")):  # as many add up as there are
                nn.init.normal_(parameter, std=LAST / (2 * len(self.blocks)) ** 0.5)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=hidden**-0.5)
        if self.position_embedding is not None:
            angles = _angles(self.positions, hidden, self.positions)
            waves = torch.cat([angles.sin(), angles.cos()], 1)[:, :hidden]
            self.position_embedding.weight.copy_((2 / hidden) ** 0.5 * waves)

    def own_names(self, state):
        """A state_dict under GPT-2's names, as it is published, under ours; what is named otherwise stays.

        The masks that some files hold, and the last layer, where it is the embedding, are left out.
        """
        found = {}
        for name, tensor in state.items():
            name = name.removeprefix("transformer.")
            tied = name == "lm_head.weight" and torch.equal(tensor, state.get("transformer.wte.weight", tensor))
            if tied or name.endswith((".attn.bias", ".attn.masked_bias")):
                continue
            whole, _, kind = name.rpartition(".")
            if whole.startswith("h."):
                _, number, layer = whole.split(".", 2)
                starred = f"{layer}*" in GPT2_BLOCK
                own = GPT2_BLOCK.get(f"{layer}*" if starred else layer)
                if own is not None:
                    name = f"blocks.{number}.{own}.{kind}"
                    tensor = tensor.T.contiguous() if starred and kind == "weight" else tensor
            elif whole in GPT2:
                name = f"{GPT2[whole]}.{kind}"
            found[name] = tensor
        return found

    def forward(self, tokens, state=None):
        """(logits (N, T, V), state) of tokens (N, T), at most ``positions``; in training the state is None.

        Raises:
            ValueError: for more tokens than positions.
        """
        features, state = self.features(tokens, state)
        return linear(features, self.embedding.weight), state

    def features(self, tokens, state=None):
        """(what the last layer takes (N, T, hidden), state), as :meth:`forward`."""
        steps = tokens.shape[1]
        if steps > self.positions:
            raise ValueError(f"gpt: expected at most {self.positions} tokens at a time, got {steps}")
        seen, *past = state or (tokens[:, :0],)
        if seen.shape[1] + steps > self.positions:
            keep = min(self.positions - steps, self.positions // 2)
            tokens = torch.cat([seen[:, seen.shape[1] - keep :], tokens], 1)
            seen, past = tokens[:, :0], []
        x = self.embedding(tokens)
        if self.position_embedding is not None:
            first = seen.shape[1]
            x = x + self.position_embedding.weight[first : first + tokens.shape[1]]
        x, now = self.dropout(x), []
        for number, block in enumerate(self.blocks):
            x, keys_and_values = block(x, past[2 * number : 2 * number + 2] or None)
            now += keys_and_values
        features = self.norm(x[:, x.shape[1] - steps :])
        return features, None if self.training else (torch.cat([seen, tokens], 1), *now)


@register("language")
def gpt(
    vocab_size=28,
    hidden=128,
    layers=4,
    heads=4,
    positions=128,
    dropout=0.1,
    rotary=0,
    norm="layer",
    swiglu=0,
    kv_heads=0,
):
    """GPT: a decoder-only Transformer with norms first, GELU and tied embeddings.

    ``rotary=1`` turns queries and keys instead of learning positions, ``norm=rms`` scales by the root mean square
    alone, ``swiglu=1`` gates the feed-forward layers, ``kv_heads`` (0: as many as ``heads``) groups the queries. GPT-2
    is ``vocab_size=50257, hidden=768, layers=12, heads=12, positions=1024``.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
    Input: (N, T), T at most ``positions``. Output: (N, T, 28), or (N, T, vocab_size), and the state.
    Parameters: 813,312.
    FLOPs: 1,572,864 a token in the blocks' affine layers; attention to S tokens before it adds 4·S·hidden·layers.

    Raises:
        ValueError: for a size below 1, heads that do not divide ``hidden`` or are not divided by ``kv_heads``, an odd
            width of a head with ``rotary``, or another norm.
    """
    check_at_least("gpt", hidden=hidden, layers=layers, heads=heads, positions=positions)
    check_variant("gpt", norm, NORMS, "norm")
    kv_heads = kv_heads or heads
    if hidden % heads:
        raise ValueError(f"gpt: expected heads to divide hidden, {hidden}, got {heads}")
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"gpt: expected kv_heads to divide heads, {heads}, got {kv_heads}")
    if rotary and hidden // heads % 2:
        raise ValueError(f"gpt: expected an even width of each head with rotary, got {hidden // heads}")
    turn = Rotary(positions, hidden // heads) if rotary else None
    blocks = [
        Block(
            hidden,
            NORMS[norm],
            Attention(hidden, heads, kv_heads, dropout, turn),
            FeedForward(hidden, bool(swiglu)),
            dropout,
        )
        for _ in range(layers)
    ]
    return GPT(vocab_size, positions, hidden, blocks, NORMS[norm], dropout, bool(rotary))
