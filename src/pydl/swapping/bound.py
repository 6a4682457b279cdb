"""What is bound to the instance of a module: callable objects of module-level classes, under the names of methods.

A bound method would not survive ``torch.load``, nor a closure pickling. A module gets four attributes:

* ``forward``: :class:`~pydl.swapping.layer.SwappedForward` on a layer,
  :class:`~pydl.swapping.container.FusedForward` on a ``Sequential``. ``Module.__call__`` reads ``self.forward`` and
  passes no ``self``, so the object has to know its module, and whatever copies the module's ``__dict__`` has to end
  with an object that knows the copy. The next two (bind.py) see to that:
* ``__reduce_ex__`` (copy.copy, copy.deepcopy, pickle, torch.save) builds a module that is bound to itself and then
  hands over the state without our attributes;
* ``_replicate_for_data_parallel`` binds DataParallel's replicas, which are shallow copies;
* ``__prepare_scriptable__`` is where torch.jit.script is refused.

The module is held by a weak reference: a strong one would make a cycle, and ``del net`` would no longer free the
memory of its parameters at once.
"""

import inspect
import weakref


class Bound:
    """A callable that knows its module, weakly, and copies itself together with that module."""

    def __init__(self, module):
        self._module = weakref.ref(module)

    def module(self):
        """The module; refused once that is gone."""
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
    """What is common to the forwards that we bind: they answer what tools ask of a bound method.

    ``__func__`` computes what the object computes, with the module as its first argument; name, documentation,
    signature and source are those of the forward of the module's class. It is made, as ``types.MethodType`` is, from
    (function, module): weakref.WeakMethod does so.
    """

    def __init__(self, function, module):
        super().__init__(module)
        self.__func__ = function
        wrapped = type(module).forward
        self.__module__, self.__doc__ = wrapped.__module__, wrapped.__doc__  # which the class has, too

    def __reduce__(self):
        return type(self), (self.__func__, self.module())

    @property
    def __self__(self):
        return self.module()

    @property
    def __wrapped__(self):
        return type(self.module()).forward

    @property
    def __signature__(self):
        # for those who ask a model which arguments it takes
        return inspect.signature(self.__wrapped__.__get__(self.module()))

    def __getattr__(self, name):
        # what the function has, as a bound method does it: __name__, __annotations__, __code__, __globals__ ...
        if name in ("_module", "__func__"):  # not there yet: being copied
            raise AttributeError(name)
        return getattr(self.__wrapped__, name)

    def __eq__(self, other):
        if type(other) is not type(self):
            return NotImplemented
        return self.__func__ is other.__func__ and self._module() is other._module()

    def __hash__(self):
        return hash((self.__func__, id(self._module())))


def is_bound(module, kind=BoundForward):
    """Whether a forward of ours is bound to this very module: not to another, whose ``__dict__`` it took over."""
    forward = module.__dict__.get("forward")
    return isinstance(forward, kind) and forward._module() is module
