"""scaled_dot_product_attention against torch's math in float64: masks, dtypes, lengths, layouts, instruction sets."""

import itertools

import pytest
import torch
from philox import keep_mask
from testing import assert_close

from pydl.functional import dropout, scaled_dot_product_attention

pytestmark = pytest.mark.cpu_kernels


def formula(query, key, value, mask=None, dropped=None, is_causal=False, scale=None, lengths=None):
    """The definition, with the weights written out. ``dropped``: factors of the weights."""
    shared = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(shared, 1) for t in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    keys = scores.shape[-1]
    seen = torch.ones(scores.shape, dtype=torch.bool)
    if is_causal:
        seen = seen.tril()
    if lengths is not None:
        seen = seen & (torch.arange(keys) < lengths.view(len(lengths), 1, -1, 1))
    if mask is not None and mask.dtype == torch.bool:
        seen = seen & mask
    elif mask is not None:
        scores = scores + mask
    scores = scores.masked_fill(~seen, -torch.inf)
    none = (scores == -torch.inf).all(-1, keepdim=True)
    weights = scores.masked_fill(none, 0).softmax(-1).masked_fill(none, 0)
    return (weights if dropped is None else weights * dropped) @ value


def make(n, heads, rows, keys, width, value_width=None, key_heads=None):
    key_heads = key_heads or heads
    sizes = (heads, rows, width), (key_heads, keys, width), (key_heads, keys, value_width or width)
    return [torch.randn(n, *size) for size in sizes]


def compare(tensors, dtype=torch.float32, mask=None, within=8, learns=False, **options):
    """Output and gradients, that of the mask if it ``learns``, beside the formula on the same numbers in float64."""
    leaves = [t.to(dtype).requires_grad_() for t in tensors]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    wide = mask.double() if mask is not None and mask.is_floating_point() else mask
    if learns:
        mask, wide = mask.detach().requires_grad_(), wide.detach().requires_grad_()
    actual = scaled_dot_product_attention(*leaves, mask, **options, enable_gqa=len(tensors[0][0]) != len(tensors[1][0]))
    expected = formula(*exact, wide, **options)
    grad = torch.randn(expected.shape).to(dtype)
    assert actual.dtype == dtype
    assert_close(actual, expected, dtype, within)
    if learns:
        leaves.append(mask)
        exact.append(wide)
    for one, other in zip(
        torch.autograd.grad(actual, leaves, grad), torch.autograd.grad(expected, exact, grad.double()), strict=True
    ):
        assert one.shape == other.shape
        # that of a mask in float32, or of another's tensors in two bytes
        assert_close(one, other, max(dtype, one.dtype, key=lambda t: torch.finfo(t).eps), within)


def everything(n, heads, rows, keys):
    """Masks of each kind, each way to broadcast among them, and lengths."""
    visible = torch.rand(n, heads, rows, keys) > 0.4
    visible[..., 0, :] = False  # a row that sees nothing
    bias = torch.randn(n, heads, rows, keys)
    yield {}
    yield {"is_causal": True}
    yield {"scale": 0.3}
    for lengths in (torch.arange(n) * 5 % (keys + 1), torch.arange(n * rows).view(n, rows) % (keys + 1)):
        yield {"lengths": lengths}
        yield {"lengths": lengths, "is_causal": True}
        yield {"lengths": lengths, "mask": bias[:1]}
    for mask in (visible, bias, bias.masked_fill(~visible, -torch.inf)):
        yield {"mask": mask}
    for mask in (visible[:, :1, :1], visible[0, 0], bias[:1, :, :, :1], bias[0, 0, :1], bias.mT.contiguous().mT):
        yield {"mask": mask}


# tiles of keys are 64 wide, panels 8, 16 or 32, blocks 32 or 64 rows; the last is a block of its own
SHAPES = [(3, 2, 9, 9, 64), (2, 3, 5, 17, 8), (1, 2, 70, 130, 32), (2, 1, 65, 33, 20)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_passes(shape, device):
    for options in everything(*shape[:4]):
        compare(make(*shape), **options)


@pytest.mark.best_isa
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype, device):
    for shape in SHAPES[1:3]:
        for options in everything(*shape[:4]):
            mask = options.pop("mask", None)
            masks = [mask]
            if mask is not None and mask.is_floating_point():
                masks += [mask.to(dtype)]
            for mask in masks:
                compare(make(*shape), dtype, mask=mask, within=2 if dtype.itemsize == 2 else 8, **options)


def broadcasts(*sizes):
    """Masks of every shape that broadcasts to these sizes, with a part that is not seen."""
    for whole in itertools.product((True, False), repeat=len(sizes)):
        mask = torch.randn([size if whole else 1 for size, whole in zip(sizes, whole, strict=True)])
        yield mask.masked_fill(mask < -1.5, -torch.inf) if mask.numel() > 4 else mask


def test_gradient_of_a_mask(device):
    lengths = torch.tensor([17, 0])
    for mask in broadcasts(2, 3, 5, 17):
        compare(make(2, 3, 5, 17, 8), mask=mask, learns=True, within=20)
        compare(make(2, 3, 5, 17, 8), mask=mask, learns=True, within=20, lengths=lengths)
    for sizes in ((1, 2, 70, 300), (70, 1), (1, 300), (1, 1)):  # several blocks, and several tasks along the keys
        compare(make(1, 2, 70, 300, 20), mask=torch.randn(sizes), learns=True, within=40)


@pytest.mark.best_isa
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_gradient_of_a_mask_in_other_dtypes(dtype, device):
    for mask in ([2, 3, 5, 17], [3, 1, 17], [5, 1]):
        for of in {dtype, torch.float32}:
            compare(make(2, 3, 5, 17, 8), dtype, torch.randn(mask).to(of), 4 if dtype.itemsize == 2 else 8, learns=True)


@pytest.mark.best_isa
def test_gradient_of_a_mask_with_shared_keys_and_dropout(device):
    for mask in broadcasts(2, 4, 6, 9):
        leaves = [*make(2, 4, 6, 9, 8, key_heads=2), mask]
        leaves = [t.requires_grad_() for t in leaves]
        exact = [t.detach().double().requires_grad_() for t in leaves]
        torch.manual_seed(5)
        actual = scaled_dot_product_attention(*leaves, dropout_p=0.3, enable_gqa=True)
        torch.manual_seed(5)
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64)
        expected = formula(*exact, dropped=keep_mask((2, 4, 6, 9), 0.3, seed.item()) / 0.7)
        grad = torch.randn(actual.shape)
        for one, other in zip(
            torch.autograd.grad(actual, leaves, grad), torch.autograd.grad(expected, exact, grad.double()), strict=True
        ):
            assert_close(one, other, scale=20)


def test_remainders(device):
    for rows, keys, width in itertools.product((1, 2, 7, 15), (1, 3, 8, 18), (1, 4, 7, 16, 33)):
        compare(make(1, 2, rows, keys, width, 5), is_causal=rows % 2 == 0)


@pytest.mark.best_isa
def test_wide_heads_and_many_keys(device):
    for width, value_width in ((256, 256), (100, 40), (3, 129)):
        compare(make(1, 2, 20, 300, width, value_width), within=20)
    compare(make(1, 1, 3, 1100, 16), within=20)


@pytest.mark.best_isa
def test_heads_that_share_keys(device):
    for key_heads in (1, 2, 6):
        for options in ({}, {"is_causal": True}, {"lengths": torch.tensor([30, 7])}):
            compare(make(2, 6, 40, 30, 16, key_heads=key_heads), **options)


LAYOUTS = {
    "heads cut from a projection": lambda n, h, r, d: torch.randn(n, r, h * d).view(n, r, h, d).transpose(1, 2),
    "of three": lambda n, h, r, d: torch.randn(n, r, 3 * h * d)[..., : h * d].view(n, r, h, d).transpose(1, 2),
    "transposed": lambda n, h, r, d: torch.randn(n, h, d, r).mT,
    "every second number": lambda n, h, r, d: torch.randn(n, h, r, 2 * d)[..., ::2],
    "expanded": lambda n, h, r, d: torch.randn(1, h, 1, d).expand(n, h, r, d),
    "sequences first": lambda n, h, r, d: torch.randn(r, n * h, d).transpose(0, 1).unflatten(0, (n, h)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout, device):
    for width in (16, 13):
        tensors = [LAYOUTS[layout](2, 3, rows, width) for rows in (21, 40, 40)]
        compare(tensors)
        if True:
            leaves = [t.requires_grad_() for t in make(2, 3, 21, 40, width)]
            grad = LAYOUTS[layout](2, 3, 21, width)
            actual = torch.autograd.grad(scaled_dot_product_attention(*leaves), leaves, grad)
            for a, e in zip(actual, torch.autograd.grad(formula(*leaves), leaves, grad), strict=True):
                assert_close(a, e, scale=20)


def test_rows_that_see_no_key(device):
    tensors = [t.requires_grad_() for t in make(3, 2, 4, 6, 8)]
    output = scaled_dot_product_attention(*tensors, lengths=torch.tensor([0, 6, 0]))
    assert not output[0].any()
    assert output[1].all()
    grads = torch.autograd.grad(output.square().sum(), tensors)
    assert all(not g[0].any() and g[1].any() for g in grads)


# ---- what is not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_beyond_a_length_holds_is_not_read(value, device):
    lengths, tensors = torch.tensor([3, 20, 33]), make(3, 2, 40, 33, 16)
    spoiled = [t.clone() for t in tensors]
    for t in spoiled[1:]:
        t.masked_fill_((torch.arange(33) >= lengths[:, None])[:, None, :, None], value)
    results = []
    for held in (tensors, spoiled):
        leaves = [t.requires_grad_() for t in held]
        output = scaled_dot_product_attention(*leaves, lengths=lengths)
        results.append((output, *torch.autograd.grad(output.sin().sum(), leaves)))
    assert all(map(torch.equal, *results))


def test_what_is_not_finite_spoils_what_it_should(device):
    """A score that is masked may be nan or inf; one that is seen spoils its row, and the others stay."""
    query, key, value = make(1, 1, 6, 12, 8)
    visible = torch.ones(6, 12, dtype=torch.bool)
    visible[2:, 5] = False
    for bad in (float("nan"), float("inf")):
        key[0, 0, 5] = bad
        output = scaled_dot_product_attention(query, key, value, visible)
        assert output[0, 0, :2].isnan().all()
        assert_close(output[0, 0, 2:], formula(query, key.nan_to_num(0, 0, 0), value, visible)[0, 0, 2:], scale=8)
    query[0, 0, 3, 2] = float("nan")
    key[0, 0, 5] = 0
    output = scaled_dot_product_attention(query, key, value)
    assert output[0, 0, 3].isnan().all()
    assert output[0, 0, :3].isfinite().all()


def test_huge_scores(device):
    query, key, value = make(1, 2, 9, 40, 8)
    for factor in (1e3, 1e6):
        compare([query * factor, key, value], within=1e3 * factor / 1e3)


# ---- dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(2, 3, 9, 9), (1, 2, 70, 150), (2, 1, 33, 31)], ids=str)
def test_dropout_is_that_of_dropout(shape, p, device):
    """Bit for bit: with a value of ones at one key, the output says whether its weight was kept."""
    n, heads, rows, keys = shape
    torch.manual_seed(3)
    seed = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64)
    expected = dropout(torch.ones(shape), p, seed=seed) != 0
    assert torch.equal(expected, keep_mask(shape, p, seed.item()))
    zero = torch.zeros(n, heads, max(rows, keys), 4)
    value = torch.eye(keys).expand(n, heads, keys, keys)
    torch.manual_seed(3)
    output = scaled_dot_product_attention(zero[:, :, :rows], zero[:, :, :keys], value, dropout_p=p)
    assert torch.equal(output != 0, expected)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"lengths": torch.tensor([20, 3])}], ids=str)
def test_dropout_passes(options, device):
    for rows, keys, p in ((9, 20, 0.3), (70, 140, 0.1)):
        leaves = [t.requires_grad_() for t in make(2, 2, rows, keys, 16)]
        exact = [t.detach().double().requires_grad_() for t in leaves]
        torch.manual_seed(5)
        actual = scaled_dot_product_attention(*leaves, dropout_p=p, **options)
        torch.manual_seed(5)
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64)
        expected = formula(*exact, dropped=keep_mask((2, 2, rows, keys), p, seed.item()) / (1 - p), **options)
        grad = torch.randn(actual.shape)
        assert_close(actual, expected, scale=8)
        for one, other in zip(
            torch.autograd.grad(actual, leaves, grad), torch.autograd.grad(expected, exact, grad.double()), strict=True
        ):
            assert_close(one, other, scale=8)


# ---- threads, empty tensors


def test_thread_count_changes_no_bit(device):
    before = torch.get_num_threads()
    for n, heads, rows, keys in ((1, 1, 200, 300), (1, 2, 130, 65), (3, 2, 40, 90)):
        tensors = make(n, heads, rows, keys, 32)
        mask = torch.randn(rows, 1).requires_grad_()
        for options in ({}, {"is_causal": True, "dropout_p": 0.2}, {"attn_mask": mask}):
            results = []
            try:
                for threads in (1, 2, 3, 8):
                    torch.set_num_threads(threads)
                    torch.manual_seed(0)
                    leaves = [t.detach().requires_grad_() for t in tensors]
                    output = scaled_dot_product_attention(*leaves, **options)
                    of = [*leaves, mask] if "attn_mask" in options else leaves
                    grads = torch.autograd.grad(output, of, torch.ones_like(output))
                    (alone,) = torch.autograd.grad(
                        scaled_dot_product_attention(leaves[0], *tensors[1:]), leaves[0], torch.ones_like(output)
                    )
                    results.append((output, *grads, alone))
            finally:
                torch.set_num_threads(before)
            for result in results[1:]:
                assert all(map(torch.equal, result, results[0]))


@pytest.mark.best_isa
@pytest.mark.parametrize("empty", range(4))
def test_empty(empty, device):
    sizes = [2, 3, 4, 5]
    sizes[empty] = 0
    leaves = [t.requires_grad_() for t in make(*sizes, 8)]
    output = scaled_dot_product_attention(*leaves)
    assert output.shape == (*sizes[:3], 8)
    assert not output.any()  # where there are no keys
    assert not any(g.any() for g in torch.autograd.grad(output.sum(), leaves))


def test_error_is_at_most_twice_torchs():
    """Of causal attention over 256 tokens, whose gradients of keys are sums of many terms of unlike size."""
    tensors = make(1, 4, 256, 256, 64)
    grad = torch.randn(1, 4, 256, 64)

    def passes(function, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in tensors]
        output = function(*leaves, is_causal=True)
        return output, *torch.autograd.grad(output, leaves, grad.to(dtype))

    torchs = torch.nn.functional.scaled_dot_product_attention
    for ours, theirs, exact in zip(
        passes(scaled_dot_product_attention, torch.float32),
        passes(torchs, torch.float32),
        passes(torchs, torch.float64),
        strict=True,
    ):
        errors = [(t - exact).abs().max().item() for t in (ours, theirs)]
        assert errors[0] <= 2 * errors[1] + 1e-7
