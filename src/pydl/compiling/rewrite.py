"""Puts our functions under a graph of torch's, and notes what became of each call."""

import re
from dataclasses import dataclass

import torch

from pydl.compiling.chains import chain_from, fuse
from pydl.compiling.functions import is_served, serving
from pydl.compiling.memory import example, name_of, written
from pydl.compiling.run import checkpointed


@dataclass
class Note:
    """What became of one call of the graph."""

    place: str  # the module that it stands in, as named_modules() says; empty for the model itself
    is_layer: bool  # whether that is a layer whose one call this is
    call: str  # the class of that layer, or the name of a function
    value: object  # its example value
    reason: str | None  # why torch's serves it
    fused: str = ""


def rewrite(module):
    """Rewrites a graph module in place, and the graphs of checkpoints inside it.

    Returns:
        A list of :class:`Note`, one for each call with a tensor as its result, in the order of the graph.
    """
    graph, notes = module.graph, {}
    for node in graph.nodes:
        if node.op in ("call_function", "call_method", "call_module") and _is_call(node):
            notes[node] = Note(*_place(node), example(node), None)
    inside = []
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch.ops.higher_order.tag_activation_checkpoint:
            inside += _checkpoint(module, node)
            notes.pop(node, None)
    fused = set()
    for head in list(graph.nodes):
        if head in fused or head.op not in ("call_function", "call_method"):
            continue
        chain, reason = chain_from(head)
        if reason is not None and head in notes:
            notes[head].fused = f"not fused: {reason}"
        if chain is None:
            continue
        _note(notes, chain)
        fused |= set(chain.links)
        fuse(graph, chain)
    for node in list(graph.nodes):
        if node not in notes:
            continue
        ours, notes[node].reason = serving(node)
        if ours is not None and ours is not node.target:
            node.op, node.target = "call_function", ours
    graph.lint()
    module.recompile()
    return [*notes.values(), *inside]


def _is_call(node):
    """Whether a node computes tensors: not sizes, nor what merely looks at a tensor or takes one out of a tuple."""
    if name_of(node) in ("getitem", "getattr", "add_") and not any(node.users):
        return False
    value = example(node)
    values = value if isinstance(value, tuple | list) else (value,)
    return name_of(node) not in ("getitem", "getattr") and any(isinstance(v, torch.Tensor) for v in values)


def _note(notes, chain):
    known = [link for link in chain.links if link in notes]
    places = [notes[link].place if notes[link].is_layer else notes[link].call for link in known]
    for i, link in enumerate(known):
        if len(known) > 1:
            notes[link].fused = f"with {', '.join(places[1:])}{chain.remark}" if i == 0 else f"in {places[0]}"


def _checkpoint(module, node):
    """Has a checkpoint's graph run by torch.utils.checkpoint, and rewrites it."""
    body = getattr(module, node.args[0].target)
    context = body.meta.get("_checkpoint_context_fn")
    inputs = [inner for inner in body.graph.nodes if inner.op == "placeholder"]
    changed = {target for inner in body.graph.nodes for target in written(inner) or ()}
    node.target = checkpointed
    node.args = (tuple(i for i, input in enumerate(inputs) if input in changed), *node.args)
    if context is not None:
        node.kwargs = {**node.kwargs, "context_fn": context}
    return rewrite(body)


def _place(node):
    """(name of the module, whether it is a layer, its class or the name of the function) of a node."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, cls = stack[-1] if stack else ("", None)
    path = re.sub(r"^L\['\w+'\]", "", path)
    path = re.sub(r"\._modules\['([^']+)'\]|\['?([^']+?)'?\]", lambda found: f".{found[1] or found[2]}", path)
    is_layer = is_served(node) and getattr(cls, "__module__", "").startswith(("torch.nn.", "pydl.nn"))
    return path.removeprefix("."), is_layer, cls.__name__ if is_layer else name_of(node)
