"""When a layer steps aside to torch's own forward, and why: wherever torch would honour something that is not its own.

A layer of ours computes what torch's ``forward`` of its class means, and calls nothing of what that forward calls. So
whoever replaced a part of it (``conv._conv_forward = ...``), or is to see torch's functions being called (a tensor that
overrides ``__torch_function__``, a function mode, an exporter), would be passed by in silence.

It is asked at each call, each thing once, by the cheapest tests there are. A layer asks :func:`steps_aside` before it
reads its parameters, :func:`is_special` about those, and then calls the form of its function that asks nothing again
(``conv2d_unasked``). The functions of ``pydl.functional``, which have no layer, ask :func:`is_torchs`. :func:`why` is
the answer in words.
"""

import weakref

import torch
import torch.nn.functional as F
from torch.overrides import has_torch_function_variadic

from pydl._private import (
    DeviceContext,
    dynamo_backend,
    forward_ad,
    function_modes,
    is_exporting,
    no_torch_function,
    tracing_state,
)

_strided = torch.strided

backend_is_loaded = False  # pydl.compiling.backend, which layers leave what they are recorded for to

of_tensors = weakref.WeakKeyDictionary()  # module -> why it last stepped aside because of the tensors of a call


class Own:
    """What the forward of a class of torch's is made of, as torch has it: methods, and the function that they end in.

    Args:
        cls: the class.
        function: the name of the function, in ``namespace``.
        methods: names of the methods that its ``forward`` calls; ours asks about each by name, since a loop costs more.
    """

    __slots__ = ("cls", "forward", "function", "methods", "name", "namespace")

    def __init__(self, cls, function, *methods, namespace=F):
        self.cls, self.name, self.namespace = cls, function, namespace
        self.function = _if_torchs(getattr(namespace, function))
        self.forward = _if_torchs(cls.forward)
        self.methods = tuple((name, _if_torchs(getattr(cls, name))) for name in methods)


def _if_torchs(function):
    """``function``; None, which nothing is, if it took the place of torch's before pydl was imported."""
    scope = getattr(function, "__globals__", None)  # functions in C have none
    return function if scope is None or scope["__name__"].startswith("torch.") else None


def steps_aside(module, own, function, input, other=None):
    """Whether torch's forward is to compute ``module(input, other)``; ``function`` is what it would end in now."""
    if function is not own.function or own.cls.forward is not own.forward:
        return True
    try:
        return (  # as is_unusual, with a call less
            has_torch_function_variadic(input, other)
            or input.layout is not _strided
            or input.is_nested
            or forward_ad._current_level >= 0
            or is_exporting()
            or tracing_state() is not None
            or (backend_is_loaded and is_rewritten())
        ) and _is_so(module, input, other)
    except AttributeError:  # no tensor: torch says so in its own words
        return True


def is_unusual(module, input):
    """Whether, at this moment or for this tensor, torch is to see each of its functions being called."""
    return (
        has_torch_function_variadic(input)
        or input.layout is not _strided
        or input.is_nested
        or forward_ad._current_level >= 0
        or is_exporting()
        or tracing_state() is not None
        or (backend_is_loaded and is_rewritten())
    ) and _is_so(module, input)


def is_rewritten():
    """Whether torch.compile records the call for our own backend, which puts our ops under torch's by itself."""
    return torch.compiler.is_compiling() and _is_recorded_for_us()


def _is_recorded_for_us():
    backend = dynamo_backend()
    while backend is not None:
        if hasattr(backend, "is_pydls"):
            return True
        wrapped = (getattr(backend, name, None) for name in ("_torchdynamo_orig_backend", "compiler_fn", "__wrapped__"))
        backend = next(filter(None, wrapped), None)
    return False


_is_recorded_for_us._dynamo_marked_constant = True  # torch.compile calls it while it records


def is_special(module, parameter, b=None, c=None, d=None):
    """Whether torch's function is to get these parameters (or None), which are of one layout."""
    return (
        has_torch_function_variadic(parameter, b, c, d) or (parameter is not None and parameter.layout is not _strided)
    ) and _is_so(module, parameter, b, c, d)


def is_torchs(input, a=None, b=None, c=None, d=None, e=None):
    """Whether a call of a function with these tensors is torch's own to serve.

    Inputs that are nested, sparse or of oneDNN's layout; tensors whose type overrides ``__torch_function__``, and
    function modes, which must see torch's function (inside the handler of ``pydl.swapped()`` torch has taken that mode
    off, so our functions stay ours there); forward-mode AD, whose tangents our ops do not carry. Exporting and tracing
    are no reason: who calls our function by name wants our op in the program.
    """
    try:
        return (
            (has_torch_function_variadic(input, a, b, c, d, e) and _is_overridden(input, a, b, c, d, e))
            or input.layout is not _strided
            or input.is_nested
            or forward_ad._current_level >= 0
        )
    except AttributeError:  # no tensor: torch says so in its own words
        return True


def _is_overridden(*tensors):
    return _why_mode() is not None or why_tensors(tensors) is not None


def _is_so(module, *tensors):
    if torch.compiler.is_compiling():
        return True
    if why_now() is not None:
        return True
    reason = why_tensors(tensors)
    if reason is not None:
        of_tensors[module] = reason
    return reason is not None


def why(module, own):
    """Why torch's forward computes ``module`` whatever it is given, in words, or None."""
    cls = type(module)
    for name, method in own.methods:
        if name in module.__dict__:
            return f"its {name} was replaced on the instance"
        if getattr(cls, name) is not method:
            return f"{name} was replaced on the class"
    if own.cls.forward is not own.forward:
        return "forward was replaced on the class"
    if getattr(own.namespace, own.name) is not own.function:
        return f"{own.namespace.__name__}.{own.name} was replaced"
    return why_tensors(module.__dict__["_parameters"].values())


def why_tensors(tensors):
    """Why a call with ``tensors`` (None among them) is torch's, in words, or None."""
    for tensor in tensors:
        if tensor is None:
            continue
        cls = type(tensor)
        if not isinstance(tensor, torch.Tensor) or (
            cls is not torch.Tensor
            and cls is not torch.nn.Parameter
            and cls.__torch_function__ is not no_torch_function
        ):
            return f"{cls.__name__} overrides __torch_function__"
        if tensor.is_nested:
            return "nested tensors are torch's"
        if tensor.layout is not _strided:
            return f"tensors of layout {str(tensor.layout).removeprefix('torch.')} are torch's"
    return None


def why_now():
    """Why every call of a layer at this moment is torch's, in words, or None."""
    reason = _why_mode()
    if reason is not None:
        return reason
    if is_exporting():
        return "exported programs are of torch's ops"
    return None if tracing_state() is None else "torch.jit.trace records torch's ops"


def _why_mode():
    for mode in function_modes():
        if type(mode) is not DeviceContext:  # torch.set_default_device, which is about functions that make tensors
            return f"the function mode {type(mode).__name__} is active"
    return None if forward_ad._current_level < 0 else "forward-mode differentiation is torch's"
