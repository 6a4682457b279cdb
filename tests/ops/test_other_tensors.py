"""Tensors of other kinds, and function modes: torch's own functions serve them, and whoever listens hears of it."""

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from grid import CALLS
from torch.overrides import TorchFunctionMode

import pydl
import pydl.functional as PF


class Typed(torch.Tensor):
    """A tensor with a type of its own, as typed images and quantised weights are; it notes what was called on it."""

    calls: ClassVar = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.calls.append(function)
        return super().__torch_function__(function, types, args, kwargs or {})


class Listener(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.calls.append(function)
        return function(*args, **(kwargs or {}))


WEIGHT = torch.linspace(-1, 1, 54).view(2, 3, 3, 3)
MATRIX = torch.linspace(-1, 1, 24).view(4, 6)
OPS = CALLS | {
    "linear": lambda f, x: f.linear(x, MATRIX),
    "conv2d": lambda f, x: f.conv2d(x, WEIGHT),
    "conv_transpose2d": lambda f, x: f.conv_transpose2d(x, WEIGHT.view(3, 2, 3, 3)),
    "conv1d": lambda f, x: f.conv1d(x[:, :, 0], WEIGHT[..., 0]),
    "conv_transpose1d": lambda f, x: f.conv_transpose1d(x[:, :, 0], WEIGHT[0]),
    "layer_norm": lambda f, x: f.layer_norm(x, (6,)),
    "rms_norm": lambda f, x: f.rms_norm(x, (6,)),
    "group_norm": lambda f, x: f.group_norm(x, 3),
    "instance_norm": lambda f, x: f.instance_norm(x),
    "mse_loss": lambda f, x: f.mse_loss(x, torch.zeros(2, 3, 6, 6)),
    "l1_loss": lambda f, x: f.l1_loss(x, torch.zeros(2, 3, 6, 6)),
    "smooth_l1_loss": lambda f, x: f.smooth_l1_loss(x, torch.zeros(2, 3, 6, 6)),
    "huber_loss": lambda f, x: f.huber_loss(x, torch.zeros(2, 3, 6, 6)),
    "binary_cross_entropy_with_logits": lambda f, x: f.binary_cross_entropy_with_logits(x, torch.zeros(2, 3, 6, 6)),
    "scaled_dot_product_attention": lambda f, x: f.scaled_dot_product_attention(x, x, x),
    "batch_norm": lambda f, x: f.batch_norm(x, None, None, training=True),
    "max_pool2d": lambda f, x: f.max_pool2d(x, 2),
    "avg_pool2d": lambda f, x: f.avg_pool2d(x, 2),
    "adaptive_max_pool2d": lambda f, x: f.adaptive_max_pool2d(x, 2),
    "adaptive_avg_pool2d": lambda f, x: f.adaptive_avg_pool2d(x, 1),
    "max_pool1d": lambda f, x: f.max_pool1d(x[0], 2),
    "avg_pool1d": lambda f, x: f.avg_pool1d(x[0], 2),
    "adaptive_max_pool1d": lambda f, x: f.adaptive_max_pool1d(x[0], 2),
    "adaptive_avg_pool1d": lambda f, x: f.adaptive_avg_pool1d(x[0], 2),
    "conv3d": lambda f, x: f.conv3d(x[:, :, None], WEIGHT[:, :, None]),
    "max_pool3d": lambda f, x: f.max_pool3d(x, (1, 2, 2)),
    "avg_pool3d": lambda f, x: f.avg_pool3d(x, (1, 2, 2)),
    "adaptive_max_pool3d": lambda f, x: f.adaptive_max_pool3d(x, (3, 2, 2)),
    "adaptive_avg_pool3d": lambda f, x: f.adaptive_avg_pool3d(x, (3, 2, 2)),
    "dropout": lambda f, x: f.dropout(x, 1.0),
    "cross_entropy": lambda f, x: f.cross_entropy(x, torch.zeros(2, 6, 6, dtype=torch.int64)),
}
if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # from torch 2.13 on
    OPS["linear_cross_entropy"] = lambda f, x: f.linear_cross_entropy(x[:, 0, 0], MATRIX, torch.tensor([0, 3]))


def called(op):
    """torch's function of that name, as a mode sees it."""
    return {F.conv2d, getattr(F, op)} if op == "conv2d" else {getattr(F, op), *extra(op)}


def extra(op):
    others = {"max_pool2d": {F.max_pool2d, torch.max_pool2d}, "sigmoid": {torch.sigmoid}, "tanh": {torch.tanh}}
    return others.get(op, set())


@pytest.mark.parametrize("op", OPS)
def test_subclass_sees_torchs_function(op):
    x = torch.randn(2, 3, 6, 6)
    Typed.calls.clear()
    output = OPS[op](PF, x.as_subclass(Typed))
    assert called(op) & set(Typed.calls)
    assert type(output) is Typed
    torch.testing.assert_close(output.as_subclass(torch.Tensor), OPS[op](F, x))


def test_subclass_as_weight_or_target():
    x, weight = torch.randn(2, 3, 6, 6), WEIGHT.as_subclass(Typed)
    assert type(PF.conv2d(x, weight)) is Typed
    assert type(PF.linear(x, MATRIX.as_subclass(Typed))) is Typed
    assert type(PF.linear(x, MATRIX, torch.zeros(4).as_subclass(Typed))) is Typed
    assert type(PF.layer_norm(x, (6,), torch.ones(6).as_subclass(Typed))) is Typed
    assert type(PF.rms_norm(x, (6,), torch.ones(6).as_subclass(Typed))) is Typed
    assert type(PF.batch_norm(x, None, None, torch.ones(3).as_subclass(Typed), training=True)) is Typed
    assert type(PF.cross_entropy(torch.randn(2, 3), torch.tensor([0, 1]).as_subclass(Typed))) is Typed


@pytest.mark.parametrize("op", OPS)
def test_mode_sees_torchs_function(op):
    x = torch.randn(2, 3, 6, 6)
    with Listener() as mode:
        OPS[op](PF, x)
    assert called(op) & set(mode.calls)


@pytest.mark.parametrize("op", OPS)
def test_swapped_block_and_default_device_keep_ours(op):
    x = torch.randn(2, 3, 6, 6).requires_grad_()
    torch.set_default_device("cpu")
    try:
        assert ours_ran(lambda: OPS[op](PF, x))
    finally:
        torch.set_default_device(None)
    with pydl.swapped():
        assert ours_ran(lambda: OPS[op](F, x))


def ours_ran(call):
    with torch.profiler.profile() as profiler:
        call()
    return any(event.key.startswith("pydl::") for event in profiler.key_averages())


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested(layout):
    x = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=layout)
    assert PF.dropout(x, 1.0).is_nested
    assert PF.dropout(x, 0.5, False).is_nested
    assert PF.linear(x, torch.ones(3, 4)).is_nested


def test_nested_is_refused_as_by_torch():
    x = torch.nested.nested_tensor([torch.randn(3, 4, 4), torch.randn(3, 4, 4)])
    for op in ("batch_norm", "cross_entropy", "max_pool2d", "avg_pool2d", "conv2d"):
        with pytest.raises(Exception) as theirs:  # noqa: PT011  (whatever torch raises)
            OPS[op](F, x)
        with pytest.raises(type(theirs.value)) as ours:
            OPS[op](PF, x)
        assert str(ours.value) == str(theirs.value)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_mkldnn():
    x = torch.randn(2, 3, 6, 6)
    for f in (PF.max_pool2d, PF.avg_pool2d):
        output = f(x.to_mkldnn(), 2)
        assert output.layout is torch._mkldnn
        torch.testing.assert_close(output.to_dense(), f(x, 2))
    output = PF.conv2d(x.to_mkldnn(), WEIGHT)
    torch.testing.assert_close(output.to_dense(), F.conv2d(x, WEIGHT))
    output = PF.linear(x.to_mkldnn(), MATRIX)
    torch.testing.assert_close(output.to_dense(), F.linear(x, MATRIX))


def test_sparse_is_as_by_torch():
    x = torch.eye(4).to_sparse()
    for call in (lambda f: f.dropout(x, 0.5), lambda f: f.batch_norm(x, None, None, training=True)):
        outcomes = []
        for f in (F, PF):
            try:
                outcomes.append(call(f).layout)
            except Exception as error:
                outcomes.append((type(error), str(error)))
        assert outcomes[0] == outcomes[1]
