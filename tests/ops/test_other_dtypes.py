"""float64 and float16 on the backends that are slow to test without a GPU: their other bodies leave these two out.

The kernels are one source for all dtypes; what differs are the widths of accesses, the dtype that sums are kept in, and
the matrix instructions.
"""

import batch_norm_oracle
import cross_entropy_oracle
import pytest
import test_conv2d
import torch
import torch.nn.functional as F
from dropout_helpers import SEED, same_bits, seed_tensor
from philox import dropout_reference
from testing import ALL_DTYPES, BACKENDS, SLOW_DTYPES

import pydl.functional as PF

SLOW = [b for b in BACKENDS if b.values[0] in ("triton-interpreted", "cuda-on-host")]
OTHER_DTYPES = [dtype for dtype in ALL_DTYPES if dtype not in SLOW_DTYPES]
pytestmark = pytest.mark.parametrize("device", SLOW, indirect=True)


@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_dropout_in_other_dtypes(device, dtype):
    dense = torch.randn(2, 37, 5, 11).to(dtype)
    views = (
        dense.flatten(),
        dense,
        dense.to(memory_format=torch.channels_last),
        dense.transpose(1, 3),
        dense[:, 1:, ::2],
    )
    for x in views:
        for function, shared_dims in ((PF.dropout, 0), (PF.dropout2d, 2)) if x.dim() == 4 else ((PF.dropout, 0),):
            same_bits(function(x, 0.3, seed=seed_tensor()), dropout_reference(x, 0.3, SEED, shared_dims))


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_softmax_cross_entropy_in_other_dtypes(device, dtype, kind):
    # short rows, of whole packs and not; more than one block of classes; strided classes
    for shape in ((6, 33), (5, 48), (1, 2100), (2, 9, 5)):
        input, target = cross_entropy_oracle.make(shape, kind, dtype, ignored=True)
        weight = torch.rand(shape[1]).to(dtype)
        options = {"weight": weight, "label_smoothing": 0.1, "z_loss": 1e-3}
        for reduction in ("none", "mean"):
            cross_entropy_oracle.compare(input, target, reduction=reduction, **options)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_batch_norm_in_other_dtypes(device, dtype, memory_format):
    for shape, activation, residual in (((9, 5, 6, 7), None, False), ((3, 16, 4, 4), "sigmoid", True)):
        inputs = batch_norm_oracle.all_inputs(shape, dtype, device, memory_format, residual=residual)
        grad = batch_norm_oracle.make(shape, dtype, device, memory_format) / 16
        for training in (True, False):
            batch_norm_oracle.check(inputs, grad, training, activation)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "name",
    ["3x3", "3x3, odd everything", "stride 3", "dilation 2, stride 3", "groups", "depthwise stride 2", "lenet 1"],
)
def test_conv2d_in_other_dtypes(device, name, channels_last):
    for dtype in OTHER_DTYPES:
        x, w, b, options = test_conv2d.make(name, dtype)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        expected = test_conv2d.passes(F.conv2d, x.double(), w.double(), b.double(), options)
        test_conv2d.check(test_conv2d.passes(PF.conv2d, x, w, b, options), expected, dtype, x.shape)
