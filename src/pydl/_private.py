"""torch's private names that pydl builds on: all of them, so that a new torch is tried in one place.

tests/build/test_private_names.py holds each to what it must do, and the rest of the package to taking none from torch
itself. Attributes of torch's objects that have no public name are read through the functions at the end.
"""

import sys
from types import FunctionType

import torch
from torch._C import (
    _are_functorch_transforms_active as functorch_active,  # whether torch.func is at work
)
from torch._C import (
    _AutoDispatchBelowAutograd as below_autograd,  # a context: ops record no gradient
)
from torch._C import (
    _disabled_torch_function_impl as no_torch_function,  # __torch_function__ of subclasses that override nothing
)
from torch._C import (
    _get_tracing_state as tracing_state,  # not None while torch.jit.trace records
)
from torch._C import (
    _increment_version as increment_version,  # of a list of tensors: they were written to
)
from torch._C import (
    _len_torch_dispatch_stack as dispatch_modes,  # how many modes see ops below autograd
)
from torch._C import (
    _log_api_usage_once as log_api_usage,  # what some of torch's functions call, for torch's own statistics
)
from torch._C import (
    _will_engine_execute_node as will_engine_execute_node,  # in a backward: whether a gradient is wanted
)
from torch._C._functorch import (
    is_legacy_batchedtensor,  # a tensor under is_grads_batched
)
from torch._C._functorch import (
    unwrap_if_dead as alive,  # a tensor itself, or the one inside a wrapper whose transform is over
)
from torch._ops import HigherOrderOperator, OpOverload
from torch._prims_common import suggest_memory_format
from torch.autograd import forward_ad  # its _current_level, -1 outside of forward-mode AD, is read at each call
from torch.nn import _reduction as reduction_names  # of the arguments size_average and reduce
from torch.nn.modules import module as _module
from torch.optim import optimizer as _optimizer
from torch.overrides import _get_current_function_mode_stack as function_modes
from torch.utils._device import DeviceContext  # the mode of torch.set_default_device
from torch.utils._pytree import tree_leaves

__all__ = [
    "CALL",
    "GLOBAL_HOOKS",
    "DeviceContext",
    "HigherOrderOperator",
    "OpOverload",
    "alive",
    "below_autograd",
    "disable_dynamo",
    "dispatch_modes",
    "dynamo_backend",
    "forward_ad",
    "function_modes",
    "functorch_active",
    "increment_version",
    "is_exporting",
    "is_legacy_batchedtensor",
    "log_api_usage",
    "no_torch_function",
    "onednn_dtypes",
    "op_under",
    "optimizer_hooks",
    "reduction_names",
    "set_backward",
    "storage_of",
    "suggest_memory_format",
    "tracing_state",
    "tree_leaves",
    "will_engine_execute_node",
    "with_functions",
    "without_dynamo",
]

disable_dynamo = torch._disable_dynamo  # torch.compiler.disable, which imports the compiler at once

# Global hooks see every call of every module.
GLOBAL_HOOKS = tuple(
    getattr(_module, f"_global_{name}")
    for name in ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
)
# What a module's call is made of.
CALL = torch.nn.Module.__call__, torch.nn.Module._call_impl


def is_exporting():
    """``torch.compiler.is_exporting``, which under torch 2.11's ``torch.compile`` is True without any export."""
    return torch.compiler._is_exporting_flag


def dynamo_backend():
    """The backend that TorchDynamo records a frame for at this moment, in torch's own wrappers; None where it does not.

    Its module is imported wherever it records: not here, since that takes a second.
    """
    recording = sys.modules.get("torch._dynamo.symbolic_convert")
    try:
        return recording.InstructionTranslator.current_tx().output.compiler_fn
    except AttributeError:  # no module, or no frame
        return None


def op_under(overload):
    """The callable under an ``OpOverload``: a Python frame less for each call."""
    return overload._op


def with_functions(forward, namespace):
    """``forward`` of one of torch's recurrent layers, with ``namespace``'s functions (``gru``, ...) for torch's own."""
    names = forward.__globals__ | {"_VF": namespace}
    return FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)


def optimizer_hooks(optimizer):
    """Whether a step of the optimizer has hooks, of its own or of all optimizers."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _optimizer._global_optimizer_pre_hooks
        or _optimizer._global_optimizer_post_hooks
    )


with below_autograd():
    _BELOW = torch._C._dispatch_tls_local_exclude_set()
_AUTOGRAD = _BELOW - torch._C._dispatch_tls_local_exclude_set()  # what below_autograd leaves out
_SAVED = torch._C._FunctionBase.saved_tensors


def _unpacked(ctx):
    """``ctx.saved_tensors``, asked for above autograd wherever the backward is.

    Hooks of saved tensors may run a forward once more (torch.utils.checkpoint), which is to be recorded as it was.
    """
    if not torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.AutogradOther):
        return _SAVED.__get__(ctx)
    excluded = torch._C._dispatch_tls_local_exclude_set() - _AUTOGRAD
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded):
        return _SAVED.__get__(ctx)


def set_backward(function):
    """The node of an ``autograd.Function`` calls its ``backward`` at once, without looking for other forms of it.

    In it, ``ctx.saved_tensors`` may be asked for under :data:`below_autograd`.
    """
    function._backward_cls.apply = function.backward
    function._backward_cls.saved_tensors = property(_unpacked)


def storage_of(tensor):
    """A number that tensors which share memory share, those without data too."""
    return tensor.untyped_storage()._cdata


def without_dynamo(function):
    """What ``torch.compile``, at its first use in a process, has hidden from itself by a wrapper; else ``function``."""
    return getattr(function, "_torchdynamo_orig_callable", function)


def onednn_dtypes():
    """The dtypes that torch convolves by oneDNN on this CPU."""
    halves = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return frozenset({torch.float32, *(dtype for dtype, supported in halves.items() if supported())})
