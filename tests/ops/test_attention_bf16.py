"""Attention in bfloat16 by the dot product of pairs, and as a CPU without that instruction computes it."""

import itertools

import pytest
import torch
from philox import keep_mask
from test_attention import SHAPES, compare, everything, formula, make
from testing import AVX512_ALONE, BF16_DOT, assert_close, bf16_dot

from pydl import backend
from pydl.functional import scaled_dot_product_attention

pytestmark = AVX512_ALONE


@pytest.fixture(params=BF16_DOT, ids=["pairs", "widened"], autouse=True)
def pairs(request):
    with backend.use("cpu"), backend.isa("avx512"), bf16_dot(request.param):
        yield request.param


def passes(function, tensors, grad, **options):
    leaves = [t.detach().requires_grad_() for t in tensors]
    output = function(*leaves, **options)
    return output, *torch.autograd.grad(output, leaves, grad)


def test_what_is_rounded_shows_which_ran(pairs):
    """Weights of 1 and about 1 - 2^-12: rounded for the product with value they are equal, and the output is 0."""
    query = torch.full((1, 1, 5, 1), 1.0).bfloat16()
    key = torch.tensor([0.0, 2.0**-12]).view(1, 1, 2, 1).bfloat16()
    value = torch.tensor([-1.0, 1.0]).view(1, 1, 2, 1).bfloat16()
    output = scaled_dot_product_attention(query, key, value)
    assert (output == 0).all() == pairs


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_passes(shape):
    for options in everything(*shape[:4]):
        compare(make(*shape), torch.bfloat16, within=2, **options)


def test_remainders():
    """Rows and keys around pairs, groups of four and blocks of 64; widths around pairs and vectors."""
    for rows, keys in itertools.product((5, 6, 7, 8, 63, 64, 65, 66, 67), (1, 2, 3, 15, 16, 17, 64, 65)):
        compare(make(1, 1, rows, keys, 8), torch.bfloat16, within=2)
    for width, value_width in itertools.product((1, 2, 3, 31, 32, 33, 66), (1, 2, 17, 34)):
        compare(make(1, 2, 6, 9, width, value_width), torch.bfloat16, within=2)
        compare(make(1, 2, 37, 35, width, value_width), torch.bfloat16, within=2, is_causal=True)
    compare(make(1, 1, 70, 1100, 24), torch.bfloat16, within=2)  # more than one part of the depth


def test_layouts():
    """Rows where they lie, an odd number of elements apart, at an odd place, of every second number, in columns."""

    def laid_out(size, layout):
        n, heads, rows, width = size
        if layout == "heads side by side":
            return torch.randn(n, rows, heads, width).bfloat16().transpose(1, 2)
        if layout == "odd pitch":
            return torch.randn(n, heads, rows, width + 3 + width % 2).bfloat16()[..., 3 : 3 + width]
        if layout == "every second":
            return torch.randn(n, heads, rows, 2 * width).bfloat16()[..., ::2]
        return torch.randn(n, heads, width, rows).bfloat16().mT

    layouts = ("heads side by side", "odd pitch", "every second", "in columns")
    for q, k, v in itertools.product(layouts, repeat=3):
        for rows, width in ((9, 64), (70, 34)):
            compare([laid_out((2, 3, rows, width), layout) for layout in (q, k, v)], torch.bfloat16, within=2)


def test_shared_keys_and_dropout():
    for rows, keys, p, options in ((9, 20, 0.3, {}), (70, 131, 0.1, {"is_causal": True})):
        tensors = [t.bfloat16() for t in make(2, 4, rows, keys, 16, key_heads=2)]
        grad = torch.randn(tensors[0].shape).bfloat16()
        torch.manual_seed(5)
        actual = passes(scaled_dot_product_attention, tensors, grad, dropout_p=p, enable_gqa=True, **options)
        torch.manual_seed(5)
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64)
        dropped = keep_mask((2, 4, rows, keys), p, seed.item()) / (1 - p)
        exact = passes(formula, [t.double() for t in tensors], grad.double(), dropped=dropped, **options)
        for one, other in zip(actual, exact, strict=True):
            assert_close(one, other, torch.bfloat16, 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_beyond_a_length_holds_is_not_read(value):
    lengths, tensors = torch.tensor([3, 20, 33]), [t.bfloat16() for t in make(3, 2, 40, 33, 16)]
    spoiled = [t.clone() for t in tensors]
    for t in spoiled[1:]:
        t.masked_fill_((torch.arange(33) >= lengths[:, None])[:, None, :, None], value)
    grad = torch.randn(tensors[0].shape).bfloat16()
    results = [passes(scaled_dot_product_attention, held, grad, lengths=lengths) for held in (tensors, spoiled)]
    assert all(map(torch.equal, *results))


def test_thread_count_changes_no_bit():
    before = torch.get_num_threads()
    for n, heads, rows, keys in ((1, 1, 200, 301), (1, 2, 131, 65), (3, 2, 40, 90)):
        tensors = [t.bfloat16() for t in make(n, heads, rows, keys, 32)]
        grad = torch.randn(tensors[0].shape).bfloat16()
        for options in ({}, {"is_causal": True, "dropout_p": 0.2}):
            results = []
            try:
                for threads in (1, 2, 3, 8):
                    torch.set_num_threads(threads)
                    torch.manual_seed(0)
                    results.append(passes(scaled_dot_product_attention, tensors, grad, **options))
            finally:
                torch.set_num_threads(before)
            for result in results[1:]:
                assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("causal", [False, True])
def test_error_is_at_most_twice_torchs(causal):
    torchs = torch.nn.functional.scaled_dot_product_attention
    for shape in ((2, 2, 9, 64), (1, 2, 70, 33), (1, 4, 256, 64)):
        tensors = [torch.randn(shape).bfloat16() for _ in range(3)]
        grad = torch.randn(shape).bfloat16()
        exact = passes(torchs, [t.double() for t in tensors], grad.double(), is_causal=causal)
        ours, theirs = (passes(f, tensors, grad, is_causal=causal) for f in (scaled_dot_product_attention, torchs))
        for one, other, true in zip(ours, theirs, exact, strict=True):
            errors = [((t - true).norm().item(), (t - true).abs().max().item()) for t in (one, other)]
            assert all(a <= 2 * b for a, b in zip(*errors, strict=True))
