"""torch's private names that pydl builds on, each with what it must do: a torch that drops or changes one fails here.

A test's name says which one broke; the comment at its use in src/pydl says what it is for.
"""

import re
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import pydl
from pydl import _private

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


def test_saved_tensors_are_unpacked_above_autograd():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.to_save = (x,)
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            with torch._C._AutoDispatchBelowAutograd():
                assert len(ctx.saved_tensors) == 1
                assert (2 * leaf).grad_fn is None
            return 2 * grad

    _private.set_backward(Twice)  # by _backward_cls
    leaf, recorded = torch.ones(2, requires_grad=True), []

    def unpack(tensor):
        with torch.enable_grad():
            recorded.append((2 * leaf).grad_fn is not None)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        y = super(torch.autograd.Function, Twice).apply(leaf)
    y.sum().backward()
    assert recorded == [True]
    assert torch.equal(leaf.grad, torch.full((2,), 2.0))


def test_onednn_dtypes_are_those_whose_volumes_stay_channels_last():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.randn(2, 4, 4, 4, 4).to(dtype).to(memory_format=torch.channels_last_3d)
        output = torch.nn.functional.conv3d(x, torch.randn(4, 4, 3, 3, 3).to(dtype))
        assert (not output.is_contiguous()) == (dtype in _private.onednn_dtypes())


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


def test_is_exporting_flag_is_set_by_exports_alone():
    class Layer(torch.nn.Module):
        def forward(self, x):
            return x + 1 if _private.is_exporting() else x - 1

    layer, x = Layer(), torch.zeros(1)
    programs = [torch.export.export(layer, (x,), strict=strict).module() for strict in (True, False)]
    programs += [layer, torch.compile(layer, backend="eager", fullgraph=True)]
    assert [program(x).item() for program in programs] == [1, 1, -1, -1]


def test_dynamo_marked_constant_is_not_traced():
    def constant():
        return len([None for _ in zip(iter([1]), {object(): 1}, strict=True)]) + torch.tensor(1).item()

    constant._dynamo_marked_constant = True
    assert torch.compile(lambda x: x + constant(), backend="eager", fullgraph=True)(torch.ones(1)).item() == 3


def test_function_modes_are_listed():
    from torch.overrides import TorchFunctionMode

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    assert _private.function_modes() == []
    with Mode() as mode:
        assert _private.function_modes() == [mode]
    with torch.device("cpu"):
        assert [type(mode) for mode in _private.function_modes()] == [_private.DeviceContext]


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_tracing_state_is_seen_while_tracing():
    seen = []

    def function(x):
        seen.append(_private.tracing_state() is not None)
        return x + 1

    torch.jit.trace(function, torch.ones(1), check_trace=False)
    assert seen == [True]
    assert _private.tracing_state() is None


def test_batched_gradients_come_in_legacy_tensors():
    seen = []

    class Ask(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            seen.append(_private.is_legacy_batchedtensor(grad))
            return 2 * grad

    x = torch.ones(2, requires_grad=True)
    y = Ask.apply(x)
    torch.autograd.grad(y, x, torch.eye(2), is_grads_batched=True, retain_graph=True)
    torch.autograd.grad(y, x, torch.ones(2))
    assert seen == [True, False]


def test_optimizer_hooks_are_those_of_one_optimizer_and_of_all():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    assert not _private.optimizer_hooks(optimizer)
    for register in (
        optimizer.register_step_pre_hook,
        optimizer.register_step_post_hook,
        register_optimizer_step_pre_hook,
        register_optimizer_step_post_hook,
    ):
        handle = register(lambda *args: None)
        assert _private.optimizer_hooks(optimizer)
        handle.remove()
        assert not _private.optimizer_hooks(optimizer)


def test_without_dynamo_finds_what_is_hidden_from_the_compiler():
    def function():
        pass

    assert _private.without_dynamo(function) is function
    assert _private.without_dynamo(torch.compiler.disable(function)) is function


def test_dynamo_backend_is_the_one_that_torch_compile_records_for():
    found = []

    def backend(graph, inputs):
        return graph

    def ask():
        found.append(_private.dynamo_backend())
        return 1

    ask._dynamo_marked_constant = True
    assert _private.dynamo_backend() is None
    torch.compile(lambda x: x + ask(), backend=backend)(torch.ones(1))
    (inner,) = found
    while inner is not backend:  # through torch's own wrappers
        inner = getattr(inner, "_torchdynamo_orig_backend", None) or inner.compiler_fn
    assert _private.dynamo_backend() is None


def test_log_api_usage_is_what_losses_call_under_torch_compile():
    targets = []

    def backend(graph, inputs):
        targets.extend(node.target for node in graph.graph.nodes)
        return graph

    torch.compile(lambda x: torch.nn.MSELoss()(x, x), backend=backend)(torch.ones(1))
    assert torch._C._log_api_usage_once in targets
    assert _private.log_api_usage is torch._C._log_api_usage_once


def test_storage_of_is_shared_by_views_and_by_what_holds_no_data():
    for device in ("cpu", "meta"):
        x = torch.ones(4, device=device)
        assert _private.storage_of(x) == _private.storage_of(x[1:])
        assert _private.storage_of(x) != _private.storage_of(x.clone())


def test_HigherOrderOperator_and_OpOverload_tell_what_a_graph_calls():
    assert isinstance(torch.ops.higher_order.tag_activation_checkpoint, _private.HigherOrderOperator)
    assert isinstance(torch.ops.aten.add.Tensor, _private.OpOverload)
    assert torch.ops.aten.add_.Tensor._schema.is_mutable
    assert not torch.ops.aten.add.Tensor._schema.is_mutable


# a part of the path that begins with an underscore, or a private attribute of what autograd and functions have
PRIVATE = re.compile(r"\b(?:torch(?:\.\w+)*?\.(_[a-zA-Z]\w*)|\w+\.(_backward_cls|_op)\b)")


def test_with_functions_replaces_what_the_forward_of_a_recurrent_layer_calls():
    calls = []

    class Functions:
        @staticmethod
        def gru(*args):
            calls.append(args)
            return args[0]

        rnn_tanh = lstm = gru

    for cls in (torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM):
        forward = _private.with_functions(cls.forward, Functions)
        x = torch.ones(2, 3, 4)
        output, _ = forward(cls(4, 5), x)
        assert torch.equal(output, x[0])  # the first of what the function returns
        input, _, params, *rest = calls.pop()
        assert input is x
        assert len(params) == 4
        assert rest == [True, 1, 0.0, True, False, False]  # biases, layers, dropout, training, directions, batch first


def test_private_names_stand_in_one_file():
    found = {}
    for path in [*PACKAGE.rglob("*.py"), *(PACKAGE.parents[1] / "kernels").rglob("*.py")]:
        for match in PRIVATE.finditer(path.read_text()):
            found.setdefault(path.name, set()).add(match[1] or match[2])
    assert "_disable_dynamo" in found.pop("_private.py")  # the pattern finds them
    # classes and methods of torch's layers, which ours are made of, not tools
    for names in found.values():
        names -= {"_BatchNorm", "_InstanceNorm", "_check_input_dim", "_check_non_zero_input_channels", "_conv_forward"}
        names -= {"_replicate_for_data_parallel", "_call_impl", "_dynamo"}
    found.get("batch_norm_tiles.py", set()).discard("_prims_common")  # kernels take nothing from above them
    assert {name: names for name, names in found.items() if names} == {}


# what stands in that file under another name than torch's
OF_TORCH = {
    "CALL": "_call_impl",
    "GLOBAL_HOOKS": "_global_",
    "alive": "unwrap_if_dead",
    "below_autograd": "_AutoDispatchBelowAutograd",
    "disable_dynamo": "_disable_dynamo",
    "dispatch_modes": "_len_torch_dispatch_stack",
    "functorch_active": "_are_functorch_transforms_active",
    "increment_version": "_increment_version",
    "log_api_usage": "_log_api_usage_once",
    "no_torch_function": "_disabled_torch_function_impl",
    "op_under": "default._op",
    "reduction_names": "legacy_get_string",
    "set_backward": "_backward_cls",
    "will_engine_execute_node": "_will_engine_execute_node",
}


@pytest.mark.parametrize("name", _private.__all__)
def test_each_name_of_that_file_has_its_test(name):
    tests = Path(__file__).read_text().split("OF_TORCH = {")[0]
    assert re.search(rf"\b{OF_TORCH.get(name, name)}", tests)


def test_a_call_of_a_module_goes_through_these(monkeypatch):
    called = []
    monkeypatch.setattr(torch.nn.Module, "_call_impl", lambda self, x: called.append(self) or x)
    torch.nn.ReLU()(torch.ones(1))
    assert len(called) == 1
