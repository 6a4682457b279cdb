"""Several nodes of the graph that become one call, by the same rules as the chains of a swapped ``Sequential``.

    convolution (transposed or not) or linear → ReLU or sigmoid
    batch norm (→ + residual) (→ ReLU or sigmoid)       with the counter of its batches
    convolution → all of that
    linear → cross entropy

A link's value is read by the next link alone, and nothing between the first and the last changes what they read. In
place or not is the same then: the value that is written over has no other reader. Dropout after an activation stays a
call of its own: its kernel runs at the speed of its generator.
"""

import operator
from dataclasses import dataclass, field

import torch
from torch.fx import Node

from pydl import functional
from pydl.compiling.functions import (
    CONVOLUTION,
    LINEAR,
    LOSS,
    NORM,
    OURS,
    TRANSPOSED,
    activation_of,
    arguments,
    call_of,
    called,
)
from pydl.compiling.memory import example, only_user, tensor_of, why_not_moved
from pydl.compiling.run import convolution_batch_norm, linear_cross_entropy

_ADD = (operator.add, torch.add, torch.Tensor.add, torch.Tensor.__add__)
_ADD_IN_PLACE = (operator.iadd, torch.Tensor.add_, torch.Tensor.__iadd__)
_OPTIONS = {
    CONVOLUTION: ("stride", "padding", "dilation", "groups"),
    TRANSPOSED: ("stride", "padding", "output_padding", "groups", "dilation"),
}


@dataclass
class Chain:
    """Nodes in order, and the call that takes their place."""

    links: list
    function: object
    args: tuple
    kwargs: dict = field(default_factory=dict)
    writes: list = field(default_factory=list)  # nodes of tensors that the call writes to
    remark: str = ""


def chain_from(head):
    """The longest :class:`Chain` that begins with ``head`` and may be fused, or None; and why a longer one may not.

    Returns:
        (chain or None, reason in words or None).
    """
    candidates, reason = _candidates(head), _shared(head)
    while candidates:  # the longest comes last
        chain = candidates.pop()
        why = why_not_moved(chain.links, chain.writes)
        if why is None:
            return chain, reason
        reason = reason or why
    return None, reason


def _shared(head):
    """Why nothing is fused with a convolution, linear layer or batch norm whose value has several readers, or None."""
    if called(head) not in OURS or len(head.users) < 2:
        return None
    follows = any(activation_of(user) or called(user) is NORM for user in head.users)
    return "its value is read by others, too" if follows else None


def _candidates(head):
    function = called(head)
    if function in (CONVOLUTION, TRANSPOSED, LINEAR):
        given = arguments(OURS[function], head)
        if given is None:
            return []
        user = only_user(head)
        if function is not LINEAR and user is not None and called(user) is NORM and user.args[:1] == (head,):
            return _norms(user, head, given)
        found = _activated(head, OURS[function], given)
        if function is LINEAR and user is not None and called(user) is LOSS:
            found += _losses(head, given, user)
        return found
    return _norms(head) if function is NORM else []


def _activated(head, ours, given):
    user = only_user(head)
    activation = activation_of(user)
    if activation is None:
        return []
    return [Chain([head, user], ours, *call_of(ours, {**given, "activation": activation}))]


def _losses(head, given, loss):
    at_loss = arguments(functional.cross_entropy, loss)
    if at_loss is None or at_loss["input"] is not head:
        return []
    names = ("weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing")
    if at_loss["size_average"] is not None or at_loss["reduce"] is not None:
        return []
    args = (given["input"], given["weight"], given["bias"], at_loss["target"], *(at_loss[name] for name in names))
    return [Chain([head, loss], linear_cross_entropy, args, remark=" where the logits are large")]


def _norms(norm, convolution=None, at_convolution=None):
    """Chains with a batch norm, the shortest first; with the convolution before it where there is one."""
    given = arguments(functional.batch_norm, norm)
    if given is None:
        return []
    counter = _counter(norm) if given["training"] is True else None
    writes = [counter.args[0]] if counter else []
    if given["training"] is not False:
        writes += [t for t in (given["running_mean"], given["running_var"]) if isinstance(t, Node)]
    links = [link for link in (convolution, counter, norm) if link is not None]
    given["num_batches_tracked"] = counter.args[0] if counter else None

    def chain(links, residual, activation):
        call = {**given, "residual": residual, "activation": activation}
        if convolution is None:
            return Chain(links, functional.batch_norm, *call_of(functional.batch_norm, call), writes)
        kind = called(convolution)
        options = tuple(at_convolution[name] for name in _OPTIONS[kind])
        args = (at_convolution["input"], at_convolution["weight"], at_convolution["bias"], options)
        del call["input"]
        names = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        args += tuple(call[name] for name in names)
        remark = "" if given["training"] is True or residual is not None else ", folded where it pays"
        args += (residual, activation, call["num_batches_tracked"], kind is TRANSPOSED)
        return Chain(links, convolution_batch_norm, args, {}, writes, remark)

    found = [chain(links, None, None)] if len(links) > 1 else []
    user = only_user(norm)
    residual = _residual(norm, user)
    activation = activation_of(user)
    if activation is not None:
        found.append(chain([*links, user], None, activation))
    elif residual is not None:
        found.append(chain([*links, user], residual, None))
        last = only_user(user)
        activation = activation_of(last)
        if activation is not None:
            found.append(chain([*links, user, last], residual, activation))
    return found


def _residual(norm, user):
    """What ``user`` adds to the result of ``norm``, of the same shape and dtype; None where it does something else."""
    if user is None or user.kwargs or len(user.args) != 2:
        return None
    function, (left, right) = called(user), user.args
    if function in _ADD_IN_PLACE:
        residual = right if left is norm else None
    elif function in _ADD:
        residual = right if left is norm else left
    else:
        return None
    value, mine = tensor_of(residual), tensor_of(norm)
    if value is None or mine is None or value.dtype != mine.dtype or value.device != mine.device:
        return None
    # as texts: to compare symbolic sizes would fix them
    return residual if list(map(str, value.shape)) == list(map(str, mine.shape)) else None


def _counter(norm):
    """The node before ``norm`` that adds 1 to a count of batches, as torch's layers do; None where there is none."""
    node = norm.prev
    while node.op in ("placeholder", "get_attr"):
        node = node.prev
    if node.op != "call_method" or node.target != "add_" or node.users or node.kwargs or node.args[1:] != (1,):
        return None
    value = example(node.args[0])
    if not isinstance(value, torch.Tensor) or value.dim() or value.dtype != torch.int64:
        return None
    return node


def fuse(graph, chain):
    """Puts the call of a chain at the place of its last link, and takes the links away."""
    last = chain.links[-1]
    with graph.inserting_before(last):
        call = graph.call_function(chain.function, chain.args, chain.kwargs)
    call.meta = dict(last.meta)
    last.replace_all_uses_with(call)
    for link in reversed(chain.links):
        graph.erase_node(link)
    return call
