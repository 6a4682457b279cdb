"""What the tests of dropout share."""

import torch

SEED = 0x0123456789ABCDEF


def seed_tensor(value=SEED, device="cpu"):
    return torch.tensor([value], dtype=torch.int64, device=device)


def same_bits(actual, expected):
    """Equal, signs of zero apart (a kept -0.0 stays -0.0, a dropped one is +0.0) and nan equal to nan."""
    torch.testing.assert_close(actual.detach().cpu(), expected.detach().cpu(), rtol=0, atol=0, equal_nan=True)
