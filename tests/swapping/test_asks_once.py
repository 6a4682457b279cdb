"""What a layer asks in Python at each call before it computes (pydl.aside): each thing once; in a plain call, nothing.

Counted, not timed: a question costs 20 to 70 ns, and a machine's moods more than that. What each costs is in
src/pydl/swapping/NOTES.md.
"""

import sys
from collections import Counter

import pytest
import torch
from grid import ROWS
from swap_models import LAYERS
from torch import nn
from torch.overrides import has_torch_function_variadic

import pydl
from pydl import _private, aside
from pydl.ops import _nodes
from pydl.swapping.rules import RULES

CALLS = {
    name: (build, (torch.randn(shape),)) for name, (build, shape, _) in LAYERS.items()
} | {"CrossEntropyLoss": (nn.CrossEntropyLoss, (torch.randn(4, 3), torch.tensor([0, 2, 1, 1])))}  # fmt: skip
if hasattr(nn, "LinearCrossEntropyOptions"):  # from torch 2.13 on
    CALLS["LinearCrossEntropyLoss"] = (lambda: nn.LinearCrossEntropyLoss(3, 5), CALLS["CrossEntropyLoss"][1])
BUILTINS = {
    has_torch_function_variadic: "types and modes",
    _private.tracing_state: "tracing",
    _private.functorch_active: "transforms",
}
FUNCTIONS = {
    aside.steps_aside.__code__: "steps_aside",
    aside.is_special.__code__: "is_special",
    aside.is_torchs.__code__: "is_torchs",
    _private.is_exporting.__code__: "exporting",
}


def questions(function, *args):
    """How often each was asked while ``function(*args)`` ran."""
    asked = Counter()

    def note(frame, event, arg):
        if event == "call":
            asked[FUNCTIONS.get(frame.f_code)] += 1
        elif event == "c_call":
            asked[next((name for builtin, name in BUILTINS.items() if arg == builtin), None)] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function(*args)
    finally:
        sys.setprofile(before)
    del asked[None]
    return dict(asked)


@pytest.fixture(params=["in C++", "in Python"])
def quick(request):
    """Whether plain calls take the quick way, which asks all in C++ (pydl.ops._nodes)."""
    on = request.param == "in C++"
    if on and _nodes.why_not is not None:
        pytest.skip(f"pydl._torch is not used: {_nodes.why_not}")
    _nodes.use(on)
    yield on
    _nodes.use(True)


def name_of(layer):
    """The name of its function."""
    losses = {"CrossEntropyLoss": "cross_entropy", "LinearCrossEntropyLoss": "linear_cross_entropy"}
    return LAYERS[layer][2] if layer in LAYERS else losses[layer]


CHOSEN_IN_PYTHON = "conv3d", "max_pool3d", "avg_pool3d"  # before their nodes are called


def has_quick_way(layer, training=True):
    """Whether a plain call of the layer has one."""
    name = name_of(layer)
    return name in _nodes.CALLS and name not in CHOSEN_IN_PYTHON and (layer != "Dropout" or training)


def at_most(name):
    """How often it may ask about transforms: torch's formula of an op of volumes asks too."""
    return 2 if name.endswith(("Pool3d", "Conv3d")) else 1


@pytest.mark.parametrize("training", [True, False], ids=["training", "no_grad"])
@pytest.mark.parametrize("of", ["swapped", "pydl.nn"])
@pytest.mark.parametrize("name", CALLS)
def test_a_layer_asks_each_thing_once(name, of, training, quick):
    build, (x, *rest) = CALLS[name]
    layer = pydl.swap(build())
    if of == "pydl.nn":
        pydl.unswap(layer).__class__ = getattr(pydl.nn, name)
    layer.train(training)
    x = x.clone().requires_grad_(training)
    with torch.set_grad_enabled(training):
        layer.forward(x, *rest)
        asked = questions(layer.forward, x, *rest)  # not the call, in which torch asks for itself
    if quick and has_quick_way(name, training):
        assert asked == {}
        return
    parameters = 1 if any(True for _ in layer.parameters()) else 0
    expected = {"steps_aside": 1, "exporting": 1, "tracing": 1, "types and modes": 1 + parameters}
    assert asked.pop("transforms", 0) <= at_most(name)
    assert asked == expected | ({"is_special": 1} if parameters else {})


@pytest.mark.parametrize("name", CALLS)
def test_a_function_asks_each_thing_once(name, quick):
    x, *rest = CALLS[name][1]
    function = getattr(pydl.functional, name_of(name))
    if name == "LinearCrossEntropyLoss":
        rest = [torch.randn(5, 3), *rest]
    elif name == "Conv2d":
        rest = [torch.randn(7, 5, 3, 2)]
    elif name == "ConvTranspose2d":
        rest = [torch.randn(5, 4, 3, 2)]
    elif name == "Conv1d":
        rest = [torch.randn(7, 5, 3)]
    elif name == "Conv3d":
        rest = [torch.randn(7, 5, 3, 2, 3)]
    elif name == "ConvTranspose1d":
        rest = [torch.randn(5, 4, 3)]
    elif name == "Linear":
        rest = [torch.randn(4, 6)]
    elif name in ("LayerNorm", "RMSNorm"):
        rest = [x.shape[-1:]]
    elif name == "GroupNorm":
        rest = [2]
    elif "Norm" in name:
        rest = [torch.zeros(x.shape[1]), torch.ones(x.shape[1])]
    elif name_of(name) in ROWS:
        rest = ROWS[name_of(name)].given.values()
    elif "Pool" in name:
        rest = [2]
    asked = questions(function, x, *rest)
    if quick and has_quick_way(name):
        assert asked == {}
        return
    assert asked.pop("transforms", 0) <= at_most(name)
    assert asked == {"is_torchs": 1, "types and modes": 1}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.ours.__name__)
def test_a_forward_names_each_part_of_torchs(rule):
    """The function it would end in and the methods it would call: asked about, or called, by name."""
    own, forwards = rule.own, [cls.__dict__["forward"] for cls in rule.ours.__mro__[:-1] if "forward" in cls.__dict__]
    codes = [forward.__code__ for forward in forwards if forward.__module__.startswith("pydl.nn")]
    named = {name for code in codes for name in (*code.co_names, *code.co_consts) if isinstance(name, str)}
    assert {own.name, *dict(own.methods)} <= named
    assert getattr(own.namespace, own.name) is own.function
