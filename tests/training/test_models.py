"""pydl.models: the registry, and each model's shape, parameters, FLOPs and gradients."""

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import pydl

# language models: test_language.py; translators: test_translation.py
NAMES = sorted({name for kind in ("classifier", "regression") for name in pydl.models.names(kind)})
CLASSIFIERS = pydl.models.names("classifier")
# options and input that keep a step of the large ones short
SMALL = {
    "alexnet": ({}, (1, 65, 65)),
    "vgg11": ({"ratio": 16}, (1, 32, 32)),
    "vgg16": ({"ratio": 16}, (1, 32, 32)),
    "nin": ({}, (1, 67, 67)),
    "googlenet": ({}, (1, 32, 32)),
    "resnet18": ({}, (1, 32, 32)),
    "resnet50": ({}, (1, 32, 32)),
    "resnext50": ({}, (1, 32, 32)),
    "preact_resnet18": ({}, (1, 32, 32)),
    "wide_resnet": ({"depth": 10, "width": 2}, (1, 16, 16)),
    "densenet": ({}, (1, 32, 32)),
}
# parameters as torchvision's documentation gives them, three channels and 1,000 classes
TORCHVISION = {
    "alexnet": ({"variant": "torchvision"}, 61_100_840),
    "googlenet": ({"variant": "torchvision"}, 6_624_904),
    "resnet18": ({"variant": "torchvision"}, 11_689_512),
    "resnet50": ({}, 25_557_032),
    "resnext50": ({}, 25_028_904),
    "vgg11": ({}, 132_863_336),
    "vgg16": ({"variant": "torchvision"}, 138_357_544),
}


def documented_input(name):
    """(C, H, W), or (features), of the docstring."""
    text = re.search(r"Input: \(N, ([\d, ]+)\)", pydl.models.builder(name).__doc__)[1]
    return tuple(int(number) for number in text.split(","))


def number(name, label):
    """The figure that a model's docstring gives after ``label``."""
    return int(re.search(label + r": ([\d,]+)", pydl.models.builder(name).__doc__)[1].replace(",", ""))


def small(name, batch=2, **options):
    """A model cheap enough to run, and an input for it."""
    small_options, shape = SMALL.get(name, ({}, documented_input(name)))
    if name in CLASSIFIERS:
        options = {"in_channels": shape[0], "input_size": shape[-1], **options}
    return pydl.models.get(name, **small_options, **options), torch.randn(batch, *shape)


def count(net):
    return sum(p.numel() for p in net.parameters())


def test_names():
    assert {"softmax_regression", "mlp", "lenet", "lenet_bn"} <= set(NAMES)
    assert sorted(NAMES) == NAMES
    assert pydl.models.names("regression") == ["linear_regression", "polynomial_regression", "weight_decay"]
    assert sorted([*CLASSIFIERS, *pydl.models.names("regression")]) == NAMES


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match=r"expected the name to be one of .*lenet, lenet_bn.*, got 'lenet5'"):
        pydl.models.get("lenet5")


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match=r"lenet\(\) .*'depth'"):
        pydl.models.get("lenet", depth=3)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_flops_are_those_of_the_docstring(name):
    shape = documented_input(name)
    options = {"in_channels": shape[0]} if name in CLASSIFIERS else {}
    with torch.device("meta"), pydl.backend.use("torch"), FlopCounterMode(display=False) as counter:
        net = pydl.models.get(name, **options)
        net.eval()(torch.empty(1, *shape))
    assert count(net) == number(name, "Parameters")
    assert counter.get_total_flops() == number(name, "FLOPs")


@pytest.mark.parametrize("name", TORCHVISION)
def test_parameters_are_torchvisions(name):
    options, parameters = TORCHVISION[name]
    with torch.device("meta"):
        assert count(pydl.models.get(name, num_classes=1000, in_channels=3, **options)) == parameters


@pytest.mark.parametrize("depth, width, millions", [(40, 4, 8.9), (16, 8, 11.0), (22, 8, 17.2), (28, 10, 36.5)])
def test_wide_resnet_has_the_parameters_of_the_paper(depth, width, millions):
    with torch.device("meta"):
        net = pydl.models.get("wide_resnet", in_channels=3, depth=depth, width=width)
    assert round(count(net) / 1e6, 1) == millions


@pytest.mark.parametrize("name", NAMES)
def test_docstring_names_its_source(name):
    assert re.search(r"Source: \S", pydl.models.builder(name).__doc__)


@pytest.mark.parametrize("name", NAMES)
def test_one_step_reaches_every_parameter(name):
    net, x = small(name)
    output = net(x)
    assert output.shape == (2, 10 if name in CLASSIFIERS else 1)
    output.square().sum().backward()
    for key, p in net.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key


@pytest.mark.parametrize("name", NAMES)
def test_same_outputs_as_with_torchs_kernels(name):
    net, x = small(name)
    net.eval()
    with torch.no_grad():
        actual = net(x)
        with pydl.backend.use("torch"):
            expected = net(x)
    scale = expected.abs().max()
    torch.testing.assert_close(actual / scale, expected / scale, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_layers_that_pydl_has_are_pydls(name):
    for row in pydl.report(small(name)[0]).rows:
        assert row.reason == "" or row.reason.startswith("pydl has no kernel"), row


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classes_and_channels(name):
    net, x = small(name, num_classes=7, in_channels=2)
    assert net.eval()(x[:, :1].expand(-1, 2, -1, -1)).shape == (2, 7)


@pytest.mark.parametrize("name", ["softmax_regression", "mlp", "lenet", "lenet_bn", "cifar_net"])
def test_channels_and_input_size(name):
    net = pydl.models.get(name, in_channels=3, input_size=24)
    assert net(torch.randn(2, 3, 24, 24)).shape == (2, 10)


def test_mlp_options():
    net = pydl.models.get("mlp", hidden=(30,), dropout=(0.1,))
    assert [m.p for m in net if isinstance(m, pydl.nn.Dropout)] == [0.1]
    with pytest.raises(ValueError, match="expected dropout to have 1 probabilities"):
        pydl.models.get("mlp", hidden=(30,))


# The state dicts of torchvision, name by name, written down from its architectures and not from our code.


def _norm(name, channels):
    vectors = {f"{name}.{key}": (channels,) for key in ("weight", "bias", "running_mean", "running_var")}
    return vectors | {f"{name}.num_batches_tracked": ()}


def _affine(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def torchvision_resnet(depths, bottleneck, groups=1, base=64):
    state = {"conv1.weight": (64, 3, 7, 7), **_norm("bn1", 64)}
    channels = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        output = width * 4 if bottleneck else width
        for block in range(depth):
            name = f"layer{stage + 1}.{block}"
            if bottleneck:
                inner = width * base // 64 * groups
                convs = [(inner, channels, 1, 1), (inner, inner // groups, 3, 3), (output, inner, 1, 1)]
            else:
                convs = [(width, channels, 3, 3), (width, width, 3, 3)]
            for i, shape in enumerate(convs, start=1):
                state |= {f"{name}.conv{i}.weight": shape, **_norm(f"{name}.bn{i}", shape[0])}
            if channels != output:
                state |= {f"{name}.downsample.0.weight": (output, channels, 1, 1)}
                state |= _norm(f"{name}.downsample.1", output)
            channels = output
    return state | _affine("fc", 1000, channels)


def torchvision_googlenet():
    def conv(name, *shape):
        return {f"{name}.conv.weight": shape, **_norm(f"{name}.bn", shape[0])}

    state = conv("conv1", 64, 3, 7, 7) | conv("conv2", 64, 64, 1, 1) | conv("conv3", 192, 64, 3, 3)
    widths = """3a 192 64 96 128 16 32 32, 3b 256 128 128 192 32 96 64, 4a 480 192 96 208 16 48 64,
        4b 512 160 112 224 24 64 64, 4c 512 128 128 256 24 64 64, 4d 512 112 144 288 32 64 64,
        4e 528 256 160 320 32 128 128, 5a 832 256 160 320 32 128 128, 5b 832 384 192 384 48 128 128"""
    for text in widths.split(","):
        name, *numbers = text.split()
        c, one, reduce3, three, reduce5, five, pool = map(int, numbers)
        name = f"inception{name}"
        state |= conv(f"{name}.branch1", one, c, 1, 1)
        state |= conv(f"{name}.branch2.0", reduce3, c, 1, 1) | conv(f"{name}.branch2.1", three, reduce3, 3, 3)
        state |= conv(f"{name}.branch3.0", reduce5, c, 1, 1) | conv(f"{name}.branch3.1", five, reduce5, 3, 3)
        state |= conv(f"{name}.branch4.1", pool, c, 1, 1)
    return state | _affine("fc", 1000, 1024)


def torchvision_vgg11():
    convs = {0: (64, 3), 3: (128, 64), 6: (256, 128), 8: (256, 256), 11: (512, 256), 13: (512, 512), 16: (512, 512)}
    state = {}
    for i, (out, c) in (convs | {18: (512, 512)}).items():
        state |= _affine(f"features.{i}", out, c, 3, 3)
    for i, shape in {0: (4096, 25088), 3: (4096, 4096), 6: (1000, 4096)}.items():
        state |= _affine(f"classifier.{i}", *shape)
    return state


def torchvision_vgg16():
    convs = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128), 12: (256, 256), 14: (256, 256)}
    convs |= {17: (512, 256), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}
    state = {}
    for i, (out, c) in convs.items():
        state |= _affine(f"features.{i}", out, c, 3, 3)
    for i, shape in {0: (4096, 25088), 3: (4096, 4096), 6: (1000, 4096)}.items():
        state |= _affine(f"classifier.{i}", *shape)
    return state


def torchvision_alexnet():
    convs = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    state = {}
    for i, shape in convs.items():
        state |= _affine(f"features.{i}", *shape)
    for i, shape in {1: (4096, 9216), 4: (4096, 4096), 6: (1000, 4096)}.items():
        state |= _affine(f"classifier.{i}", *shape)
    return state


TORCHVISION_STATES = {
    "alexnet": torchvision_alexnet(),
    "googlenet": torchvision_googlenet(),
    "resnet18": torchvision_resnet((2, 2, 2, 2), bottleneck=False),
    "resnet50": torchvision_resnet((3, 4, 6, 3), bottleneck=True),
    "resnext50": torchvision_resnet((3, 4, 6, 3), bottleneck=True, groups=32, base=4),
    "vgg11": torchvision_vgg11(),
    "vgg16": torchvision_vgg16(),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_state_dicts_of_torchvision_load(name):
    shapes = TORCHVISION_STATES[name]
    with torch.device("meta"):
        net = pydl.models.get(name, num_classes=1000, in_channels=3, **TORCHVISION[name][0])
        state = {
            key: torch.zeros(shape, dtype=torch.int64 if key.endswith("tracked") else torch.float32)
            for key, shape in shapes.items()
        }
    net.load_state_dict(state)
    assert list(net.state_dict()) == list(state)  # torchvision's order too


BAD_OPTIONS = [
    ("alexnet", {"input_size": 64}, "input_size"),
    ("alexnet", {"variant": "paper"}, "variant to be one of book, torchvision, got 'paper'"),
    ("vgg11", {"input_size": 100}, "a multiple of 32, got 100"),
    ("vgg11", {"ratio": 3}, "ratio"),
    ("vgg16", {"variant": "paper"}, "variant to be one of book, torchvision, got 'paper'"),
    ("googlenet", {"variant": 1}, "variant"),
    ("resnet18", {"variant": ""}, "variant"),
    ("wide_resnet", {"depth": 17}, "6 n"),
    ("wide_resnet", {"width": 0}, "width"),
    ("polynomial_regression", {"degree": -1}, "degree"),
    ("densenet", {"input_size": 28}, "input_size to be at least 29, got 28"),
    ("densenet", {"growth": 0}, "growth to be at least 1, got 0"),
    ("densenet", {"blocks": (4, 0)}, "block 2 to be at least 1, got 0"),
    ("densenet", {"blocks": ()}, "blocks to have a number of layers"),
    ("lenet", {"input_size": 11}, "input_size to be at least 12, got 11"),
    ("cifar_net", {"input_size": 7}, "input_size to be at least 8"),
    ("nin", {"input_size": 66}, "input_size to be at least 67"),
    *((name, {"input_size": 0}, "input_size to be at least 1") for name in ("googlenet", "resnet18", "resnet50")),
    *(
        (name, {"input_size": 0}, "input_size to be at least 1")
        for name in ("resnext50", "preact_resnet18", "wide_resnet")
    ),
]


@pytest.mark.parametrize("name, options, message", BAD_OPTIONS)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=f"{name}: expected .*{message}"):
        pydl.models.get(name, **options)


def test_polynomial_features():
    net = pydl.models.get("polynomial_regression", degree=4)
    x = torch.tensor([[-2.0], [0.0], [3.0]])
    expected = torch.tensor([[1, v, v**2 / 2, v**3 / 6, v**4 / 24] for v in (-2.0, 0.0, 3.0)])
    torch.testing.assert_close(net[0](x), expected)
    assert list(net.state_dict()) == ["1.weight"]
