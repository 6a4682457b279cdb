"""pydl.swap, unswap and report: one test per promise, mostly on the book's own LeNet, written with torch.nn."""

import copy
import gc
import io
import multiprocessing
import pickle
import weakref

import pytest
import torch
from testing import assert_close
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils._python_dispatch import TorchDispatchMode

import pydl
from pydl.swapping import SwappedForward, is_swapped

SERVED = [
    nn.Conv2d(2, 4, 3),
    nn.BatchNorm1d(4),
    nn.BatchNorm2d(4),
    nn.BatchNorm3d(4),
    nn.Dropout(0.5),
    nn.Dropout1d(0.5),
    nn.Dropout2d(0.5),
    nn.Dropout3d(0.5),
    nn.MaxPool2d(2),
    nn.AvgPool2d(2),
    nn.CrossEntropyLoss(),
    nn.LazyConv2d(4, 3),
    nn.LazyBatchNorm1d(),
    nn.LazyBatchNorm2d(),
    nn.LazyBatchNorm3d(),
]


def d2l_lenet():
    """The book's listing, word for word."""
    return nn.Sequential(
        nn.Conv2d(1, 6, kernel_size=5, padding=2), nn.Sigmoid(),
        nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Conv2d(6, 16, kernel_size=5), nn.Sigmoid(),
        nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120), nn.Sigmoid(),
        nn.Linear(120, 84), nn.Sigmoid(),
        nn.Linear(84, 10))  # fmt: skip


def small_net():
    """One of each kind of layer, on (N, 1, 8, 8)."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Dropout(0.0),
        nn.Flatten(),
        nn.Linear(108, 4),
        nn.BatchNorm1d(4),
    )


class OurOps(TorchDispatchMode):
    """Counts the calls of our ops inside a ``with`` block."""

    seen = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen += function.namespace.startswith("pydl")
        return function(*args, **(kwargs or {}))


def calls_of_our_ops(net, x):
    with OurOps() as ours, torch.no_grad():
        net(x)
    return ours.seen


def test_types_keys_repr_and_hooks_stay():
    net = d2l_lenet()
    seen = []
    net[0].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    before = repr(net), list(net.state_dict()), [id(p) for p in net.parameters()], [type(m) for m in net.modules()]
    assert pydl.swap(net) is net
    assert before == (
        repr(net),
        list(net.state_dict()),
        [id(p) for p in net.parameters()],
        [type(m) for m in net.modules()],
    )
    assert type(net[0]) is nn.Conv2d
    net(torch.randn(2, 1, 28, 28))
    assert seen == [(2, 6, 28, 28)]


def test_init_by_type_still_acts():
    net = pydl.swap(d2l_lenet())

    def init_weights(m):
        if type(m) == nn.Linear or type(m) == nn.Conv2d:  # noqa: E721 (as in the book)
            nn.init.constant_(m.weight, 0.25)

    net.apply(init_weights)
    assert (net[0].weight == 0.25).all()
    assert (net[3].weight == 0.25).all()


def test_outputs_and_gradients_equal_torchs(device):
    oracle = d2l_lenet()
    net = pydl.swap(copy.deepcopy(oracle)).to(device)
    oracle.double()
    x, target = torch.randn(9, 1, 28, 28), torch.randint(10, (9,))
    loss = pydl.swap(nn.CrossEntropyLoss())
    expected, actual = oracle(x.double()), net(x.to(device))
    assert_close(actual, expected, scale=2)
    nn.functional.cross_entropy(expected, target).backward()
    loss(actual, target.to(device)).backward()
    for (name, p), q in zip(oracle.named_parameters(), net.parameters(), strict=True):
        assert q.grad is not None, name
        assert_close(q.grad, p.grad, scale=10)


@pytest.mark.parametrize("layer", SERVED, ids=lambda layer: type(layer).__name__)
def test_every_served_class_is_swapped(layer):
    assert is_swapped(pydl.swap(layer))
    assert not is_swapped(pydl.unswap(layer))


def test_our_ops_run_under_swap_and_not_under_the_torch_backend():
    net, x = small_net(), torch.randn(4, 1, 8, 8)
    assert calls_of_our_ops(net, x) == 0
    assert calls_of_our_ops(pydl.swap(net), x) >= 3
    with pydl.backend.use("torch"):
        assert calls_of_our_ops(net, x) == 0
    assert calls_of_our_ops(pydl.unswap(net), x) == 0


def test_each_layer_called_alone_gives_its_own_output():
    oracle = d2l_lenet()
    net = pydl.swap(copy.deepcopy(oracle))
    X = Y = image = torch.rand(1, 1, 28, 28)
    for layer, theirs in zip(net, oracle, strict=True):
        X, Y = layer(X), theirs(Y)
        assert_close(X, Y.double(), scale=2)
    assert_close(X, net(image).double())  # our sigmoid, in the convolution's kernel, rounds in its own way


def test_second_swap_changes_nothing():
    net = pydl.swap(small_net())
    before = [dict(m.__dict__) for m in net.modules()]
    pydl.swap(net)
    assert [dict(m.__dict__) for m in net.modules()] == before


def test_unswap_leaves_nothing_behind():
    net = small_net()
    before = [list(m.__dict__) for m in net.modules()]
    pydl.unswap(pydl.swap(net))
    assert [list(m.__dict__) for m in net.modules()] == before
    assert net[0].forward.__func__ is nn.Conv2d.forward


def assert_independent_twin(net, twin):
    """``twin`` is swapped, computes with its own parameters and switches, and ``net`` is untouched by it."""
    x = torch.randn(4, 1, 8, 8)
    net.eval()
    twin.eval()
    assert is_swapped(twin[0])
    assert twin[0].forward.module() is twin[0]
    assert torch.equal(net(x), twin(x))
    expected = net(x)
    with torch.no_grad():
        twin[0].weight.add_(1)
    assert not torch.equal(net(x), twin(x))
    assert torch.equal(net(x), expected)
    twin(x).sum().backward()
    assert net[0].weight.grad is None
    assert twin[0].weight.grad is not None


def test_deepcopy():
    net = pydl.swap(small_net())
    twin = copy.deepcopy(net)
    assert_independent_twin(net, twin)
    pydl.unswap(twin)
    assert is_swapped(net[0])


def test_copy_of_a_layer_has_its_own_switches():
    layer = pydl.swap(nn.Conv2d(1, 2, 3))
    twin = copy.copy(layer)
    assert is_swapped(twin)
    twin.padding, twin._reversed_padding_repeated_twice = (1, 1), [1, 1, 1, 1]
    x = torch.randn(1, 1, 6, 6)
    assert twin(x).shape == (1, 2, 6, 6)
    assert layer(x).shape == (1, 2, 4, 4)
    dropout = pydl.swap(nn.Dropout(0.5))
    twin = copy.copy(dropout).eval()
    assert twin(x) is x
    assert dropout(x) is not x


def test_copies_share_parameters_as_torchs_do():
    layer = pydl.swap(nn.Conv2d(1, 2, 3))
    assert copy.copy(layer).weight is layer.weight
    assert copy.deepcopy(layer).weight is not layer.weight


def through_save(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copier", [through_save, lambda net: pickle.loads(pickle.dumps(net))], ids=["torch", "pickle"])
@pytest.mark.parametrize("compact", [False, True], ids=["", "old protocol"])
def test_save_and_load_of_a_whole_model(copier, compact):
    if compact:
        copier = lambda net: pickle.loads(pickle.dumps(net, protocol=2))  # noqa: E731
    net = pydl.swap(small_net())
    assert_independent_twin(net, copier(net))


def test_load_with_weights_only_needs_our_name_among_the_safe_ones():
    from collections import OrderedDict

    net = pydl.swap(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))
    file = io.BytesIO()
    torch.save(net, file)
    safe = [nn.Sequential, nn.Conv2d, nn.ReLU, OrderedDict, set]
    with torch.serialization.safe_globals(safe):
        file.seek(0)
        with pytest.raises(pickle.UnpicklingError, match=r"pydl\.swapping\.rebuild"):
            torch.load(file, weights_only=True)
    with torch.serialization.safe_globals([*safe, pydl.swapping.rebuild]):
        file.seek(0)
        twin = torch.load(file, weights_only=True)
    assert twin[0].forward.module() is twin[0]


def test_state_dicts_pass_between_swapped_and_plain():
    net, plain = pydl.swap(small_net()), small_net()
    x = torch.randn(4, 1, 8, 8)
    net(x)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    plain.load_state_dict(torch.load(file, weights_only=True))
    assert_close(plain.eval()(x), net.eval()(x).double(), scale=5)
    net.load_state_dict(small_net().state_dict())


def test_data_parallel_replicas_use_their_own_parameters():
    # What torch.nn.parallel.replicate does with each module, without its broadcast, which needs GPUs: a shallow copy
    # whose parameters are then set as plain attributes.
    layer = pydl.swap(nn.Conv2d(1, 2, 3, bias=False))
    replica = layer._replicate_for_data_parallel()
    replica.weight, replica._parameters["bias"] = torch.full((2, 1, 3, 3), 0.5, requires_grad=True) * 2, None
    assert replica._is_replica
    assert not hasattr(layer, "_is_replica")
    assert replica.forward.module() is replica
    assert_close(replica(torch.ones(1, 1, 3, 3)), torch.full((1, 2, 1, 1), 9.0).double())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs on this machine")
def test_data_parallel():
    net = pydl.swap(small_net()).cuda()
    x = torch.randn(8, 1, 8, 8, device="cuda")
    nn.DataParallel(net)(x).sum().backward()
    assert net[0].weight.grad is not None


def test_lazy_layers_are_swapped_before_they_take_shape():
    def build():
        torch.manual_seed(3)
        return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))

    x = torch.randn(4, 2, 7, 7)
    net, plain = pydl.swap(build()), build()
    twin = through_save(net)  # torch has no deepcopy of lazy buffers
    torch.manual_seed(4)
    expected = plain(x)
    for swapped in (net, twin):
        torch.manual_seed(4)
        assert_close(swapped(x), expected.double(), scale=5)
        assert type(swapped[0]) is nn.Conv2d
        assert type(swapped[1]) is nn.BatchNorm2d
        assert swapped[0].forward.module() is swapped[0]
    assert repr(net) == repr(plain)
    assert [row.served_by.split()[0] for row in pydl.report(net).rows[:2]] == ["cpu", "cpu"]
    pydl.unswap(net)
    assert [set(m.__dict__) for m in net.modules()] == [set(m.__dict__) for m in plain.modules()]


def _loss_in_child(net, x, queue):
    queue.put((is_swapped(net[0]), net(x).sum().item()))


def test_pickling_to_another_process():
    net, x = pydl.swap(small_net()).eval(), torch.randn(2, 1, 8, 8)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_loss_in_child, args=(net, x, queue))
    process.start()
    try:
        swapped, loss = queue.get(timeout=60)
    finally:
        process.join(timeout=30)
    assert swapped
    assert loss == pytest.approx(net(x).sum().item(), rel=1e-5)


def test_memory_is_freed_without_the_garbage_collector():
    gc.disable()
    try:
        net = pydl.swap(small_net())
        weight = weakref.ref(net[0].weight)
        del net
        assert weight() is None
    finally:
        gc.enable()


def test_a_forward_that_outlives_its_layer_says_so():
    forward = pydl.swap(nn.Dropout(0.5)).forward
    with pytest.raises(ReferenceError, match="keep the module"):
        forward(torch.ones(3))


def test_hooks_weights_and_modes_act():
    layer = pydl.swap(nn.Conv2d(1, 2, 3))
    x = torch.randn(1, 1, 5, 5, requires_grad=True)
    expected = layer(x).detach()
    assert_close(layer(input=x), expected.double())  # by keyword
    layer.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    layer.register_full_backward_hook(lambda module, grad_input, grad_output: (grad_input[0] * 0 + 7,))
    doubled = layer(x)
    with torch.no_grad():
        assert_close(doubled, (2 * (expected - layer.bias.view(2, 1, 1)) + layer.bias.view(2, 1, 1)).double())
    doubled.sum().backward()
    assert (x.grad == 14).all()


def test_functional_call_and_parameters_that_are_replaced():
    layer = pydl.swap(nn.Conv2d(1, 2, 3, bias=False))
    x = torch.ones(1, 1, 3, 3)
    output = torch.func.functional_call(layer, {"weight": torch.ones(2, 1, 3, 3)}, x)
    assert_close(output, torch.full((1, 2, 1, 1), 9.0).double())
    layer.weight = nn.Parameter(torch.zeros(2, 1, 3, 3))
    assert (layer(x) == 0).all()


@pytest.mark.parametrize("first", ["swap", "parametrize"])
def test_parametrised_layers_are_served(first):
    layer = nn.Conv2d(2, 3, 3).double()
    oracle = copy.deepcopy(layer)
    parametrizations.weight_norm(oracle)
    if first == "swap":
        parametrizations.weight_norm(pydl.swap(layer))
    else:
        pydl.swap(parametrizations.weight_norm(layer))
    assert is_swapped(layer)
    x = torch.randn(2, 2, 5, 5).double()
    twin = copy.deepcopy(layer)
    assert twin.forward.module() is twin
    for net in (oracle, layer, twin):
        net(x).pow(2).sum().backward()
    for net in (layer, twin):
        for p, q in zip(oracle.parameters(), net.parameters(), strict=True):
            assert_close(q.grad, p.grad)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Conv2d
    assert_close(layer(x), oracle(x))
    assert pydl.report(twin).rows[0].reason == ""


def test_pruned_layers_are_served():
    layer = pydl.swap(prune.l1_unstructured(nn.Conv2d(1, 2, 3), "weight", amount=0.5))
    assert (layer.weight == 0).sum() == 9
    x = torch.randn(2, 1, 5, 5)
    weight, bias = layer.weight.double(), layer.bias.double()
    assert_close(layer(x), nn.functional.conv2d(x.double(), weight, bias))


class OwnForward(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) * 2


LEFT = {
    "own forward": (lambda: OwnForward(1, 1, 1), "a subclass of Conv2d"),
    "Linear": (lambda: nn.Linear(3, 3), "no kernel for Linear"),
    "complex": (lambda: nn.Conv2d(1, 1, 1).to(torch.complex64), "complex64"),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(1, 1, 1), "no kernel for ConvTranspose2d"),
    "quantized": (lambda: torch.ao.nn.quantized.Conv2d(1, 1, 1), "quantized"),
}


@pytest.mark.filterwarnings("ignore:Complex modules", "ignore:.*quantized tensor creation")
@pytest.mark.parametrize("name", LEFT)
def test_left_alone_with_the_reason(name):
    build, reason = LEFT[name]
    layer = build()
    before = list(layer.__dict__)
    net = pydl.swap(nn.Sequential(layer, nn.Dropout(0.1)))
    assert list(layer.__dict__) == before
    left, served = pydl.report(net).rows
    assert reason in left.reason
    assert left.served_by == "torch"
    assert served.reason == ""


def test_a_forward_replaced_on_the_instance_is_kept():
    layer = nn.Conv2d(1, 1, 1)
    layer.forward = lambda input: input + 1
    pydl.swap(layer)
    assert (layer(torch.zeros(1)) == 1).all()
    assert "replaced" in pydl.report(layer).rows[0].reason
    # replaced after the swap, as libraries do that wrap a forward: theirs stays, also through unswap and copies
    layer = pydl.swap(nn.Dropout(0.5)).eval()
    inner = layer.forward
    layer.forward = lambda input: inner(input) + 1
    for net in (layer, copy.deepcopy(layer), pydl.unswap(layer)):
        assert (net(torch.zeros(1)) == 1).all()
    assert not any(isinstance(value, SwappedForward) for value in layer.__dict__.values())


def test_a_dict_taken_over_from_another_layer_is_repaired_by_swap():
    layer = pydl.swap(nn.Dropout(0.5))
    twin = nn.Dropout.__new__(nn.Dropout)
    twin.__dict__ = layer.__dict__.copy()
    assert pydl.report(twin).rows[0].reason == "not swapped"
    assert pydl.swap(twin).forward.module() is twin
    assert layer.forward.module() is layer


def test_shared_layers_and_slices():
    shared = nn.Conv2d(2, 2, 3, padding=1)
    net = pydl.swap(nn.Sequential(shared, nn.ReLU(), shared))
    x = torch.randn(1, 2, 5, 5)
    assert_close(net(x), pydl.unswap(copy.deepcopy(net))(x).double(), scale=5)
    assert net[:2][0] is shared
    assert copy.deepcopy(net)[0] is not shared
    twin = copy.deepcopy(net)
    assert twin[0] is twin[2]


def test_layers_added_later_are_reported_and_swapped_by_a_second_call():
    net = pydl.swap(nn.Sequential(nn.Conv2d(1, 2, 3)))
    net.append(nn.BatchNorm2d(2))
    assert pydl.report(net).rows[1].reason == "not swapped"
    assert pydl.report(pydl.swap(net)).rows[1].reason == ""


def test_report():
    net = pydl.swap(d2l_lenet())
    report = pydl.report(net)
    assert [(row.name, row.layer) for row in report.rows] == [
        (str(i), type(layer).__name__) for i, layer in enumerate(net)
    ]
    with pydl.backend.isa("baseline"):
        assert pydl.report(net).rows[0].served_by == "cpu baseline"
    assert report.rows[0].served_by == f"cpu {pydl.backend.current_isa()}"
    assert report.rows[1] == pydl.swapping.Row("1", "Sigmoid", report.rows[0].served_by, "", "in 0")
    assert report.rows[2] == pydl.swapping.Row("2", "AvgPool2d", report.rows[0].served_by, "")
    assert report.rows[8] == pydl.swapping.Row("8", "Sigmoid", "torch", "pydl has no kernel for Sigmoid")
    with pydl.backend.use("torch"):
        assert pydl.report(net).rows[0].reason == "the backend torch was asked for"
    text = str(report)
    assert "served by" in text.splitlines()[0]
    assert text.endswith("pydl serves 6 of 12 layers")
    assert repr(report) == text
    from rich.console import Console

    console = Console(file=io.StringIO(), width=100)
    console.print(report)
    assert "Conv2d" in console.file.getvalue()
    loss = pydl.report(pydl.swap(nn.CrossEntropyLoss()))
    assert [(row.layer, row.reason) for row in loss.rows] == [("CrossEntropyLoss", "")]


def test_report_of_pydl_nn_and_of_meta_tensors():
    class Own(pydl.nn.Conv2d):
        def forward(self, input):
            return super().forward(input) + 1

    rows = pydl.report(nn.Sequential(pydl.nn.Conv2d(1, 2, 3), Own(1, 1, 1), nn.Sequential())).rows
    assert [row.reason for row in rows] == ["", "its forward is its own"]
    with pydl.backend.use("cpu"):
        row = pydl.report(pydl.swap(nn.Conv2d(1, 2, 3, device="meta"))).rows[0]
    assert (row.served_by, row.reason) == ("torch", "meta tensors hold no data")


def test_report_on_a_device_that_no_backend_serves():
    layer = pydl.swap(nn.Conv2d(1, 2, 3, bias=False))
    with FakeTensorMode():
        layer.weight = nn.Parameter(torch.empty(2, 1, 3, 3, device="mps"))
    row = pydl.report(layer).rows[0]
    assert row.served_by == "nothing"
    assert "got one on 'mps'; use('torch') serves it" in row.reason


@pytest.mark.parametrize("training", [True, False])
def test_compile_fullgraph(training):
    net = pydl.swap(d2l_lenet()).train(training)
    twin = copy.deepcopy(net)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x, target = torch.randn(3, 1, 28, 28), torch.tensor([1, 5, 7])
    loss = pydl.swap(nn.CrossEntropyLoss())
    loss(net(x), target).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(compiled(x), target).backward()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert_close(q.grad, p.grad.double(), scale=5)


def test_compile_notices_swap_and_unswap():
    torch._dynamo.reset()
    net, x = small_net().eval(), torch.randn(2, 1, 8, 8)
    served = []

    def backend(graph, inputs):
        served.append("pydl" in graph.code)
        return graph

    compiled = torch.compile(net, backend=backend)
    with torch.no_grad():
        compiled(x)
        pydl.swap(net)
        compiled(x)
        pydl.unswap(net)
        compiled(x)
    assert served[:2] == [False, True]
    assert not served[-1] or len(served) == 2  # the first graph is used again


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    net, x = pydl.swap(d2l_lenet()).eval(), torch.randn(2, 1, 28, 28)
    program = torch.export.export(net, (x,), strict=strict)
    assert_close(program.module()(x), net(x).double())
    assert any("pydl" in str(node.target) for node in program.graph.nodes)


def test_symbolic_trace_keeps_swapped_layers():
    net = pydl.swap(d2l_lenet())
    traced = torch.fx.symbolic_trace(net)
    assert is_swapped(traced.get_submodule("0"))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_is_refused_in_words():
    for net in (pydl.swap(nn.Dropout(0.5)), pydl.swap(d2l_lenet())):
        with pytest.raises(RuntimeError, match=r"TorchScript: expected .* after pydl\.unswap"):
            torch.jit.script(net)
        with pytest.raises(RuntimeError, match=r"TorchScript: expected .* after pydl\.unswap"):
            torch.jit.trace(net, (torch.randn(2, 1, 28, 28),))
    torch.jit.script(pydl.unswap(net))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_bad_input():
    for function in (pydl.swap, pydl.unswap, pydl.report):
        with pytest.raises(TypeError, match=r"expected module to be a torch\.nn\.Module, got list"):
            function([nn.Conv2d(1, 1, 1)])
    with pytest.raises(TypeError, match="compiled by TorchScript"):
        pydl.swap(torch.jit.script(nn.Dropout(0.5)))
