"""Philox4x32-10 in plain integers, and the dropout mask that pydl promises, as the oracle of the dropout tests.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import math

import numpy as np
import torch

_MASK = 0xFFFFFFFF


def philox4x32_10(counter, key):
    """The four words of one counter: four and two integers of 32 bits in, four out (integers or uint64 arrays)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def words(numel, seed, first=0):
    """Words of elements [first, first + numel); first is a multiple of 4."""
    blocks = np.arange(first // 4, (first + numel + 3) // 4, dtype=np.uint64)
    zero = np.zeros_like(blocks)
    mask, shift = np.uint64(_MASK), np.uint64(32)
    seed %= 2**64
    c0, c1, c2, c3 = blocks & mask, blocks >> shift, zero, zero
    k0, k1 = seed & _MASK, seed >> 32
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (p1 >> shift) ^ c1 ^ np.uint64(k0), p1 & mask
        c2, c3 = (p0 >> shift) ^ c3 ^ np.uint64(k1), p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return np.stack([c0, c1, c2, c3], axis=1).reshape(-1)[:numel]


def keep_mask(shape, p, seed, shared_dims=0):
    """Which elements of a tensor of this shape are kept: a bool tensor."""
    deciding = tuple(shape[: len(shape) - shared_dims])
    threshold = round(p * 2**32)  # Python rounds half to even, as the contract does
    kept = torch.from_numpy(words(math.prod(deciding), seed) >= np.uint64(threshold)).reshape(deciding)
    return kept.reshape(deciding + (1,) * shared_dims).expand(shape)


def dropout_reference(input, p, seed, shared_dims=0):
    """The promised output, bit for bit: multiplied in float (double for double) and rounded once."""
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    scale = torch.tensor(0.0 if p == 1 else 1 / (1 - p), dtype=wide)
    kept = keep_mask(input.shape, p, seed, shared_dims)
    return torch.where(
        kept, (input.detach().cpu().to(wide) * scale).to(input.dtype), torch.zeros((), dtype=input.dtype)
    )
