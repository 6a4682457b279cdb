"""Softmax cross entropy over pixels (classes apart): blocks of rows, segments of classes, targets in registers."""

import pytest
import torch
from cross_entropy_oracle import REDUCTIONS, compare, make
from testing import DTYPES

import pydl.functional as pf

# Blocks have 512 rows, fewer beyond 128 classes (64 in float64); beyond 1024 (512) there are segments of 128 (64).
SHAPES = [
    (2, 21, 24, 23),  # blocks of 512 and of 40 rows; five chunks of four classes and one class
    (1, 150, 19, 29),  # blocks of 432 rows
    (1, 1100, 5, 7),  # several segments
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_and_segments(device, dtype, shape):
    for options in ({}, {"label_smoothing": 0.1}, {"weight": torch.rand(shape[1], device=device).to(dtype)}):
        input, target = make(shape, "classes", dtype, device, ignored=True)
        compare(input, target, **options)
    input, target = make(shape, "probabilities", dtype, device)
    compare(input, target)


@pytest.mark.parametrize("ignore_index", [-100, 3, 255, 2**32 + 3, -(2**32) + 3], ids=str)
def test_every_ignore_index(device, ignore_index):
    """Also one whose low 32 bits are those of a class."""
    input, target = make((2, 6, 9, 7), "classes", device=device)
    target[torch.rand(target.shape, device=device) < 0.3] = ignore_index
    for reduction in REDUCTIONS:
        compare(input, target, ignore_index=ignore_index, reduction=reduction)


def test_targets_that_lie_apart(device):
    input, target = make((2, 6, 9, 7), "classes", device=device, ignored=True)
    compare(input, target.repeat_interleave(2, dim=2)[:, :, ::2])
    compare(input, target.transpose(1, 2).contiguous().transpose(1, 2))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward_alone_has_the_bits_of_the_gradient_made_in_forward(device, dtype, shape):
    """A loss scaled by 2 asks the backward for the gradient; powers of two leave the digits."""
    input, target = make(shape, "classes", dtype, device, ignored=True)
    input.requires_grad_()
    (grad,) = torch.autograd.grad(pf.cross_entropy(input, target, reduction="sum"), input)
    (twice,) = torch.autograd.grad(pf.cross_entropy(input, target, reduction="sum") * 2, input)
    normal = grad.abs() > torch.finfo(dtype).tiny  # a subnormal number has fewer digits than its double
    assert torch.equal((grad * 2)[normal], twice[normal])


@pytest.mark.cpu_kernels  # a GPU cannot raise without being waited for
def test_the_first_bad_target_is_named(device):
    """Whatever stands before and after it; the mean's denominator counts none of it."""
    input, target = make((2, 5, 40, 50), "classes", device=device, ignored=True)
    target[1, 3, 4], target[1, 20, 7] = 5, -3
    with pytest.raises(IndexError, match="5"):
        pf.cross_entropy(input, target)
