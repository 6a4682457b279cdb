"""The embedding, and bags of embeddings."""

import torch
import torch.nn.functional as F

from pydl.aside import Own, is_special, steps_aside
from pydl.nn._common import _Eager
from pydl.ops import embedding_bag as bags
from pydl.ops.embedding import embedding_unasked, is_small, quick

__all__ = ["Embedding", "EmbeddingBag"]


class Embedding(_Eager, torch.nn.Embedding):
    """``torch.nn.Embedding`` over :func:`pydl.functional.embedding` (d2l chapter "Word Embedding"); on the CPU.

    Input int64 or int32 of any shape, output ``(*, embedding_dim)``.

    >>> nn.Embedding(1000, 16)(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 16])
    """

    own = Own(torch.nn.Embedding, "embedding")

    def forward(self, input):
        if is_small(input, self.embedding_dim):
            return torch.nn.Embedding.forward(self, input)
        own = Embedding.own
        if F.embedding is own.function and own.cls.forward is own.forward:
            output = quick(input, self.weight, self.padding_idx, self.max_norm, self.scale_grad_by_freq, self.sparse)
            if output is not NotImplemented:
                return output
        if steps_aside(self, own, F.embedding, input):
            return torch.nn.Embedding.forward(self, input)
        weight = self.weight
        if is_special(self, weight):
            return torch.nn.Embedding.forward(self, input)
        return embedding_unasked(
            input, weight, self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
        )


class EmbeddingBag(_Eager, torch.nn.EmbeddingBag):
    """``torch.nn.EmbeddingBag`` over :func:`pydl.functional.embedding_bag`; on the CPU.

    Input int64 or int32 (B, L), or (n) with offsets (B); output (B, embedding_dim).

    >>> nn.EmbeddingBag(1000, 16, mode="sum")(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 16])
    """

    own = Own(torch.nn.EmbeddingBag, "embedding_bag")

    def forward(self, input, offsets=None, per_sample_weights=None):
        own = EmbeddingBag.own
        if (
            bags.is_small(input, self.embedding_dim)
            or steps_aside(self, own, F.embedding_bag, input, offsets)
            or is_special(self, self.weight, per_sample_weights)
        ):
            return torch.nn.EmbeddingBag.forward(self, input, offsets, per_sample_weights)
        return bags.embedding_bag_unasked(
            input,
            self.weight,
            offsets,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.mode,
            self.sparse,
            per_sample_weights,
            self.include_last_offset,
            self.padding_idx,
        )
