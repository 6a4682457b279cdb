"""The forward of a ``Sequential`` whose neighbours are partly fused, and the plan it follows.

A plan is made when the model is swapped, and again when something that it was made from has changed: the layers, their
class, its methods, what was put on an instance, hooks. All of that is compared at each call, by identity, in a few
microseconds. Nothing is derived from what a forward's source says. Copies and loaded models make their own plans.
"""

import torch

from pydl import aside, backend
from pydl.swapping.bound import BoundForward
from pydl.swapping.chains import (
    FIRST,
    FOLLOWERS,
    Chain,
    is_called_plainly,
    is_changed,
    pools,
    role,
    state_of,
    why_no_chains,
    why_not_linked,
)
from pydl.swapping.rules import class_of, rule_of

_SEQUENTIAL = torch.nn.Sequential.forward, torch.nn.Sequential.__iter__


def could_fuse(module):
    """Whether ``module`` is a ``Sequential`` that holds links of a chain, now or later.

    By exact type: a subclass may walk over its layers in another way.
    """
    return type(module) is torch.nn.Sequential and any(
        role(child) in FIRST for child in module._modules.values() if child is not None
    )


def why_layer_by_layer(container):
    """Why a ``Sequential`` calls its layers one by one at this moment, in words, or None."""
    if not isinstance(container.__dict__.get("forward"), FusedForward | None):
        return "its forward was replaced on the instance"
    if type(container) is not torch.nn.Sequential:
        return "its class is no longer Sequential"
    if (torch.nn.Sequential.forward, torch.nn.Sequential.__iter__) != _SEQUENTIAL:
        return "Sequential's forward was replaced on the class"
    return why_no_chains()


class Plan:
    """The steps of one ``Sequential``: chains, and layers that are called as they are; and what they follow from."""

    def __init__(self, module):
        self.layers = tuple(module._modules.values())
        self.classes = {}  # of layers with a role: class -> its state
        self.links = []  # (layer, class, forward bound to the instance, whether it has been changed, its parts)
        self.steps, self.chains, self.left = [], [], {}  # left: name -> why it is in no chain, where it could be
        for layer in self.layers:
            self._add(layer)
        self.classes = tuple((cls, own, state) for cls, (own, state) in self.classes.items())
        layers = list(module._modules.items())
        while layers:
            chain = self._chain(layers)
            if chain is None:
                self.steps.append(layers.pop(0)[1])
            else:
                self.chains.append(chain)
                self.steps.append(chain)
                del layers[: len(chain.names)]

    def _add(self, layer):
        if not role(layer):
            return
        cls, attributes, own = type(layer), layer.__dict__, rule_of(class_of(layer)).own
        self.classes[cls] = own, state_of(cls, own)
        self.links.append((layer, cls, attributes.get("forward"), is_changed(attributes, own), own))

    def _chain(self, layers):
        """The :class:`Chain` that begins with the first of ``layers`` (name, layer), or None."""
        links, allowed = [], FIRST
        for name, layer in layers:
            kind = role(layer)
            if kind not in allowed:
                break
            if kind == "pooling" and not pools(layer, {kind: link for _, link, kind in links}):
                break
            links.append((name, layer, kind))
            allowed = FOLLOWERS[kind]
        if len(links) > 1:
            for i, (name, layer, _) in enumerate(links):
                reason = why_not_linked(layer)
                if reason:
                    self.left[name] = reason
                    links = links[:i]
                    break
        if len(links) < 2:
            return None
        kinds = {kind: layer for _, layer, kind in links}
        activation = kinds.get("activation")
        return Chain(
            kinds.get("convolution"),
            kinds.get("norm"),
            None if activation is None else rule_of(type(activation)).name,
            kinds.get("linear"),
            kinds.get("pooling"),
            [name for name, _, _ in links],
        )

    def holds(self, module):
        """Whether nothing that the plan was made from has changed in ``module``."""
        if tuple(module._modules.values()) != self.layers:
            return False
        for cls, own, (call, forward, torchs, function, *methods) in self.classes:
            if (
                cls.__call__ is not call
                or cls.forward is not forward
                or own.cls.forward is not torchs
                or getattr(own.namespace, own.name) is not function
            ):
                return False
            for (name, _), method in zip(own.methods, methods, strict=True):
                if getattr(cls, name) is not method:
                    return False
        for layer, cls, forward, changed, own in self.links:
            attributes = layer.__dict__
            if (
                layer.__class__ is not cls
                or attributes.get("forward") is not forward
                or is_changed(attributes, own) is not changed
            ):
                return False
        return True


class FusedForward(BoundForward):
    """The ``forward`` of a ``Sequential``: its plan's, or torch's where that is to see each layer being called."""

    def __init__(self, function, module):
        super().__init__(function, module)
        self.current = None  # replaced, never changed: other threads may be following it

    def __call__(self, *args, **kwargs):
        module = self._module()
        if module is None:
            module = self.module()
        if aside.backend_is_loaded and aside.is_rewritten():  # before all else: torch.compile guards what is read here
            return type(module).forward(module, *args, **kwargs)
        if len(args) == 1 and not kwargs and _may_fuse(module, *args):
            plan = self.plan(module)
            if plan is not None and plan.chains:
                (input,) = args
                for step in plan.steps:
                    input = step(input)
                return input
        return type(module).forward(module, *args, **kwargs)

    def plan(self, module):
        """The plan that holds now, made if there is none; None where torch.compile asks, which cannot make one."""
        plan = self.current
        if plan is None or not plan.holds(module):
            if torch.compiler.is_compiling():
                return None
            self.current = plan = Plan(module)
        return plan


def _may_fuse(module, input):
    cls = type(module)
    return (
        cls is torch.nn.Sequential
        and cls.forward is _SEQUENTIAL[0]
        and cls.__iter__ is _SEQUENTIAL[1]
        and is_called_plainly()
        and isinstance(input, torch.Tensor)
        and not aside.is_unusual(module, input)
        and backend.ops_for(input) is not None
    )
