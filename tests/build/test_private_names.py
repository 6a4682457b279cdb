"""torch's private names that pydl builds on, each with what it must do: a torch that drops or changes one fails here.

A test's name says which one broke; the comment at its use in src/pydl says what it is for.
"""

import re
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad

import pydl

PACKAGE = Path(pydl.__file__).parent


class Double(torch.autograd.Function):
    """An autograd.Function with nothing special about it."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def test_unwrap_if_dead_takes_a_tensor_out_of_a_transform_that_is_over():
    kept = []
    torch.func.grad(lambda x: (kept.append(x), x.sum())[1])(torch.ones(2))
    alive = torch._C._functorch.unwrap_if_dead(kept[0])
    assert not torch._C._functorch.is_functorch_wrapped_tensor(alive)
    plain = torch.ones(2)
    assert torch._C._functorch.unwrap_if_dead(plain) is plain


def test_auto_dispatch_below_autograd_records_no_gradient():
    x = torch.ones(2, requires_grad=True)
    with torch._C._AutoDispatchBelowAutograd():
        assert (2 * x).grad_fn is None
    assert (2 * x).grad_fn is not None


def test_will_engine_execute_node_tells_which_gradient_is_asked_for():
    told = []

    class Ask(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            return x * y

        @staticmethod
        def backward(ctx, grad):
            told.extend(torch._C._will_engine_execute_node(edge[0]) for edge in ctx.next_functions)
            return grad, grad

    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    x, y = 2 * a, 3 * b
    torch.autograd.grad(Ask.apply(x, y).sum(), [a])
    assert told == [True, False]


def test_functorch_transforms_active():
    seen = []
    active = torch._C._are_functorch_transforms_active
    torch.func.grad(lambda x: (seen.append(active()), x.sum())[1])(torch.ones(2))
    assert [*seen, active()] == [True, False]


def test_forward_ad_level():
    assert forward_ad._current_level == -1
    with forward_ad.dual_level():
        assert forward_ad._current_level == 0


def test_backward_cls_apply_is_what_the_node_calls(monkeypatch):
    calls = []
    monkeypatch.setattr(Double._backward_cls, "apply", lambda ctx, grad: calls.append(1) or 5 * grad, raising=False)
    x = torch.ones(2, requires_grad=True)
    # the C++ apply under Function.apply, which pydl.ops._library.eager takes
    super(torch.autograd.Function, Double).apply(x).sum().backward()
    assert calls == [1]
    assert x.grad.tolist() == [5, 5]


def test_len_torch_dispatch_stack_counts_modes():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    assert torch._C._len_torch_dispatch_stack() == 0
    with Mode():
        assert torch._C._len_torch_dispatch_stack() == 1


def test_increment_version_takes_a_list_of_tensors():
    tensors = [torch.ones(2), torch.ones(3)]
    torch._C._increment_version(tensors)
    assert [tensor._version for tensor in tensors] == [1, 1]


def test_disabled_torch_function_marks_parameter_like_subclasses():
    assert torch.nn.Parameter.__torch_function__ is torch._C._disabled_torch_function_impl


def test_suggest_memory_format():
    suggest = torch._prims_common.suggest_memory_format
    image = torch.ones(2, 3, 4, 5)
    assert suggest(image) is torch.contiguous_format
    assert suggest(image.to(memory_format=torch.channels_last)) is torch.channels_last


def test_op_under_an_overload_is_callable():
    assert torch.equal(torch.ops.aten.neg.default._op(torch.ones(2)), -torch.ones(2))


def test_global_hooks_of_modules_are_kept_in_these_dicts():
    from torch.nn.modules import module

    for kind, register in (
        ("forward_hooks", module.register_module_forward_hook),
        ("forward_pre_hooks", module.register_module_forward_pre_hook),
        ("backward_hooks", module.register_module_full_backward_hook),
        ("backward_pre_hooks", module.register_module_full_backward_pre_hook),
    ):
        known = getattr(module, f"_global_{kind}")
        assert len(known) == 0
        handle = register(lambda *_: None)
        assert len(known) == 1
        handle.remove()


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_tracing_calls_slow_forward():
    called = []

    class Layer(torch.nn.Module):
        def _slow_forward(self, *args, **kwargs):
            called.append(1)
            return super()._slow_forward(*args, **kwargs)

        def forward(self, x):
            return x + 1

    torch.jit.trace(Layer(), torch.ones(1))
    assert called


def test_legacy_reduction_strings():
    from torch.nn import _reduction

    with pytest.warns(UserWarning, match="deprecated"):
        assert _reduction.legacy_get_string(False, None) == "sum"


def test_sync_batch_norm_checks_of_torch():
    norm = torch.nn.SyncBatchNorm(3)
    with pytest.raises(ValueError, match="expected at least 2D input"):
        torch.nn.SyncBatchNorm._check_input_dim(norm, torch.ones(3))
    with pytest.raises(ValueError, match="number of input channels should be non-zero"):
        torch.nn.SyncBatchNorm._check_non_zero_input_channels(norm, torch.ones(2, 0))
    assert issubclass(torch.nn.BatchNorm2d, torch.nn.modules.batchnorm._BatchNorm)


def test_tree_leaves():
    assert torch.utils._pytree.tree_leaves({"a": [1, (2,)], "b": 3}) == [1, 2, 3]


def test_disable_dynamo_breaks_the_graph():
    @torch._disable_dynamo
    def outside(x):
        return x + 1

    assert torch.compile(lambda x: outside(x) * 2, backend="eager")(torch.ones(1)).item() == 4
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(lambda x: outside(x) * 2, backend="eager", fullgraph=True)(torch.ones(1))


def test_dynamo_marked_constant_is_not_traced():
    def constant():
        return len([None for _ in zip(iter([1]), {object(): 1}, strict=True)]) + torch.tensor(1).item()

    constant._dynamo_marked_constant = True
    assert torch.compile(lambda x: x + constant(), backend="eager", fullgraph=True)(torch.ones(1)).item() == 3


def test_every_private_name_of_torch_in_the_package_has_its_test():
    tests = Path(__file__).read_text()
    places = {}
    for path in [*PACKAGE.rglob("*.py"), *(PACKAGE.parents[1] / "kernels").rglob("*.py")]:
        for name in re.findall(r"\btorch(?:\.\w+)*?\.(_[a-zA-Z]\w*(?:\.\w+)*)", path.read_text()):
            places.setdefault(name.split(".")[-1], path.name)
    assert places, "the pattern finds nothing"
    missing = {name: place for name, place in places.items() if name not in tests and name not in ("_dynamo",)}
    assert missing == {}
