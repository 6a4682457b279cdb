"""Writes between forward and backward: where torch gives a gradient after one, ours gives the same.

Each op keeps what its formula needs, and nothing that torch leaves free.
"""

import pytest
import torch
import torch.nn.functional as F
from grid import CALLS
from testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import pydl.functional as PF


def composed_norm(f, x, mean, var, weight, bias, training, residual=None, activation=None):
    if f is PF:
        return PF.batch_norm(x, mean, var, weight, bias, training, residual=residual, activation=activation)
    y = F.batch_norm(x, mean, var, weight, bias, training)
    y = y if residual is None else y + residual
    return {None: lambda y: y, "relu": torch.relu, "sigmoid": torch.sigmoid}[activation](y)


def composed_conv(f, x, weight, bias, activation=None):
    if f is PF:
        return PF.conv2d(x, weight, bias, activation=activation)
    y = F.conv2d(x, weight, bias)
    return {None: lambda y: y, "relu": torch.relu, "sigmoid": torch.sigmoid}[activation](y)


def composed_linear(f, x, weight, bias, activation=None):
    if f is PF:
        return PF.linear(x, weight, bias, activation=activation)
    y = F.linear(x, weight, bias)
    return {None: lambda y: y, "relu": torch.relu, "sigmoid": torch.sigmoid}[activation](y)


def composed_loss(f, x, weight, bias, target, reduction):
    if f is PF:
        return PF.linear_cross_entropy(x, weight, target, linear_bias=bias, reduction=reduction)
    return F.cross_entropy(F.linear(x, weight, bias), target, reduction=reduction)


def norm_tensors(residual):
    tensors = {"input": torch.randn(4, 3, 5, 5), "mean": torch.zeros(3), "var": torch.ones(3)}
    tensors |= {"weight": torch.rand(3) + 0.5, "bias": torch.randn(3)}
    return tensors | ({"residual": torch.randn(4, 3, 5, 5)} if residual else {})


def cases():
    for activation in (None, "relu", "sigmoid"):
        for training in (True, False):
            for residual in (False, True):
                yield (
                    f"batch_norm-{activation}-{training}-{residual}",
                    norm_tensors(residual),
                    lambda f, t, a=activation, tr=training: composed_norm(
                        f, t["input"], t["mean"], t["var"], t["weight"], t["bias"], tr, t.get("residual"), a
                    ),
                )
        yield (
            f"conv2d-{activation}",
            {"input": torch.randn(2, 3, 5, 5), "weight": torch.randn(4, 3, 3, 3), "bias": torch.randn(4)},
            lambda f, t, a=activation: composed_conv(f, t["input"], t["weight"], t["bias"], a),
        )
        yield (
            f"linear-{activation}",
            {"input": torch.randn(4, 3), "weight": torch.randn(5, 3), "bias": torch.randn(5)},
            lambda f, t, a=activation: composed_linear(f, t["input"], t["weight"], t["bias"], a),
        )
    for reduction in ("mean", "sum", "none"):
        for smoothing in (0.0, 0.1):
            yield (
                f"cross_entropy-{reduction}-{smoothing}",
                {"input": torch.randn(4, 3), "weight": torch.rand(3), "target": torch.tensor([0, 1, 2, 1])},
                lambda f, t, r=reduction, s=smoothing: f.cross_entropy(
                    t["input"], t["target"], t["weight"].detach(), reduction=r, label_smoothing=s
                ),
            )
        tensors = {"input": torch.randn(4, 3), "weight": torch.randn(5, 3), "bias": torch.randn(5)}
        yield (
            f"linear_cross_entropy-{reduction}",
            tensors | {"target": torch.tensor([0, 4, 2, 1])},
            lambda f, t, r=reduction: composed_loss(f, t["input"], t["weight"], t["bias"], t["target"], r),
        )
    # of the absolute error torch keeps the difference, ours input and target: a write to them is an error
    for name in ("mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy_with_logits"):
        tensors = {"input": torch.randn(4, 3), "target": torch.rand(4, 3)}
        yield name, tensors, lambda f, t, n=name: getattr(f, n)(t["input"], t["target"])
    for name in ("layer_norm", "rms_norm"):
        parameters = (
            {"weight": torch.randn(3), "bias": torch.randn(3)} if name == "layer_norm" else {"weight": torch.randn(3)}
        )
        yield (
            name,
            {"input": torch.randn(4, 3), **parameters},
            lambda f, t, n=name: getattr(f, n)(t["input"], (3,), *(t[k] for k in ("weight", "bias") if k in t)),
        )
    parameters = {"weight": torch.randn(4), "bias": torch.randn(4)}
    yield (
        "group_norm",
        {"input": torch.randn(2, 4, 3), **parameters},
        lambda f, t: f.group_norm(t["input"], 2, t["weight"], t["bias"]),
    )
    for name, call in CALLS.items():
        yield name, {"input": torch.randn(4, 3)}, lambda f, t, call=call: call(f, t["input"])
    yield (
        "scaled_dot_product_attention",
        {"input": torch.randn(2, 1, 4, 3), "weight": torch.randn(2, 1, 5, 3), "bias": torch.randn(2, 1, 5, 3)},
        lambda f, t: f.scaled_dot_product_attention(t["input"], t["weight"], t["bias"]),
    )
    yield (
        "gru",
        {"input": torch.randn(4, 2, 3), "weight": torch.randn(9, 3), "bias": torch.randn(9)},
        lambda f, t: (torch if f is F else f).gru(
            *(t["input"], torch.zeros(1, 2, 3).double(), [t["weight"], t["weight"].detach(), t["bias"], t["bias"]]),
            *(True, 1, 0.0, True, False, False),
        )[0],
    )
    yield "max_pool2d", {"input": torch.randn(2, 3, 6, 6)}, lambda f, t: f.max_pool2d(t["input"], 2)
    yield (
        "conv_transpose2d",
        {"input": torch.randn(2, 3, 5, 5), "weight": torch.randn(3, 4, 3, 3), "bias": torch.randn(4)},
        lambda f, t: f.conv_transpose2d(t["input"], t["weight"], t["bias"], stride=2),
    )
    yield "adaptive_max_pool2d", {"input": torch.randn(2, 3, 6, 6)}, lambda f, t: f.adaptive_max_pool2d(t["input"], 2)
    yield "adaptive_avg_pool2d", {"input": torch.randn(2, 3, 6, 6)}, lambda f, t: f.adaptive_avg_pool2d(t["input"], 1)
    yield "max_pool1d", {"input": torch.randn(2, 3, 6)}, lambda f, t: f.max_pool1d(t["input"], 2)
    yield "avg_pool1d", {"input": torch.randn(2, 3, 6)}, lambda f, t: f.avg_pool1d(t["input"], 2)
    for name, weight in (("conv1d", (4, 3, 3)), ("conv_transpose1d", (3, 4, 3))):
        yield (
            name,
            {"input": torch.randn(2, 3, 6), "weight": torch.randn(weight), "bias": torch.randn(4)},
            lambda f, t, n=name: getattr(f, n)(t["input"], t["weight"], t["bias"]),
        )
    for name in ("max_pool3d", "avg_pool3d", "adaptive_max_pool3d", "adaptive_avg_pool3d"):
        yield name, {"input": torch.randn(2, 3, 4, 6, 6)}, lambda f, t, n=name: getattr(f, n)(t["input"], 2)
    yield (
        "conv3d",
        {"input": torch.randn(2, 3, 4, 5, 5), "weight": torch.randn(4, 3, 3, 3, 3), "bias": torch.randn(4)},
        lambda f, t: f.conv3d(t["input"], t["weight"], t["bias"]),
    )
    yield "avg_pool2d", {"input": torch.randn(2, 3, 6, 6)}, lambda f, t: f.avg_pool2d(t["input"], 2)


LEAVES = ("input", "weight", "bias", "residual")


def gradients(f, call, tensors, written, scale):
    tensors = {
        k: v.double().requires_grad_() if k in LEAVES else v.double() if v.is_floating_point() else v.clone()
        for k, v in tensors.items()
    }
    # logits are what our cross entropy makes its gradient from; see test_written_logits
    held = {k: v * 1.0 if k in LEAVES else v for k, v in tensors.items()}
    output = call(f, held)
    with torch.no_grad():
        held[written].copy_(held[written].flip(0))
    asked = [v for k, v in tensors.items() if k in LEAVES]
    try:
        return torch.autograd.grad((output * scale).sum(), asked, allow_unused=True)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return None


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("name,tensors,call", [pytest.param(*case, id=case[0]) for case in cases()])
def test_write_between_forward_and_backward(name, tensors, call, scale):
    for written in tensors:
        if name.startswith("cross_entropy") and written == "input":
            continue  # test_written_logits
        if name == "linear_cross_entropy-none" and written == "bias":
            continue  # what the logits are made from once more: an error, as torch's for the other tensors
        expected = gradients(F, call, tensors, written, scale)
        if expected is None:
            continue
        actual = gradients(PF, call, tensors, written, scale)
        assert actual is not None, f"torch lets one write to {written}"
        for p, q in zip(actual, expected, strict=True):
            assert (p is None) == (q is None)
            if q is not None:
                assert_close(p, q, scale=10)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_written_logits(scale):
    """torch keeps the softmax, ours the logits: after a write, the gradient made in the forward, or an error."""
    logits, target = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
    leaf = logits.clone().requires_grad_()
    PF.cross_entropy(leaf, target).backward()  # an upstream gradient of 1: the next forward makes the gradient
    held = leaf * 1.0
    loss = PF.cross_entropy(held, target) * scale
    with torch.no_grad():
        held.zero_()
    (actual,) = torch.autograd.grad(loss, leaf)
    assert_close(actual, torch.autograd.grad(F.cross_entropy(leaf, target) * scale, leaf)[0])
    held = leaf * 1.0
    rows = PF.cross_entropy(held, target, reduction="none")
    with torch.no_grad():
        held.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        rows.sum().backward()


def test_flops_are_counted_as_torchs():
    """Forward and backward of a small net, with a stride and no gradient for the images.

    Without groups, of which torch takes no account in the gradient of the weight (so in 2.13).
    """
    weights = [torch.randn(s, requires_grad=True) for s in ((8, 3, 3, 3), (8, 8, 3, 3), (4, 8, 1, 1))]
    counts = []
    for f in (F, PF):
        with FlopCounterMode(display=False) as counter:
            x = f.conv2d(torch.randn(2, 3, 12, 12), weights[0], padding=1)
            x = f.conv2d(f.max_pool2d(x, 2), weights[1], stride=2)
            f.conv2d(x, weights[2]).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
