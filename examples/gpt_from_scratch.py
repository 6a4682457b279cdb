"""GPT from scratch: attention in four lines, blocks, a text written on; the same numbers from `pydl.models.gpt`.

d2l chapter "Attention Mechanisms and Transformers". Run: python examples/gpt_from_scratch.py; trained for longer, with
one command: pydl train gpt; pydl generate runs/gpt "the value of "
"""

import torch
from torch import nn

import pydl
from pydl import data
from pydl.functional import cross_entropy
from pydl.text import Windows, continued, perplexity, random_starts

prose = data.get("prose")  # 28 tokens: letters, the blank, the unknown
vocab_size, hidden, heads, layers, steps = len(prose.classes), 64, 4, 2, 48
torch.manual_seed(0)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.output = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)

    def forward(self, x):
        q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, 2))
        scores = q @ k.mT / q.shape[-1] ** 0.5  # (N, heads, T, T): how much each token looks at each other
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()  # at itself and at those before it
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return self.output((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(hidden), Attention()
        self.norm2, self.feed_forward = nn.LayerNorm(hidden), nn.Module()
        self.feed_forward.up, self.feed_forward.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        wide = nn.functional.gelu(self.feed_forward.up(self.norm2(x)), approximate="tanh")
        return x + self.feed_forward.down(wide)


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.position_embedding = nn.Embedding(vocab_size, hidden), nn.Embedding(steps, hidden)
        self.blocks, self.norm = nn.ModuleList(Block() for _ in range(layers)), nn.LayerNorm(hidden)

    def forward(self, tokens, before=None):
        """Logits, and the tokens seen so far: without a cache all of them are read anew for each new one."""
        whole = tokens if before is None else torch.cat([before, tokens], 1)[:, -steps:]
        x = self.embedding(whole) + self.position_embedding.weight[: whole.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.embedding.weight.T, whole  # the last layer is the embedding, tied


# the same parameters by name; its first weights suit a short training better than torch's own
library = pydl.models.gpt(vocab_size, hidden, layers, heads, positions=steps, dropout=0.0)
net, windows = pydl.swap(GPT()), Windows(prose.train, steps)
net.load_state_dict(library.state_dict())
optimizer = pydl.optim.Adam(net.parameters(), lr=5e-3)
for number, starts in enumerate(random_starts(len(windows), 16, steps)[:100]):
    X, Y = windows[starts]
    loss = cross_entropy(net(X)[0].flatten(0, 1), Y.flatten())
    optimizer.zero_grad()
    loss.backward()
    pydl.optim.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    if number % 25 == 0:
        print(f"step {number}  perplexity {perplexity(loss.item()):.1f}")
print(f"it chooses among {perplexity(loss.item()):.1f} letters where it began with {vocab_size}")
start = prose.tokenizer.encode_known("the value of ")
print(prose.tokenizer.decode(start + continued(net, start, 60, temperature=0.5)))

library.load_state_dict(net.state_dict())
library.eval()
difference = (library(X)[0] - net(X)[0]).abs().max()
print(f"logits of pydl.models.gpt agree: {bool(difference < 1e-3):d}")
same = continued(library, start, 30, temperature=0) == continued(net, start, 30, temperature=0)
print(f"from a cache it writes the same letters: {same:d}")
