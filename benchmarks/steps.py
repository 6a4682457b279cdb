"""One training step of a model: forward, loss, backward, SGD."""

import torch
from torch import nn

import pydl
from pydl.swapping import is_swapped

LEARNING_RATE = 0.01


def plain(model):
    """``pydl.models`` are built from ``pydl.nn``; the same model of torch's classes."""
    for layer in model.modules():
        if type(layer).__module__.startswith("pydl.nn."):
            layer.__class__ = getattr(nn, type(layer).__name__)
    return model


class Language(nn.Module):
    """The book's language model over characters: one-hot numbers, a recurrent layer, scores of the next character.

    Args:
        kind: ``"RNN"``, ``"GRU"`` or ``"LSTM"``.
        characters: how many there are.
        units: of the recurrent layer.
    """

    def __init__(self, kind, characters, units):
        super().__init__()
        self.rnn, self.output = getattr(nn, kind)(characters, units), nn.Linear(units, characters)

    def forward(self, x):
        one_hot = nn.functional.one_hot(x, self.rnn.input_size).to(self.output.weight.dtype)
        return self.output(self.rnn(one_hot)[0]).flatten(0, 1)


class Boxes(nn.Module):
    """The book's loss of TinySSD: cross entropy of the anchors' classes, plus the absolute errors of their offsets.

    The target (N, A, 5) has class and offsets of each anchor, labelled beforehand; class 0 is the ground.
    """

    def __init__(self):
        super().__init__()
        self.classes, self.offsets = nn.CrossEntropyLoss(), nn.L1Loss()

    def forward(self, outputs, target):
        _, scores, offsets = outputs
        kinds = target[..., 0].long()
        counted = (kinds > 0).repeat_interleave(4, dim=1)
        errors = self.offsets(offsets * counted, target[..., 1:].flatten(1) * counted)
        return self.classes(scores.flatten(0, 1), kinds.flatten()) + errors


class Step(nn.Module):
    """A model and its loss, built when its case comes up.

    Args:
        autocast: the dtype in which torch.autocast lets the model compute, or None.
    """

    def __init__(self, autocast=None):
        super().__init__()
        self.net, self.loss = nn.Identity(), nn.CrossEntropyLoss()
        self.autocast = autocast

    def forward(self, x, target):
        if self.autocast is None:
            return self.loss(self.net(x), target)
        with torch.autocast("cpu", self.autocast):
            return self.loss(self.net(x), target)


def trained(step, learning_rate=LEARNING_RATE):
    """The timed function: one step of ``step``, which returns the loss."""
    # a compiled module shares its parameters with the one that it was made from, which is trained on
    optimizer = torch.optim.SGD(step.parameters(), lr=learning_rate)
    if any(map(is_swapped, step.modules())):
        pydl.swap(optimizer)

    def run(x, target):
        optimizer.zero_grad()
        loss = step(x, target)
        loss.backward()
        optimizer.step()
        return (loss.detach(),)

    return run
