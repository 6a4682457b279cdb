"""What the tests of ``torch.compile(net, backend="pydl")`` share."""

import copy

import torch
from swap_models import outcome
from testing import assert_close

from pydl.compiling.rewrite import rewrite


class Recorder:
    """The backend, which keeps the names of the functions that its graphs call, and the notes on them."""

    is_pydls = True

    def __init__(self):
        self.calls, self.notes = [], []

    def __call__(self, graph_module, example_inputs):
        self.notes.append(rewrite(graph_module))
        targets = [n.target for n in graph_module.graph.nodes if n.op in ("call_function", "call_method")]
        self.calls.append([t if isinstance(t, str) else getattr(t, "__name__", str(t)) for t in targets])
        return graph_module.forward


def calls_of(function, *inputs, **options):
    """The names of the functions that the graph of ``function`` calls, in order; of one graph."""
    torch._dynamo.reset()
    recorder = Recorder()
    torch.compile(function, backend=recorder, fullgraph=True, **options)(*inputs)
    assert len(recorder.calls) == 1
    return recorder.calls[0]


def assert_same(actual, expected, scale=1):
    """Equal within the tolerance of their dtype; whole numbers exactly."""
    if expected.is_floating_point():
        assert_close(actual, expected.double(), scale=scale)
    else:
        assert torch.equal(actual, expected)


def assert_as_eager(net, *inputs, scale=1, backend="pydl"):
    """A compiled copy of ``net`` computes what ``net`` does in eager mode, in the dtype and mode that it is in."""
    torch._dynamo.reset()
    compiled, oracle = copy.deepcopy(net), copy.deepcopy(net)
    actual = outcome(torch.compile(compiled, backend=backend), *inputs)
    expected = outcome(oracle, *inputs)
    assert len(expected) == len(actual)
    for (name, value), found in zip(expected.items(), actual.values(), strict=True):
        assert (found is None) == (value is None), name
        if value is not None:
            assert_same(found, value, scale)
    return compiled
