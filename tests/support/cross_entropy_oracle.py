"""What the tests of cross entropy share: inputs, torch in float64 as the oracle, the comparison with it."""

import torch
import torch.nn.functional as F
from testing import assert_close

import pydl.functional as pf

REDUCTIONS = ["none", "mean", "sum"]


def reference(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, z_loss=0.0):
    """torch in float64, and z-loss by its definition: z lse² of rows not ignored, divided as the mean divides."""

    def double(t):
        return t if t is None or not t.is_floating_point() else t.double()

    input, target, weight = double(input), double(target), double(weight)
    loss = F.cross_entropy(
        input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )
    if z_loss == 0.0:
        return loss
    lse = torch.logsumexp(input, 0 if input.dim() == 1 else 1)
    extra = z_loss * lse**2
    if target.is_floating_point():
        denominator = extra.numel()
    else:
        counted = target != ignore_index
        extra = torch.where(counted, extra, 0.0)
        denominator = counted.sum() if weight is None else weight[target[counted]].sum()
    return loss + (extra if reduction == "none" else extra.sum() / (denominator if reduction == "mean" else 1.0))


def make(shape, kind, dtype=torch.float32, device="cpu", ignored=False, scale=2.0):
    """Logits and targets of one kind: classes, or probabilities that do not quite sum to 1."""
    input = (torch.randn(shape) * scale).to(dtype).to(device)
    if kind == "classes":
        target = torch.randint(0, shape[1], (shape[0], *shape[2:]))
        if ignored:
            target[torch.rand(target.shape) < 0.3] = -100
            target.view(-1)[0] = 0  # at least one counts
    else:
        target = torch.rand(shape).to(dtype)
        target = target / target.sum(1, keepdim=True) * 1.1
    return input, target.to(device)


def compare(input, target, scale=1.0, **options):
    """Loss and gradients, with an upstream gradient that is not one, against float64."""
    input = input.detach().requires_grad_()
    target = target.detach().requires_grad_(target.is_floating_point())
    before = input.detach().clone()
    input64 = input.detach().double().requires_grad_()
    target64 = target.detach().double().requires_grad_() if target.is_floating_point() else target
    loss = pf.cross_entropy(input, target, **options)
    expected = reference(input64, target64, **options)
    assert loss.shape == expected.shape
    assert_close(loss, expected, input.dtype, scale)
    upstream = torch.randn(loss.shape, device=loss.device).to(loss.dtype) if loss.dim() else torch.tensor(-1.75)
    wanted = [t for t in (input, target) if t.requires_grad]
    wanted64 = [t for t in (input64, target64) if t.requires_grad]
    upstream = upstream.to(loss)
    grads = torch.autograd.grad(loss, wanted, upstream)
    expected_grads = torch.autograd.grad(expected, wanted64, upstream.double())
    for grad, expected_grad, tensor in zip(grads, expected_grads, wanted, strict=True):
        assert grad.dtype == tensor.dtype
        assert grad.shape == tensor.shape
        assert_close(grad, expected_grad, input.dtype, scale)
    torch.testing.assert_close(input.detach(), before, rtol=0, atol=0, equal_nan=True)  # logits survive
    return loss
