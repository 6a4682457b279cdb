"""Dropout: a pure function of (input, p, seed), the same bits on every backend, thread count, dtype and layout."""

import math

import pytest
import torch
import torch.nn.functional as F
from dropout_helpers import SEED, same_bits, seed_tensor
from philox import dropout_reference, keep_mask, philox4x32_10, words
from testing import DTYPES

import pydl.functional as PF

# one element; below, at and beyond the 8, 16 and 32 words of a step; several steps and a remainder; several tasks
SIZES = [1, 3, 7, 8, 15, 16, 17, 31, 32, 33, 100, 4099, 70001]


# ---- the generator


def test_philox_known_answers():
    # the published test vectors of Philox4x32-10
    pi = ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0))
    ones = 0xFFFFFFFF
    assert philox4x32_10((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox4x32_10((ones,) * 4, (ones,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    assert philox4x32_10(*pi) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_vector_reference_equals_plain_integers():
    seed = 0xDEADBEEF12345678
    blocks = [
        philox4x32_10((b & 0xFFFFFFFF, b >> 32, 0, 0), (seed & 0xFFFFFFFF, seed >> 32)) for b in (0, 1, 2**33 + 5)
    ]
    assert words(8, seed).tolist() == [*blocks[0], *blocks[1]]
    assert words(4, seed, first=4 * (2**33 + 5)).tolist() == [*blocks[2]]


@pytest.mark.parametrize("seed", [0, SEED])
def test_each_word_is_exact(device, seed):
    # element i is kept at p = word / 2^32 and dropped one step above, which pins its word to the bit
    key = (seed & 0xFFFFFFFF, seed >> 32)
    expected = [w for block in range(9) for w in philox4x32_10((block, 0, 0, 0), key)]
    x = torch.ones(len(expected), device=device)
    for i, word in enumerate(expected):
        kept = PF.dropout(x, word / 2**32, seed=seed_tensor(seed, device))[i]
        dropped = PF.dropout(x, (word + 1) / 2**32, seed=seed_tensor(seed, device))[i]
        assert kept != 0
        assert dropped == 0


# ---- values


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", SIZES)
def test_forward_and_backward_bit_for_bit(device, dtype, numel):
    x = torch.randn(numel, dtype=dtype, device=device, requires_grad=True)
    grad = torch.randn(numel, dtype=dtype, device=device)
    y = PF.dropout(x, 0.3, seed=seed_tensor(device=device))
    y.backward(grad)
    same_bits(y, dropout_reference(x, 0.3, SEED))
    same_bits(x.grad, dropout_reference(grad, 0.3, SEED))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [1e-7, 1e-3, 0.5, 1 - 1e-3, 1 - 1e-7, 1.0])
def test_probabilities(device, dtype, p):
    # 1e-7 rounds to 429 / 2^32; 1 - 1e-7 keeps about one element in ten million, scaled by ten million
    x = torch.randn(1003, dtype=dtype, device=device)
    same_bits(PF.dropout(x, p, seed=seed_tensor(device=device)), dropout_reference(x, p, SEED))


@pytest.mark.large
def test_extreme_p_keeps_the_expected_number(device):
    n = 1 << 24
    dropped = (PF.dropout(torch.ones(n, device=device), 1e-6, seed=seed_tensor(device=device)) == 0).sum().item()
    kept = (PF.dropout(torch.ones(n, device=device), 1 - 1e-6, seed=seed_tensor(device=device)) != 0).sum().item()
    for count in (dropped, kept):  # Poisson, mean 16.8
        assert abs(count - n * 1e-6) < 5 * math.sqrt(n * 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_dropped_inf_and_nan_are_zero(device, dtype, p):
    x = torch.tensor([math.inf, -math.inf, math.nan], dtype=dtype, device=device).repeat(67)
    y = PF.dropout(x, p, seed=seed_tensor(device=device))
    kept = keep_mask(x.shape, p, SEED)
    assert (y.cpu()[~kept] == 0).all()
    same_bits(y[kept.to(device)], x[kept.to(device)])


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_eval_and_p_zero_return_the_input_itself(device, p):
    x = torch.randn(5, device=device)
    assert PF.dropout(x, p, training=False) is x
    assert PF.dropout(x, 0.0) is x
    assert PF.dropout2d(x, p, training=False, inplace=True) is x if p else True


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4, 5)])
def test_empty(device, shape):
    x = torch.empty(shape, device=device, requires_grad=True)
    y = PF.dropout(x, 0.5)
    y.sum().backward()
    assert y.shape == x.grad.shape == torch.Size(shape)


def test_scalar(device):
    x = torch.tensor(3.0, device=device)
    same_bits(PF.dropout(x, 0.5, seed=seed_tensor(device=device)), dropout_reference(x, 0.5, SEED))


@pytest.mark.slow
def test_more_than_two_to_the_31_elements(device):
    n = 2**31 + 5
    x = torch.ones(n, dtype=torch.bfloat16, device=device)
    y = PF.dropout(x, 0.25, seed=seed_tensor(device=device))
    del x
    first = 2**31 - 100 & ~3
    kept = torch.from_numpy(words(n - first, SEED, first) >= round(0.25 * 2**32))
    expected = torch.where(kept, torch.tensor(4 / 3).bfloat16(), torch.tensor(0.0).bfloat16())
    same_bits(y[first:], expected)
    rate = sum((part != 0).sum().item() for part in y.split(2**26)) / n
    assert abs(rate - 0.75) < 5 * math.sqrt(0.25 * 0.75 / n)


# ---- layouts: the logical index decides

LAYOUTS = {
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(1, 3).contiguous().transpose(1, 3),
    "reversed": lambda t: t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "columns sliced": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    "every second column": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "rows sliced": lambda t: torch.cat([t, t], 2)[:, :, : t.shape[2]],
    "channels_last, channels sliced": lambda t: torch.cat([t, t], 1).to(memory_format=torch.channels_last)[
        :, : t.shape[1]
    ],
}
# LeNet-like; one channel; odd everything with runs that start inside a counter; more channels and places than one tile
SHAPES_4D = [(2, 6, 14, 14), (3, 1, 5, 7), (2, 37, 3, 11), (2, 300, 17, 19)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES_4D)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(device, dtype, shape, layout):
    dense = torch.randn(shape, dtype=dtype, device=device)
    x = LAYOUTS[layout](dense)
    assert torch.equal(x, dense)
    for shared, name in ((0, "dropout"), (2, "dropout2d")):
        y = getattr(PF, name)(x, 0.4, seed=seed_tensor(device=device))
        same_bits(y, dropout_reference(dense, 0.4, SEED, shared))
        assert y.stride() == getattr(F, name)(x, 0.4).stride()


@pytest.mark.parametrize("stride0", [(0, 0), (0, 1), (1, 0)])
def test_expanded_gradient(device, stride0):
    x = torch.randn(33, 65, device=device, requires_grad=True)
    source = torch.randn([1 if s == 0 else n for s, n in zip(stride0, x.shape, strict=True)], device=device)
    y = PF.dropout(x, 0.4, seed=seed_tensor(device=device))
    y.backward(source.expand(33, 65))
    same_bits(x.grad, dropout_reference(source.expand(33, 65), 0.4, SEED))


def test_forward_and_backward_in_different_layouts_share_the_mask(device):
    x = torch.randn(2, 19, 6, 5, device=device).to(memory_format=torch.channels_last).requires_grad_()
    y = PF.dropout(x, 0.5, seed=seed_tensor(device=device))
    y.backward(torch.ones(2, 19, 6, 5, device=device))
    assert torch.equal(y == 0, x.grad == 0)


def test_more_dimensions_than_the_kernel_walks(device):
    x = torch.randn((2,) * 10, device=device).permute(*range(0, 10, 2), *range(1, 10, 2))
    x = x.repeat_interleave(2, -1)[..., ::2]
    y = PF.dropout(x, 0.5, seed=seed_tensor(device=device))
    same_bits(y, dropout_reference(x, 0.5, SEED))
    assert y.stride() == torch.empty_like(x).stride()


def test_storage_offset_breaks_no_alignment(device):
    x = torch.randn(5003, device=device)
    for offset in (1, 2, 3, 5):
        same_bits(
            PF.dropout(x[offset:], 0.5, seed=seed_tensor(device=device)), dropout_reference(x[offset:], 0.5, SEED)
        )


@pytest.mark.large
def test_large_outputs_past_the_caches(device):
    # 16 MB and more are written by non-temporal stores; odd sizes leave a remainder
    for shape in [((1 << 22) + 13,), (4, 64, 128, 130)]:
        x = torch.randn(shape, device=device)
        if len(shape) == 4:
            x = x.to(memory_format=torch.channels_last)
        same_bits(PF.dropout(x, 0.5, seed=seed_tensor(device=device)), dropout_reference(x, 0.5, SEED))


# ---- the mask is one and the same everywhere


@pytest.mark.cpu_kernels
def test_mask_does_not_depend_on_threads(device):
    x = torch.randn(3, 40, 50, 51, device=device)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            for t in (x, x.to(memory_format=torch.channels_last)):
                results.append(PF.dropout(t, 0.5, seed=seed_tensor(device=device)))
                results.append(PF.dropout2d(t, 0.5, seed=seed_tensor(device=device)))
    finally:
        torch.set_num_threads(before)
    for i, result in enumerate(results):
        assert torch.equal(result, results[i % 2])


def test_mask_does_not_depend_on_dtype(device):
    masks = [
        PF.dropout(torch.ones(9999, dtype=d, device=device), 0.3, seed=seed_tensor(device=device)) != 0 for d in DTYPES
    ]
    for mask in masks[1:]:
        assert torch.equal(mask, masks[0])


@pytest.mark.large
def test_keep_rate_and_independence(device):
    n, p = 1 << 20, 0.3
    sigma = math.sqrt(p * (1 - p) / n)
    masks = [PF.dropout(torch.ones(n, device=device), p, seed=seed_tensor(s, device)) != 0 for s in (1, 2)]
    centred = [m.double() - (1 - p) for m in masks]
    for c in centred:
        assert abs(c.mean()) < 5 * sigma
    products = [centred[0] * centred[1]]  # neighbouring seeds
    products += [centred[0][lag:] * centred[0][:-lag] for lag in (1, 2, 3, 4, 8, 16, 32, 64, 1024)]
    for product in products:  # the product of two centred, independent bits has variance (p (1 - p))^2
        assert abs(product.mean()) < 5 * p * (1 - p) / math.sqrt(product.numel())


def test_manual_seed_determines_the_mask_and_calls_differ(device):
    x = torch.ones(1000, device=device)
    torch.manual_seed(7)
    a, b = PF.dropout(x, 0.5), PF.dropout(x, 0.5)
    torch.manual_seed(7)
    assert torch.equal(a, PF.dropout(x, 0.5))
    assert not torch.equal(a, b)


# ---- inplace


def test_inplace_writes_the_input_and_its_gradient_is_right(device):
    leaf = torch.randn(50, device=device, requires_grad=True)
    x = leaf * 2
    before, version = x.detach().clone(), x._version
    y = PF.dropout(x, 0.4, inplace=True, seed=seed_tensor(device=device))
    assert y is x
    assert x._version > version
    same_bits(x, dropout_reference(before, 0.4, SEED))
    grad = torch.randn(50, device=device)
    y.backward(grad)
    same_bits(leaf.grad, dropout_reference(grad, 0.4, SEED) * 2)


def test_inplace_spoils_a_saved_tensor_aloud(device):
    leaf = torch.randn(50, device=device, requires_grad=True)
    x = leaf.exp()  # exp saves its output
    PF.dropout(x, 0.4, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


@pytest.mark.parametrize("function", [F.dropout, PF.dropout])
def test_inplace_on_a_leaf_is_refused(device, function):
    x = torch.randn(50, device=device, requires_grad=True)
    before = x.detach().clone()
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad is being used in an in-place operation"):
        function(x, 0.5, inplace=True)
    assert torch.equal(x, before)


def test_inplace_on_a_view_and_in_other_layouts(device):
    base = torch.randn(4, 6, 8, 10, device=device)
    view = base[:, 1:4].transpose(1, 2)
    expected = dropout_reference(view, 0.5, SEED)
    PF.dropout(view, 0.5, inplace=True, seed=seed_tensor(device=device))
    same_bits(base[:, 1:4].transpose(1, 2), expected)
