"""BERT's pretraining step: its model of torch's own layers and functions, what it is given, and its two losses."""

import torch
import torch.nn.functional as F
from steps import Step, plain
from torch import nn

from pydl import models

SIZES = {"vocab_size": 2000, "hidden": 128, "layers": 2, "heads": 2, "positions": 64}
MASKED = 10  # tokens of a row


def inputs(rows):
    """(tokens, segments, places), and targets (rows, MASKED + 1): masked tokens, whether the pair follows."""
    length = SIZES["positions"]
    tokens = torch.randint(SIZES["vocab_size"], (rows, length))
    segments = (torch.arange(length) >= length // 2).long().expand(rows, -1).contiguous()
    places = torch.rand(rows, length).argsort(1)[:, :MASKED].contiguous()
    answers, follows = torch.randint(SIZES["vocab_size"], (rows, MASKED)), torch.randint(2, (rows, 1))
    return (tokens, segments, places), torch.cat([answers, follows], 1)


class OfTorch(nn.Module):
    """``pydl.models.bert`` of torch's classes, called without lengths: all rows are full."""

    def __init__(self, dropout):
        super().__init__()
        self.model = plain(models.bert(**SIZES, dropout=dropout))

    def forward(self, tokens, segments, places):
        body, predictions = self.model.bert, self.model.cls.predictions
        x = body.embeddings(tokens, segments)
        for layer in body.encoder.layer:
            own = layer.attention.self
            q, k, v = (f(x).unflatten(-1, (own.heads, -1)).transpose(1, 2) for f in (own.query, own.key, own.value))
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=own.p if self.training else 0.0)
            x = layer.attention.output(y.transpose(1, 2).flatten(2), x)
            x = layer.output(layer.intermediate(x), x)
        at = x.gather(1, places.unsqueeze(2).expand(-1, -1, x.shape[2]))
        logits = F.linear(predictions.transform(at), body.embeddings.word_embeddings.weight, predictions.bias)
        return logits, self.model.cls.seq_relationship(body.pooler(x[:, 0]))


class Ours(nn.Module):
    """The same by ``pydl.models.bert`` as it is, which is told the rows' lengths."""

    def __init__(self, dropout):
        super().__init__()
        self.model = models.bert(**SIZES, dropout=dropout)

    def forward(self, tokens, segments, places):
        lengths = torch.full((len(tokens),), tokens.shape[1])
        return self.model(tokens, segments, lengths, places)


class BertStep(Step):
    """Both losses of a model above."""

    def forward(self, x, target):
        logits, follows = self.net(*x)
        masked = self.loss(logits.flatten(0, 1), target[:, :-1].flatten())
        return masked + self.loss(follows, target[:, -1])
