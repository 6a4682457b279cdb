"""torch.nn's names for the layers that pydl serves: the same arguments, ``state_dict`` and ``repr``, our kernels.

Each class is a subclass of torch's that replaces ``forward`` alone, and reads nothing but torch's own attributes: so
``pydl.swap`` can put the same ``forward`` under an instance of torch's class. Every other layer (ReLU, Embedding,
Sequential) is torch's: import it from ``torch.nn``. Under the backend ``torch`` the functions called here are torch's,
and where torch would honour what is not its own (:mod:`pydl.aside`), torch's own forward computes.
"""

import torch
import torch.nn.functional as F

from pydl.aside import Own, is_special, steps_aside
from pydl.ops.avg_pool2d import avg_pool2d_unasked
from pydl.ops.batch_norm import batch_norm_unasked
from pydl.ops.conv2d import conv2d_unasked
from pydl.ops.dropout import dropout_unasked
from pydl.ops.linear import linear_unasked
from pydl.ops.max_pool2d import max_pool2d_unasked
from pydl.ops.softmax_cross_entropy import cross_entropy_unasked
from pydl.ops.sync_batch_norm import group_of, sync_batch_norm

__all__ = [
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "LazyConv2d",
    "LazyLinear",
    "Linear",
    "MaxPool2d",
    "SyncBatchNorm",
]


class _Eager:
    """What our classes share: TorchScript, which would fix shapes and switches of our ops, is refused in words."""

    def __prepare_scriptable__(self):
        # torch.jit.script asks every submodule for a scriptable stand-in before it compiles anything
        raise no_torchscript(f"pydl.nn.{type(self).__name__}")


def no_torchscript(layer):
    """The error with which a layer refuses torch.jit.script."""
    return RuntimeError(
        f"TorchScript: expected every layer to be torch's own, got {layer}; torch.compile, torch.export, "
        "torch.onnx.export and torch.jit.trace take it, and torch.jit.script takes swapped models after pydl.unswap"
    )


_ACTIVATIONS = {"relu": F.relu, "sigmoid": torch.sigmoid}


def finished(output, activation, residual=None):
    """What our kernels do in the same pass, where torch made ``output``."""
    if residual is not None:
        output = output + residual
    return output if activation is None else _ACTIVATIONS[activation](output)


class Conv2d(_Eager, torch.nn.Conv2d):
    """``torch.nn.Conv2d`` over :func:`pydl.functional.conv2d` (d2l chapter "Convolutional Neural Networks").

    Input (N, C, H, W) or (C, H, W), output (N, out_channels, H', W') in the memory format that torch would choose.
    ``forward`` takes :func:`~pydl.functional.conv2d`'s ``activation`` too, keyword-only.
    """

    own = Own(torch.nn.Conv2d, "conv2d", "_conv_forward")

    def forward(self, input, *, activation=None):
        if (
            "_conv_forward" in self.__dict__
            or type(self)._conv_forward is not _CONV_FORWARD
            or steps_aside(self, Conv2d.own, F.conv2d, input)
        ):
            return finished(torch.nn.Conv2d.forward(self, input), activation)
        weight, bias, padding = self.weight, self.bias, self.padding
        if is_special(self, weight, bias):
            return finished(torch.nn.Conv2d._conv_forward(self, input, weight, bias), activation)
        if self.padding_mode != "zeros":
            # the border is data, not zeros: it is written out once, and the convolution itself pads nothing
            input, padding = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), (0, 0)
        return conv2d_unasked(input, weight, bias, self.stride, padding, self.dilation, self.groups, activation)


_CONV_FORWARD = dict(Conv2d.own.methods)["_conv_forward"]  # torch's


class Linear(_Eager, torch.nn.Linear):
    """``torch.nn.Linear`` over :func:`pydl.functional.linear` (d2l chapter "Linear Neural Networks"); on the CPU.

    Input (..., in_features), output (..., out_features). ``forward`` takes :func:`~pydl.functional.linear`'s
    ``activation`` too, keyword-only.
    """

    own = Own(torch.nn.Linear, "linear")

    def forward(self, input, *, activation=None):
        if steps_aside(self, Linear.own, F.linear, input):
            return finished(torch.nn.Linear.forward(self, input), activation)
        weight, bias = self.weight, self.bias
        if is_special(self, weight, bias):
            return finished(F.linear(input, weight, bias), activation)
        return linear_unasked(input, weight, bias, activation)


class _BatchNorm(_Eager):
    """The forward that the three ranks share; which input ranks are allowed is torch's ``_check_input_dim``.

    It takes :func:`~pydl.functional.batch_norm`'s ``residual`` and ``activation`` too, keyword-only.
    """

    # _check_input_dim, which differs from rank to rank, is called whatever it is
    own = Own(torch.nn.modules.batchnorm._BatchNorm, "batch_norm")

    def forward(self, input, *, residual=None, activation=None):
        if steps_aside(self, _BatchNorm.own, F.batch_norm, input, residual):
            return finished(torch.nn.modules.batchnorm._BatchNorm.forward(self, input), activation, residual)
        self._check_input_dim(input)
        momentum = 0.0 if self.momentum is None else self.momentum
        count = self.num_batches_tracked if self.training and self.track_running_stats else None
        if count is not None and self.momentum is None:
            # a cumulative average: every batch since the reset weighs the same
            momentum = 1.0 / float(count.add_(1))
            count = None
        # Statistics that are not tracked are not handed over in training, and so cannot be written to; in eval a layer
        # without statistics normalises by its batch.
        keeps = not self.training or self.track_running_stats
        weight, bias, mean, var = self.weight, self.bias, self.running_mean, self.running_var
        by_batch = self.training or (mean is None and var is None)
        mean, var = (mean, var) if keeps else (None, None)
        if is_special(self, weight, bias, mean, var):
            if count is not None:
                count.add_(1)
            output = F.batch_norm(input, mean, var, weight, bias, by_batch, momentum, self.eps)
            return finished(output, activation, residual)
        rest = (by_batch, momentum, self.eps, residual, activation, count)
        return batch_norm_unasked(input, mean, var, weight, bias, *rest)


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` over :func:`pydl.functional.batch_norm`; input (N, C) or (N, C, L)."""


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` over :func:`pydl.functional.batch_norm`; input (N, C, H, W)."""


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` over :func:`pydl.functional.batch_norm`; input (N, C, D, H, W)."""


class SyncBatchNorm(_BatchNorm, torch.nn.modules.batchnorm._BatchNorm):
    """``torch.nn.SyncBatchNorm`` over our kernels, on CPUs (gloo) as well as GPUs (nccl); input (N, C, ...).

    In training every process normalises by the mean and variance of all processes' batches together, which may be of
    unequal size; in evaluation, and where there is one process, this is :class:`BatchNorm2d` for any rank. No subclass
    of torch's class, since DistributedDataParallel refuses those on a CPU.
    """

    def __init__(
        self,
        num_features,
        eps=1e-5,
        momentum=0.1,
        affine=True,
        track_running_stats=True,
        process_group=None,
        device=None,
        dtype=None,
        *,
        bias=True,
    ):
        bias = {} if bias else {"bias": False}  # which torch has from 2.13 on
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype, **bias)
        self.process_group = process_group

    own = Own(torch.nn.SyncBatchNorm, "batch_norm", "_check_non_zero_input_channels")
    _check_input_dim = torch.nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels = torch.nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, input):
        group = group_of(self.process_group) if self.training else None
        if group is None:
            return _BatchNorm.forward(self, input)
        self._check_input_dim(input)
        self._check_non_zero_input_channels(input)
        momentum, tracks = self.momentum, self.track_running_stats
        if tracks:
            self.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        return sync_batch_norm(
            input,
            self.running_mean if tracks else None,
            self.running_var if tracks else None,
            self.weight,
            self.bias,
            momentum,
            self.eps,
            group,
        )

    @classmethod
    def convert_sync_batchnorm(cls, module, process_group=None):
        """``module`` with every BatchNorm layer in it, ours or torch's, replaced by a SyncBatchNorm of this class.

        Parameters and buffers are taken over, not copied, and ``state_dict`` keys stay. Returns ``module`` itself,
        or the new layer if ``module`` is a BatchNorm.
        """
        converted = module
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            converted = cls(
                module.num_features,
                module.eps,
                module.momentum,
                module.affine,
                module.track_running_stats,
                process_group,
                device="meta",  # nothing is allocated that the next lines would throw away
            )
            for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                setattr(converted, name, getattr(module, name))
            converted.training = module.training
        for name, child in module.named_children():
            new = cls.convert_sync_batchnorm(child, process_group)
            if new is not child:
                converted.add_module(name, new)
        return converted


class Dropout(_Eager, torch.nn.Dropout):
    """``torch.nn.Dropout`` over :func:`pydl.functional.dropout`; any shape."""

    own = Own(torch.nn.Dropout, "dropout")

    def forward(self, input):
        if steps_aside(self, Dropout.own, F.dropout, input):
            return torch.nn.Dropout.forward(self, input)
        return dropout_unasked("dropout", input, self.p, self.training, self.inplace)


class Dropout1d(_Eager, torch.nn.Dropout1d):
    """``torch.nn.Dropout1d`` over :func:`pydl.functional.dropout1d`; whole channels of (N, C, L) or (C, L)."""

    own = Own(torch.nn.Dropout1d, "dropout1d")

    def forward(self, input):
        if steps_aside(self, Dropout1d.own, F.dropout1d, input):
            return torch.nn.Dropout1d.forward(self, input)
        return dropout_unasked("dropout1d", input, self.p, self.training, self.inplace)


class Dropout2d(_Eager, torch.nn.Dropout2d):
    """``torch.nn.Dropout2d`` over :func:`pydl.functional.dropout2d`; whole channels of (N, C, H, W)."""

    own = Own(torch.nn.Dropout2d, "dropout2d")

    def forward(self, input):
        if steps_aside(self, Dropout2d.own, F.dropout2d, input):
            return torch.nn.Dropout2d.forward(self, input)
        return dropout_unasked("dropout2d", input, self.p, self.training, self.inplace)


class Dropout3d(_Eager, torch.nn.Dropout3d):
    """``torch.nn.Dropout3d`` over :func:`pydl.functional.dropout3d`; whole channels of (N, C, D, H, W)."""

    own = Own(torch.nn.Dropout3d, "dropout3d")

    def forward(self, input):
        if steps_aside(self, Dropout3d.own, F.dropout3d, input):
            return torch.nn.Dropout3d.forward(self, input)
        return dropout_unasked("dropout3d", input, self.p, self.training, self.inplace)


class MaxPool2d(_Eager, torch.nn.MaxPool2d):
    """``torch.nn.MaxPool2d`` over :func:`pydl.functional.max_pool2d` (d2l chapter "Pooling"); on the CPU."""

    own = Own(torch.nn.MaxPool2d, "max_pool2d")

    def forward(self, input):
        if steps_aside(self, MaxPool2d.own, F.max_pool2d, input):
            return torch.nn.MaxPool2d.forward(self, input)
        return max_pool2d_unasked(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class AvgPool2d(_Eager, torch.nn.AvgPool2d):
    """``torch.nn.AvgPool2d`` over :func:`pydl.functional.avg_pool2d` (d2l chapter "Pooling"); on the CPU."""

    own = Own(torch.nn.AvgPool2d, "avg_pool2d")

    def forward(self, input):
        if steps_aside(self, AvgPool2d.own, F.avg_pool2d, input):
            return torch.nn.AvgPool2d.forward(self, input)
        return avg_pool2d_unasked(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


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


# torch's lazy classes, with ours next in the method resolution order: their __init__ reaches our constructors, their
# forward is ours, and on the first input they become our class instead of torch's.


class LazyConv2d(torch.nn.LazyConv2d, Conv2d):
    """:class:`Conv2d` that takes ``in_channels`` from its first input."""

    cls_to_become = Conv2d


class LazyLinear(torch.nn.LazyLinear, Linear):
    """:class:`Linear` that takes ``in_features`` from its first input."""

    cls_to_become = Linear


class LazyBatchNorm1d(torch.nn.LazyBatchNorm1d, BatchNorm1d):
    """:class:`BatchNorm1d` that takes ``num_features`` from its first input."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(torch.nn.LazyBatchNorm2d, BatchNorm2d):
    """:class:`BatchNorm2d` that takes ``num_features`` from its first input."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(torch.nn.LazyBatchNorm3d, BatchNorm3d):
    """:class:`BatchNorm3d` that takes ``num_features`` from its first input."""

    cls_to_become = BatchNorm3d
