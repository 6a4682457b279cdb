"""The backend ``pydl`` of ``torch.compile``: an entry point of ``torch_dynamo_backends``, loaded at its first use."""

from pydl import aside
from pydl.compiling.rewrite import rewrite

aside.backend_is_loaded = True


def pydl(graph_module, example_inputs):
    """Puts our ops and chains under a graph that TorchDynamo recorded, for ``torch.compile(net, backend="pydl")``.

    Args:
        graph_module: the graph, a ``torch.fx.GraphModule``; it is rewritten in place.
        example_inputs: which nothing is taken from: the graph's nodes have example values of their own.

    Returns:
        The function that runs the graph in eager mode: gradients are recorded as it runs.
    """
    rewrite(graph_module)
    return graph_module.forward


pydl.is_pydls = True
