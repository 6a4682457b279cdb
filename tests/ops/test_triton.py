"""The Triton backend itself: a launcher for every op, and the choices that its launchers make."""

import importlib

import pytest
import test_conv2d
import torch
import torch.nn.functional as F
from testing import BACKENDS, assert_close

import pydl.functional as PF
from pydl.ops import _triton

INTERPRETED = [parameter for parameter in BACKENDS if parameter.values == ("triton-interpreted",)]

OPS = sorted({s.name.split("::")[1] for s in torch._C._jit_get_all_schemas() if s.name.startswith("pydl_triton::")})


@pytest.mark.parametrize("name", OPS)
def test_every_op_has_a_launcher(name):
    pytest.importorskip("triton", reason="Triton is not installed")
    assert callable(_triton.launcher(name))


@pytest.mark.parametrize("device", INTERPRETED, indirect=True)
@pytest.mark.parametrize("channels_last", [False, True])
def test_weight_gradient_in_pieces(device, channels_last):
    """More pixels than one program sums: partial results are joined, the last piece being shorter."""
    x, w = torch.randn(3, 20, 21, 19), torch.randn(24, 20, 3, 3)
    g = torch.randn(3, 24, 21, 19)
    if channels_last:
        x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    options = {"padding": 1}
    expected = test_conv2d.passes(F.conv2d, x.double(), w.double(), None, options, g)
    test_conv2d.check(test_conv2d.passes(PF.conv2d, x, w, None, options, g), expected, torch.float32, x.shape)


@pytest.mark.parametrize("device", INTERPRETED, indirect=True)
def test_rows_in_pieces(device):
    """Few long rows are split: a piece of nothing but -inf, ignored rows, a last piece that is shorter."""
    input = torch.randn(3, 40000) * 3
    input[0, :20000] = -torch.inf
    target = torch.tensor([39999, -100, 17])
    for smoothing in (0.0, 0.1):
        x, x64 = input[1:].clone().requires_grad_(), input[1:].double().requires_grad_()
        loss = PF.cross_entropy(x, target[1:], label_smoothing=smoothing)
        expected = F.cross_entropy(x64, target[1:], label_smoothing=smoothing)
        assert_close(loss, expected)
        assert_close(*(torch.autograd.grad(y * 2.5, t)[0] for y, t in ((loss, x), (expected, x64))))
    assert_close(PF.cross_entropy(input, target), F.cross_entropy(input.double(), target))


@pytest.mark.parametrize("device", INTERPRETED, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutions_by_way_of_channels_last(device, dtype, monkeypatch):
    """NCHW tensors are copied to channels_last and back where much is computed; here always, and with odd sizes."""
    copies = []
    transpose = conv2d_transpose().transposed
    monkeypatch.setattr(conv2d_transpose(), "PAYS_FROM", 1)
    monkeypatch.setitem(conv2d_transpose().PAYS, dtype, 0.1)
    for module in (conv2d_transpose(), importlib.import_module("pydl.kernels.triton.conv2d.conv2d")):
        monkeypatch.setattr(module, "transposed", lambda *a: copies.append(a) or transpose(*a))
    x, w, b = torch.randn(2, 33, 9, 7), torch.randn(70, 33, 3, 3) / 17, torch.randn(70)
    x, w, b = (t.to(dtype) for t in (x, w, b))
    options = {"padding": 1, "stride": 2}
    expected = test_conv2d.passes(F.conv2d, x.double(), w.double(), b.double(), options)
    actual = test_conv2d.passes(PF.conv2d, x, w, b, options)
    # input, weight, output; gradient, weight, gradient of the input; gradient, input
    assert len(copies) == 8
    assert all(t.is_contiguous() for t in actual)
    test_conv2d.check(actual, expected, dtype, x.shape)


def conv2d_transpose():
    return importlib.import_module("pydl.kernels.triton.conv2d.conv2d_transpose")


@pytest.mark.skipif(_triton.version() is None, reason="Triton is not installed")
def test_copies_are_made_where_they_pay():
    pays, device = conv2d_transpose().transpose_pays, importlib.import_module("pydl.kernels.triton.launch").ELSEWHERE
    pixels = 64 * 28 * 28
    elements = 2 * pixels * 128
    assert pays(torch.bfloat16, device, pixels, (128, 128, 3, 3), 1, elements)
    assert pays(torch.float32, device, pixels, (128, 128, 3, 3), 1, elements)
    assert not pays(torch.float64, device, pixels, (128, 128, 3, 3), 1, elements)
    assert not pays(torch.bfloat16, device, 64, (128, 128, 3, 3), 1, 64 * 256)  # launches would take longer
    assert not pays(torch.bfloat16, device, 64 * 3136, (256, 64, 1, 1), 1, 64 * 3136 * 320)  # bound by its bytes
    assert not pays(torch.bfloat16, device, pixels, (128, 3, 7, 7), 1, elements)  # images
    assert not pays(torch.bfloat16, device, pixels, (128, 128, 3, 3), 1, 0)  # nothing to copy
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert not pays(torch.float32, device, pixels, (128, 128, 3, 3), 1, elements)
