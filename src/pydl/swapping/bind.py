"""Puts the objects of bound.py on a module and takes them away, and builds the copies of a module that has them."""

import torch

from pydl.nn._common import no_torchscript
from pydl.swapping.bound import Bound
from pydl.swapping.container import FusedForward
from pydl.swapping.layer import SwappedForward
from pydl.swapping.rules import rule_of


class Reduce(Bound):
    """``__reduce_ex__`` of a module with a forward of ours."""

    def __call__(self, protocol):
        module = self.module()
        state = module.__getstate__() if hasattr(module, "__getstate__") else module.__dict__  # Python 3.10 has none
        state = {key: value for key, value in state.items() if not isinstance(value, Bound)}
        return rebuild, (type(module),), state


class Replicate(Bound):
    """``_replicate_for_data_parallel`` of a module with a forward of ours."""

    def __call__(self):
        module = self.module()
        replica = type(module)._replicate_for_data_parallel(module)
        if isinstance(module.forward, SwappedForward):
            bind(replica)
        else:
            # A replica lives for one call, which is too short for a plan, and its children are yet to come. They are
            # swapped, each by itself.
            unbind(replica)
        return replica


class NoScript(Bound):
    """``__prepare_scriptable__`` of a module with a forward of ours: the first thing torch.jit.script asks for."""

    def __call__(self):
        raise no_torchscript("a layer swapped by pydl")


def rebuild(cls):
    """An empty ``cls`` that is already swapped: what copies and pickles of a swapped module start from."""
    module = cls.__new__(cls)
    bind(module)
    return module


_OTHERS = {
    "__reduce_ex__": Reduce,
    "_replicate_for_data_parallel": Replicate,
    "__prepare_scriptable__": NoScript,
}


def bind(module):
    """Binds our forward, that of a layer or that of a ``Sequential``, and what goes with it."""
    rule = next((rule for rule in map(rule_of, type(module).__mro__) if rule is not None), None)
    if rule is None:
        forward = FusedForward(torch.nn.Sequential.forward, module)
    else:
        forward = SwappedForward(rule.ours.forward, module)
    # past Module.__setattr__, which needs an initialised module
    module.__dict__.update({"forward": forward} | {name: bound(module) for name, bound in _OTHERS.items()})


def unbind(module):
    """Takes away what :func:`bind` bound; what others put there stays."""
    for name in ("forward", *_OTHERS):
        if isinstance(module.__dict__.get(name), Bound):
            del module.__dict__[name]
