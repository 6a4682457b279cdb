"""Layer norm and RMS norm of a transformer's rows, forward and backward with all gradients."""

import pytest
import torch
import torch.nn.functional as F
from runner import Case, forward_backward

import pydl.functional as PF


def case(op, shape, dtype=torch.float32, target=None, quick=False):
    width, is_layer_norm = shape[-1], op == "layer_norm"

    def inputs():
        parameters = [torch.rand(width) + 0.5, torch.randn(width)][: 1 + is_layer_norm]
        tensors = [torch.randn(shape), *parameters]
        return [*(t.to(dtype).requires_grad_() for t in tensors), torch.randn(shape).to(dtype)]

    def bound(library):
        return lambda x, *parameters: getattr(library, op)(x, (width,), *parameters, eps=1e-5)

    size = torch.Size(shape).numel() * dtype.itemsize
    # forward: x in, y out; backward: x and grad in, the gradient of x out
    return Case(
        "layer_norm",
        ("" if is_layer_norm else "RMS norm ") + "×".join(map(str, shape)),
        inputs,
        bound(PF),
        bound(F),
        forward_backward,
        read=3 * size,
        written=2 * size,
        dtype=dtype,
        target=target,
        quick=quick,
        scale=30.0 if dtype == torch.float32 else 10.0,  # gradients of the parameters are sums over all rows
    )


CASES = [
    case("layer_norm", (4096, 128), target=(2.8, 2.8), quick=True),
    case("layer_norm", (32768, 256), target=(5, 1.2), quick=True),
    case("layer_norm", (128, 9, 256)),
    case("layer_norm", (512, 1024)),
    case("layer_norm", (4096, 128), torch.bfloat16),
    case("layer_norm", (32768, 256), torch.bfloat16),
    case("rms_norm", (4096, 128), quick=True),
    case("rms_norm", (32768, 256)),
    case("rms_norm", (4096, 128), torch.bfloat16),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_layer_norm(case, compare):
    compare(case)
