"""Strides of results and gradients are torch's, over inputs of every layout that torch takes.

What is compared are the numbers that ``stride()`` gives, those of dimensions of size 1 too: code after a layer may call
``view``. torch itself is asked, on the CPU.

One gradient is left out, that of a convolution's weight of one input channel or of 1x1 kernels: such a weight is
row-major and channels_last at once, and which strides torch writes for it depends on the library that it picks (oneDNN
for float32, its own code for bfloat16). So is, for dimensions of size 1, the gradient of the input of a convolution
that pads one side more (``padding="same"``, an even kernel): torch pads a copy and cuts the gradient out of that
copy's, whose strides of a single image or channel it keeps.
"""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from grid import CALLS
from torch._subclasses.fake_tensor import FakeTensorMode

import pydl
import pydl.functional as PF

CL = torch.channels_last
DTYPES = [torch.float32, torch.bfloat16]
# batch 1, one channel, one pixel: dimensions of size 1 have strides that say nothing
SHAPES = [(2, 3, 5, 6), (1, 3, 5, 6), (2, 1, 5, 6), (2, 3, 1, 1)]


def randn(*sizes):
    return torch.randn(*sizes)


LAYOUTS = {
    "row-major": lambda n, c, h, w: randn(n, c, h, w),
    "channels_last": lambda n, c, h, w: randn(n, c, h, w).contiguous(memory_format=CL),
    "grey expanded": lambda n, c, h, w: randn(n, 1, h, w).expand(n, c, h, w),
    "batch expanded": lambda n, c, h, w: randn(1, c, h, w).expand(n, c, h, w),
    "pixel expanded": lambda n, c, h, w: randn(n, c, 1, 1).expand(n, c, h, w),
    "grey channels_last expanded": lambda n, c, h, w: randn(n, 1, h, w).contiguous(memory_format=CL).expand(n, c, h, w),
    "channels sliced": lambda n, c, h, w: randn(n, c + 2, h, w)[:, 1 : c + 1],
    "channels_last sliced": lambda n, c, h, w: randn(n, c + 2, h, w).contiguous(memory_format=CL)[:, 1 : c + 1],
    "rows of channels_last sliced": lambda n, c, h, w: randn(n, c, h + 3, w).contiguous(memory_format=CL)[:, :, 1:-2],
    "every second column": lambda n, c, h, w: randn(n, c, h, 2 * w)[..., ::2],
    "every second image": lambda n, c, h, w: randn(2 * n, c, h, w)[::2],
    "transposed": lambda n, c, h, w: randn(n, c, w, h).transpose(2, 3),
    "channels first": lambda n, c, h, w: randn(c, n, h, w).transpose(0, 1),
    "permuted from NHWC": lambda n, c, h, w: randn(n, h, w, c).permute(0, 3, 1, 2),
    "permuted from HWNC": lambda n, c, h, w: randn(h, w, n, c).permute(2, 3, 0, 1),
}


def statistics(x):
    return torch.zeros(x.shape[1], dtype=x.dtype), torch.ones(x.shape[1], dtype=x.dtype)


def classes(x):
    return torch.arange(x[:, 0].numel()).view(x[:, 0].shape) % x.shape[1]


# name -> the op by a library (torch.nn.functional or ours) on one input
OPS = CALLS | {
    "max_pool2d": lambda f, x: f.max_pool2d(x, 1),
    "max_pool2d with indices": lambda f, x: f.max_pool2d(x, 2, padding=1, return_indices=True),
    "avg_pool2d": lambda f, x: f.avg_pool2d(x, 2, padding=1),
    "adaptive_avg_pool2d": lambda f, x: f.adaptive_avg_pool2d(x, (1, None)),
    "mean of planes": lambda f, x: f.adaptive_avg_pool2d(x, 1),
    "adaptive_max_pool2d": lambda f, x: f.adaptive_max_pool2d(x, (1, None)),
    "largest of planes with indices": lambda f, x: f.adaptive_max_pool2d(x, 1, return_indices=True),
    "batch_norm in training": lambda f, x: f.batch_norm(x, *statistics(x), training=True),
    "batch_norm": lambda f, x: f.batch_norm(x, *statistics(x)),
    "dropout": lambda f, x: f.dropout(x, 0.5),
    "dropout of all": lambda f, x: f.dropout(x, 1.0),
    "dropout2d": lambda f, x: f.dropout2d(x, 0.5),
    "layer_norm": lambda f, x: f.layer_norm(x, x.shape[3:]),
    "layer_norm of images": lambda f, x: f.layer_norm(x, x.shape[1:]),
    "group_norm": lambda f, x: f.group_norm(x, 1),
    "instance_norm": lambda f, x: f.instance_norm(x, *statistics(x), use_input_stats=x[0, 0].numel() > 1),
    "rms_norm": lambda f, x: f.rms_norm(x, x.shape[3:]),
    "rms_norm of images": lambda f, x: f.rms_norm(x, x.shape[1:]),
    "softmax of channels": lambda f, x: f.softmax(x, 1),
    "mse_loss": lambda f, x: f.mse_loss(x, torch.zeros(x.shape, dtype=x.dtype), reduction="none"),
    "l1_loss": lambda f, x: f.l1_loss(x, torch.zeros(x.shape, dtype=x.dtype), reduction="none"),
    "binary_cross_entropy_with_logits": lambda f, x: f.binary_cross_entropy_with_logits(
        x, torch.zeros(x.shape, dtype=x.dtype), x[0, :, :1, :1].abs().detach(), reduction="none"
    ),
    "mean of smooth_l1_loss": lambda f, x: f.smooth_l1_loss(x, torch.zeros(x.shape, dtype=x.dtype)),
    "cross_entropy": lambda f, x: f.cross_entropy(x, classes(x)),
    "cross_entropy per row": lambda f, x: f.cross_entropy(x, classes(x), reduction="none", label_smoothing=0.1),
}


def grads_of(output):
    """Gradients in the layouts that backward passes see: of the output's kind, row-major, expanded, a view's."""
    like = torch.empty_like(output)
    yield torch.ones_like(like)
    yield torch.ones(output.shape, dtype=output.dtype)
    yield torch.ones((), dtype=output.dtype).expand(output.shape)
    if output.dim() == 4:
        yield torch.ones(output.shape, dtype=output.dtype).contiguous(memory_format=CL)
        yield torch.ones(*output.shape[:3], 2 * output.shape[3], dtype=output.dtype)[..., ::2]


def outputs_of(call, library, tensors):
    outputs = call(library, *tensors)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def compare(call, tensors, skip=()):
    """``call(library, *tensors)`` by both libraries; ``skip``: numbers of the tensors whose gradients are left out."""
    theirs, ours = ([t.detach().requires_grad_() for t in tensors] for _ in range(2))
    expected, actual = outputs_of(call, F, theirs), outputs_of(call, PF, ours)
    assert [t.stride() for t in actual] == [t.stride() for t in expected]
    assert [t.dtype for t in actual] == [t.dtype for t in expected]
    with torch.no_grad():
        assert [t.stride() for t in outputs_of(call, PF, tensors)] == [t.stride() for t in expected]
    for grad in grads_of(expected[0]):
        pairs = zip(
            torch.autograd.grad(actual[0], ours, grad, retain_graph=True),
            torch.autograd.grad(expected[0], theirs, grad, retain_graph=True),
            strict=True,
        )
        for i, (p, q) in enumerate(pairs):
            assert i in skip or p.stride() == q.stride(), (i, grad.stride(), p.stride(), q.stride())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_of_one_input(op, layout, dtype):
    for shape in SHAPES:
        compare(OPS[op], [LAYOUTS[layout](*shape).to(dtype)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_conv2d(layout, dtype):
    for shape in SHAPES:
        input = LAYOUTS[layout](*shape).to(dtype)
        for kernel in (1, 3):
            for of_weight in ("row-major", "channels_last", "grey expanded", "channels sliced", "permuted from NHWC"):
                weight = LAYOUTS[of_weight](4, shape[1], kernel, kernel).to(dtype)
                either = kernel == 1 or shape[1] == 1
                compare(
                    lambda f, x, w, b: f.conv2d(x, w, b, padding=1),
                    [input, weight, torch.randn(4).to(dtype)],
                    skip=(1,) if either else (),
                )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_of_volumes(dtype):
    volume, weight = torch.randn(2, 3, 4, 6, 5), torch.randn(4, 3, 3, 3, 3)
    last = torch.channels_last_3d
    inputs = [volume, volume.to(memory_format=last), volume[:, :, ::2], volume.transpose(2, 4), volume[:1]]
    inputs += [volume[:, :1].expand(2, 3, 4, 6, 5), volume[:1].to(memory_format=last)]
    for x in (t.to(dtype) for t in inputs):
        for w in (weight, weight.to(memory_format=last), weight[..., :1, :1, :1].contiguous()):
            compare(lambda f, x, w, b: f.conv3d(x, w, b, padding=1), [x, w.to(dtype), torch.randn(4).to(dtype)])
        compare(lambda f, x: f.max_pool3d(x, 2), [x])
        if dtype in (torch.float32, torch.float64):  # torch has no mean of halves
            compare(lambda f, x: f.avg_pool3d(x, 2), [x])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_conv_transpose2d(layout, dtype):
    for shape in SHAPES:
        input = LAYOUTS[layout](*shape).to(dtype)
        for of_weight in ("row-major", "channels_last", "grey expanded", "channels sliced", "permuted from NHWC"):
            weight = LAYOUTS[of_weight](shape[1], 4, 3, 3).to(dtype)
            compare(
                lambda f, x, w, b: f.conv_transpose2d(x, w, b, stride=2, padding=1),
                [input, weight, torch.randn(4).to(dtype)],
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_cross_entropy_of_probabilities(layout, reduction, dtype):
    for of_target in ("row-major", "channels_last", "grey expanded", "channels first"):
        input, target = (LAYOUTS[name](2, 3, 5, 6).to(dtype) for name in (layout, of_target))
        compare(lambda f, x, t: f.cross_entropy(x, t, reduction=reduction), [input, target])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_norm_of_other_ranks(dtype, training):
    flat, series, volume = torch.randn(4, 6), torch.randn(2, 3, 8), torch.randn(2, 3, 4, 5, 6)
    inputs = [flat, flat.t(), flat[:, ::2], flat[:, :1].expand(4, 6), series, series.transpose(1, 2), series[..., ::2]]
    inputs += [
        series[:1],
        series[:, :1].expand(2, 3, 8),
        volume,
        volume.contiguous(memory_format=torch.channels_last_3d),
    ]
    inputs += [volume[:, :1].expand(2, 3, 4, 5, 6), volume[:1].transpose(2, 4), volume[:, :, ::2]]
    for x in inputs:
        parameters = [torch.randn(x.shape[1]).to(dtype) for _ in range(2)]
        compare(lambda f, x, w, b: f.batch_norm(x, *statistics(x), w, b, training), [x.to(dtype), *parameters])


MATRICES = {
    "row-major": lambda n, k: randn(n, k),
    "transposed": lambda n, k: randn(k, n).t(),
    "columns sliced": lambda n, k: randn(n, k + 3)[:, 1 : k + 1],
    "rows of a transpose sliced": lambda n, k: randn(k, n + 2)[:, 1 : n + 1].t(),
    "columns of a transpose sliced": lambda n, k: randn(k + 2, n)[1 : k + 1].t(),
    "every second column": lambda n, k: randn(n, 2 * k)[:, ::2],
    "row expanded": lambda n, k: randn(1, k).expand(n, k),
    "column expanded": lambda n, k: randn(n, 1).expand(n, k),
    "one number expanded": lambda n, k: randn(1, 1).expand(n, k),
    "overlapping": lambda n, k: torch.as_strided(randn(100), (n, k), (3, 7)),
}
STACKS = {
    "row-major": lambda b, n, k: randn(b, n, k),
    "matrices transposed": lambda b, n, k: randn(b, k, n).transpose(1, 2),
    "batch second": lambda b, n, k: randn(n, b, k).transpose(0, 1),
    "columns of all rows": lambda b, n, k: randn(k, b, n).permute(1, 2, 0),
    "columns of all rows, batch inside": lambda b, n, k: randn(k, n, b).permute(2, 1, 0),
    "columns of all rows, sliced": lambda b, n, k: randn(k + 2, b, n)[1 : k + 1].permute(1, 2, 0),
    "columns of sliced rows": lambda b, n, k: randn(k, b, n + 2)[:, :, 1 : n + 1].permute(1, 2, 0),
    "features sliced": lambda b, n, k: randn(b, n, k + 2)[..., 1 : k + 1],
    "rows sliced": lambda b, n, k: randn(b, n + 2, k)[:, 1 : n + 1],
    "batch expanded": lambda b, n, k: randn(1, n, k).expand(b, n, k),
    "rows expanded": lambda b, n, k: randn(b, 1, k).expand(b, n, k),
    "every second feature": lambda b, n, k: randn(b, n, 2 * k)[..., ::2],
}
# a gradient that torch lays out by whether the other one is wanted
NEEDS = [(True, True, True), (True, False, True), (False, True, False), (True, False, False)]


def compare_linear(tensors, needs, grads):
    """As :func:`compare`, with gradients of some tensors alone; ``grads`` makes them of the output's shape."""
    outputs, leaves = [], []
    for f in (F, PF):
        held = [t.detach().requires_grad_(need) for t, need in zip(tensors, needs, strict=True)]
        leaves.append([t for t in held if t.requires_grad])
        outputs.append(f.linear(*held[: len(tensors)]))
    assert outputs[1].stride() == outputs[0].stride()
    for make in grads:
        grad = make(outputs[0].shape, tensors[0].dtype)
        expected, actual = (
            torch.autograd.grad(y, x, grad, retain_graph=True) for y, x in zip(outputs, leaves, strict=True)
        )
        assert [t.stride() for t in actual] == [t.stride() for t in expected], (
            [(t.shape, t.stride()) for t in tensors],
            needs,
        )


GRADS = [
    lambda size, dtype: torch.ones(size, dtype=dtype),
    lambda size, dtype: torch.ones((), dtype=dtype).expand(size),
    lambda size, dtype: torch.ones(*size[::-1], dtype=dtype).permute(*range(len(size) - 1, -1, -1)),
]


@pytest.mark.parametrize("of_weight", MATRICES)
@pytest.mark.parametrize("layout", MATRICES)
def test_linear(layout, of_weight):
    # one row, one feature, none: dimensions of size 1 have strides that say nothing
    for n, k, o in ((3, 2, 4), (1, 2, 3), (3, 1, 4), (3, 2, 1), (1, 1, 1), (1, 3, 1), (2, 2, 2), (0, 2, 3)):
        tensors = MATRICES[layout](n, k), MATRICES[of_weight](o, k), torch.randn(2 * o)[::2]
        compare_linear(tensors, (True, True, True), GRADS)
        if 0 not in tensors[0].stride() + tensors[1].stride():  # whose strides a copy keeps
            compare_linear([t.bfloat16() for t in tensors], (True, True, True), GRADS[:1])


@pytest.mark.parametrize("of_weight", ["row-major", "transposed", "columns sliced"])
@pytest.mark.parametrize("layout", STACKS)
def test_linear_of_other_ranks(layout, of_weight):
    for b, n, k in ((2, 3, 2), (1, 3, 2), (2, 1, 3), (1, 1, 2), (2, 3, 1), (1, 1, 1), (2, 0, 3)):
        x, w = STACKS[layout](b, n, k), MATRICES[of_weight](4, k)
        for input in (x, x[None], x.unsqueeze(2), x[0, :1].squeeze(0)):
            for needs in NEEDS:
                compare_linear((input, w, torch.randn(4)), needs, GRADS[:2])
                compare_linear((input, w), needs[:2], GRADS[:1])


@pytest.mark.parametrize("of_key", ["row-major", "transposed", "channels first", "permuted from NHWC"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention(layout, of_key):
    for n, heads, rows, width in (*SHAPES, (2, 4, 1, 3)):
        tensors = [LAYOUTS[layout](n, heads, rows, width)]
        tensors += [LAYOUTS[name](n, heads, 7, width) for name in (of_key, layout)]
        for p in (0.0, 0.5):
            compare(lambda f, q, k, v, p=p: f.scaled_dot_product_attention(q, k, v, dropout_p=p), tensors)
        compare(lambda f, q, k, v: f.scaled_dot_product_attention(q[0], k[0], v[0], is_causal=True), tensors)


@pytest.mark.parametrize("layout", STACKS)
@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm"])
def test_recurrent(kind, layout):
    """torch.nn.functional has no such functions: both are reached through torch's layer."""
    for batch_first in (False, True):
        layer = getattr(torch.nn, "RNN" if kind == "rnn_tanh" else kind.upper())(3, 5, batch_first=batch_first)
        ours = pydl.swap(copy.deepcopy(layer))
        for steps, batch in ((4, 6), (1, 9), (9, 1)):
            input = STACKS[layout](*((batch, steps) if batch_first else (steps, batch)), 3)
            found = []
            for net in (layer, ours):
                x = input.detach().requires_grad_()
                output, state = net(x)
                grads = torch.autograd.grad(output, [x, *net.parameters()], torch.ones(output.shape))
                states = state if kind == "lstm" else (state,)
                found.append([t.stride() for t in (output, *states, *grads)])
            assert found[0] == found[1], (steps, batch, batch_first)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unbatched(layout):
    input = LAYOUTS[layout](1, 3, 5, 6)[0]
    for call in (
        lambda f, x: f.max_pool2d(x, 2, return_indices=True),
        lambda f, x: f.avg_pool2d(x, 2),
        lambda f, x: f.conv2d(x, torch.ones(4, 3, 3, 3)),
        lambda f, x: f.dropout(x, 0.5),
    ):
        compare(call, [input])


def test_grey_image_then_view():
    """The call that failed: three equal channels, a layer, ``view``."""
    image = torch.randn(2, 1, 8, 8).expand(2, 3, 8, 8)
    for output in (PF.conv2d(image, torch.randn(4, 3, 3, 3)), PF.max_pool2d(image, 2), PF.avg_pool2d(image, 2)):
        assert output.view(2, -1).shape[0] == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fakes_predict_them(layout):
    for shape in SHAPES:
        real = LAYOUTS[layout](*shape)
        with FakeTensorMode() as mode:
            fake = mode.from_tensor(real)
        calls = {name: lambda x, call=call: call(PF, x) for name, call in CALLS.items()}
        calls |= {
            "conv2d": lambda x: PF.conv2d(x, torch.ones(4, x.shape[1], 1, 1)),
            "layer_norm": lambda x: PF.layer_norm(x, x.shape[3:]),
            "rms_norm": lambda x: PF.rms_norm(x, x.shape[1:]),
            "group_norm": lambda x: PF.group_norm(x, 1),
            "scaled_dot_product_attention": lambda x: PF.scaled_dot_product_attention(x, x, x),
            "batch_norm": lambda x: PF.batch_norm(x, None, None, training=True),
            "max_pool2d": lambda x: PF.max_pool2d(x, 1),
            "avg_pool2d": lambda x: PF.avg_pool2d(x, 1),
        }
        for name, call in calls.items():
            with mode:
                predicted = call(fake).stride()
            assert predicted == call(real).stride(), name


@pytest.mark.parametrize("of_weight", ["row-major", "transposed"])
@pytest.mark.parametrize("layout", STACKS)
def test_fakes_predict_those_of_linear(layout, of_weight):
    for b, n, k in ((2, 3, 2), (1, 3, 2), (2, 3, 1), (2, 0, 3)):
        for real in (STACKS[layout](b, n, k), STACKS[layout](b, n, k)[0]):
            tensors = [real, MATRICES[of_weight](4, k), torch.randn(4)]
            with FakeTensorMode() as mode:
                fakes = [mode.from_tensor(t) for t in tensors]
            found = []
            for leaves in (tensors, fakes):
                leaves = [t.detach().requires_grad_() for t in leaves]
                output = PF.linear(*leaves)
                grads = torch.autograd.grad(output, leaves, torch.ones_like(output))
                found.append([t.stride() for t in (output, *grads)])
            assert found[0] == found[1]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_linear_cross_entropy(reduction):
    """Of input and weight in every layout of a matrix; the loss is scaled, made twice, and differentiated again."""
    for of_input, of_weight in itertools.product(MATRICES, MATRICES):
        tensors, target = (MATRICES[of_input](5, 4), MATRICES[of_weight](3, 4), torch.randn(3)), torch.arange(5) % 3
        found = []
        for ours in (True, False):
            leaves = [t.detach().requires_grad_() for t in tensors]
            x, w, b = leaves
            if ours:
                loss = PF.linear_cross_entropy(x, w, target, linear_bias=b, reduction=reduction)
            else:
                loss = F.cross_entropy(F.linear(x, w, b), target, reduction=reduction)
            grads = [torch.autograd.grad(loss, leaves, torch.ones_like(loss), retain_graph=True) for _ in range(2)]
            grads.append(torch.autograd.grad(loss, leaves, torch.ones_like(loss), create_graph=True))
            found.append([[g.stride() for g in gs] for gs in grads])
        assert found[0] == found[1], (of_input, of_weight)
