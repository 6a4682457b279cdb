"""What a node of TorchDynamo's graph reads and writes, and whether one may move past others.

Tensors share memory where the example values, which TorchDynamo keeps with its nodes, share their storage. What is not
known to be harmless is taken to be harmful: a chain that is not fused costs a pass over a tensor, nothing more.
"""

import builtins
import math
import operator

import torch
import torch.nn.functional as F
from torch.fx import Node
from torch.fx.node import map_arg

from pydl._private import OpOverload, log_api_usage, storage_of

# Functions that change nothing but their results, or say so by a name or an argument.
_PLAIN = (torch.relu, torch.einsum, F.relu, F.linear, torch.linalg.norm, torch.fft.fft, torch.special.erf, operator.add)
_PLAIN_MODULES = frozenset(function.__module__ for function in _PLAIN)
_IN_PLACE = frozenset(
    getattr(operator, f"i{name}")
    for name in ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
) | {operator.setitem}
_BATCH_NORM = F.batch_norm
_UNKNOWN = ("norm", "fake_quant", "embedding", "rrelu", "manual_seed", "set_")  # statistics, max_norm, states
_KNOWN = frozenset((F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm, F.group_norm, torch.group_norm))
_METHODS_OF_AUTOGRAD = ("backward", "register_hook", "retain_grad", "set_", "resize_", "__setitem__", "requires_grad_")


def example(node):
    """The example value of a node, or None."""
    return node.meta.get("example_value") if isinstance(node, Node) else None


def tensor_of(node):
    """The example value of a node where that is a tensor, or None."""
    value = example(node)
    return value if isinstance(value, torch.Tensor) else None


def nodes_in(*arguments):
    """The nodes among arguments, in lists and dicts too; one that stands there twice, twice."""
    found = []
    map_arg(arguments, found.append)
    return found


def only_user(node):
    """The one node that reads ``node``, once; None where there are more, or none, or it is returned."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    times = sum(other is node for other in nodes_in(user.args, user.kwargs))
    return user if times == 1 and user.op in ("call_function", "call_method") else None


def written(node):
    """The nodes whose tensors a node writes over; None where that is not known, or a mode is changed."""
    if node.op in ("placeholder", "get_attr"):
        return []
    if node.op == "call_method":
        if node.target in _METHODS_OF_AUTOGRAD:
            return None
        return nodes_in(node.args[:1]) if node.target.endswith("_") and not node.target.endswith("__") else []
    if node.op != "call_function":
        return None
    function = node.target
    if function is _BATCH_NORM:
        return nodes_in(node.args[1:3], node.kwargs.get("running_mean"), node.kwargs.get("running_var"))
    if function in _IN_PLACE:
        return nodes_in(node.args[:1])
    if function is builtins.getattr or function is log_api_usage:
        return []
    if isinstance(function, OpOverload):
        return None if function._schema.is_mutable else []
    name = getattr(function, "__name__", "")
    if getattr(function, "__module__", None) not in _PLAIN_MODULES and getattr(math, name, None) is not function:
        return None
    if function not in _KNOWN and any(word in name for word in _UNKNOWN):
        return None
    found = nodes_in(node.kwargs.get("out"))
    if name.endswith("_") or any(value is True for value in (*node.args, *node.kwargs.values())):  # inplace=True
        found += nodes_in(node.args, node.kwargs)
    return found


def _storages(nodes):
    """The storages of the tensors of nodes; None among them for one that is not known."""
    found = set()
    for node in nodes:
        value = example(node)
        if isinstance(value, torch.Tensor):
            try:
                found.add(storage_of(value))
            except (NotImplementedError, RuntimeError):  # sparse tensors have none
                found.add(None)
        elif not isinstance(value, int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool | torch.Size):
            found.add(None)
    return found


def why_not_moved(links, writes=()):
    """Why ``links``, in the graph's order, may not all be computed at the place of the last one, in words; or None.

    Args:
        links: nodes of one graph, whose values none but the next of them reads.
        writes: the nodes among their arguments whose tensors they write to.
    """
    links_set = set(links)
    reads = _storages(node for link in links for node in link.all_input_nodes if node not in links_set)
    writes = _storages(writes)
    node = links[0].next
    while node is not links[-1]:
        if node not in links_set and node.op not in ("placeholder", "get_attr"):
            changed = written(node)
            if changed is None:
                return f"{name_of(node)} comes between, which may change what is read"
            changed = _storages(changed)
            if changed and (None in changed or None in reads or changed & (reads | writes)):
                return f"{name_of(node)} comes between and writes to what is read"
            if writes and (None in writes or _storages(node.all_input_nodes) & writes):
                return f"{name_of(node)} comes between and reads what is written"
        node = node.next
    return None


def name_of(node):
    """What a node calls, as a user would write it."""
    if node.op == "call_method":
        return node.target
    function = node.target
    if node.op == "call_function" and isinstance(function, OpOverload):
        return function.name().partition(".")[0]
    return str(getattr(function, "__name__", function))
