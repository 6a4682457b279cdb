"""3-D convolution, each pass alone: networks of videos (R3D-18, R(2+1)D-18) and of volumes (3-D U-Net)."""

import pytest
import torch
import torch.nn.functional as F
from bench_conv2d import forward, gradient
from runner import Case

import pydl.functional as PF

PASSES = ("forward", "input", "weight")


def case(name, shape, features, kernel, what, stride=1, padding=0, last=False, dtype=torch.float32, quick=False):
    kernel = (kernel,) * 3 if isinstance(kernel, int) else kernel
    options = {"stride": stride, "padding": padding}
    size = F.conv3d(torch.empty(1, 1, *shape[2:]), torch.empty(1, 1, *kernel), **options).shape[2:]
    shapes = shape, (features, shape[1], *kernel), (shape[0], features, *size)

    def inputs():
        layout = torch.channels_last_3d if last else torch.contiguous_format
        x, w, grad = (torch.randn(s).to(dtype).to(memory_format=layout) for s in shapes)
        return [x.requires_grad_(what == "input"), w.requires_grad_(what == "weight"), grad]

    return Case(
        "conv3d",
        f"{name}, N {shape[0]}, {what}{'' if what == 'forward' else ' gradient'}, {'NDHWC' if last else 'NCDHW'}",
        inputs,
        lambda x, w: PF.conv3d(x, w, **options),
        lambda x, w: F.conv3d(x, w, **options),
        forward if what == "forward" else gradient(what),
        operations=2 * torch.Size(shapes[2]).numel() * torch.Size(shapes[1][1:]).numel(),
        dtype=dtype,
        compile=False,
        quick=quick,
        scale=100.0,
        seconds=1.5,
    )


NETWORKS = [
    ("stem 3x7x7 stride 1,2,2 3->64@16x112x112", (4, 3, 16, 112, 112), 64, (3, 7, 7), (1, 2, 2), (1, 3, 3)),
    ("3x3x3 64@8x56x56", (4, 64, 8, 56, 56), 64, 3, 1, 1),
    ("3x3x3 stride 2 64->128@8x56x56", (4, 64, 8, 56, 56), 128, 3, 2, 1),
    ("3x3x3 128@8x28x28", (4, 128, 8, 28, 28), 128, 3, 1, 1),
    ("3x3x3 256@4x14x14", (4, 256, 4, 14, 14), 256, 3, 1, 1),
    ("3x3x3 512@2x7x7", (4, 512, 2, 7, 7), 512, 3, 1, 1),
    ("1x1x1 stride 2 64->128@8x56x56", (4, 64, 8, 56, 56), 128, 1, 2, 0),
    ("1x3x3 64->144@8x56x56", (4, 64, 8, 56, 56), 144, (1, 3, 3), 1, (0, 1, 1)),
    ("3x1x1 144->64@8x56x56", (4, 144, 8, 56, 56), 64, (3, 1, 1), 1, (1, 0, 0)),
    ("3-D U-Net 3x3x3 32->64@32x32x32", (1, 32, 32, 32, 32), 64, 3, 1, 1),
]
CASES = [
    case(
        name, shape, features, kernel, what, stride, padding, last=last, quick=name.startswith("3x3x3 256") and not last
    )
    for name, shape, features, kernel, stride, padding in NETWORKS
    for last in (False, True)
    for what in PASSES
]
CASES += [
    case(f"{name} bf16", shape, features, kernel, what, stride, padding, last=True, dtype=torch.bfloat16)
    for name, shape, features, kernel, stride, padding in NETWORKS[1:5]
    for what in PASSES
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_conv3d(case, compare):
    compare(case)
