"""The losses."""

import torch
import torch.nn.functional as F

from pydl.aside import Own, is_special, steps_aside
from pydl.nn._common import _Eager
from pydl.ops import _nodes
from pydl.ops._nodes import is_compiling
from pydl.ops.linear_cross_entropy import linear_cross_entropy_unasked
from pydl.ops.losses import (
    binary_cross_entropy_with_logits_served,
    huber_loss_served,
    is_small,
    l1_loss_served,
    mse_loss_served,
    smooth_l1_loss_served,
)
from pydl.ops.softmax_cross_entropy import cross_entropy_unasked

__all__ = ["BCEWithLogitsLoss", "CrossEntropyLoss", "HuberLoss", "L1Loss", "MSELoss", "SmoothL1Loss"]


class CrossEntropyLoss(_Eager, torch.nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss`` over :func:`pydl.functional.cross_entropy` (d2l chapter "Softmax Regression").

    >>> nn.CrossEntropyLoss()(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]))
    tensor(0.1269)
    """

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


class MSELoss(_Eager, torch.nn.MSELoss):
    """``torch.nn.MSELoss`` over :func:`pydl.functional.mse_loss` (d2l chapter "Linear Regression"); on the CPU.

    >>> nn.MSELoss()(torch.tensor([0.0, 4.0]), torch.zeros(2))
    tensor(8.)
    """

    own = Own(torch.nn.MSELoss, "mse_loss")

    def forward(self, input, target):
        if is_small("mse_loss", input):
            return torch.nn.MSELoss.forward(self, input, target)
        aside = steps_aside(self, MSELoss.own, F.mse_loss, input, target)
        loss = None if aside else mse_loss_served(input, target, self.reduction)
        return torch.nn.MSELoss.forward(self, input, target) if loss is None else loss


class L1Loss(_Eager, torch.nn.L1Loss):
    """``torch.nn.L1Loss`` over :func:`pydl.functional.l1_loss`; on the CPU.

    >>> nn.L1Loss()(torch.tensor([0.0, 4.0]), torch.zeros(2))
    tensor(2.)
    """

    own = Own(torch.nn.L1Loss, "l1_loss")

    def forward(self, input, target):
        if is_small("l1_loss", input):
            return torch.nn.L1Loss.forward(self, input, target)
        aside = steps_aside(self, L1Loss.own, F.l1_loss, input, target)
        loss = None if aside else l1_loss_served(input, target, self.reduction)
        return torch.nn.L1Loss.forward(self, input, target) if loss is None else loss


class SmoothL1Loss(_Eager, torch.nn.SmoothL1Loss):
    """``torch.nn.SmoothL1Loss`` over :func:`pydl.functional.smooth_l1_loss`; on the CPU.

    >>> nn.SmoothL1Loss()(torch.tensor([0.0, 4.0]), torch.zeros(2))
    tensor(1.7500)
    """

    own = Own(torch.nn.SmoothL1Loss, "smooth_l1_loss")

    def forward(self, input, target):
        if is_small("smooth_l1_loss", input):
            return torch.nn.SmoothL1Loss.forward(self, input, target)
        aside = steps_aside(self, SmoothL1Loss.own, F.smooth_l1_loss, input, target)
        loss = None if aside else smooth_l1_loss_served(input, target, self.reduction, self.beta)
        return torch.nn.SmoothL1Loss.forward(self, input, target) if loss is None else loss


class HuberLoss(_Eager, torch.nn.HuberLoss):
    """``torch.nn.HuberLoss`` over :func:`pydl.functional.huber_loss`; on the CPU.

    >>> nn.HuberLoss(delta=2.0)(torch.tensor([0.0, 4.0]), torch.zeros(2))
    tensor(3.)
    """

    own = Own(torch.nn.HuberLoss, "huber_loss")

    def forward(self, input, target):
        if is_small("huber_loss", input):
            return torch.nn.HuberLoss.forward(self, input, target)
        aside = steps_aside(self, HuberLoss.own, F.huber_loss, input, target)
        loss = None if aside else huber_loss_served(input, target, self.reduction, self.delta)
        return torch.nn.HuberLoss.forward(self, input, target) if loss is None else loss


class BCEWithLogitsLoss(_Eager, torch.nn.BCEWithLogitsLoss):
    """``torch.nn.BCEWithLogitsLoss`` over :func:`pydl.functional.binary_cross_entropy_with_logits`; on the CPU.

    >>> nn.BCEWithLogitsLoss()(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]))
    tensor(0.4100)
    """

    own = Own(torch.nn.BCEWithLogitsLoss, "binary_cross_entropy_with_logits")

    def forward(self, input, target):
        if is_small("binary_cross_entropy_with_logits", input):
            return torch.nn.BCEWithLogitsLoss.forward(self, input, target)
        own, weight, positive = BCEWithLogitsLoss.own, self.weight, self.pos_weight
        aside = steps_aside(self, own, F.binary_cross_entropy_with_logits, input, target)
        aside = aside or ((weight is not None or positive is not None) and is_special(self, weight, positive))
        loss = None
        if not aside:
            loss = binary_cross_entropy_with_logits_served(input, target, weight, self.reduction, positive)
        return torch.nn.BCEWithLogitsLoss.forward(self, input, target) if loss is None else loss


if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # from torch 2.13 on

    class LinearCrossEntropyLoss(_Eager, torch.nn.LinearCrossEntropyLoss):
        """``torch.nn.LinearCrossEntropyLoss`` over :func:`pydl.functional.linear_cross_entropy`.

        The last layer of a language model and its loss in one: the layer is the submodule ``linear``, whose outputs are
        never stored. Input (in_features) or (N, in_features), target () or (N).

        >>> loss = nn.LinearCrossEntropyLoss(8, 100)  # eight numbers a row, a hundred classes
        >>> loss(torch.randn(4, 8), torch.tensor([1, 2, 3, 4])).shape
        torch.Size([])
        """

        own = Own(torch.nn.LinearCrossEntropyLoss, "linear_cross_entropy")

        def forward(self, input, target):
            own, weight = LinearCrossEntropyLoss.own, self.weight
            if (
                F.linear_cross_entropy is own.function
                and own.cls.forward is own.forward
                and weight is None
                and self.options is None
                and not self.out_features
                and not is_compiling()
            ):
                layer, options = self.linear, (self.reduction, self.ignore_index, self.label_smoothing)
                found = _nodes.linear_cross_entropy(input, layer.weight, target, layer.bias, *options, 0.0, False)
                if found is not NotImplemented:
                    return found[0]
            if steps_aside(self, own, F.linear_cross_entropy, input, target):
                return torch.nn.LinearCrossEntropyLoss.forward(self, input, target)
            linear_weight, linear_bias = self.linear.weight, self.linear.bias
            if is_special(self, linear_weight, linear_bias, weight):
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
                weight,
                self.reduction,
                self.ignore_index,
                self.label_smoothing,
                self.options,
            )

    __all__ += ["LinearCrossEntropyLoss"]
