"""What is bound to the instance of a module: callable objects of module-level classes, under the names of methods.

A bound method would not survive ``torch.load``, nor a closure pickling. A module gets three attributes:

* ``forward``: :class:`SwappedForward` on a layer, :class:`~pydl.swapping.fusing.FusedForward` on a container.
  ``Module.__call__`` reads ``self.forward`` and passes no ``self``, so the object has to know its module, and whatever
  copies the module's ``__dict__`` has to end with an object that knows the copy. The other two see to that:
* ``__reduce_ex__`` (copy.copy, copy.deepcopy, pickle, torch.save) builds a module that is bound to itself and then
  hands over the state without our attributes;
* ``_replicate_for_data_parallel`` binds DataParallel's replicas, which are shallow copies.

The module is held by a weak reference: a strong one would make a cycle, and ``del net`` would no longer free the
memory of its parameters at once.
"""

import inspect
import weakref

from pydl import nn
from pydl.swapping import served


class Bound:
    """A callable that knows its module, weakly, and copies itself together with that module."""

    def __init__(self, module):
        self._module = weakref.ref(module)

    def module(self):
        module = self._module()
        if module is None:
            raise ReferenceError(
                "swap: expected the swapped layer to be alive when its forward is called, got one that was deleted; "
                "keep the module, not only its forward"
            )
        return module

    def __reduce__(self):
        # Reached where the module's class copies its __dict__ itself (parametrised modules) or where another library
        # keeps this object under a name of its own.
        return type(self), (self.module(),)


class BoundForward(Bound):
    """What is common to the forwards that we bind."""

    @property
    def __signature__(self):
        # for those who ask a model which arguments it takes
        return inspect.signature(type(self.module()).forward.__get__(self.module()))

    @property
    def __code__(self):
        # torch.export reads the names of the arguments from it
        return type(self.module()).forward.__code__

    @property
    def _torchscript_modifier(self):
        # the first thing that torch.jit.script and .trace ask of a forward, and nobody else does
        raise nn.no_torchscript("a layer swapped by pydl")


class SwappedForward(BoundForward):
    """The ``forward`` of a swapped layer: that of pydl.nn's class, on torch's instance."""

    def __init__(self, module):
        super().__init__(module)
        # by method resolution order: parametrised modules are instances of a subclass that torch makes on the fly
        self._function = next(served.OURS[cls] for cls in type(module).__mro__ if cls in served.OURS).forward

    def __call__(self, *args, **kwargs):
        module = self._module()  # not self.module(): a call less on every forward
        return self._function(self.module() if module is None else module, *args, **kwargs)


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


def rebuild(cls):
    """An empty ``cls`` that is already swapped: what copies and pickles of a swapped module start from."""
    module = cls.__new__(cls)
    bind(module)
    return module


NAMES = ("forward", "__reduce_ex__", "_replicate_for_data_parallel")


def bind(module):
    """Binds our forward, that of a layer or that of a container, and what copies it."""
    from pydl.swapping.fusing import FusedForward  # which needs this file

    is_layer = any(cls in served.OURS for cls in type(module).__mro__)
    classes = (SwappedForward if is_layer else FusedForward, Reduce, Replicate)
    # past Module.__setattr__, which needs an initialised module
    module.__dict__.update({name: bound(module) for name, bound in zip(NAMES, classes, strict=True)})


def unbind(module):
    """Takes away what :func:`bind` bound; what others put there stays."""
    for name in NAMES:
        if isinstance(module.__dict__.get(name), Bound):
            del module.__dict__[name]


def is_bound(module, kind=BoundForward):
    """Whether a forward of ours is bound to this very module: not to another, whose ``__dict__`` it took over."""
    forward = module.__dict__.get("forward")
    return isinstance(forward, kind) and forward._module() is module


def is_swapped(module):
    """Whether ``module`` is a layer that our forward serves."""
    return is_bound(module, SwappedForward)
