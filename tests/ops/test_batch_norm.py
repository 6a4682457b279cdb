"""Batch normalisation against torch in float64: values, running statistics, layouts."""

import pytest
import torch
import torch.nn.functional as F
from batch_norm_oracle import COLUMNS, COLUMNS_3D, HALF, ROWS, all_inputs, check, make
from testing import DTYPES, assert_close

import pydl.functional as PF

# (shape, memory format)
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
    ((5, 6, 40, 40), ROWS),  # few channels: cut by images, in blocks of two, and one left over
    ((33, 100, 3, 3), ROWS),  # small planes: stripes of 16 channels, the last of four
    ((257, 37, 3, 3), ROWS),  # several sub-blocks of images
    ((4, 130, 6, 6), ROWS),  # the fewest images
    ((5, 70, 9, 10), ROWS),  # a stripe that ends within a vector
    ((16, 20, 8, 8), ROWS),
    ((9, 19, 2, 2, 2), ROWS),
    ((2, 3, 3, 4, 5), ROWS),
    ((33, 6, 24, 24), COLUMNS),
    ((8, 64, 7, 7), COLUMNS),
    ((2, 3, 65, 67), COLUMNS),  # three channels
    ((2, 70, 3, 4, 5), COLUMNS_3D),
]


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
    # both layouts, with tails: 5 x 7 = 35 elements per run, 6 channels folded; 19 channels: small planes
    for shape, memory_format in (((40, 6, 5, 7), ROWS), ((40, 6, 5, 7), COLUMNS), ((12, 19, 5, 7), ROWS)):
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
@pytest.mark.parametrize("channels,memory_format", [(5, ROWS), (5, COLUMNS), (37, ROWS)])
def test_without_affine_or_statistics(device, affine, statistics, channels, memory_format):
    x, mean, var, w, b, _ = all_inputs((6, channels, 4, 4), torch.float32, device, memory_format)
    w, b = (w if affine == "weight" else None), (b if affine == "bias" else None)
    grad = make(x.shape, x.dtype, device)
    before = x.detach().clone()
    check((x, mean if statistics else None, var if statistics else None, w, b, None), grad, True)
    assert torch.equal(x.detach(), before)  # and the input is no scratch space
    check((x, mean, var, w, b, None), grad, False)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("training", [True, False])
def test_half_input_with_float32_parameters(device, dtype, training):
    for channels, memory_format in ((6, ROWS), (6, COLUMNS), (18, ROWS)):
        shape = (20, channels, 8, 8)
        inputs = all_inputs(shape, dtype, device, memory_format, param_dtype=torch.float32)
        check(inputs, make(shape, dtype, device, memory_format), training, None)


@pytest.mark.parametrize(
    "shape,memory_format,dtype",
    [
        ((64, 3, 40, 40), ROWS, torch.float32),
        ((600, 40, 3, 3), ROWS, torch.float32),
        ((600, 40, 3, 3), ROWS, torch.float64),
        pytest.param((64, 3, 40, 40), ROWS, torch.float64, marks=pytest.mark.large),
        pytest.param((64, 3, 40, 40), COLUMNS, torch.float32, marks=pytest.mark.large),
        pytest.param((64, 3, 40, 40), COLUMNS, torch.float64, marks=pytest.mark.large),
        pytest.param((9000, 70), ROWS, torch.float32, marks=pytest.mark.large),
        pytest.param((9000, 70), ROWS, torch.float64, marks=pytest.mark.large),
    ],
)
def test_mean_far_above_deviation(device, shape, memory_format, dtype):
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


@pytest.mark.parametrize(
    "shape,memory_format", [((8, 4, 40, 40), ROWS), ((8, 4, 40, 40), COLUMNS), ((300, 20, 3, 3), ROWS)]
)
def test_first_value_far_from_the_rest(device, shape, memory_format):
    # a shift taken from the first value alone would lose the digits of all others
    x = 1e4 + 1e-2 * torch.randn(shape)
    x[0, :, 0, 0] = 0
    actual = PF.batch_norm(x.to(device).contiguous(memory_format=memory_format), None, None, training=True)
    assert_close(actual, F.batch_norm(x.double(), None, None, training=True))


def test_more_than_65535_in_the_batch(device):
    inputs = all_inputs((70001, 3), torch.float32, device)
    check(inputs, make((70001, 3), torch.float32, device), True)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(
    "shape,memory_format", [((4, 5, 20, 20), ROWS), ((4, 5, 20, 20), COLUMNS), ((4, 40, 9, 9), ROWS)]
)
def test_inf_and_nan_stay_in_their_channel(device, value, shape, memory_format):
    x, channels = torch.randn(shape), shape[1]
    x[2, 3, 7, 7] = value
    mean, var = torch.zeros(channels, device=device), torch.ones(channels, device=device)
    y = PF.batch_norm(x.to(device).contiguous(memory_format=memory_format), mean, var, training=True, activation="relu")
    running = torch.zeros(channels, dtype=torch.float64), torch.ones(channels, dtype=torch.float64)
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
    planes = torch.randn(6, 40, 5, 6, device=device)
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
        "small planes, channel slice": planes[:, 2:30],
        "small planes, batch slice": planes[::2],
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


@pytest.mark.parametrize("channels,memory_format", [(5, ROWS), (5, COLUMNS), (21, ROWS)])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_gradients_in_any_layout(device, channels, memory_format, activation):
    shape = (6, channels, 8, 9)
    inputs = all_inputs(shape, torch.float32, device, memory_format, residual=activation is not None)
    full = torch.randn(6, channels + 5, 8, 9, device=device)
    last = channels + 3
    for grad in (
        torch.tensor(1.5, device=device).expand(shape),  # of sum()
        torch.randn(6, channels, 1, 1, device=device).expand(shape),  # of sum over space
        torch.randn(1, channels, 8, 9, device=device).expand(shape),
        full[:, 3:last],  # of concatenated channels
        full[:, 3:last].contiguous(memory_format=COLUMNS),
        full.contiguous(memory_format=COLUMNS)[:, 3:last],
        full[:, :channels].transpose(2, 3).contiguous().transpose(2, 3),
    ):
        check(inputs, grad, True, activation)


def test_input_format_is_the_gradient_format(device):
    for memory_format in (ROWS, COLUMNS):
        x = make((4, 5, 6, 7), torch.float32, device, memory_format)
        y = PF.batch_norm(x, None, None, training=True)
        assert y.is_contiguous(memory_format=memory_format)
        y.backward(torch.randn(4, 5, 6, 7, device=device))
        assert x.grad.is_contiguous(memory_format=memory_format)
