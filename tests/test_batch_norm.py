"""Batch normalisation against torch in float64: values, statistics, layouts, fusions, refusals and autograd."""

import pytest
import torch
import torch.nn.functional as F
from testing import DTYPES, assert_close
from torch.library import opcheck

import pydl
import pydl.functional as PF

HALF = (torch.bfloat16, torch.float16)

# (shape, memory format)
ROWS, COLUMNS, COLUMNS_3D = torch.contiguous_format, torch.channels_last, torch.channels_last_3d
CASES = [
    ((2, 5), ROWS),  # two values per channel, the least that training takes
    ((257, 3), ROWS),  # columns folded into longer rows, with rows left over
    ((19, 16), ROWS),  # channels are a multiple of the vector
    ((1100, 120), ROWS),  # several sub-blocks of a segment; half a vector left over
    ((9, 1001), ROWS),  # too many channels to fold; two stripes, with a tail
    ((4, 6, 7), ROWS),  # runs shorter than a vector
    ((3, 2, 1, 1), ROWS),  # either format fits
    ((33, 6, 24, 24), ROWS),  # LeNet: several runs per block
    ((8, 64, 7, 7), ROWS),  # ResNet's last stage: runs with a tail
    ((2, 3, 65, 67), ROWS),  # a run of more than one block, with a tail
    ((2, 1, 130, 130), ROWS),  # one channel: split over threads
    ((2, 3, 3, 4, 5), ROWS),
    ((33, 6, 24, 24), COLUMNS),
    ((8, 64, 7, 7), COLUMNS),
    ((2, 3, 65, 67), COLUMNS),  # three channels
    ((2, 70, 3, 4, 5), COLUMNS_3D),
]


def make(shape, dtype, device, memory_format=ROWS, requires_grad=True):
    x = (torch.randn(shape, dtype=torch.float64) * 2 + 1).to(dtype)
    return x.to(device).contiguous(memory_format=memory_format).requires_grad_(requires_grad)


def oracle(inputs, grad, training, activation=None, momentum=0.1, eps=1e-5):
    """Output, gradients (input, weight, bias, residual) and running statistics, by torch in float64."""
    x, mean, var, w, b, r = (t if t is None else t.detach().cpu().double().clone() for t in inputs)
    leaves = [t for t in (x, w, b, r) if t is not None]
    for t in leaves:
        t.requires_grad_()
    y = F.batch_norm(x, mean, var, w, b, training, momentum, eps)
    y = y if r is None else y + r
    y = {None: lambda t: t, "relu": F.relu, "sigmoid": torch.sigmoid}[activation](y)
    y.backward(grad.detach().cpu().double())
    return y, [t if t is None else t.grad for t in (x, w, b, r)], (mean, var)


def check(inputs, grad, training, activation=None, scale=1.0):
    x, mean, var, w, b, r = inputs
    expected, grads, running = oracle(inputs, grad, training, activation)
    y = PF.batch_norm(x, mean, var, w, b, training, residual=r, activation=activation)
    assert y.dtype == x.dtype
    assert_close(y, expected, scale=4 * scale)
    y.backward(grad)
    for t, g in zip((x, w, b, r), grads, strict=True):
        if t is None:
            continue
        assert t.grad.dtype == t.dtype
        # sums over a channel: the error grows like the root of their number, relative to what is summed
        size = grad.detach().double().norm().item() if t.dim() == 1 else 1.0
        assert_close(t.grad, g, dtype=x.dtype, scale=8 * scale * max(1.0, size))
        t.grad = None
    for t, e in zip((mean, var), running, strict=True):
        if t is not None:
            assert_close(t, e, scale=4)


def all_inputs(shape, dtype, device, memory_format=ROWS, param_dtype=None, residual=False):
    param_dtype = param_dtype or dtype
    channels = shape[1]
    x = make(shape, dtype, device, memory_format)
    mean, w, b = (make((channels,), param_dtype, device) for _ in range(3))
    var = torch.rand(channels, device=device).to(param_dtype) + 0.5
    r = make(shape, dtype, device, memory_format) if residual else None
    return x, mean.detach(), var, w, b, r


# ---- values


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape,memory_format", CASES)
@pytest.mark.parametrize("training", [True, False])
def test_forward_backward_and_statistics(device, shape, memory_format, dtype, training):
    if shape == (2, 5):  # the gradient of two values cancels but for rounding: compare it in float64 alone
        dtype = torch.float64
    inputs = all_inputs(shape, dtype, device, memory_format)
    # small enough that the sum over a channel of two blocks stays below the largest float16
    check(inputs, make(shape, dtype, device, memory_format) / 16, training)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["relu", "sigmoid", None])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_residual_and_activation(device, dtype, activation, residual, training):
    # both layouts, with tails: 5 x 7 = 35 elements per run, 6 channels folded
    for memory_format in (ROWS, COLUMNS):
        shape = (40, 6, 5, 7)
        inputs = all_inputs(shape, dtype, device, memory_format, residual=residual)
        grad = make(shape, dtype, device, memory_format)
        if dtype in HALF and activation == "relu":
            # the oracle's mask may differ where z rounds to zero: keep z away from it
            inputs = (*inputs[:4], (inputs[4].detach() + 40).requires_grad_(), inputs[5])
            grad = grad / 8
            check(inputs, grad, training, activation, scale=16)
        else:
            check(inputs, grad, training, activation)


@pytest.mark.large
@pytest.mark.parametrize("activation", ["relu", None])
def test_outputs_past_the_cache(device, activation):
    # above 16 MB outputs are stored past the cache; 57 * 57 is odd, so runs begin off a vector boundary
    for memory_format in (ROWS, COLUMNS):
        shape = (24, 64, 57, 57)
        inputs = all_inputs(shape, torch.float32, device, memory_format, residual=activation is not None)
        check(inputs, make(shape, torch.float32, device, memory_format), True, activation, scale=2)


@pytest.mark.parametrize("affine", ["none", "weight", "bias"])
@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("memory_format", [ROWS, COLUMNS])
def test_without_affine_or_statistics(device, affine, statistics, memory_format):
    x, mean, var, w, b, _ = all_inputs((6, 5, 4, 4), torch.float32, device, memory_format)
    w, b = (w if affine == "weight" else None), (b if affine == "bias" else None)
    grad = make(x.shape, x.dtype, device)
    before = x.detach().clone()
    check((x, mean if statistics else None, var if statistics else None, w, b, None), grad, True)
    assert torch.equal(x.detach(), before)  # and the input is no scratch space
    check((x, mean, var, w, b, None), grad, False)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("training", [True, False])
def test_half_input_with_float32_parameters(device, dtype, training):
    for memory_format in (ROWS, COLUMNS):
        inputs = all_inputs((20, 6, 8, 8), dtype, device, memory_format, param_dtype=torch.float32)
        check(inputs, make((20, 6, 8, 8), dtype, device, memory_format), training, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape,memory_format",
    [((64, 3, 40, 40), ROWS), pytest.param((64, 3, 40, 40), COLUMNS, marks=pytest.mark.large), ((9000, 70), ROWS)],
)
def test_mean_far_above_deviation(device, dtype, shape, memory_format):
    mean, std = 1e4, 1e-2
    x = (mean + std * torch.randn(shape, dtype=torch.float64)).to(dtype).to(device)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    grad = torch.randn(shape, dtype=dtype, device=device)
    exact = x.detach().cpu().double().requires_grad_()
    # float64 torch itself loses digits here: take the mean out first, which is exact
    shifted = (exact.detach() - mean).requires_grad_()
    y = F.batch_norm(shifted, None, None, training=True, eps=1e-12)
    y.backward(grad.cpu().double())
    actual = PF.batch_norm(x, None, None, training=True, eps=1e-12)
    actual.backward(grad)
    scale = 1.0 if dtype == torch.float32 else 1e3
    assert_close(actual, y, scale=scale)
    assert_close(x.grad * std, shifted.grad * std, scale=scale)


@pytest.mark.parametrize("memory_format", [ROWS, COLUMNS])
def test_first_value_far_from_the_rest(device, memory_format):
    # a shift taken from the first value alone would lose the digits of all others
    x = 1e4 + 1e-2 * torch.randn(8, 4, 40, 40)
    x[0, :, 0, 0] = 0
    actual = PF.batch_norm(x.to(device).contiguous(memory_format=memory_format), None, None, training=True)
    assert_close(actual, F.batch_norm(x.double(), None, None, training=True))


def test_more_than_65535_in_the_batch(device):
    inputs = all_inputs((70001, 3), torch.float32, device)
    check(inputs, make((70001, 3), torch.float32, device), True)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("memory_format", [ROWS, COLUMNS])
def test_inf_and_nan_stay_in_their_channel(device, value, memory_format):
    x = torch.randn(4, 5, 20, 20)
    x[2, 3, 7, 7] = value
    mean, var = torch.zeros(5, device=device), torch.ones(5, device=device)
    y = PF.batch_norm(x.to(device).contiguous(memory_format=memory_format), mean, var, training=True, activation="relu")
    running = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    assert_close(y, F.relu(F.batch_norm(x.double(), *running, training=True)))
    assert_close(mean, running[0])
    assert_close(var, running[1])


def test_half_inputs_near_their_largest(device):
    x = (torch.randn(64, 6, 8, 8) * 6000).to(torch.float16).to(device)
    assert_close(PF.batch_norm(x, None, None, training=True), F.batch_norm(x.double().cpu(), None, None, training=True))


# ---- running statistics


def test_running_variance_is_unbiased_and_normalisation_is_not(device):
    x = torch.tensor([[1.0], [3.0]], device=device)
    mean, var = torch.zeros(1, device=device), torch.zeros(1, device=device)
    y = PF.batch_norm(x, mean, var, training=True, momentum=1.0, eps=1e-12)
    assert y.flatten().tolist() == [-1.0, 1.0]  # deviation 1: biased
    assert (mean.item(), var.item()) == (2.0, 2.0)  # variance 2: unbiased


@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0])
def test_momentum(device, momentum):
    x, mean, var, w, b, _ = all_inputs((6, 4, 3, 3), torch.float32, device)
    expected = mean.cpu().clone(), var.cpu().clone()
    F.batch_norm(x.detach().cpu(), *expected, training=True, momentum=momentum)
    PF.batch_norm(x, mean, var, w, b, training=True, momentum=momentum)
    assert_close(mean, expected[0])
    assert_close(var, expected[1])


def test_evaluation_leaves_statistics_alone(device):
    x, mean, var, w, b, _ = all_inputs((6, 4, 3, 3), torch.float32, device)
    before = mean.clone(), var.clone()
    PF.batch_norm(x, mean, var, w, b)
    assert torch.equal(mean, before[0])
    assert torch.equal(var, before[1])


def test_strided_statistics_are_updated(device):
    x = torch.randn(6, 4, 3, 3, device=device)
    table = torch.ones(4, 2, device=device)
    expected = torch.ones(4), torch.ones(4)
    F.batch_norm(x.cpu(), *expected, training=True)
    PF.batch_norm(x, table[:, 0], table[:, 1], training=True)
    assert_close(table, torch.stack(expected, 1))


def test_version_counter_sees_the_update(device):
    x, mean, var, *_ = all_inputs((6, 4), torch.float32, device)
    saved = mean * torch.ones(4, device=device, requires_grad=True)  # keeps mean for its backward
    PF.batch_norm(x, mean, var, training=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.sum().backward()


# ---- strides


def test_other_strides_and_output_format(device):
    base = torch.randn(6, 10, 12, 14, device=device)
    last = base.contiguous(memory_format=COLUMNS)
    views = {
        "channel slice": base[:, 2:7],
        "batch slice": base[1::2],
        "spatial slice": base[:, :, ::2, 1::3],
        "spatial transpose": base.transpose(2, 3),
        "batch and channel transpose": base.transpose(0, 1),
        "all permuted": base.permute(3, 1, 0, 2),
        "channels_last, channel slice": last[:, 2:7],
        "channels_last, spatial slice": last[:, :, ::2, ::2],
        "channels_last, row slice": last[:, :, 3:9],
        "expanded": base[:, :, :1].expand(6, 10, 12, 14),
    }
    for name, view in views.items():
        x = view.detach()
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        expected = F.batch_norm(leaf, None, None, training=True)
        grad = torch.randn_like(expected)
        expected.backward(grad)
        mine = x.requires_grad_()
        y = PF.batch_norm(mine, None, None, training=True)
        reference = F.batch_norm(x.detach(), None, None, training=True)
        assert y.stride() == reference.stride(), name
        (g,) = torch.autograd.grad(y, mine, grad)
        assert_close(y, expected)
        assert_close(g, leaf.grad, scale=10)


def test_sequence_of_transposed_features(device):
    check(
        (
            make((4, 9, 5), torch.float32, device).detach().transpose(1, 2).requires_grad_(),
            None,
            None,
            None,
            None,
            None,
        ),
        make((4, 5, 9), torch.float32, device),
        True,
    )


@pytest.mark.parametrize("memory_format", [ROWS, COLUMNS])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_gradients_in_any_layout(device, memory_format, activation):
    inputs = all_inputs((6, 5, 8, 9), torch.float32, device, memory_format, residual=activation is not None)
    full = torch.randn(6, 10, 8, 9, device=device)
    for grad in (
        torch.tensor(1.5, device=device).expand(6, 5, 8, 9),  # of sum()
        torch.randn(6, 5, 1, 1, device=device).expand(6, 5, 8, 9),  # of sum over space
        torch.randn(1, 5, 8, 9, device=device).expand(6, 5, 8, 9),
        full[:, 3:8],  # of concatenated channels
        full[:, 3:8].contiguous(memory_format=COLUMNS),
        full.contiguous(memory_format=COLUMNS)[:, 3:8],
        full[:, :5].transpose(2, 3).contiguous().transpose(2, 3),
    ):
        check(inputs, grad, True, activation)


def test_input_format_is_the_gradient_format(device):
    for memory_format in (ROWS, COLUMNS):
        x = make((4, 5, 6, 7), torch.float32, device, memory_format)
        y = PF.batch_norm(x, None, None, training=True)
        assert y.is_contiguous(memory_format=memory_format)
        y.backward(torch.randn(4, 5, 6, 7, device=device))
        assert x.grad.is_contiguous(memory_format=memory_format)


# ---- empty and refused


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0, 4), (2, 0, 3, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_empty(device, shape, training):
    x, mean, var, w, b, _ = all_inputs(shape, torch.float32, device)
    before = mean.clone(), var.clone()
    y = PF.batch_norm(x, mean, var, w, b, training)
    assert y.shape == shape
    assert torch.equal(mean, before[0])
    assert torch.equal(var, before[1])
    y.sum().backward()
    assert w.grad.eq(0).all()
    assert b.grad.eq(0).all()
    assert x.grad.shape == shape


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_one_value_per_channel_is_refused_in_training(device, shape):
    x = torch.randn(shape, device=device)
    with pytest.raises(
        ValueError, match=r"batch_norm: expected input to have more than 1 value per channel.*got shape"
    ):
        PF.batch_norm(x, None, None, training=True)
    with pytest.raises(ValueError, match="more than 1 value"):
        F.batch_norm(x, None, None, training=True)
    mean, var = torch.ones(3, device=device), torch.full((3,), 4.0, device=device)
    assert_close(PF.batch_norm(x, mean, var), F.batch_norm(x.double(), mean.double(), var.double()))


def refused():
    x, one, ok = torch.randn(4, 3, 5, 5), torch.ones(2), torch.ones(3)
    half = torch.ones(3, dtype=torch.float16)
    yield "dimensions", (torch.randn(3), None, None, None, None, True), {}
    yield "running_mean to have 3 elements", (x, one, ok, ok, ok), {}
    yield "running_var to have 3 elements", (x, ok, one, ok, ok), {}
    yield "weight to have 3 elements", (x, ok, ok, one, ok), {}
    yield "bias to have 3 elements", (x, ok, ok, ok, one), {}
    yield "weight to have input's dtype", (x, ok, ok, half, half), {}
    yield "bias to have the dtype", (x.bfloat16(), ok, ok, ok, ok.bfloat16()), {}
    yield "running_mean to have the dtype", (x.half(), ok, ok, half, half), {}
    yield "running_mean to be given in evaluation mode", (x, None, None), {}
    yield "running_var to be given in evaluation mode", (x, ok, None), {}
    yield "both given or both None", (x, ok, None, None, None, True), {}
    yield "eps to be positive", (x, ok, ok, ok, ok, True, 0.1, 0.0), {}
    yield "eps to be at least 0", (x, ok, ok, ok, ok, False, 0.1, -1.0), {}
    yield "momentum to be a number", (x, ok, ok, ok, ok, True, None), {}
    yield "not to require grad", (x, ok.clone().requires_grad_(), ok, ok, ok, True), {}


@pytest.mark.parametrize("words,args,kwargs", [pytest.param(*case, id=case[0]) for case in refused()])
def test_refusals_are_torchs_with_better_words(words, args, kwargs):
    with pytest.raises(Exception) as theirs:  # noqa: PT011  (whatever torch raises is what we must raise)
        F.batch_norm(*args, **kwargs)
    with pytest.raises(type(theirs.value), match=f"batch_norm: expected .*{words}.*, got"):
        PF.batch_norm(*args, **kwargs)


def test_refused_extras(device):
    x = torch.randn(4, 3, 5, 5, device=device)
    with pytest.raises(ValueError, match=r"batch_norm: expected activation to be .*, got 'gelu'"):
        PF.batch_norm(x, None, None, training=True, activation="gelu")
    with pytest.raises(RuntimeError, match=r"expected residual to have input's shape \(4, 3, 5, 5\), got \(4, 3, 5\)"):
        PF.batch_norm(x, None, None, training=True, residual=x[..., 0])
    with pytest.raises(RuntimeError, match="expected residual to have input's dtype"):
        PF.batch_norm(x, None, None, training=True, residual=x.double())


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64])
def test_other_dtypes_go_to_torch(dtype):
    with pytest.raises(NotImplementedError, match="not implemented for"):
        PF.batch_norm(torch.ones(4, 3).to(dtype), None, None, training=True)


def test_torch_backend_serves_the_extras_too():
    x, r = torch.randn(4, 3), torch.randn(4, 3)
    expected = PF.batch_norm(x, None, None, training=True, residual=r, activation="relu")
    with pydl.backend.use("torch"):
        assert_close(PF.batch_norm(x, None, None, training=True, residual=r, activation="relu"), expected)


# ---- what is kept, and what is computed


@pytest.mark.parametrize("activation", [None, "relu"])
def test_output_may_be_written_over(device, activation):
    x = make((6, 4, 5, 5), torch.float64, device)
    grad = torch.randn_like(x)
    expected = torch.autograd.grad(PF.batch_norm(x, None, None, training=True, activation=activation), x, grad)
    y = PF.batch_norm(x, None, None, training=True, activation=activation)
    y += 3
    assert torch.equal(torch.autograd.grad(y, x, grad)[0], expected[0])


@pytest.mark.parametrize("activation,residual", [("relu", True), ("sigmoid", False)])
def test_output_that_is_kept_is_guarded(device, activation, residual):
    x = make((6, 4, 5, 5), torch.float32, device)
    r = torch.randn_like(x) if residual else None
    y = PF.batch_norm(x, None, None, training=True, residual=r, activation=activation)
    y += 3
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("wanted", ["input", "weight", "bias", "residual"])
@pytest.mark.parametrize("training", [True, False])
def test_each_gradient_alone(device, wanted, training):
    x, mean, var, w, b, r = all_inputs((6, 4, 5, 5), torch.float32, device, residual=True)
    grad = torch.randn_like(x)
    args = {"input": x, "weight": w, "bias": b, "residual": r}
    _, grads, _ = oracle((x, mean, var, w, b, r), grad, training, "relu")
    args = {k: v.detach().requires_grad_(k == wanted) for k, v in args.items()}
    y = PF.batch_norm(
        args["input"], mean, var, args["weight"], args["bias"], training, residual=args["residual"], activation="relu"
    )
    (actual,) = torch.autograd.grad(y, args[wanted], grad)
    assert_close(actual, grads[list(args).index(wanted)], scale=50)


def test_what_nobody_needs_is_not_computed(device):
    x, _, _, w, b, _ = all_inputs((6, 4, 5, 5), torch.float32, device)
    ops = pydl.backend.ops_for(x)
    _, mean, var = ops.batch_norm_forward(x, None, None, w, b, None, True, 1e-5, 0)
    needs = (False, True, False, False)
    grads = ops.batch_norm_backward(x, x, mean, var, w, b, None, True, 1e-5, 0, *needs)
    assert [g.numel() for g in grads] == [0, 4, 0, 0]


def test_frozen_statistics_with_changed_buffers(device):
    # backward in evaluation mode uses the statistics of its forward, even when the buffers move on
    x, mean, var, w, b, _ = all_inputs((6, 4, 5, 5), torch.float32, device)
    grad = torch.randn_like(x)
    _, grads, _ = oracle((x, mean, var, w, b, None), grad, False)
    y = PF.batch_norm(x, mean, var, w, b)
    var.mul_(9)
    y.backward(grad)
    assert_close(x.grad, grads[0])
    assert_close(w.grad, grads[1], scale=50)


# ---- the halves


@pytest.mark.parametrize("memory_format", [ROWS, COLUMNS])
@pytest.mark.parametrize("activation", [0, 1, 2])
def test_halves_make_a_synchronised_version(device, memory_format, activation):
    x, _, _, w, b, r = all_inputs((12, 6, 9, 9), torch.float64, device, memory_format, residual=True)
    ops = pydl.backend.ops_for(x)
    x, w, b, r = (t.detach() for t in (x, w, b, r))
    grad = torch.randn_like(x)
    y, _, _ = ops.batch_norm_forward(x, None, None, w, b, r, True, 1e-5, activation)
    _, mean, var = ops.batch_norm_forward(x, None, None, w, b, r, True, 1e-5, activation)
    kept = y if activation else None
    whole = ops.batch_norm_backward(
        grad, x, mean, var, w, b, kept, True, 1e-5, activation, True, True, True, activation != 0
    )
    # two processes with shards of unequal size
    shards = [slice(0, 5), slice(5, 12)]
    counts = [5 * 81, 7 * 81]
    stats = [ops.batch_norm_stats(x[s]) for s in shards]
    n = sum(counts)
    all_mean = sum(c * m for c, (m, _) in zip(counts, stats, strict=True)) / n
    all_var = sum(c * (v + (m - all_mean) ** 2) for c, (m, v) in zip(counts, stats, strict=True)) / n
    assert_close(all_mean, mean)
    assert_close(all_var, var)
    parts = [ops.batch_norm_apply(x[s], all_mean, all_var, w, b, r[s], 1e-5, activation) for s in shards]
    assert_close(torch.cat(parts), y)
    kept_parts = [p if activation else None for p in parts]
    sums = [
        ops.batch_norm_backward_reduce(grad[s], x[s], all_mean, all_var, w, b, k, 1e-5, activation)
        for s, k in zip(shards, kept_parts, strict=True)
    ]
    sum_grad, sum_grad_xhat = (sum(pair) for pair in zip(*sums, strict=True))
    assert_close(sum_grad_xhat, whole[1])
    assert_close(sum_grad, whole[2])
    grads = [
        ops.batch_norm_backward_apply(
            grad[s], x[s], all_mean, all_var, w, b, k, sum_grad, sum_grad_xhat, n, 1e-5, activation, activation != 0
        )
        for s, k in zip(shards, kept_parts, strict=True)
    ]
    assert_close(torch.cat([g for g, _ in grads]), whole[0])
    if activation:
        assert_close(torch.cat([g for _, g in grads]), whole[3])


def test_halves_refuse_to_be_differentiated(device):
    x = make((6, 4, 5, 5), torch.float32, device)
    mean, _ = pydl.backend.ops_for(x).batch_norm_stats(x)
    with pytest.raises(RuntimeError, match="batch_norm_stats: expected its inputs to be used without gradient"):
        mean.sum().backward()


# ---- determinism


@pytest.mark.cpu_kernels
@pytest.mark.parametrize(
    "shape,memory_format",
    [
        ((16, 8, 40, 40), ROWS),  # channels shared out
        ((5, 1, 200, 200), ROWS),  # one channel split
        ((16, 3, 100, 100), ROWS),  # three channels split
        ((16, 6, 100, 100), COLUMNS),
        ((5000, 130), ROWS),
    ],
)
def test_bits_do_not_depend_on_the_number_of_threads(device, shape, memory_format):
    x, _, _, w, b, r = all_inputs(shape, torch.float32, device, memory_format, residual=True)
    grad = torch.randn_like(x)
    results, threads = [], torch.get_num_threads()
    for count in (1, 2, 3, 8, 8):
        torch.set_num_threads(count)
        try:
            mean, var = torch.zeros(shape[1], device=device), torch.ones(shape[1], device=device)
            y = PF.batch_norm(x, mean, var, w, b, True, residual=r, activation="relu")
            results.append([y, mean, var, *torch.autograd.grad(y, (x, w, b, r), grad)])
        finally:
            torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# ---- torch's machinery


@pytest.mark.parametrize("memory_format", [ROWS, COLUMNS])
@pytest.mark.parametrize("training", [True, False])
def test_opcheck(device, memory_format, training):
    ops = pydl.backend.ops_for(torch.empty(0, device=device))
    x, mean, var, w, b, r = all_inputs((4, 3, 5, 6), torch.float32, device, memory_format, residual=True)
    opcheck(ops.batch_norm_forward, (x, mean, var, w, b, r, training, 1e-5, 1))
    opcheck(ops.batch_norm_forward, (x, mean, var, None, None, None, training, 1e-5, 0))
    y, m, v = (t.detach() for t in ops.batch_norm_forward(x, mean, var, w, b, r, training, 1e-5, 1))
    opcheck(ops.batch_norm_update_stats, (mean.clone(), var.clone(), m, v, 120, 0.1))
    grad = torch.randn_like(x)
    needs = (True, True, True, True)
    opcheck(ops.batch_norm_backward, (grad, x, m, v, w, b, y, training, 1e-5, 1, *needs))
    opcheck(ops.batch_norm_backward, (grad, x, m, v, None, None, None, training, 1e-5, 0, True, False, False, False))
    x, w, b, r = (t.detach() for t in (x, w, b, r))
    opcheck(ops.batch_norm_stats, (x,))
    opcheck(ops.batch_norm_apply, (x, m, v, w, b, r, 1e-5, 1))
    opcheck(ops.batch_norm_backward_reduce, (grad, x, m, v, w, b, y, 1e-5, 1))
    opcheck(ops.batch_norm_backward_apply, (grad, x, m, v, w, b, y, m, v, 120.0, 1e-5, 1, True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@pytest.mark.parametrize("residual", [True, False])
def test_gradcheck_first_and_second_order(training, activation, residual):
    for memory_format in (ROWS, COLUMNS):
        x, mean, var, w, b, r = all_inputs((4, 3, 3, 2), torch.float64, "cpu", memory_format, residual=residual)

        def f(x, w, b, r=None, mean=mean, var=var):
            return PF.batch_norm(x, mean.clone(), var.clone(), w, b, training, residual=r, activation=activation)

        leaves = (x, w, b, r) if residual else (x, w, b)
        assert torch.autograd.gradcheck(f, leaves)
        assert torch.autograd.gradgradcheck(f, leaves)


def test_third_order(device):
    def third(function, x):
        (g,) = torch.autograd.grad((function(x) ** 3).sum(), x, create_graph=True)
        (h,) = torch.autograd.grad((g**2).sum(), x, create_graph=True)
        return torch.autograd.grad((h**2).sum(), x)[0]

    x = make((7, 3), torch.float64, device)
    actual = third(lambda x: PF.batch_norm(x, None, None, training=True, activation="sigmoid"), x)
    expected = third(lambda x: torch.sigmoid((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()), x)
    assert_close(actual, expected)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_compile(dynamic, training):
    torch._dynamo.reset()
    _, mean, var, w, b, _ = all_inputs((2, 3), torch.float32, "cpu")

    def f(x, r, mean, var):
        return PF.batch_norm(x * 2, mean, var, w, b, training, residual=r, activation="relu").square().sum()

    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic)
    for batch in (4, 6):
        results = []
        x, _, _, _, _, r = all_inputs((batch, 3, 5, 5), torch.float32, "cpu", residual=True)
        for function in (f, compiled):
            statistics = mean.clone(), var.clone()
            loss = function(x, r, *statistics)
            results.append([loss, *statistics, *torch.autograd.grad(loss, (x, w, b, r))])
        for eager, traced in zip(*results, strict=True):
            assert_close(traced, eager, scale=10)
        changed = not torch.equal(results[1][1], mean)
        assert changed == training


def test_transforms(device):
    x, _, _, w, b, _ = all_inputs((3, 5, 4), torch.float64, device)
    x, w, b = x.detach(), w.detach(), b.detach()

    def loss(batch_norm, x):
        return (batch_norm(x, None, None, w, b, True) ** 3).sum()

    expected = torch.func.grad(lambda x: loss(F.batch_norm, x))(x)
    assert_close(torch.func.grad(lambda x: loss(PF.batch_norm, x))(x), expected)
    batch = torch.randn(2, 3, 5, 4, dtype=torch.float64, device=device)
    actual = torch.func.vmap(torch.func.grad(lambda x: loss(PF.batch_norm, x)))(batch)
    for x, one in zip(batch, actual, strict=True):
        assert_close(one, torch.func.grad(lambda x: loss(F.batch_norm, x))(x))


def test_forward_mode_is_refused_in_words(device):
    x = torch.randn(6, 3, device=device)
    with pytest.raises(RuntimeError, match="batch_norm: expected reverse-mode differentiation, got forward mode"):
        torch.func.jvp(lambda x: PF.batch_norm(x, None, None, training=True), (x,), (torch.ones_like(x),))


def test_under_autocast_dtypes_are_torchs(device):
    x, mean, var, w, b, _ = all_inputs((6, 4, 5, 5), torch.float32, device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        for t in (x, x.bfloat16()):
            assert PF.batch_norm(t, mean, var, w, b, True).dtype == F.batch_norm(t, mean, var, w, b, True).dtype


@pytest.mark.slow
@pytest.mark.parametrize("columns", [False, True])
def test_more_than_two_to_the_31_elements(columns):
    n = 2**31 + 5
    x = torch.ones(n, dtype=torch.bfloat16)
    x[1::2] = 3
    x[-2:] = torch.tensor([-5.0, 7.0])
    x = x.view(n, 1) if columns else x.view(1, 1, n)
    y = PF.batch_norm(x, torch.tensor([2.0]), torch.tensor([1.0]), training=True, momentum=1.0, eps=1e-12).flatten()
    assert_close(y[-4:], (x.flatten()[-4:] - 2).double())
    assert_close(y[:4], torch.tensor([-1.0, 1.0, -1.0, 1.0]))
