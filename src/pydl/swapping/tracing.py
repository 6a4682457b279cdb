"""The graph of one module's own forward, its children being opaque, for those forwards where a graph says everything.

The forward is run once with stand-ins: for its ``self`` (:class:`Stand`), which notes every attribute that is read, and
for its inputs (torch.fx's proxies), which note every torch function. Nothing is patched, so other threads may run the
same model meanwhile.

What a graph cannot say is refused, with the reason: a decision that depends on an input, attributes that are written or
that may change unseen, torch functions of no input (a random tensor would become a constant), context managers, and
calls of anything that we do not know to depend on its arguments alone. A first look at the bytecode finds the latter.
"""

import builtins
import dis
import functools
import operator
import types

import torch
from torch import fx
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode, get_overridable_functions


class Untraceable(Exception):
    """The reason, as the end of the sentence "left layer by layer: ..."."""


_BUILTINS = {len, range, zip, enumerate, reversed, tuple, list, dict, int, float, min, max, sum}
_IMMUTABLE = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.memory_format)
_WRITES = {"STORE_ATTR": "writes to an attribute", "DELETE_ATTR": "deletes an attribute"}
_WRITES |= dict.fromkeys(("STORE_GLOBAL", "DELETE_GLOBAL"), "writes to a global variable")
_WRITES |= dict.fromkeys(("SETUP_WITH", "BEFORE_WITH", "LOAD_SPECIAL"), "uses a context manager")
_WRITES |= dict.fromkeys(("IMPORT_NAME", "IMPORT_FROM"), "imports")
_WRITES |= dict.fromkeys(("SETUP_FINALLY", "PUSH_EXC_INFO"), "catches exceptions")
_WRITES |= dict.fromkeys(("YIELD_VALUE", "GET_AWAITABLE"), "is a generator or coroutine")


@functools.cache
def _overridable():
    """torch's functions of tensors, which a proxy sees being called."""
    functions = {function for found in get_overridable_functions().values() for function in found}
    return functions | {torch.nn.functional.max_pool2d, torch.nn.functional.adaptive_max_pool2d}


def _is_known(value):
    """Whether a call of ``value`` depends on its arguments alone, and is noted if one of them is a proxy."""
    if getattr(value, "__module__", None) in ("math", "_operator"):
        return True
    try:
        return value in _BUILTINS or value in _overridable()
    except TypeError:  # unhashable
        return False


def why_not(function, callers=()):
    """What in the code of ``function`` keeps a graph from saying everything, or None."""
    if function in callers:
        return None  # looked at already
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    if not all(map(_is_constant, defaults)):
        return "has a default argument that may change"
    return _why_not_code(function.__code__, function, callers)


def _why_not_code(code, function, callers, inside=()):
    instructions = list(dis.get_instructions(code))
    for i, instruction in enumerate(instructions):
        name = instruction.opname
        if name in _WRITES:
            return _WRITES[name]
        if name.startswith("LOAD_DEREF") or name == "LOAD_CLASSDEREF":
            if instruction.argval == "__class__":
                return "calls super()"
            if instruction.argval not in code.co_cellvars + inside:
                return f"reads the variable {instruction.argval!r} of an enclosing function"
        elif name == "LOAD_GLOBAL":
            reason = _why_not_global(instruction.argval, instructions[i + 1 :], function, callers)
            if reason:
                return reason
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            reason = _why_not_code(constant, function, callers, inside + code.co_cellvars)
            if reason:
                return reason
    return None


def _why_not_global(name, following, function, callers):
    """Follows ``name.attribute.attribute`` through modules."""
    scope = function.__globals__
    if name not in scope and not hasattr(builtins, name):
        return f"reads {name!r}, which is not defined"
    value = scope[name] if name in scope else getattr(builtins, name)
    path = name
    for instruction in following:
        if not isinstance(value, types.ModuleType) or instruction.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            break
        path += f".{instruction.argval}"
        value = getattr(value, instruction.argval, None)
    if value is super:
        return "calls super()"
    if isinstance(value, type) and issubclass(value, Exception):
        return None  # raised where a condition on Python values says so
    if _is_known(value) or isinstance(value, torch.dtype | torch.memory_format):
        return None
    if isinstance(value, types.FunctionType) and not (value.__module__ or "").startswith("torch."):
        reason = why_not(value, (*callers, function))
        return reason and f"calls {path}, which {reason}"
    return f"uses {path}"


class Value(fx.Proxy):
    """A tensor (or what is computed from one) while a forward is traced. Mutation is noted as what it is."""

    def __bool__(self):
        raise Untraceable("decides by the values or the shape of its input")

    def __iter__(self):
        try:
            return super().__iter__()
        except (fx.proxy.TraceError, ValueError, IndexError):
            raise Untraceable("iterates over a tensor") from None

    def __len__(self):
        raise Untraceable("asks for the length of a tensor")

    def __index__(self):
        raise Untraceable("uses a value computed from its input as a number")

    __int__ = __float__ = __index__

    def __contains__(self, other):
        raise Untraceable("looks into a tensor")

    def __setitem__(self, key, value):
        raise Untraceable("writes to a part of a tensor")

    def __getattr__(self, name):
        return ValueAttribute(self, name)


class ValueAttribute(fx.proxy.Attribute, Value):
    """``x.name``: a node of the graph, unless it turns out to be a method call."""


def _in_place(name):
    function = getattr(operator, name)

    def apply(a, b):
        # not through the graph's own `a += b`, which would rebind a where it is a number
        return function(a, b)

    apply.__name__ = apply.__qualname__ = name
    return apply


# y += x and its like: y is written to where it is a tensor
IN_PLACE = {
    name: _in_place(name)
    for name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor")
}
for _name, _function in IN_PLACE.items():

    def _method(self, other, _function=_function):
        return self.tracer.create_proxy("call_function", _function, (self, other), {})

    setattr(Value, f"__{_name}__", _method)


class _Tracer(fx.proxy.GraphAppendingTracer):
    """Takes no constants but Python's own: a tensor in the graph would be one that was made while tracing."""

    def proxy(self, node):
        return Value(node, self)

    def create_arg(self, a):
        if isinstance(a, fx.Proxy):
            return a.node
        if type(a) in (tuple, list):
            return type(a)(self.create_arg(e) for e in a)
        if type(a) is dict and all(type(key) is str for key in a):
            return {key: self.create_arg(value) for key, value in a.items()}
        if type(a) is slice:
            return slice(*map(self.create_arg, (a.start, a.stop, a.step)))
        if isinstance(a, _IMMUTABLE) or a is ...:
            return a
        raise Untraceable(f"hands a {type(a).__name__} to a function")


class _Recorded(TorchFunctionMode):
    """Every torch function of proxies becomes a node; one that sees none would become a constant."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        found = []
        map_aggregate((args, kwargs or {}), lambda a: found.append(a) if isinstance(a, Value) else None)
        if not found:
            raise Untraceable(f"calls {getattr(function, '__name__', function)} on nothing that depends on its input")
        return Value.__torch_function__(function, types, args, kwargs or {})


class Stand:
    """Stands for a module, whose path from the container is known, while the container's forward is traced."""

    __slots__ = ("__module", "__path", "__trace")

    def __init__(self, trace, module, path):
        object.__setattr__(self, "_Stand__trace", trace)
        object.__setattr__(self, "_Stand__module", module)
        object.__setattr__(self, "_Stand__path", path)

    def __getattr__(self, name):
        return self.__trace.read(self, self.__module, self.__path, name)

    def __setattr__(self, name, value):
        raise Untraceable("writes to an attribute")

    def __call__(self, *args, **kwargs):
        if not self.__path:
            raise Untraceable("calls itself")
        return self.__trace.tracer.create_proxy("call_module", ".".join(self.__path), args, kwargs)

    def __children(self):
        if not isinstance(self.__module, torch.nn.Sequential | torch.nn.ModuleList):
            raise Untraceable(f"looks into a {type(self.__module).__name__}")
        self.__trace.facts.add_sequence(self.__module)
        return [
            Stand(self.__trace, child, (*self.__path, name)) if child is not None else None
            for name, child in self.__module._modules.items()
        ]

    def __iter__(self):
        return iter(self.__children())

    def __len__(self):
        return len(self.__children())

    def __getitem__(self, index):
        if isinstance(self.__module, torch.nn.ModuleDict) and index in self.__module._modules:
            child = self.__module._modules[index]
            self.__trace.facts.add_child(self.__module, index, child)
            return Stand(self.__trace, child, (*self.__path, index))
        if not isinstance(index, int):
            raise Untraceable("takes a slice of its layers")
        return self.__children()[index]

    def __bool__(self):
        if hasattr(type(self.__module), "__len__"):
            return bool(self.__children())
        if hasattr(type(self.__module), "__bool__"):
            raise Untraceable(f"asks whether a {type(self.__module).__name__} is true")
        return True


class _Trace:
    def __init__(self, facts):
        self.facts = facts
        self.tracer = _Tracer(fx.Graph())

    def read(self, stand, module, path, name):
        """``self.name`` of a stand-in; what may change is added to the facts."""
        if name.startswith("__"):
            raise AttributeError(name)
        attributes = module.__dict__
        if name in attributes:
            value = attributes[name]
            if not _is_constant(value):
                raise Untraceable(f"reads {_dotted(path, name)}, a {type(value).__name__}, which may change")
            self.facts.add_value(module, name, value)
            return value
        if name in module._modules:
            child = module._modules[name]
            self.facts.add_child(module, name, child)
            return None if child is None else Stand(self, child, (*path, name))
        for tensors in (module._parameters, module._buffers):
            if name in tensors:
                if tensors[name] is None:
                    self.facts.add_value(module, name, None)
                    return None
                return self.tracer.create_proxy("get_attr", ".".join((*path, name)), (), {})
        return self.read_class(stand, module, path, name)

    def read_class(self, stand, module, path, name):
        cls = type(module)
        owner = next((c for c in cls.__mro__ if name in c.__dict__), None)
        if owner is None:
            raise Untraceable(f"asks for {_dotted(path, name)}, which is not there")
        if owner.__module__.startswith("torch."):
            raise Untraceable(f"uses {_dotted(path, name)}")
        value = owner.__dict__[name]
        if isinstance(value, types.FunctionType):
            reason = why_not(value)
            if reason:
                raise Untraceable(f"calls {_dotted(path, name)}, which {reason}")
            return types.MethodType(value, stand)
        if _is_constant(value):
            self.facts.add_value(module, name, value)
            return value
        raise Untraceable(f"uses {_dotted(path, name)}, a {type(value).__name__}")


def _is_constant(value):
    if type(value) is tuple:
        return all(map(_is_constant, value))
    return isinstance(value, _IMMUTABLE) or (
        callable(value) and not isinstance(value, torch.nn.Module) and _is_known(value)
    )


def _dotted(path, name):
    return ".".join(("self", *path, name))


def positional(function):
    """How many tensors a forward takes: its required arguments without ``self``; refused where that does not say it."""
    code = function.__code__
    if code.co_flags & 0x0C:  # *args, **kwargs
        raise Untraceable("takes any number of arguments")
    if code.co_kwonlyargcount > len(function.__kwdefaults__ or {}):
        raise Untraceable("requires keyword arguments")
    return code.co_argcount - 1 - len(function.__defaults__ or ())


def trace(module, facts):
    """(graph, number of inputs) of the forward of ``module``'s class; what it depends on is added to ``facts``.

    Raises:
        Untraceable: with the reason.
    """
    function = type(module).forward
    if not isinstance(function, types.FunctionType):
        raise Untraceable("is not written in Python")
    reason = why_not(function)
    if reason:
        raise Untraceable(reason)
    count = positional(function)
    if count < 1:
        raise Untraceable("takes no input")
    run = _Trace(facts)
    names = function.__code__.co_varnames[1 : 1 + count]
    inputs = [run.tracer.create_proxy("placeholder", name, (), {}) for name in names]
    try:
        with _Recorded():
            result = function(Stand(run, module, ()), *inputs)
        run.tracer.graph.output(run.tracer.create_arg(result))
    except Untraceable:
        raise
    except Exception as error:  # whatever a forward raises when it is given stand-ins
        raise Untraceable(f"cannot be traced ({type(error).__name__}: {str(error).splitlines()[0][:80]})") from None
    return run.tracer.graph, count
