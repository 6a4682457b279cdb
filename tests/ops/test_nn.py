"""pydl.nn: torch.nn's arguments, state_dict, repr and numbers, on our kernels."""

import copy
import importlib
import inspect
import pkgutil

import pytest
import torch
import torch.nn.utils.prune as prune
from grid import ROWS
from testing import assert_close
from torch import nn

import pydl

# class, constructor arguments, input shape: what one call needs
LAYERS = [
    *((row.layer, row.of_layer, (5, 7)) for row in ROWS.values()),
    ("Conv2d", {"in_channels": 4, "out_channels": 6, "kernel_size": 3}, (2, 4, 9, 8)),
    ("ConvTranspose2d", {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2}, (2, 4, 5, 6)),
    ("Linear", {"in_features": 7, "out_features": 6}, (5, 7)),
    ("LayerNorm", {"normalized_shape": (3, 7)}, (5, 3, 7)),
    ("GroupNorm", {"num_groups": 2, "num_channels": 6}, (5, 6, 7)),
    ("InstanceNorm1d", {"num_features": 4, "affine": True}, (3, 4, 5)),
    ("InstanceNorm2d", {"num_features": 4, "track_running_stats": True}, (3, 4, 5, 6)),
    ("InstanceNorm3d", {"num_features": 4}, (3, 4, 2, 5, 3)),
    ("LazyInstanceNorm1d", {}, (3, 4, 5)),
    ("LazyInstanceNorm2d", {}, (3, 4, 5, 6)),
    ("LazyInstanceNorm3d", {}, (3, 4, 2, 5, 3)),
    ("RMSNorm", {"normalized_shape": 7}, (5, 7)),
    ("Softmax2d", {}, (2, 5, 7, 3)),
    ("BatchNorm1d", {"num_features": 4}, (8, 4)),
    ("BatchNorm2d", {"num_features": 4}, (3, 4, 5, 6)),
    ("BatchNorm3d", {"num_features": 4}, (3, 4, 2, 5, 3)),
    ("SyncBatchNorm", {"num_features": 4}, (3, 4, 5, 6)),
    ("Dropout", {"p": 0.3}, (5, 7)),
    ("Dropout1d", {"p": 0.3}, (5, 7, 3)),
    ("Dropout2d", {"p": 0.3}, (5, 7, 3, 2)),
    ("Dropout3d", {"p": 0.3}, (5, 7, 3, 2, 2)),
    ("MaxPool2d", {"kernel_size": 3, "stride": 2, "padding": 1}, (2, 3, 9, 8)),
    ("AvgPool2d", {"kernel_size": 3, "stride": 2, "ceil_mode": True}, (2, 3, 9, 8)),
    ("Conv1d", {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1}, (2, 4, 9)),
    ("ConvTranspose1d", {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2}, (2, 4, 5)),
    ("MaxPool1d", {"kernel_size": 3, "stride": 2, "padding": 1}, (2, 3, 9)),
    ("AvgPool1d", {"kernel_size": 3, "stride": 2, "ceil_mode": True}, (2, 3, 9)),
    ("AdaptiveAvgPool1d", {"output_size": 3}, (2, 3, 9)),
    ("AdaptiveAvgPool2d", {"output_size": 1}, (2, 3, 9, 8)),
    ("AdaptiveMaxPool1d", {"output_size": 3}, (2, 3, 9)),
    ("AdaptiveMaxPool2d", {"output_size": (3, 2)}, (2, 3, 9, 8)),
    ("Conv3d", {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1}, (2, 4, 5, 6, 7)),
    ("MaxPool3d", {"kernel_size": 3, "stride": 2, "padding": 1}, (2, 3, 5, 9, 8)),
    ("AvgPool3d", {"kernel_size": 3, "stride": 2, "ceil_mode": True}, (2, 3, 5, 9, 8)),
    ("AdaptiveAvgPool3d", {"output_size": 1}, (2, 3, 4, 9, 8)),
    ("AdaptiveMaxPool3d", {"output_size": (2, 3, 2)}, (2, 3, 4, 9, 8)),
    ("LazyConv3d", {"out_channels": 6, "kernel_size": 3}, (2, 4, 5, 6, 7)),
    ("LazyConv1d", {"out_channels": 6, "kernel_size": 3}, (2, 4, 9)),
    ("LazyConvTranspose1d", {"out_channels": 6, "kernel_size": 3}, (2, 4, 5)),
    ("LazyConv2d", {"out_channels": 6, "kernel_size": 3}, (2, 4, 9, 8)),
    ("LazyConvTranspose2d", {"out_channels": 6, "kernel_size": 3}, (2, 4, 5, 6)),
    ("LazyLinear", {"out_features": 6, "bias": False}, (5, 7)),
    ("LazyBatchNorm1d", {}, (8, 4)),
    ("LazyBatchNorm2d", {}, (3, 4, 5, 6)),
    ("LazyBatchNorm3d", {}, (3, 4, 2, 5, 3)),
]
# tested beside their functions: they take a target, several tensors or numbers of rows; torch has the last from 2.13 on
ELSEWHERE = {"CrossEntropyLoss", "Embedding", "EmbeddingBag", "GRU", "LSTM", "MultiheadAttention", "RNN"} | (
    {"LinearCrossEntropyLoss"} if hasattr(nn, "LinearCrossEntropyOptions") else set()
)
ELSEWHERE |= {"GRUCell", "LSTMCell", "RNNCell"}
ELSEWHERE |= {"BCEWithLogitsLoss", "HuberLoss", "L1Loss", "MSELoss", "SmoothL1Loss"}


def pair(name, **options):
    """torch's layer in float64, the oracle, and ours in float32 with the same weights."""
    expected, actual = getattr(nn, name)(**options), getattr(pydl.nn, name)(**options)
    if not name.startswith("Lazy"):
        actual.load_state_dict(expected.state_dict())
    return expected.double(), actual


def assert_same_step(expected, actual, shape, device="cpu", scale=1.0):
    """Output, buffers and every gradient of one step with a gradient that is not all ones."""
    actual.to(device)
    x = torch.randn(shape)
    inputs = x.double().requires_grad_(), x.clone().to(device).requires_grad_()
    outputs = expected(inputs[0]), actual(inputs[1])
    assert_close(outputs[1], outputs[0], scale=scale)
    grad = torch.randn(outputs[1].shape)
    outputs[0].backward(grad.double())
    outputs[1].backward(grad.to(device))
    assert_close(inputs[1].grad, inputs[0].grad, scale=scale)
    for (name, p), q in zip(expected.named_parameters(), actual.parameters(), strict=True):
        assert p.grad is not None, name
        assert_close(q.grad, p.grad, scale=5 * scale)  # sums over batch and image
    for p, q in zip(expected.buffers(), actual.buffers(), strict=True):
        assert_close(q.double(), p.double(), torch.float32, scale=scale)


@pytest.mark.parametrize("name, options, shape", LAYERS, ids=[layer[0] for layer in LAYERS])
def test_same_face_as_torch(name, options, shape):
    theirs, ours = getattr(nn, name), getattr(pydl.nn, name)
    if name == "SyncBatchNorm":  # whose subclasses DistributedDataParallel refuses on a CPU
        words = [[(p.name, p.default) for p in inspect.signature(c).parameters.values()] for c in (ours, theirs)]
        assert set(words[1]) <= set(words[0])
    else:
        assert issubclass(ours, theirs)
        assert inspect.signature(ours) == inspect.signature(theirs)
    assert repr(ours(**options)) == repr(theirs(**options))
    assert list(ours(**options).state_dict()) == list(theirs(**options).state_dict())


@pytest.mark.parametrize("face, files", [(pydl.functional, pydl.ops), (pydl.nn, pydl.nn)], ids=["functional", "nn"])
def test_names_are_those_of_the_files(face, files):
    modules = [importlib.import_module(f"{files.__name__}.{m.name}") for m in pkgutil.iter_modules(files.__path__)]
    names = [name for module in modules for name in getattr(module, "__all__", ())]
    assert sorted(names) == face.__all__
    assert all(getattr(face, name).__doc__ for name in names)


def test_every_class_is_covered():
    assert {layer[0] for layer in LAYERS} | ELSEWHERE == set(pydl.nn.__all__)


@pytest.mark.best_isa
@pytest.mark.parametrize("stride, padding, dilation, groups", [(1, 0, 1, 1), (2, (2, 1), 1, 2), (1, "same", 2, 1)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_conv2d(device, stride, padding, dilation, groups, bias, padding_mode):
    expected, actual = pair(
        "Conv2d",
        in_channels=4,
        out_channels=6,
        kernel_size=(3, 4),  # even: "same" pads unequally
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
        padding_mode=padding_mode,
    )
    assert_same_step(expected, actual, (2, 4, 11, 9), device, scale=5)


@pytest.mark.best_isa
def test_conv2d_unbatched(device):
    assert_same_step(*pair("Conv2d", in_channels=3, out_channels=2, kernel_size=3), (3, 6, 7), device)


@pytest.mark.best_isa
@pytest.mark.parametrize("shape", [(8, 20), (20,), (2, 3, 20), (0, 20)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear(device, bias, shape):
    assert_same_step(*pair("Linear", in_features=20, out_features=9, bias=bias), shape, device, scale=5)


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_linear_with_an_activation(device, activation):
    expected, actual = pair("Linear", in_features=20, out_features=9)
    x = torch.randn(8, 20)
    assert_close(
        actual.to(device)(x.to(device), activation=activation), getattr(torch, activation)(expected(x.double()))
    )


@pytest.mark.best_isa
@pytest.mark.parametrize("shape", [(8, 3, 20), (3, 20), (0, 3, 20)], ids=str)
@pytest.mark.parametrize(
    "name, options",
    [
        ("LayerNorm", {}),
        ("LayerNorm", {"bias": False}),
        ("LayerNorm", {"elementwise_affine": False, "eps": 0.1}),
        ("RMSNorm", {"eps": 0.1}),
        ("RMSNorm", {"elementwise_affine": False, "eps": 0.1}),
    ],
)
def test_norms_of_rows(device, name, options, shape):
    for normalised in (20, (3, 20)):
        assert_same_step(*pair(name, normalized_shape=normalised, **options), shape, device, scale=5)


@pytest.mark.best_isa
@pytest.mark.parametrize("rank, shape", [(1, (8, 4)), (1, (6, 4, 5)), (2, (3, 4, 5, 6)), (3, (3, 4, 2, 5, 3))])
@pytest.mark.parametrize("momentum", [0.1, None, 0.0])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm(device, rank, shape, momentum, track, affine):
    expected, actual = pair(
        f"BatchNorm{rank}d", num_features=4, momentum=momentum, track_running_stats=track, affine=affine
    )
    for _ in range(3):  # a cumulative average depends on how many batches came before
        assert_same_step(expected, actual, shape, device, scale=20)
    expected.eval()
    actual.eval()
    assert_same_step(expected, actual, shape, device, scale=20)


def test_batch_norm_refuses_ranks_as_torch_does():
    with pytest.raises(ValueError, match="4D input"):
        pydl.nn.BatchNorm2d(3)(torch.randn(2, 3))


@pytest.mark.best_isa
@pytest.mark.parametrize(
    "name, shape", [("Dropout", (9, 50)), ("Dropout2d", (40, 30, 3, 2)), ("Dropout3d", (40, 30, 2, 3, 2))]
)
def test_dropout(device, name, shape):
    layer = getattr(pydl.nn, name)(0.25)
    x = torch.rand(shape, device=device) + 1
    y = layer(x)
    kept = y != 0
    assert 0.5 < kept.float().mean() < 0.95
    assert_close(y[kept], (x / 0.75)[kept].double())
    if name != "Dropout":
        per_channel = kept.flatten(2)
        assert torch.equal(per_channel.all(2), per_channel.any(2))
    assert layer.eval()(x) is x
    inplace = getattr(pydl.nn, name)(0.25, inplace=True)
    assert inplace(x) is x
    assert (x == 0).any()


@pytest.mark.best_isa
@pytest.mark.parametrize(
    "options",
    [{}, {"reduction": "sum"}, {"reduction": "none"}, {"ignore_index": 2, "label_smoothing": 0.1}, {"weight": True}],
)
def test_cross_entropy_loss(device, options):
    if "weight" in options:
        options = {"weight": torch.rand(5)}
    expected, actual = nn.CrossEntropyLoss(**options).double(), pydl.nn.CrossEntropyLoss(**options).to(device)
    assert repr(expected) == repr(actual)
    target = torch.randint(5, (7,))
    logits = torch.randn(7, 5)
    inputs = logits.double().requires_grad_(), logits.to(device, copy=True).requires_grad_()
    losses = expected(inputs[0], target), actual(inputs[1], target.to(device))
    assert_close(losses[1], losses[0])
    for loss in losses:
        loss.pow(2).sum().backward()
    assert_close(inputs[1].grad, inputs[0].grad, scale=2)


@pytest.mark.parametrize("name, options, shape", [layer for layer in LAYERS if layer[0].startswith("Lazy")])
def test_lazy_becomes_ours(name, options, shape):
    torch.manual_seed(1)
    expected = getattr(nn, name)(**options)
    expected(torch.randn(shape))
    torch.manual_seed(1)
    actual = getattr(pydl.nn, name)(**options)
    assert isinstance(actual, getattr(pydl.nn, name.removeprefix("Lazy")))
    actual(torch.randn(shape))
    assert type(actual) is getattr(pydl.nn, name.removeprefix("Lazy"))
    assert repr(actual) == repr(expected)
    for p, q in zip(expected.state_dict().values(), actual.state_dict().values(), strict=True):
        assert_close(q.double(), p.double(), torch.float32)  # the same weights from the same seed
    assert_same_step(expected.double(), actual, shape, scale=20)


def test_lazy_takes_a_state_dict_before_its_first_input():
    net = pydl.nn.LazyConv2d(6, 3)
    net.load_state_dict(nn.Conv2d(4, 6, 3).state_dict())
    assert net(torch.randn(1, 4, 5, 5)).shape == (1, 6, 3, 3)


@pytest.mark.parametrize("name, options, shape", LAYERS, ids=[layer[0] for layer in LAYERS])
def test_torch_backend_gives_torchs_numbers_bit_for_bit(name, options, shape):
    torch.manual_seed(2)
    expected = getattr(nn, name)(**options)(torch.ones(shape))
    torch.manual_seed(2)
    with pydl.backend.use("torch"):
        actual = getattr(pydl.nn, name)(**options)(torch.ones(shape))
    assert torch.equal(actual, expected)


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
def test_dtypes(dtype):
    layer = pydl.nn.Conv2d(3, 4, 3).to(dtype)
    theirs = nn.Conv2d(3, 4, 3).to(dtype)
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 6, 6, dtype=dtype)
    output = layer(x)
    assert output.dtype == dtype
    tolerance = 5e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(output, theirs(x), rtol=tolerance, atol=tolerance)


def test_copies_and_state_dicts():
    net = nn.Sequential(pydl.nn.Conv2d(1, 2, 3), pydl.nn.BatchNorm2d(2))
    x = torch.randn(2, 1, 5, 5)
    twin = copy.deepcopy(net)
    assert torch.equal(twin(x), net(x))
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    plain.load_state_dict(net.state_dict())
    net.load_state_dict(plain.state_dict())


def by_torch(net, x):
    with pydl.backend.use("torch"):
        return net(x)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_torchscript_is_refused_in_words():
    for net in (pydl.nn.Conv2d(1, 2, 3), nn.Sequential(nn.ReLU(), pydl.nn.Dropout(0.5))):
        x = torch.randn(2, 1, 5, 5)
        with pytest.raises(RuntimeError, match=r"TorchScript: expected .* got pydl\.nn\."):
            torch.jit.script(net)
        net.eval()
        assert torch.equal(torch.jit.trace(net, (x,))(x), by_torch(net, x))


@pytest.mark.parametrize("training", [True, False])
def test_compile_fullgraph(training):
    net = nn.Sequential(pydl.nn.Conv2d(3, 4, 3), pydl.nn.BatchNorm2d(4), pydl.nn.Dropout(0.0), nn.Flatten())
    net.train(training)
    twin = copy.deepcopy(net)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x, target = torch.randn(2, 3, 6, 6), torch.tensor([1, 5])
    criterion = pydl.nn.CrossEntropyLoss()
    criterion(net(x), target).backward()
    torch.compile(criterion, fullgraph=True, backend="aot_eager")(compiled(x), target).backward()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert_close(q.grad, p.grad.double())
    for p, q in zip(net.buffers(), twin.buffers(), strict=True):
        assert_close(q.double(), p.double(), torch.float32)


def test_meta_tensors_give_shapes():
    with torch.device("meta"):
        net = nn.Sequential(pydl.nn.LazyConv2d(4, 3), pydl.nn.LazyBatchNorm2d(), pydl.nn.Dropout(0.5), nn.Flatten())
        output = net(torch.empty(2, 3, 6, 8))
        loss = pydl.nn.CrossEntropyLoss()(output, torch.empty(2, dtype=torch.int64))
    assert output.shape == (2, 4 * 4 * 6)
    assert loss.shape == ()
    assert output.is_meta
    loss.backward()
    assert net[0].weight.grad.shape == (4, 3, 3, 3)


# ---- what stands where a parameter or buffer stood, on the instance or on the class


def deleted_and_set(layer, name):
    """By a tensor that is no parameter, as replicas, weight_norm and pruning leave it."""
    value = getattr(layer, name) * 2
    delattr(layer, name)
    setattr(layer, name, value.detach())


def in_the_dict(layer, name):
    """Past the module: what the instance's __dict__ has comes first, and the parameter is still there."""
    layer.__dict__[name] = getattr(layer, name).detach() * 2


def pruned(layer, name):
    if name in ("weight", "bias"):
        prune.l1_unstructured(layer, name, amount=0.5)


def absent(layer, name):
    layer.__dict__["_parameters" if name in ("weight", "bias") else "_buffers"][name] = None


@pytest.mark.parametrize("change", [deleted_and_set, in_the_dict, pruned, absent], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_replaced_parts(name, change):
    for make, size in (
        (lambda n: n.Linear(4, 3), (5, 4)),
        (lambda n: n.Conv2d(2, 3, 3), (2, 2, 5, 5)),
        (lambda n: n.BatchNorm2d(2), (2, 2, 5, 5)),
    ):
        layers = make(torch.nn), make(pydl.nn)
        layers[1].load_state_dict(layers[0].state_dict())
        if name not in layers[0].state_dict():
            continue
        x = torch.randn(size)
        outcomes = []
        for layer in layers:
            change(layer.eval(), name)
            try:
                outcomes.append(layer(x))
            except (TypeError, RuntimeError, AttributeError) as error:
                outcomes.append(type(error))
        if isinstance(outcomes[0], type):
            assert outcomes[1] is outcomes[0]
        else:
            torch.testing.assert_close(outcomes[1], outcomes[0])


@pytest.mark.parametrize("of", [torch.nn.Linear, torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.LayerNorm])
def test_an_attribute_of_the_class_comes_first(of, monkeypatch):
    """``nn.Linear.bias = None`` hides the parameter of every layer; swapped ones do as torch's."""
    arguments = {torch.nn.Conv2d: (2, 3, 3), torch.nn.BatchNorm2d: (2,)}.get(
        of, (5, 5) if of is torch.nn.Linear else (5,)
    )
    layer, x = of(*arguments).eval(), torch.randn(2, 2, 5, 5)
    torch.nn.init.ones_(layer.bias)
    swapped = pydl.swap(copy.deepcopy(layer))
    before = layer(x)
    monkeypatch.setattr(of, "bias", None, raising=False)
    torch.testing.assert_close(swapped(x), layer(x))
    assert not torch.allclose(before, layer(x))
