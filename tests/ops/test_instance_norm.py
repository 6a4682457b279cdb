"""instance_norm against torch in float64: every pass, shape, dtype and instruction set."""

import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from testing import ALL_DTYPES, assert_close

import pydl
import pydl.ops.instance_norm
from pydl.functional import instance_norm

pytestmark = pytest.mark.cpu_kernels

# runs of vectors and what remains, ranks, a channel that is longer than a block of sums
SHAPES = [(2, 4, 5), (1, 3, 17), (2, 3, 7, 9), (2, 3, 2, 3, 4), (3, 2, 70, 70)]


def tensors(shape, dtype, parameter=None):
    x, grad = (torch.randn(shape).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(shape[1]).to(parameter or dtype) for _ in range(2))
    return x, weight, bias, grad


def passes(function, x, weight, bias, grad, **options):
    """Output and the gradients of what is given."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias)]
    y = function(leaves[0], weight=leaves[1], bias=leaves[2], **options)
    return y, *torch.autograd.grad(y, [t for t in leaves if t is not None], grad.to(y.dtype))


def compare(x, weight, bias, grad, **options):
    exact = [None if t is None else t.double() for t in (x, weight, bias, grad)]
    found = passes(instance_norm, x, weight, bias, grad, **options), passes(F.instance_norm, *exact, **options)
    for actual, expected, like in zip(*found, [x, *(t for t in (x, weight, bias) if t is not None)], strict=True):
        assert (actual.dtype, actual.shape) == (like.dtype, expected.shape)
        assert_close(actual, expected, x.dtype, scale=10)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_passes(shape, device):
    for dtype in ALL_DTYPES:
        compare(*tensors(shape, dtype), eps=1e-3)
    compare(*tensors(shape, torch.bfloat16, torch.float32))


def test_some_parameters(device):
    x, weight, bias, grad = tensors((3, 4, 5, 7), torch.float32)
    for w, b in itertools.product((None, weight), (None, bias)):
        compare(x, w, b, grad)


def test_large_means(device):
    x, weight, bias, grad = tensors((2, 4, 40, 40), torch.float32)
    compare(x + 1e3, weight, bias, grad)


def test_running_statistics(device):
    x, weight, bias, _ = tensors((3, 4, 5, 6), torch.float32)
    for parameters in ((weight, bias), (None, None)):
        exact = [None if t is None else t.double() for t in parameters]
        ours, theirs = [torch.zeros(4), torch.ones(4)], [torch.zeros(4).double(), torch.ones(4).double()]
        for momentum in (0.1, 0.5):
            y = instance_norm(x, *ours, *parameters, True, momentum)
            assert_close(y, F.instance_norm(x.double(), *theirs, *exact, True, momentum))
            for p, q in zip(ours, theirs, strict=True):
                assert_close(p, q)
        before = [t.clone() for t in ours]
        y = instance_norm(x, *ours, *parameters, use_input_stats=False)
        assert_close(y, F.instance_norm(x.double(), *theirs, *exact, use_input_stats=False))
        assert all(map(torch.equal, ours, before))


def test_thread_count_changes_no_bit(device):
    before, given = torch.get_num_threads(), tensors((3, 5, 70, 70), torch.float32)
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(passes(instance_norm, *given))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_any_strides():
    image = torch.randn(2, 4, 6, 5)
    weight, bias = torch.randn(4), torch.randn(4)
    layouts = {
        "sliced": torch.randn(2, 4, 6, 9)[..., 2:7],
        "transposed": torch.randn(4, 2, 6, 5).transpose(0, 1),
        "expanded": torch.randn(2, 4, 1, 5).expand(2, 4, 6, 5),
        "channels_last": image.to(memory_format=torch.channels_last),
    }
    for layout in layouts.values():
        for x, grad in ((layout, image), (image, layout)):
            found = (passes(f, x, weight, bias, grad) for f in (instance_norm, F.instance_norm))
            for a, e in zip(*found, strict=True):
                assert a.stride() == e.stride()
                torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-4)


def test_short_channels_with_running_statistics_are_torchs(monkeypatch):
    monkeypatch.setattr(pydl.ops.instance_norm, "LEAST_PLACES", 6)
    for places, ours in ((5, False), (6, True)):
        y = instance_norm(torch.randn(2, 3, places, requires_grad=True), torch.zeros(3), torch.ones(3))
        assert ("NativeBatchNorm" not in y.grad_fn.next_functions[0][0].name()) == ours


REFUSED = {
    "one place": lambda f: f.instance_norm(torch.randn(2, 4, 1)),
    "one dimension": lambda f: f.instance_norm(torch.randn(4)),
    "no statistics": lambda f: f.instance_norm(torch.randn(2, 4, 5), use_input_stats=False),
    "one statistic": lambda f: f.instance_norm(torch.randn(2, 4, 5), torch.zeros(4), use_input_stats=False),
    "statistics of another size": lambda f: f.instance_norm(torch.randn(2, 4, 5), torch.zeros(3), torch.ones(3)),
    "a weight of another size": lambda f: f.instance_norm(torch.randn(2, 4, 5), weight=torch.ones(3)),
    "integers": lambda f: f.instance_norm(torch.ones(2, 4, 5).int()),
    "a list": lambda f: f.instance_norm([1.0]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_as_by_torch(case):
    with pytest.raises(Exception) as theirs:  # noqa: PT011  (of which ours is to be the same)
        REFUSED[case](F)
    with pytest.raises(theirs.type, match=re.escape(str(theirs.value))):
        REFUSED[case](pydl.functional)


@pytest.mark.parametrize("given", [(True, True), (True, False), (False, False)], ids=str)
def test_gradcheck(given):
    x, *parameters, _ = (t.double().requires_grad_() for t in tensors((2, 4, 3), torch.float32))
    weight, bias = (t if has else None for t, has in zip(parameters, given, strict=True))

    def call(x, weight, bias):
        return instance_norm(x, weight=weight, bias=bias)

    assert torch.autograd.gradcheck(call, (x, weight, bias))
    assert torch.autograd.gradgradcheck(call, (x, weight, bias))


def test_compile():
    compiled = torch.compile(instance_norm, fullgraph=True, backend="aot_eager")
    given = tensors((3, 4, 5), torch.float32)
    for a, e in zip(passes(compiled, *given), passes(instance_norm, *given), strict=True):
        torch.testing.assert_close(a, e)
        assert a.stride() == e.stride()
    kept = [[torch.zeros(4), torch.ones(4)] for _ in range(2)]
    compiled(given[0], *kept[0])
    instance_norm(given[0], *kept[1])
    torch.testing.assert_close(*kept)


@pytest.mark.parametrize("name", ["InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"])
def test_layers_with_statistics(name):
    shape = (3, 4, 5, 6, 2)[: 2 + int(name[-2])]
    theirs = getattr(torch.nn, name)(4, affine=True, track_running_stats=True)
    ours = pydl.swap(getattr(torch.nn, name)(4, affine=True, track_running_stats=True))
    for training in (True, True, False):
        x = torch.randn(shape)
        assert_close(ours.train(training)(x), theirs.train(training)(x).double(), torch.float32)
        for p, q in zip(ours.buffers(), theirs.buffers(), strict=True):
            assert_close(p.double(), q.double(), torch.float32)
    x = torch.randn(shape[1:])
    assert_close(ours(x), theirs(x).double(), torch.float32)  # without samples: torch's
    for wrong in (torch.randn(3, 5, *shape[2:]), torch.randn(3)):
        with pytest.raises(ValueError, match="expected") as error:
            theirs(wrong)
        with pytest.raises(ValueError, match=re.escape(str(error.value))):
            ours(wrong)


@pytest.mark.parametrize("part", ["_apply_instance_norm", "_handle_no_batch_input"])
def test_a_replaced_part_is_called(part):
    layer = pydl.swap(torch.nn.InstanceNorm1d(4))
    setattr(layer, part, lambda x: x + 1)
    x = torch.randn(2, 4, 5) if part == "_apply_instance_norm" else torch.randn(4, 5)
    assert torch.equal(layer(x), x + 1)
