"""What compiled code throws arrives as the exception that torch raises, under every torch; dtypes are named."""

import pytest
import torch

import pydl

ops = torch.ops.pydl
x = torch.randn(4, 3)
TARGET = torch.tensor([0, 1, 2, 0])


def test_value_error():
    with pytest.raises(ValueError, match=r"^dropout: expected p to be a probability in \[0, 1\], got 1.5$"):
        ops.dropout(x, 1.5, torch.tensor([1]), 0)


def test_index_error():
    message = r"^cross_entropy: expected target to be in \[0, 3\) or ignore_index \(-100\), got 7$"
    with pytest.raises(IndexError, match=message):
        pydl.functional.cross_entropy(x, torch.tensor([0, 1, 7, 0]))


def test_runtime_error():
    with pytest.raises(RuntimeError, match=r"^dropout: expected shared_dims to be in \[0, 2\], got 5$") as error:
        ops.dropout(x, 0.5, torch.tensor([1]), 5)
    assert type(error.value) is RuntimeError


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64]
)
def test_a_dtype_is_named(dtype):
    name = str(dtype).removeprefix("torch.")
    expected = f"^dropout: expected dtype to be float32, float64, bfloat16 or float16, got {name}$"
    with pytest.raises(RuntimeError, match=expected):
        ops.dropout(torch.ones(4, dtype=dtype), 0.5, torch.tensor([1]), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex128])
def test_a_floating_dtype_is_named(dtype):
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(RuntimeError, match=f"to be an int64 tensor of one element, got {name} and shape"):
        ops.dropout(x, 0.5, torch.ones(1, dtype=dtype), 0)


def test_what_users_read():
    with pytest.raises(RuntimeError, match=r"got float32$"):
        pydl.functional.cross_entropy(x, TARGET.float())
    with pytest.raises(RuntimeError, match=r"conv2d: expected .* to be of the dtype of .*, got float64 and float32"):
        pydl.functional.conv2d(torch.randn(1, 1, 4, 4), torch.randn(1, 1, 3, 3, dtype=torch.float64))
