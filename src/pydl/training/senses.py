"""Which of its two words a pseudo-word stands for, told from contextual vectors: a mix of layers and a plane a pair."""

import torch
import torch.nn.functional as F
from torch.nn import Module, Parameter

from pydl.models.elmo import LayerMix
from pydl.training.word_map import principal

PENALTY = 1.0  # of the squared weights of a pair's plane
ITERATIONS = 60
COLOURS = "#4c72b0", "#dd8452"


class Senses(Module):
    """Logistic regression of the meanings of several pseudo-words on one mix of layers, all learnt together.

    Args:
        vectors: (layers, N, width), of the occurrences that are learnt from; each number of a layer is first brought to
            mean 0 and deviation 1.
        numbers, meanings: (N,): of which pair, and 0 or 1.
        pairs: how many there are.
    """

    def __init__(self, vectors, numbers, meanings, pairs):
        super().__init__()
        self.mean, self.deviation = vectors.mean(1, keepdim=True), vectors.std(1, keepdim=True) + 1e-5
        self.mix = LayerMix(len(vectors))
        self.weight, self.bias = Parameter(torch.zeros(pairs, vectors.shape[2])), Parameter(torch.zeros(pairs))
        self.to(vectors.dtype)
        self._fit(vectors, numbers, meanings)

    def _fit(self, vectors, numbers, meanings):
        optimizer = torch.optim.LBFGS(self.parameters(), max_iter=ITERATIONS, line_search_fn="strong_wolfe")
        targets = meanings.to(vectors.dtype)

        def closure():
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(self(vectors, numbers), targets)
            loss = loss + PENALTY * self.weight.square().sum() / len(self.weight)
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)

    def mixed(self, vectors):
        """(N, width) of vectors (layers, N, width)."""
        return self.mix((vectors - self.mean) / self.deviation)

    def forward(self, vectors, numbers):
        """Logits (N,) of the second meaning."""
        return (self.mixed(vectors) * self.weight[numbers]).sum(1) + self.bias[numbers]

    @torch.no_grad()
    def right(self, vectors, numbers, meanings):
        """(N,) bool: whose meaning is found."""
        return (self(vectors, numbers) > 0) == meanings.bool()


def draw(path, vectors, numbers, meanings, right, pairs, title):
    """Draws one map a pair of its vectors (N, width), their two main directions, coloured by the true meaning.

    Args:
        right: (N,) bool; the others are crosses.
    """
    from matplotlib.figure import Figure

    columns = min(5, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.3 * rows + 0.5), dpi=110, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for number, (axes, pair) in enumerate(zip(panels, pairs, strict=False)):
        own = numbers == number
        places, _ = principal(vectors[own])
        for meaning, (word, colour) in enumerate(zip(pair, COLOURS, strict=True)):
            for found, marker in ((True, "o"), (False, "x")):
                at = places[(meanings[own] == meaning) & (right[own] == found)]
                axes.scatter(at[:, 0], at[:, 1], s=22, color=colour, marker=marker, label=word if found else None)
        axes.set_title(f"{int(right[own].sum())} of {int(own.sum())} told apart", fontsize=9)
        axes.set(xticks=[], yticks=[])
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    for axes in panels[len(pairs) :]:
        axes.set_visible(False)
    figure.suptitle(f"{title}: which of two words stood there (crosses: taken for the other)")
    figure.savefig(path)
