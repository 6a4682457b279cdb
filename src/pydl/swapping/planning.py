"""Makes the plan of a container: chains among the neighbours of a Sequential, or in the graph of a forward."""

import itertools
import linecache
import operator
import weakref

import torch
from torch.nn import functional as F

from pydl.swapping import tracing
from pydl.swapping.chains import ACTIVATIONS, Chain, role, why_not_linked
from pydl.swapping.fusing import Facts, FusedForward, Plan


def make_plan(module):
    """A :class:`~pydl.swapping.fusing.Plan` for ``module`` as it is now."""
    facts = Facts(module)
    plan = sequential_plan if facts.function is torch.nn.Sequential.forward else traced_plan
    return plan(module, facts)


def could_fuse(module):
    """Whether ``module`` calls layers by itself that might be links of a chain, now or later."""
    if isinstance(module, torch.nn.ModuleList | torch.nn.ModuleDict) or type(module).forward is _NO_FORWARD:
        return False
    return any(role(child) in _HEADS for child in _reachable(module))


def why_never(container):
    """Why a container that :func:`could_fuse` is called layer by layer whatever it holds, or None."""
    if isinstance(container, torch.jit.ScriptModule):
        return "is compiled by TorchScript"
    if isinstance(container, torch.fx.GraphModule):
        return "is generated from a graph"
    if not isinstance(container.__dict__.get("forward"), FusedForward | None):
        return "was replaced on the instance"
    for name in _COPYING:
        if getattr(type(container), name, None) is not getattr(torch.nn.Module, name, None):
            return f"cannot be bound to the instance: its class has a {name} of its own"
    return None


_COPYING = (
    "__call__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__copy__", "__deepcopy__"
)  # fmt: skip
_HEADS = ("convolution", "norm")
_NO_FORWARD = torch.nn.Module.forward


def _reachable(module):
    """The children, and those of lists and dicts among them."""
    for child in module._modules.values():
        if isinstance(child, torch.nn.ModuleList | torch.nn.ModuleDict):
            yield from _reachable(child)
        elif child is not None:
            yield child


# ---- the neighbours of a Sequential


def sequential_plan(module, facts):
    """Steps in order: a chain, or a layer that is called as it is."""
    facts.add_sequence(module)
    layers = list(module._modules.items())
    steps, found, left = [], [], {}
    while layers:
        chain = _first_chain(layers, facts, left)
        if chain is None:
            steps.append(layers.pop(0)[1])
        else:
            found.append(chain)
            steps.append(chain)
            del layers[: len(chain.names)]

    def run(module, input, steps=tuple(steps)):
        for step in steps:
            input = step(input)
        return input

    return Plan(facts.complete(), found, run if found else None, 1, left)


def _first_chain(layers, facts, left):
    """The chain that begins with the first of ``layers`` (name, layer), or None."""
    links = []
    for wanted in (_HEADS, ("norm", *ACTIVATIONS), ACTIVATIONS):
        if len(links) == len(layers):
            break
        name, layer = layers[len(links)]
        kind = role(layer)
        if kind not in wanted or (links and kind == links[-1][2]):
            break
        links.append((name, layer, kind))
        if kind in ACTIVATIONS:
            break
    if len(links) > 1:
        for _, layer, _ in links:
            facts.add_link(layer)
    return _chain(links, left)


def _chain(links, left, add=None):
    """A :class:`Chain` of (name, layer or None, role), up to the first that has to be called by itself; or None."""
    for i, (name, layer, _) in enumerate(links):
        reason = why_not_linked(layer) if layer is not None and len(links) > 1 else None
        if reason:
            left[name] = reason
            links = links[:i]
            break
    if len(links) < 2:
        return None
    kinds = {kind: layer for _, layer, kind in links}
    return Chain(
        kinds.get("convolution"),
        kinds.get("norm"),
        add if "add" in kinds else None,
        next((kind for kind in kinds if kind in ACTIVATIONS), None),
        [name for name, _, _ in links],
    )


# ---- the graph of a forward

_ACTIVATION_FUNCTIONS = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    torch.sigmoid: "sigmoid",
    torch.sigmoid_: "sigmoid",
    F.sigmoid: "sigmoid",
}
_ACTIVATION_METHODS = {"relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "sigmoid_": "sigmoid"}
_ADDITIONS = {operator.add, torch.add, tracing.IN_PLACE["iadd"]}
_ADDITION_METHODS = {"add": torch.add, "add_": torch.Tensor.add_}


def traced_plan(module, facts):
    """A function made from the graph of ``module``'s forward, with chains in the place of their nodes."""
    found, left = [], {}
    try:
        graph, count = tracing.trace(module, facts)
        rewriting = _Rewriting(module, graph, facts, found, left)
        rewriting.rewrite()
    except tracing.Untraceable as reason:
        # the same answer until a child or the forward changes; the facts so far are kept
        return Plan(facts.complete(), left=left, why_not=str(reason))
    function = _function(module, graph, rewriting.calls) if found else None
    return Plan(facts.complete(), found, function, count, left)


class _Call:
    """Stands for a chain in a graph. A graph is full of cycles: it must not keep the layers alive."""

    # what generated code calls it
    __name__ = "fused"
    __qualname__ = "fused"

    def __call__(self):
        raise NotImplementedError("a stand-in, replaced when the graph's code is made")


class _Rewriting:
    def __init__(self, module, graph, facts, found, left):
        self.module, self.graph, self.facts, self.found, self.left = module, graph, facts, found, left
        self.calls = {}  # _Call -> what it stands for

    def rewrite(self):
        self.follow_writes()
        done = set()
        for node in list(self.graph.nodes):
            if node in done or self.kind(node) not in _HEADS:
                continue
            nodes, residual = self.follow(node)
            starts = [nodes]
            if self.kind(node) == "convolution" and len(nodes) > 2:
                # Without the convolution, where it cannot wait: a residual makes the rest wait for what computes it.
                # The convolution's result is nobody else's, so that this cannot be seen.
                starts = [nodes, nodes[1:]]
            for start in starts:
                chain = self.link(start)
                if chain is not None and self.may_wait(start[: len(chain.names)], chain):
                    start = start[: len(chain.names)]
                    done.update(start)
                    self.replace(start, chain, residual)
                    self.found.append(chain)
                    break

    def follow_writes(self):
        """After ``y.add_(x)``, whoever uses y uses the result of the addition, which is the same tensor."""
        tensors = set()  # nodes that are tensors for certain
        for node in self.graph.nodes:
            kind = self.kind(node)
            first = node.args[0] if node.args else None
            if kind in _HEADS:
                tensors.add(node)
            elif kind is not None and _writes(node) and first in tensors:
                tensors.add(node)
                later = {user for user in first.users if user is not node and _after(user, node)}
                first.replace_all_uses_with(node, delete_user_cb=later.__contains__)

    def kind(self, node):
        """The role of a node; None for all that is no link."""
        if node.op == "call_module":
            return role(self.module.get_submodule(node.target)) if _only(node) else None
        if node.op == "call_function" and node.target in _ACTIVATION_FUNCTIONS:
            return _ACTIVATION_FUNCTIONS[node.target] if _only(node, {"inplace"}) else None
        if node.op == "call_method" and node.target in _ACTIVATION_METHODS:
            return _ACTIVATION_METHODS[node.target] if _only(node) else None
        adds = (node.op == "call_function" and node.target in _ADDITIONS) or (
            node.op == "call_method" and node.target in _ADDITION_METHODS
        )
        if adds and len(node.args) == 2 and not node.kwargs and len(node.all_input_nodes) == 2:
            return "add"
        return None

    def follow(self, node):
        """The nodes that come after ``node`` in a chain, each the only one to use its predecessor; and the residual."""
        nodes, residual = [node], None
        while True:
            last = nodes[-1]
            kind = self.kind(last)
            if kind in ACTIVATIONS or len(last.users) != 1:
                break
            (user,) = last.users
            next_kind = self.kind(user)
            if next_kind == "norm" and kind == "convolution":
                nodes.append(user)
            elif next_kind == "add" and kind == "norm" and _adds_to(user, last):
                nodes.append(user)
                residual = next(n for n in user.args if n is not last)
            elif next_kind in ACTIVATIONS:
                nodes.append(user)
            else:
                break
        return nodes, residual

    def link(self, nodes):
        links, add = [], None
        for node in nodes if len(nodes) > 1 else ():
            kind = self.kind(node)
            if node.op == "call_module":
                layer = self.module.get_submodule(node.target)
                self.facts.add_link(layer)
                self.watch(node.target)
                links.append((node.target, layer, kind))
            elif kind == "add":
                add = _ADDITION_METHODS.get(node.target, node.target)
                links.append(("+", None, kind))
            else:
                links.append((f"{kind}()", None, kind))
        return _chain(links, self.left, add)

    def watch(self, path):
        """That the layer at a path is still the same, at every step of the path."""
        owner = self.module
        for name in path.split("."):
            self.facts.add_child(owner, name, owner._modules[name])
            owner = owner._modules[name]

    def may_wait(self, nodes, chain):
        """Whether the chain may be computed where its last node stands: nothing between can tell, or change it."""
        between, node = [], nodes[0]
        while node is not nodes[-1]:
            node = node.next
            if node not in nodes:
                between.append(node)
        if any(map(_writes, between)):
            return False
        (input,) = nodes[0].args[:1]
        fresh = input.target in self.calls or self.kind(input) in _HEADS
        for other in between:
            if isinstance(other.target, _Call):
                norms = {self.calls[other.target].norm} - {None}
            elif other.op == "call_module":  # it may write to what it can reach
                if not fresh or len(input.users) > 1:
                    return False
                norms = set(self.module.get_submodule(other.target).modules())
            else:
                continue
            if chain.norm in norms:  # running statistics are updated in order
                return False
        return True

    def replace(self, nodes, chain, residual):
        last = nodes[-1]
        args = nodes[0].args if chain.add is None else (nodes[0].args[0], residual)
        call = _Call()
        self.calls[call] = chain
        with self.graph.inserting_after(last):
            fused = self.graph.call_function(call, args)
        last.replace_all_uses_with(fused)
        for node in reversed(nodes):
            self.graph.erase_node(node)


def _only(node, options=frozenset()):
    """Whether a call has one input and nothing else, but for ``options`` that do not matter to a chain."""
    if not node.args or not isinstance(node.args[0], torch.fx.Node) or set(node.kwargs) - options:
        return False
    return len(node.args) == 1 or (bool(options) and len(node.args) == 2 and isinstance(node.args[1], bool))


def _after(node, other):
    """Whether ``node`` comes after ``other`` in their graph."""
    while other.op != "root":
        if other is node:
            return True
        other = other.next
    return False


def _adds_to(node, norm):
    """Whether an addition's result may be that of a chain: in place, it has to be the norm's result that is written."""
    return node.args[0] is norm or (node.args[1] is norm and not _writes(node))


def _writes(node):
    """Whether a node may write to one of its inputs (modules apart)."""
    if node.op == "call_method":
        return node.target.endswith("_") and not node.target.endswith("__")
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    in_place = name in tracing.IN_PLACE or (name.endswith("_") and not name.endswith("__"))
    return in_place or "out" in node.kwargs or node.kwargs.get("inplace") or any(a is True for a in node.args)


_numbers = itertools.count()


def _function(module, graph, calls):
    """A Python function ``run(module, *inputs)`` of a graph."""
    code = graph.python_code("self")
    scope = {name: calls[value] if isinstance(value, _Call) else value for name, value in code.globals.items()}
    filename = f"<pydl.swap of {type(module).__qualname__} {next(_numbers)}>"
    linecache.cache[filename] = (len(code.src), None, code.src.splitlines(True), filename)
    exec(compile(code.src, filename, "exec"), scope)
    function = scope.pop("forward")  # out of its own globals: there would be a cycle
    weakref.finalize(function, linecache.cache.pop, filename, None)
    return function
