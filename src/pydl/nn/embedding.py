"""The embedding."""

import torch
import torch.nn.functional as F

from pydl.aside import Own, is_special, steps_aside
from pydl.nn._common import _Eager
from pydl.ops.embedding import embedding_unasked, is_small


class Embedding(_Eager, torch.nn.Embedding):
    """``torch.nn.Embedding`` over :func:`pydl.functional.embedding` (d2l chapter "Word Embedding"); on the CPU.

    Input int64 or int32 of any shape, output (*, embedding_dim).
    """

    own = Own(torch.nn.Embedding, "embedding")

    def forward(self, input):
        if is_small(input, self.embedding_dim):
            return torch.nn.Embedding.forward(self, input)
        if steps_aside(self, Embedding.own, F.embedding, input):
            return torch.nn.Embedding.forward(self, input)
        weight = self.weight
        if is_special(self, weight):
            return torch.nn.Embedding.forward(self, input)
        return embedding_unasked(
            input, weight, self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
        )
