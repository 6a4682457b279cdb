"""Attention in pictures: Nadaraya-Watson regression, masked softmax, several heads, and positions.

d2l chapter "Attention Mechanisms and Transformers". Run: python examples/attention_demo.py [FOLDER]; the pictures go to
FOLDER, by default attention_demo.
"""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

import pydl
from pydl import d2l
from pydl.functional import softmax
from pydl.models.attention import sinusoids

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "attention_demo")
folder.mkdir(exist_ok=True)
torch.manual_seed(0)


def save(name, panels, width=4.0):
    """A picture of (title, function that draws on axes) side by side."""
    figure = Figure(figsize=(width * len(panels), 3.4), dpi=110, layout="constrained")
    for axes, (title, draw) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes)
        axes.set_title(title, fontsize=10)
    figure.savefig(folder / f"{name}.png")


def matrix(values, xlabel, ylabel):
    def draw(axes):
        image = axes.imshow(values.detach(), cmap="Blues", aspect="auto")
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.figure.colorbar(image, ax=axes)

    return draw


# Nadaraya-Watson: the value at x is a mean of all training values, weighed by how near they are
keys = (5 * torch.rand(50)).sort()[0]


def truth(x):
    return 2 * torch.sin(x) + x**0.8


values, queries = truth(keys) + 0.5 * torch.randn(50), torch.arange(0, 5, 0.1)
panels = []
for width in (0.1, 0.5, 2.0):
    weights = softmax(-0.5 * ((queries[:, None] - keys) / width) ** 2, -1)
    error = (weights @ values - truth(queries)).square().mean()

    def curve(axes, guess=weights @ values):
        axes.plot(keys, values, "o", alpha=0.4, label="training values")
        axes.plot(queries, truth(queries), "--", label="truth")
        axes.plot(queries, guess, label="attention")
        axes.legend(frameon=False, fontsize=8)

    panels.append((f"kernel of width {width}, squared error {error:.2f}", curve))
    if width == 0.5:
        print(f"Nadaraya-Watson of width 0.5: mean squared error {error:.3f}")
        nearest = matrix(weights, "training value, by its place", "query, by its place")
save("nadaraya_watson", [*panels, ("weights of width 0.5", nearest)])

# masked softmax: what lies behind a row's valid length gets nothing, the rest sums to one
weights = d2l.masked_softmax(torch.randn(1, 6, 8), torch.tensor([[1, 2, 4, 5, 7, 8]]))[0]
print(f"masked softmax: rows sum to {weights.sum(-1).mean():.3f}")
save("masked_softmax", [("valid lengths 1, 2, 4, 5, 7, 8", matrix(weights, "key", "query"))])

# one-hot vectors say nothing about likeness: the cosine of two different words is always 0
one_hot = torch.eye(8)
cosines = torch.nn.functional.cosine_similarity(one_hot[:, None], one_hot, dim=-1)
print(f"one-hot: largest cosine of two words {(cosines - one_hot).abs().max():.3f}")
save("one_hot", [("cosines of 8 one-hot words", matrix(cosines, "word", "word"))])

# several heads, each with weights of its own, over one sentence
length, size, heads = 7, 32, 4
words, shuffle = torch.randn(1, length, size), torch.randperm(length)
attention = d2l.MultiHeadAttention(size, size, size, size, heads, 0.0).eval()
pydl.swap(attention)
found = attention(words, words, words)
each = attention.attention.attention_weights
save("heads", [(f"head {i + 1}", matrix(each[i], "key", "query")) for i in range(heads)], 3.0)

# without positions a shuffled sentence gives the same vectors, shuffled; with them it does not
positions = sinusoids(length, size)
shuffled = attention(*[words[:, shuffle]] * 3)
print(f"without positions: shuffled words keep their vectors to {(shuffled - found[:, shuffle]).abs().max():.6f}")
placed, moved = words + positions, words[:, shuffle] + positions
change = (attention(*[moved] * 3) - attention(*[placed] * 3)[:, shuffle]).abs().max()
print(f"with positions: they change by up to {change:.3f}")
save(
    "positions",
    [
        ("sinusoidal positions", matrix(sinusoids(60, size), "column", "position")),
        ("products of two positions", matrix(sinusoids(60, size) @ sinusoids(60, size).T, "position", "position")),
    ],
)
print(f"{folder}/ holds {', '.join(sorted(path.name for path in folder.iterdir()))}")
