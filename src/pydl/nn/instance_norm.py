"""Instance norms: of each channel of each sample; and lazy."""

import torch
import torch.nn.functional as F

from pydl.aside import Own, is_special, steps_aside
from pydl.nn._common import _Eager
from pydl.ops.instance_norm import instance_norm_unasked

__all__ = [
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
]


class _InstanceNorm(_Eager):
    """The forward that the three ranks share; inputs without a sample's dimension are torch's."""

    own = Own(
        torch.nn.modules.instancenorm._InstanceNorm, "instance_norm", "_handle_no_batch_input", "_apply_instance_norm"
    )

    def forward(self, input):
        own = _InstanceNorm.own
        if (
            "_apply_instance_norm" in self.__dict__
            or "_handle_no_batch_input" in self.__dict__
            or type(self)._apply_instance_norm is not _APPLY
            or type(self)._handle_no_batch_input is not _HANDLE
            or steps_aside(self, own, F.instance_norm, input)
            or input.dim() != self._get_no_batch_dim() + 1
            or input.shape[1] != self.num_features
        ):
            return torch.nn.modules.instancenorm._InstanceNorm.forward(self, input)
        self._check_input_dim(input)  # whatever it is
        weight, bias, mean, var = self.weight, self.bias, self.running_mean, self.running_var
        if is_special(self, weight, bias, mean, var):
            return torch.nn.modules.instancenorm._InstanceNorm.forward(self, input)
        by_sample, momentum = self.training or not self.track_running_stats, self.momentum
        momentum = 0.0 if momentum is None else momentum
        return instance_norm_unasked(input, mean, var, weight, bias, by_sample, momentum, self.eps)


_HANDLE, _APPLY = dict(_InstanceNorm.own.methods).values()  # torch's


class InstanceNorm1d(_InstanceNorm, torch.nn.InstanceNorm1d):
    """``torch.nn.InstanceNorm1d`` over :func:`pydl.functional.instance_norm`; input (N, C, L).

    >>> nn.InstanceNorm1d(3)(torch.randn(4, 3, 20)).shape
    torch.Size([4, 3, 20])
    """


class InstanceNorm2d(_InstanceNorm, torch.nn.InstanceNorm2d):
    """``torch.nn.InstanceNorm2d`` over :func:`pydl.functional.instance_norm`; input (N, C, H, W).

    >>> nn.InstanceNorm2d(3)(torch.randn(4, 3, 8, 8)).shape
    torch.Size([4, 3, 8, 8])
    """


class InstanceNorm3d(_InstanceNorm, torch.nn.InstanceNorm3d):
    """``torch.nn.InstanceNorm3d`` over :func:`pydl.functional.instance_norm`; input (N, C, D, H, W).

    >>> nn.InstanceNorm3d(3)(torch.randn(4, 3, 2, 8, 8)).shape
    torch.Size([4, 3, 2, 8, 8])
    """


# torch's lazy class, with ours next in the method resolution order: its __init__ reaches our constructor, its
# forward is ours, and on the first input it becomes our class instead of torch's.
class LazyInstanceNorm1d(torch.nn.LazyInstanceNorm1d, InstanceNorm1d):
    """:class:`InstanceNorm1d` that takes ``num_features`` from its first input.

    >>> layer = nn.LazyInstanceNorm1d(affine=True)
    >>> layer(torch.randn(4, 6, 20)).shape, layer.num_features
    (torch.Size([4, 6, 20]), 6)
    """

    cls_to_become = InstanceNorm1d


class LazyInstanceNorm2d(torch.nn.LazyInstanceNorm2d, InstanceNorm2d):
    """:class:`InstanceNorm2d` that takes ``num_features`` from its first input.

    >>> layer = nn.LazyInstanceNorm2d(affine=True)
    >>> layer(torch.randn(4, 6, 8, 8)).shape, layer.num_features
    (torch.Size([4, 6, 8, 8]), 6)
    """

    cls_to_become = InstanceNorm2d


class LazyInstanceNorm3d(torch.nn.LazyInstanceNorm3d, InstanceNorm3d):
    """:class:`InstanceNorm3d` that takes ``num_features`` from its first input.

    >>> layer = nn.LazyInstanceNorm3d(affine=True)
    >>> layer(torch.randn(4, 6, 2, 8, 8)).shape, layer.num_features
    (torch.Size([4, 6, 2, 8, 8]), 6)
    """

    cls_to_become = InstanceNorm3d
