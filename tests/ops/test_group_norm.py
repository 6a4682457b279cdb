"""group_norm against torch in float64: every pass, shape, layout, dtype and instruction set."""

import pytest
import torch
import torch.nn.functional as F
from testing import ALL_DTYPES, assert_close

import pydl
from pydl.functional import group_norm

pytestmark = pytest.mark.cpu_kernels

# (shape, groups): two channels in step and one; parts of vectors; groups of one channel, one group; one place; runs
# longer than a chunk of sums; several tasks of a sample in channels_last
SHAPES = [
    ((2, 4), 2), ((5, 70), 7), ((3, 6, 1), 6), ((2, 6, 5), 3), ((2, 4, 8, 8), 2), ((5, 12, 3, 3), 1), ((2, 3, 17), 3),
    ((1, 8, 2, 3, 4), 4), ((3, 160, 21, 20), 32), ((1, 2, 9000), 1),
]  # fmt: skip
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def tensors(shape, dtype, parameter=None, channels_last=False):
    x, grad = (torch.randn(shape).to(dtype) for _ in range(2))
    if channels_last:
        x, grad = (t.to(memory_format=FORMATS[len(shape)]) for t in (x, grad))
    weight, bias = (torch.randn(shape[1]).to(parameter or dtype) for _ in range(2))
    return x, weight, bias, grad


def passes(function, groups, x, weight, bias, grad, eps=1e-5):
    """Output and gradients."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias)]
    y = function(leaves[0], groups, *leaves[1:], eps)
    return y, *torch.autograd.grad(y, [t for t in leaves if t is not None], grad.to(y.dtype))


def compare(groups, x, weight, bias, grad, eps=1e-5):
    exact = [None if t is None else t.double() for t in (x, weight, bias, grad)]
    found = passes(group_norm, groups, x, weight, bias, grad, eps), passes(F.group_norm, groups, *exact, eps)
    for actual, expected, like in zip(*found, [x, *(t for t in (x, weight, bias) if t is not None)], strict=True):
        assert (actual.dtype, actual.shape) == (like.dtype, expected.shape)
        size = max(1.0, expected.abs().max().item())  # sums over samples and places cancel
        assert_close(actual.double() / size, expected / size, like.dtype, scale=3)
    return found[0]


@pytest.mark.parametrize("channels_last", [False, True], ids=["rows", "channels_last"])
@pytest.mark.parametrize("shape, groups", SHAPES, ids=str)
def test_against_float64(shape, groups, channels_last, device):
    if channels_last and len(shape) not in FORMATS:
        pytest.skip("torch has no channels_last of so many dimensions")
    for dtype in ALL_DTYPES:
        compare(groups, *tensors(shape, dtype, channels_last=channels_last), 1e-3)


@pytest.mark.parametrize("channels_last", [False, True], ids=["rows", "channels_last"])
def test_parameters(channels_last, device):
    x, weight, bias, grad = tensors((3, 4, 5, 7), torch.float32, channels_last=channels_last)
    for w, b in ((None, None), (weight, None)):
        compare(2, x, w, b, grad)
    compare(2, x, torch.tensor([0.0, 1.0, 0.0, 0.0]), bias, grad)
    for dtype in (torch.bfloat16, torch.float16):
        compare(2, *tensors((3, 4, 5, 7), dtype, torch.float32, channels_last))


@pytest.mark.parametrize("channels_last", [False, True], ids=["rows", "channels_last"])
def test_large_means(channels_last, device):
    """A mean of 1e4 costs no digits, nor does a first value far from all others."""
    x, weight, bias, grad = tensors((2, 4, 40, 40), torch.float32, channels_last=channels_last)
    compare(2, x + 1e4, weight, bias, grad)
    x = x + 1e4
    x[:, :, 0] = 0
    x[:, :, 1:] /= 100
    compare(2, x, weight, bias, grad)


@pytest.mark.parametrize("channels_last", [False, True], ids=["rows", "channels_last"])
def test_values_that_are_not_finite_stay_in_their_group(channels_last, device):
    for value in (float("nan"), float("inf")):
        x, weight, bias, grad = tensors((2, 4, 5, 6), torch.float32, channels_last=channels_last)
        x[1, 2, 3, 4] = value
        y, to_x, *_ = passes(group_norm, 2, x, weight, bias, grad)
        for t in (y, to_x):
            assert t[1, 2:].isnan().all()
            assert t[0].isfinite().all()
            assert t[1, :2].isfinite().all()


@pytest.mark.parametrize("channels_last", [False, True], ids=["rows", "channels_last"])
def test_thread_count_changes_no_bit(channels_last, device):
    before = torch.get_num_threads()
    given = tensors((3, 160, 21, 20), torch.float32, channels_last=channels_last)
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(passes(group_norm, 8, *given))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.large
@pytest.mark.best_isa
@pytest.mark.parametrize("channels_last", [False, True], ids=["rows", "channels_last"])
def test_results_past_the_caches(channels_last, device):
    """More than the size from which on results are streamed; whole lines are, others are not."""
    for size in ((5, 64, 64, 256), (5, 64, 64, 255)):
        x, weight, bias, grad = tensors(size, torch.float32, channels_last=channels_last)
        y, *grads = passes(group_norm, 4, x, weight, bias, grad)
        expected, *theirs = passes(F.group_norm, 4, x, weight, bias, grad)
        for a, e in zip((y, *grads), (expected, *theirs), strict=True):
            size = e.abs().max().item()
            assert_close(a.double() / size, e.double() / size, torch.float32, scale=30)  # torch's sums are float32


def test_layouts():
    """Inputs and gradients of any strides give torch's strides."""
    image = torch.randn(2, 4, 6, 5)
    weight, bias = torch.randn(4), torch.randn(4)
    layouts = {
        "sliced": torch.randn(2, 4, 6, 9)[..., 2:7],
        "transposed": torch.randn(4, 2, 6, 5).transpose(0, 1),
        "expanded": torch.randn(2, 4, 1, 1).expand(2, 4, 6, 5),
        "channels_last": image.to(memory_format=torch.channels_last),
        "sliced channels_last": torch.randn(2, 8, 6, 5).to(memory_format=torch.channels_last)[:, 2:6],
    }
    for layout in layouts.values():
        for x, grad in ((layout, image), (image, layout), (layout, layout)):
            found = (passes(f, 2, x, weight, bias, grad) for f in (group_norm, F.group_norm))
            for a, e in zip(*found, strict=True):
                assert a.stride() == e.stride()
                torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-4)


REFUSED = {
    "groups that do not divide": lambda f: f.group_norm(torch.randn(2, 4, 3), 3),
    "no group": lambda f: f.group_norm(torch.randn(2, 4, 3), 0),
    "one value": lambda f: f.group_norm(torch.randn(1, 4), 4),
    "a weight of another size": lambda f: f.group_norm(torch.randn(2, 4, 3), 2, torch.randn(3)),
    "one dimension": lambda f: f.group_norm(torch.randn(4), 2),
    "integers": lambda f: f.group_norm(torch.ones(2, 4, 3).int(), 2),
    "a list": lambda f: f.group_norm([1.0], 1),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_as_by_torch(case):
    with pytest.raises((RuntimeError, ValueError, TypeError, AttributeError, ZeroDivisionError)) as theirs:
        REFUSED[case](F)
    with pytest.raises(theirs.type):
        REFUSED[case](pydl.functional)


def test_no_samples_and_a_bias_alone_are_torchs():
    assert group_norm(torch.randn(0, 4, 3), 2).shape == (0, 4, 3)
    x, bias = torch.randn(2, 4, 3), torch.randn(4)
    assert torch.equal(group_norm(x, 2, None, bias), F.group_norm(x, 2, None, bias))


def test_ops_refuse_what_does_not_fit():
    ops, x, stats = torch.ops.pydl, torch.randn(2, 4, 3), torch.zeros(2, 2, 2).double()
    with pytest.raises(RuntimeError, match="expected num_groups to divide the number of channels, 4, got 3"):
        ops.group_norm_forward(x, None, None, 3, 1e-5, False)
    with pytest.raises(RuntimeError, match=r"group_norm: expected weight to be of shape \(4\), got \(3\)"):
        ops.group_norm_forward(x, torch.randn(3), None, 2, 1e-5, False)
    with pytest.raises(RuntimeError, match="group_norm: expected bias to be of the dtype of weight"):
        ops.group_norm_forward(x.bfloat16(), torch.randn(4), torch.randn(4).bfloat16(), 2, 1e-5, False)
    with pytest.raises(RuntimeError, match=r"expected grad_output to be of shape \(2, 4, 3\), got \(2, 4\)"):
        ops.group_norm_backward(x[..., 0], x, stats, None, 2, 1e-5, False, True, True, True)
    with pytest.raises(RuntimeError, match="group_norm: expected stats to be those of the forward"):
        ops.group_norm_backward(x, x, stats[0], None, 2, 1e-5, False, True, True, True)


@pytest.mark.parametrize("given", [(True, True), (True, False), (False, False)], ids=str)
@pytest.mark.parametrize("shape", [(2, 4, 3), (3, 4)], ids=str)
def test_gradcheck(shape, given):
    x, *parameters, _ = (t.double().requires_grad_() for t in tensors(shape, torch.float32))
    parameters = [t if has else None for t, has in zip(parameters, given, strict=True)]
    assert torch.autograd.gradcheck(lambda x, *p: group_norm(x, 2, *p), (x, *parameters))
    assert torch.autograd.gradgradcheck(lambda x, *p: group_norm(x, 2, *p), (x, *parameters))


@pytest.mark.parametrize("batched", [(0, None, None), (1, 0, None), (None, 0, 0)], ids=str)
def test_vmap(batched):
    """Samples of vmap, with parameters of their own and without, forward and backward."""
    x, weight, bias, _ = (t.double() for t in tensors((3, 4, 5), torch.float32))
    given = [
        t if d is None else torch.stack([t, t + 1, t * 2], d) for t, d in zip((x, weight, bias), batched, strict=True)
    ]

    def gradients(f):
        return torch.func.vmap(torch.func.grad(lambda *t: f(t[0], 2, *t[1:]).sin().sum(), (0, 1, 2)), batched)

    for ours, theirs in zip(gradients(group_norm)(*given), gradients(F.group_norm)(*given), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("channels_last", [False, True], ids=["rows", "channels_last"])
def test_opcheck(channels_last):
    x, weight, bias, grad = tensors((2, 4, 3, 2), torch.float32, channels_last=channels_last)
    for w, b in ((weight, bias), (None, None)):
        leaves = [None if t is None else t.detach().requires_grad_() for t in (x, w, b)]
        torch.library.opcheck(torch.ops.pydl.group_norm_forward, (*leaves, 2, 1e-5, channels_last))
        stats = torch.ops.pydl.group_norm_forward(*leaves, 2, 1e-5, channels_last)[1].detach()
        torch.library.opcheck(
            torch.ops.pydl.group_norm_backward,
            (grad.requires_grad_(), leaves[0], stats, leaves[1], 2, 1e-5, channels_last, True, True, True),
        )


@pytest.mark.parametrize("by, dynamic", [("inductor", False), ("aot_eager", True)])
def test_compile(by, dynamic):
    def step(x, weight, bias):
        return group_norm(x, 2, weight, bias) * 2

    def results(function, x, weight, bias, grad):
        return passes(lambda x, groups, weight, bias, eps: function(x, weight, bias), 2, x, weight, bias, grad)

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=by)
    for samples in (3, 5):
        given = tensors((samples, 4, 5), torch.float32)
        for a, e in zip(results(step, *given), results(compiled, *given), strict=True):
            torch.testing.assert_close(a, e)
            assert a.stride() == e.stride()
