"""The loss."""

import torch
import torch.nn.functional as F

from pydl.aside import Own, is_special, steps_aside
from pydl.nn._common import _Eager
from pydl.ops.softmax_cross_entropy import cross_entropy_unasked


class CrossEntropyLoss(_Eager, torch.nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss`` over :func:`pydl.functional.cross_entropy` (d2l chapter "Softmax Regression")."""

    own = Own(torch.nn.CrossEntropyLoss, "cross_entropy")

    def forward(self, input, target):
        if steps_aside(self, CrossEntropyLoss.own, F.cross_entropy, input, target):
            return torch.nn.CrossEntropyLoss.forward(self, input, target)
        weight = self.weight
        if weight is not None and is_special(self, weight):
            return torch.nn.CrossEntropyLoss.forward(self, input, target)
        return cross_entropy_unasked(input, target, weight, self.ignore_index, self.reduction, self.label_smoothing)
