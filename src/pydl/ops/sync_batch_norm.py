"""Batch normalisation over all processes: statistics and sums are combined between the halves of our kernels.

forward:  (mean, var) of this process's part  →  gathered, combined by count  →  apply
backward: (Σ g, Σ g x̂) of this part           →  gathered, added              →  apply

What travels is 2 C + 1 float64 numbers forward and 2 C back, C the number of channels. The parts are combined in the
order of the ranks, so that every process holds the same bits. Parts may be of unequal size, and empty. The gradients of
weight and bias stay those of this process's part: DistributedDataParallel adds them up with all others.

Source: the variance of a union, Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
Sample Variances", 1979.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from pydl import backend
from pydl._private import below_autograd, disable_dynamo
from pydl.ops.batch_norm import _SUPPORTED


def group_of(process_group):
    """The group to synchronise over (None means all processes); None where there is no other process."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = dist.group.WORLD if process_group is None else process_group
    return group if dist.get_world_size(group) > 1 else None


@disable_dynamo  # collectives and their order are not traced; this form imports the compiler at the first call
def sync_batch_norm(input, running_mean, running_var, weight, bias, momentum, eps, group):
    """Training-mode batch normalisation of ``input`` by the statistics of all processes of ``group``.

    Args:
        input: (N, C) or (N, C, spatial...), this process's part of the batch; N may differ between processes.
        running_mean, running_var: (C) or None; updated in place alike in every process.
        weight, bias: (C) or None.
        momentum, eps: as in :func:`pydl.functional.batch_norm`.
        group: a process group of more than one process, all of which must make this call.
    """
    ops = backend.ops_for(input) if input.dtype in _SUPPORTED else None
    ops = _TorchHalves if ops is None else ops
    return _SyncBatchNorm.apply(ops, group, input, running_mean, running_var, weight, bias, momentum, eps)


def _gather(row, group):
    """(processes, len(row)): the rows of all processes in the order of their ranks."""
    rows = [torch.empty_like(row) for _ in range(dist.get_world_size(group))]
    dist.all_gather(rows, row, group=group)
    return torch.stack(rows)


def _combine(mean, var, count):
    """Mean and biased variance of a union from those of its parts (P, C), which hold ``count`` (P, 1) values each."""
    total = count.sum().clamp_min(1)
    share = count / total
    whole = (share * mean).sum(0)
    return whole, (share * (var + (mean - whole).square())).sum(0), total


class _SyncBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ops, group, input, running_mean, running_var, weight, bias, momentum, eps):
        channels = input.shape[1]
        count = torch.full((1,), input.numel() // max(channels, 1), dtype=torch.float64, device=input.device)
        with below_autograd():
            if input.numel():
                part = torch.cat([*ops.batch_norm_stats(input), count])
            else:
                part = count.new_zeros(2 * channels + 1)
            parts = _gather(part, group)
            mean, var, total = _combine(*parts.split([channels, channels, 1], dim=1))
            if running_mean is not None:
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                unbiased = var * (total / (total - 1).clamp_min(1))
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
            output = ops.batch_norm_apply(input, mean, var, weight, bias, None, eps, 0)
        ctx.save_for_backward(input, mean, var, weight, bias, total)
        ctx.arguments = ops, group, eps
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        ops, group, eps = ctx.arguments
        input, mean, var, weight, bias, total = ctx.saved_tensors
        _, _, need_input, _, _, need_weight, need_bias, *_ = ctx.needs_input_grad
        grad_input = grad_weight = grad_bias = None
        channels = input.shape[1]
        with below_autograd():
            if input.numel():
                args = grad_output, input, mean, var, weight, bias, None
                sums = torch.cat(ops.batch_norm_backward_reduce(*args, eps, 0))
            else:
                args, sums = None, mean.new_zeros(2 * channels)
            sum_grad, sum_grad_xhat = sums.split(channels)
            if need_weight:
                grad_weight = sum_grad_xhat.to(weight.dtype)
            if need_bias:
                grad_bias = sum_grad.to(bias.dtype)
            if need_input:
                # divided by the count here, on the device: reading it would make a GPU's host wait in every layer
                mean_grad, mean_grad_xhat = (_gather(sums, group).sum(0) / total).split(channels)
                grad_input = torch.empty_like(input)
                if input.numel():
                    grad_input, _ = ops.batch_norm_backward_apply(
                        *args, mean_grad.contiguous(), mean_grad_xhat.contiguous(), 1.0, eps, 0, False
                    )
        return None, None, grad_input, None, None, grad_weight, grad_bias, None, None


class _TorchHalves:
    """The same halves of torch's own ops, for its backend and for the dtypes that our kernels do not take."""

    @staticmethod
    def _view(input, *vectors):
        """(dimensions that are summed over, x and the vectors in the dtype that is computed in, broadcastable)."""
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        shape = [1, -1] + [1] * (input.dim() - 2)
        return [0, *range(2, input.dim())], input.to(dtype), *(v.to(dtype).view(shape) for v in vectors)

    @classmethod
    def batch_norm_stats(cls, input):
        dims, x = cls._view(input)
        var, mean = torch.var_mean(x, dims, correction=0)
        return mean.double(), var.double()

    @staticmethod
    def batch_norm_apply(input, mean, var, weight, bias, residual, eps, activation):
        dtype = input.dtype if weight is None else weight.dtype
        return F.batch_norm(input, mean.to(dtype), var.to(dtype), weight, bias, False, 0.0, eps)

    @classmethod
    def batch_norm_backward_reduce(cls, grad_output, input, mean, var, weight, bias, output, eps, activation):
        dims, x, mean, var = cls._view(input, mean, var)
        grad = grad_output.to(x.dtype)
        return grad.sum(dims).double(), (grad * ((x - mean) * (var + eps).rsqrt())).sum(dims).double()

    @classmethod
    def batch_norm_backward_apply(
        cls, grad_output, input, mean, var, weight, bias, output, mean_grad, mean_grad_xhat, count, eps, activation,
        need_residual,
    ):  # fmt: skip
        scale = torch.ones_like(mean) if weight is None else weight
        _, x, mean, var, scale, mean_grad, mean_grad_xhat = cls._view(
            input, mean, var, scale, mean_grad, mean_grad_xhat
        )
        invstd = (var + eps).rsqrt()
        xhat = (x - mean) * invstd
        grad = grad_output.to(x.dtype) - mean_grad - xhat * mean_grad_xhat
        return (grad * invstd * scale).to(input.dtype), None
