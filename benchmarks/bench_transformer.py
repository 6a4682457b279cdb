"""Blocks of the Transformer, BERT and GPT, swapped, beside torch eager: a training step without the optimizer's part.

Forward and the gradients of the input and all parameters, with dropout; and the forward alone in evaluation, where
torch has a path of its own for encoder layers. The sizes are the book's.
"""

import copy

import pytest
import torch
from runner import Case
from torch import nn

import pydl


class Block(nn.Module):
    """A layer of nn.Transformer with what it is called with besides its input: itself as memory, or a causal mask."""

    def __init__(self, layer, tokens, causal):
        super().__init__()
        self.layer, self.causal = layer, causal
        self.decodes = isinstance(layer, nn.TransformerDecoderLayer)
        future = nn.Transformer.generate_square_subsequent_mask(tokens)
        self.register_buffer("future", future, persistent=False)

    def forward(self, x):
        if self.decodes:
            return self.layer(x, x.detach(), tgt_mask=self.future, tgt_is_causal=True)
        return self.layer(x, src_mask=self.future, is_causal=True) if self.causal else self.layer(x)


def training(block):
    def run(x, grad):
        output = block(x)
        return output, *torch.autograd.grad(output, [x, *block.parameters()], grad)

    return run


def evaluation(block):
    def run(x, _grad):
        with torch.inference_mode():
            return (block(x),)

    return run


def without_dropout(block):
    for layer in block.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        if isinstance(layer, nn.MultiheadAttention):
            layer.dropout = 0.0
    return block


def case(name, layer, n, tokens, causal=False, target=1.0, timed=training, quick=False):
    theirs = Block(layer(), tokens, causal).train(timed is training)
    ours = Block(pydl.swap(copy.deepcopy(theirs.layer)), tokens, causal).train(timed is training)
    width = theirs.layer.linear1.in_features

    def check(_run, x, grad):
        """Copies without dropout, beside torch in float64."""
        twin, reference = without_dropout(copy.deepcopy(ours)), without_dropout(copy.deepcopy(theirs)).double()
        wide = x.detach().double().requires_grad_(x.requires_grad)
        for i, (a, e) in enumerate(zip(timed(twin)(x, grad), timed(reference)(wide, grad.double()), strict=True)):
            error = ((a - e).norm() / e.norm()).item()
            assert error < 1e-4, f"{name}: result {i} differs from torch in float64 by {error:.3g} of its norm"

    return Case(
        "transformer",
        f"{name}, {n}×{tokens}×{width}, {timed.__name__}",
        lambda: [torch.randn(n, tokens, width).requires_grad_(timed is training), torch.randn(n, tokens, width)],
        ours,
        theirs,
        timed,
        compile=False,
        target=(target, target),
        quick=quick,
        check=check,
        seconds=1.5,
    )


def encoder(*sizes, **options):
    return lambda: nn.TransformerEncoderLayer(*sizes, 0.1, batch_first=True, **options)


BERT = encoder(128, 2, 256, activation="gelu")
GPT = encoder(128, 4, 512, activation="gelu", norm_first=True)
CASES = [
    case("Transformer encoder", encoder(256, 4, 64), 128, 9),
    case("Transformer decoder", lambda: nn.TransformerDecoderLayer(256, 4, 64, 0.1, batch_first=True), 128, 9),
    case("BERT", BERT, 64, 64, quick=True),
    case("GPT", GPT, 16, 128, causal=True),
    case("BERT", BERT, 64, 64, timed=evaluation),
    case("GPT", GPT, 16, 128, causal=True, timed=evaluation),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_transformer(case, compare):
    compare(case)
