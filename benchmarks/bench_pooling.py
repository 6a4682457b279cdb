"""Pooling, forward and backward, in the sizes of networks that users train."""

import pytest
import torch
import torch.nn.functional as F
from runner import Case, forward_backward

import pydl.functional as PF


def case(
    name, shape, function="max_pool2d", channels_last=False, dtype=torch.float32, target=None, quick=False, **options
):
    ours, theirs = getattr(PF, function), getattr(F, function)
    pooled = theirs(torch.empty(1, 1, *shape[2:]), **options).shape[2:]
    last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d

    def inputs():
        x, grad = torch.randn(shape).to(dtype), torch.randn(*shape[:2], *pooled).to(dtype)
        if channels_last:
            x, grad = (t.to(memory_format=last) for t in (x, grad))
        return [x.requires_grad_(), grad]

    large, small = (torch.Size((*shape[:2], *size)).numel() for size in (shape[2:], pooled))
    # the maximum's places are a byte each
    kind = "max" if "max" in function else "mean"
    places = small if kind == "max" else 0
    return Case(
        "pooling",
        f"{name}, {kind} {shape}{' channels_last' if channels_last else ' NCHW'}".replace(", ", ","),
        inputs,
        lambda x: ours(x, **options),
        lambda x: theirs(x, **options),
        forward_backward,
        read=dtype.itemsize * (large + small) + places,
        written=dtype.itemsize * (large + small) + places,
        dtype=dtype,
        quick=quick,
    )


RESNET = {"kernel_size": 3, "stride": 2, "padding": 1}
GOOGLENET = {"kernel_size": 3, "stride": 1, "padding": 1}
CASES = [
    case("LeNet 2x2", (256, 6, 28, 28), "avg_pool2d", kernel_size=2, quick=True),
    case("LeNet 2x2", (256, 16, 10, 10), "avg_pool2d", kernel_size=2),
    case("2x2", (64, 32, 32, 32), "avg_pool2d", channels_last=True, kernel_size=2),
    case("cifar_net 2x2", (64, 32, 32, 32), kernel_size=2, quick=True),
    case("cifar_net 2x2", (64, 32, 32, 32), channels_last=True, kernel_size=2),
    case("ResNet 3x3 stride 2", (32, 64, 48, 48), **RESNET),
    case("ResNet 3x3 stride 2", (32, 64, 48, 48), channels_last=True, **RESNET),
    case("ResNet 3x3 stride 2 bf16", (32, 64, 48, 48), dtype=torch.bfloat16, **RESNET),
    case("AlexNet 3x3 stride 2", (64, 96, 54, 54), kernel_size=3, stride=2),
    case("AlexNet 3x3 stride 2", (64, 96, 54, 54), channels_last=True, kernel_size=3, stride=2),
    case("GoogLeNet 3x3 stride 1", (32, 192, 28, 28), **GOOGLENET),
    case("GoogLeNet 3x3 stride 1", (32, 192, 28, 28), channels_last=True, **GOOGLENET),
    case("of planes", (32, 512, 7, 7), "adaptive_avg_pool2d", output_size=1, quick=True),
    case("of planes", (32, 512, 7, 7), "adaptive_avg_pool2d", channels_last=True, output_size=1),
    case("of planes", (8, 1024, 28, 28), "adaptive_avg_pool2d", output_size=1),
    case("of planes", (8, 1024, 28, 28), "adaptive_avg_pool2d", channels_last=True, output_size=1),
    case("of planes", (128, 10, 5, 5), "adaptive_avg_pool2d", output_size=1),
    case("of planes", (32, 512, 7, 7), "adaptive_max_pool2d", output_size=1),
    case("of planes", (32, 512, 7, 7), "adaptive_max_pool2d", channels_last=True, output_size=1),
    case("to 7x7", (32, 64, 28, 28), "adaptive_max_pool2d", output_size=7),
    case("over time", (64, 100, 500), "adaptive_avg_pool1d", output_size=1),
    case("over time", (64, 100, 500), "adaptive_max_pool1d", output_size=1),
    case("2", (64, 100, 500), "max_pool1d", kernel_size=2),
    case("3 stride 2", (64, 100, 500), "max_pool1d", kernel_size=3, stride=2, padding=1),
    case("2", (64, 100, 500), "avg_pool1d", kernel_size=2),
    case("C3D 2", (4, 64, 16, 56, 56), "max_pool3d", kernel_size=2),
    case("C3D 1x2x2", (4, 64, 16, 56, 56), "max_pool3d", kernel_size=(1, 2, 2)),
    case("3 stride 2", (4, 64, 8, 56, 56), "max_pool3d", kernel_size=3, stride=2, padding=1),
    case("3-D U-Net 2", (1, 16, 32, 32, 32), "max_pool3d", kernel_size=2),
    case("2", (4, 64, 16, 56, 56), "avg_pool3d", kernel_size=2),
    case("2", (4, 64, 16, 56, 56), "avg_pool3d", channels_last=True, kernel_size=2),
    case("of volumes", (4, 512, 4, 7, 7), "adaptive_avg_pool3d", output_size=1),
    case("of volumes", (4, 64, 8, 56, 56), "adaptive_avg_pool3d", output_size=1),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_pooling(case, compare):
    compare(case)
