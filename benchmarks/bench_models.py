"""One training step of whole models: forward, loss, backward, SGD; swapped and fused, beside torch's two ways.

In float32 and, under torch.autocast, in bfloat16, and with images in NCHW and in channels_last: of these four the user
picks, so torch's best of them counts as well. In float32 and NCHW also by our own backend of torch.compile (the ratio
is that of eager mode), and beside the same step in JAX and TensorFlow where they are installed, and torch's with MKL's
own path (peers.py).
"""

import copy

import pytest
import torch
from runner import Case
from steps import LEARNING_RATE, Boxes, Step, plain, trained
from torch import nn

import pydl
from pydl import models

VOC, CROP = 20, (320, 480)  # classes of Pascal VOC, and the book's crop


def case(
    name,
    batch,
    channels,
    size,
    target,
    quick=False,
    dtype=torch.float32,
    channels_last=False,
    objects=None,
    peers=True,
    compiles=True,
    label=None,
):
    """A case of images of ``size``, a number or (height, width).

    For what no peer has ``objects`` is (loss, maker of a batch's targets, the model's options); label: in place of the
    model's name. Without ``compiles``, which takes half a minute for large images, eager mode alone takes part.
    """
    sides = (size, size) if isinstance(size, int) else size
    loss, targets, given = objects or (nn.CrossEntropyLoss, labels, {})
    autocast = None if dtype == torch.float32 else dtype
    ours, theirs = Step(autocast), Step(autocast)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    usual = dtype == torch.float32 and not channels_last

    def inputs():
        theirs.net = plain(getattr(models, name)(**given)).to(memory_format=layout)
        theirs.loss, ours.loss = loss(), loss()
        ours.net = copy.deepcopy(theirs.net)
        pydl.swap(ours)
        images = torch.randn(batch, channels, *sides).contiguous(memory_format=layout)
        return [images, targets(batch)]

    def check(run, x, label):
        """A few steps on copies, dropout off, beside torch in float64; the tests do fifty."""
        reference, twin = copy.deepcopy(theirs).double(), copy.deepcopy(ours)
        reference.autocast = None
        for layer in [*reference.modules(), *twin.modules()]:
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        steps = trained(twin), trained(reference)
        # a deep network multiplies what rounding leaves
        for tolerance in (1e-5, 1e-3, 1e-2) if dtype == torch.float32 else (3e-2, 6e-2, 1e-1):
            loss, expected = steps[0](x, label)[0].double(), steps[1](x.double(), label)[0]
            close = abs(loss - expected) < tolerance * abs(expected)
            assert close, f"{name}: loss {loss:.8g}, torch in float64 {expected:.8g}"

    return Case(
        "models",
        f"{label or name}, N {batch}" + (", channels_last" if channels_last else ""),
        inputs,
        ours,
        theirs,
        trained,
        dtype=dtype,
        target=(target, target),
        quick=quick,
        check=check,
        compile=usual and compiles,
        backend=usual and compiles,
        peers=(
            lambda: (
                theirs.net,
                {"model": name, "input": [batch, channels, size, size], "learning_rate": LEARNING_RATE},
            )
        )
        if usual and objects is None and peers
        else None,
    )


def labels(batch):
    return torch.randint(10, (batch,))


def masks(batch):
    return torch.randint(VOC + 1, (batch, *CROP))


def boxes(batch):
    """A target of :class:`steps.Boxes`: 20 of the 5,444 anchors at 256×256 have an object."""
    target = torch.zeros(batch, 5444, 5)
    target[:, torch.randperm(5444)[:20]] = torch.cat(
        (torch.randint(1, 11, (batch, 20, 1)), torch.randn(batch, 20, 4)), 2
    )
    return target


def formats(*shape, target, **options):
    """The other three ways to train a model; `target`: in bfloat16."""
    return [
        case(*shape, 1.0, channels_last=True, **options),
        case(*shape, target, dtype=torch.bfloat16, **options),
        case(*shape, target, dtype=torch.bfloat16, channels_last=True, **options),
    ]


# the book's: a quarter of the channels
VGG11 = {"objects": (nn.CrossEntropyLoss, labels, {"ratio": 4}), "label": "vgg11/4", "compiles": False}
NIN = {"peers": False, "compiles": False}


CASES = [
    case("lenet", 256, 1, 28, 1.5, quick=True),
    case("lenet_bn", 256, 1, 28, 1.8),
    case("cifar_net", 64, 3, 32, 1.4),
    case("resnet18", 32, 1, 96, 1.8),
    case("mlp", 256, 1, 28, 1.2, quick=True),
    case("ssd", 16, 3, 256, 2.5, objects=(Boxes, boxes, {})),
    case("fcn", 8, 3, CROP, 4.0, objects=(nn.CrossEntropyLoss, masks, {"num_classes": VOC})),
    case("densenet", 32, 1, 96, 2.0, peers=False),  # nothing of the peers puts layers side by side
    case("vgg11", 16, 1, 224, 3.0, **VGG11),
    case("nin", 16, 1, 224, 1.8, **NIN),
    *formats("lenet", 256, 1, 28, target=3.8),
    *formats("cifar_net", 64, 3, 32, target=1.4),
    *formats("resnet18", 32, 1, 96, target=1.9),
    *formats("vgg11", 16, 1, 224, target=2.4, **VGG11),
    *formats("nin", 16, 1, 224, target=1.2, **NIN),
    case("mlp", 256, 1, 28, 3.0, dtype=torch.bfloat16),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_models(case, compare):
    compare(case)
