"""The losses."""

import torch
import torch.nn.functional as F

from pydl.aside import Own, is_special, steps_aside
from pydl.nn._common import _Eager
from pydl.ops import _nodes
from pydl.ops._nodes import is_compiling
from pydl.ops.linear_cross_entropy import linear_cross_entropy_unasked
from pydl.ops.softmax_cross_entropy import cross_entropy_unasked


class CrossEntropyLoss(_Eager, torch.nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss`` over :func:`pydl.functional.cross_entropy` (d2l chapter "Softmax Regression")."""

    own = Own(torch.nn.CrossEntropyLoss, "cross_entropy")

    def forward(self, input, target):
        own, weight = CrossEntropyLoss.own, self.weight
        options = self.ignore_index, self.reduction, self.label_smoothing
        if F.cross_entropy is own.function and own.cls.forward is own.forward and weight is None and not is_compiling():
            output = _nodes.cross_entropy(input, target, *options, 0.0)
            if output is not NotImplemented:
                return output
        if steps_aside(self, own, F.cross_entropy, input, target):
            return torch.nn.CrossEntropyLoss.forward(self, input, target)
        if weight is not None and is_special(self, weight):
            return torch.nn.CrossEntropyLoss.forward(self, input, target)
        return cross_entropy_unasked(input, target, weight, *options)


if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # from torch 2.13 on

    class LinearCrossEntropyLoss(_Eager, torch.nn.LinearCrossEntropyLoss):
        """``torch.nn.LinearCrossEntropyLoss`` over :func:`pydl.functional.linear_cross_entropy`.

        The last layer of a language model and its loss in one: the layer is the submodule ``linear``, whose outputs are
        never stored. Input (in_features) or (N, in_features), target () or (N).
        """

        own = Own(torch.nn.LinearCrossEntropyLoss, "linear_cross_entropy")

        def forward(self, input, target):
            if steps_aside(self, LinearCrossEntropyLoss.own, F.linear_cross_entropy, input, target):
                return torch.nn.LinearCrossEntropyLoss.forward(self, input, target)
            linear_weight, linear_bias = self.linear.weight, self.linear.bias
            if is_special(self, linear_weight, linear_bias, self.weight):
                return torch.nn.LinearCrossEntropyLoss.forward(self, input, target)
            if self.out_features:
                size = (self.num_classes, *self.out_features)
                linear_weight = linear_weight.reshape(*size, self.linear.in_features)
                linear_bias = None if linear_bias is None else linear_bias.reshape(size)
            return linear_cross_entropy_unasked(
                input,
                linear_weight,
                target,
                linear_bias,
                self.weight,
                self.reduction,
                self.ignore_index,
                self.label_smoothing,
                self.options,
            )
