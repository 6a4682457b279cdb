"""Batch norms: of one process, of all together, and lazy."""

import torch
import torch.nn.functional as F

from pydl.aside import Own, is_special, steps_aside
from pydl.nn._common import _Eager
from pydl.ops import _nodes
from pydl.ops._activations import finished
from pydl.ops._nodes import is_compiling
from pydl.ops.batch_norm import batch_norm_unasked
from pydl.ops.sync_batch_norm import group_of, sync_batch_norm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "SyncBatchNorm",
]


class _BatchNorm(_Eager):
    """The forward that the three ranks share; which input ranks are allowed is torch's ``_check_input_dim``.

    It takes :func:`~pydl.functional.batch_norm`'s ``residual`` and ``activation`` too, keyword-only.
    """

    # _check_input_dim, which differs from rank to rank, is called whatever it is
    own = Own(torch.nn.modules.batchnorm._BatchNorm, "batch_norm")

    def forward(self, input, *, residual=None, activation=None):
        own = _BatchNorm.own
        if F.batch_norm is own.function and own.cls.forward is own.forward and not is_compiling():
            output = _quick(self, input, residual, activation)
            if output is not NotImplemented:
                return output
        if steps_aside(self, own, F.batch_norm, input, residual):
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


def _quick(layer, input, residual, activation):
    """A plain call of a layer with running statistics, or NotImplemented: see pydl.ops._nodes."""
    attributes = layer.__dict__
    ranks = _RANKS.get(type(layer)._check_input_dim)
    if ranks is None or "_check_input_dim" in attributes:  # not torch's, so it is to be called
        return NotImplemented
    mean, var, training = layer.running_mean, layer.running_var, attributes["training"]
    if mean is None or var is None or not layer.track_running_stats:
        return NotImplemented
    count = layer.num_batches_tracked if training else None
    rest = training, layer.momentum, layer.eps, residual, activation, count
    return _nodes.batch_norm(input, mean, var, layer.weight, layer.bias, *rest, ranks)


# torch's _check_input_dim -> the ranks that it lets through, a bit for each
_RANKS = {
    torch.nn.BatchNorm1d._check_input_dim: 1 << 2 | 1 << 3,
    torch.nn.BatchNorm2d._check_input_dim: 1 << 4,
    torch.nn.BatchNorm3d._check_input_dim: 1 << 5,
}


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` over :func:`pydl.functional.batch_norm`; input (N, C) or (N, C, L).

    >>> nn.BatchNorm1d(2)(torch.tensor([[1.0, 10.0], [3.0, 30.0]])).detach()
    tensor([[-1.0000, -1.0000],
            [ 1.0000,  1.0000]])
    """


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` over :func:`pydl.functional.batch_norm`; input (N, C, H, W).

    >>> nn.BatchNorm2d(3)(torch.randn(4, 3, 8, 8)).shape
    torch.Size([4, 3, 8, 8])
    """


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` over :func:`pydl.functional.batch_norm`; input (N, C, D, H, W).

    >>> nn.BatchNorm3d(3)(torch.randn(4, 3, 2, 8, 8)).shape
    torch.Size([4, 3, 2, 8, 8])
    """


class SyncBatchNorm(_BatchNorm, torch.nn.modules.batchnorm._BatchNorm):
    """``torch.nn.SyncBatchNorm`` over our kernels, on CPUs (gloo) as well as GPUs (nccl); input (N, C, ...).

    In training every process normalises by the mean and variance of all processes' batches together, which may be of
    unequal size; in evaluation, and where there is one process, this is :class:`BatchNorm2d` for any rank. No subclass
    of torch's class, since DistributedDataParallel refuses those on a CPU.

    >>> nn.SyncBatchNorm(3).eval()(torch.randn(4, 3, 8, 8)).shape
    torch.Size([4, 3, 8, 8])
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


# torch's lazy class, with ours next in the method resolution order: its __init__ reaches our constructor, its
# forward is ours, and on the first input it becomes our class instead of torch's.
class LazyBatchNorm1d(torch.nn.LazyBatchNorm1d, BatchNorm1d):
    """:class:`BatchNorm1d` that takes ``num_features`` from its first input.

    >>> layer = nn.LazyBatchNorm1d()
    >>> layer(torch.randn(4, 6, 20)).shape, layer.num_features
    (torch.Size([4, 6, 20]), 6)
    """

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(torch.nn.LazyBatchNorm2d, BatchNorm2d):
    """:class:`BatchNorm2d` that takes ``num_features`` from its first input.

    >>> layer = nn.LazyBatchNorm2d()
    >>> layer(torch.randn(4, 6, 8, 8)).shape, layer.num_features
    (torch.Size([4, 6, 8, 8]), 6)
    """

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(torch.nn.LazyBatchNorm3d, BatchNorm3d):
    """:class:`BatchNorm3d` that takes ``num_features`` from its first input.

    >>> layer = nn.LazyBatchNorm3d()
    >>> layer(torch.randn(4, 6, 2, 8, 8)).shape, layer.num_features
    (torch.Size([4, 6, 2, 8, 8]), 6)
    """

    cls_to_become = BatchNorm3d
