"""``pydl.explain``: what ``torch.compile(net, backend="pydl")`` makes of a model, as a table."""

import copy

from pydl.swapping.table import Report, Row, serving_on


class _Recorder:
    """The backend, with the notes on every graph that it was given."""

    is_pydls = True

    def __init__(self):
        self.graphs = []

    def __call__(self, graph_module, example_inputs):
        from pydl.compiling import backend as _  # noqa: F401  (from now on layers leave their graphs to it)
        from pydl.compiling.rewrite import rewrite

        self.graphs.append(rewrite(graph_module))
        return graph_module.forward


def explain(net, *example):
    """A table of what ``torch.compile(net, backend="pydl")`` records: what serves each call, what is fused, or why not.

    The model is compiled and called once, on a copy, in the mode that it is in; a function is called itself. What
    torch.compile has kept in this process is dropped before and after, as by ``torch._dynamo.explain``: what was
    compiled compiles again at its next call.

    Args:
        net: a ``torch.nn.Module``, compiled or not, or a function.
        example: what to call it with.

    Returns:
        A :class:`~pydl.swapping.Report` with ``rows`` of (name, layer, served_by, reason, fused), a row for each call.

    Raises:
        TypeError: when ``net`` cannot be called.
    """
    import torch._dynamo

    from pydl.compiling import backend as _  # noqa: F401  (layers are to leave their graphs to it)

    if not callable(net):
        raise TypeError(f"explain: expected net to be a module or a function, got {type(net).__name__}")
    net = getattr(net, "_orig_mod", net)
    net = copy.deepcopy(net) if isinstance(net, torch.nn.Module) else net
    recorder = _Recorder()
    torch._dynamo.reset()
    try:
        with torch.random.fork_rng():
            torch.compile(net, backend=recorder)(*example)
    finally:
        torch._dynamo.reset()
    rows = [_row(note) for notes in recorder.graphs for note in notes]
    left = {}
    if len(recorder.graphs) != 1:
        left[""] = f"is compiled as {len(recorder.graphs)} graphs, and what lies between them runs as it is"
    return Report(rows, left, unit="calls")


def _row(note):
    value = note.value[0] if isinstance(note.value, tuple | list) else note.value
    served_by, reason = ("torch", note.reason) if note.reason else serving_on(value.device)
    if note.fused.startswith("in "):
        served_by, reason = serving_on(value.device)
    return Row(note.place, note.call, served_by, reason, note.fused)
