"""torch's own samples (its OpInfo database) of our functions: values, strides and gradients beside torch.

Left out, in words: dropout's values, since its mask is ours (shapes and strides are compared).
"""

import pytest
import torch
import torch.nn.functional as F
from grid import ROWS
from testing import assert_close

op_db = pytest.importorskip(
    "torch.testing._internal.common_methods_invocations", reason="torch's OpInfo database needs its test packages"
).op_db

import pydl.functional as PF
import pydl.ops.matmul

NAMES = [
    *ROWS,
    "batch_norm",
    "conv1d",
    "conv2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "cross_entropy",
    "dropout",
    "dropout2d",
    "dropout3d",
    "max_pool2d",
    "avg_pool2d",
    "max_pool1d",
    "avg_pool1d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "embedding",
    "conv3d",
    "max_pool3d",
    "avg_pool3d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool3d",
    "linear",
    "layer_norm",
    "rms_norm",
    "group_norm",
    "instance_norm",
    "l1_loss",
    "mse_loss",
    "smooth_l1_loss",
    "huber_loss",
    "binary_cross_entropy_with_logits",
]
if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # from torch 2.13 on
    NAMES.append("linear_cross_entropy")
PRODUCTS = ["matmul", "mm", "bmm", "addmm", "baddbmm"]  # torch's own, in no module
DTYPES = [torch.float32, torch.float64]


def samples(name, dtype):
    # conv2d, batch_norm and the rest have entries by variant; the one without a variant is torch.nn.functional's
    (info,) = (o for o in op_db if o.name in (name, f"nn.functional.{name}") and o.variant_test_name == "")
    found = list(info.sample_inputs("cpu", dtype, requires_grad=True))
    # maximum pooling has 1440, the product of its options: each seventh (no option has seven values), and others of
    # them in each dtype
    yield from found[DTYPES.index(dtype) :: 7] if len(found) > 1000 else found


def function_of(library, name):
    """Its function of that name, with its arguments in OpInfo's order."""
    function = getattr(library, name)
    if name == "embedding":
        return lambda weight, ids, **options: function(ids, weight, **options)
    return function


def call(function, sample):
    """Result and gradients, or the type of the exception; running statistics are written to copies."""
    held = []

    def fresh(value):
        if not isinstance(value, torch.Tensor):
            return value
        copy = value.detach().clone(memory_format=torch.preserve_format).requires_grad_(value.requires_grad)
        held.append(copy)
        return copy

    args = [fresh(value) for value in (sample.input, *sample.args)]
    kwargs = {k: fresh(v) for k, v in sample.kwargs.items()}
    torch.manual_seed(0)
    try:
        output = function(*args, **kwargs)
    except Exception as error:
        return type(error)
    outputs = output if isinstance(output, tuple) else (output,)
    leaves = [t for t in held if t.requires_grad]
    grads = ()
    if outputs[0].requires_grad and leaves:
        grads = torch.autograd.grad(outputs[0], leaves, torch.ones_like(outputs[0]), allow_unused=True)
    return [t.detach() for t in outputs], grads, [t.detach() for t in held]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES + PRODUCTS)
def test_samples(name, dtype, monkeypatch):
    monkeypatch.setattr(pydl.ops.matmul, "WORTH_A_CALL", 0)
    count, found = 0, list(samples(name, dtype))
    for sample in found:
        expected, actual = (call(function_of(f, name), sample) for f in (torch if name in PRODUCTS else F, PF))
        if isinstance(expected, type):
            assert actual is expected, sample
            continue
        assert not isinstance(actual, type), (actual, sample)
        for theirs, ours in zip(expected[:2], actual[:2], strict=True):
            for p, q in zip(ours, theirs, strict=True):
                assert (p is None) == (q is None), sample
                if q is None:
                    continue
                assert p.stride() == q.stride(), (p.stride(), q.stride(), sample)
                assert p.shape == q.shape
                if p.dtype == torch.int64:
                    assert torch.equal(p, q)
                elif not name.startswith("dropout"):
                    # torch's layer norm leaves 2e-5 in the gradient of a row of one number, which is 0
                    assert_close(p, q, scale=20 if name == "layer_norm" else 10)
        for p, q in zip(actual[2], expected[2], strict=True):  # running statistics among them
            assert torch.equal(p, q) if p.dtype == torch.int64 else assert_close(p, q) is None
        count += 1
    assert count > min(5, len(found) // 2)  # what torch itself refuses is not counted
