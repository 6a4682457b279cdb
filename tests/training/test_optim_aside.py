"""Steps that pydl.optim leaves to torch: each gives what torch's own class gives, and says why."""

import sys

import pytest
import torch
from optimizers import SHAPES, pair, parameters, run, served, set_grads
from testing import assert_close

import pydl
from pydl.ops import _nodes

pytestmark = pytest.mark.skipif(_nodes.why_not is not None, reason=f"pydl._torch is not loaded: {_nodes.why_not}")


def why(optimizer):
    return pydl.optim.why_torch(optimizer)


def same(ours, torchs):
    """Bit for bit: both steps were torch's."""
    for one, other in zip(ours.param_groups, torchs.param_groups, strict=True):
        for p, q in zip(one["params"], other["params"], strict=True):
            assert torch.equal(p, q)


def test_the_first_step_makes_the_state():
    ours, torchs = pair("Adam")
    for optimizer in (ours, torchs):
        set_grads(optimizer.param_groups[0]["params"], 0)
    assert why(ours) == "the step that makes the state is torch's"
    for optimizer in (ours, torchs):
        optimizer.step()
    same(ours, torchs)
    assert why(ours) is None


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"differentiable": True}, "differentiable"),
        ({"lr": torch.tensor(0.01)}, "an option is no number of Python's"),
        ({"fused": True}, None),
        ({"foreach": True}, None),
        ({"foreach": False}, None),
    ],
    ids=str,
)
def test_options(options, reason):
    if "differentiable" in options:
        ours = pydl.optim.Adam(parameters(torch.float64), **options)
        assert why(ours) == reason
        return
    ours, torchs = pair("Adam", **options)
    for optimizer in (ours, torchs):
        run(optimizer, 0, 4)
    assert why(ours) == reason
    for p, q in zip(ours.param_groups[0]["params"], torchs.param_groups[0]["params"], strict=True):
        assert_close(p, q)
    if reason:
        same(ours, torchs)


def half(params):
    return [torch.nn.Parameter(p.detach().bfloat16()) for p in params]


def complex_(params):
    return [torch.nn.Parameter(torch.complex(p.detach(), p.detach())) for p in params]


def strided(params):
    return [torch.nn.Parameter(torch.randn(6, 8, generator=torch.Generator().manual_seed(3))[:, ::2])]


class Plus(torch.Tensor):
    """A subclass, which may see each function of torch that it is given to."""


def subclass(params):
    return [torch.nn.Parameter(Plus(p.detach())) for p in params]


@pytest.mark.parametrize(
    "change, reason",
    [
        (half, "parameters of a dtype other"),
        (complex_, "parameters of a dtype other"),
        (strided, "does not fill its memory"),
        (subclass, "no plain tensor"),
    ],
)
def test_parameters(change, reason):
    ours, torchs = (
        library.SGD(change(parameters(torch.float64, ((5, 3), (40,)))), lr=0.1) for library in (pydl.optim, torch.optim)
    )
    for optimizer in (ours, torchs):
        for step in range(3):
            for p in optimizer.param_groups[0]["params"]:
                torch.manual_seed(step)
                p.grad = torch.randn_like(p)
            if optimizer is ours:
                assert reason in why(ours)
            optimizer.step()
    same(ours, torchs)


def test_gradients_that_are_sparse_or_lie_otherwise():
    for grad in (torch.randn(4, 6).to_sparse(), torch.randn(6, 4).t(), torch.randn(1, 6).expand(4, 6)):
        ours, torchs = pair("SGD", torch.float32, ((4, 6),), lr=0.1)
        for optimizer in (ours, torchs):
            optimizer.param_groups[0]["params"][0].grad = grad
        assert why(ours) in ("a gradient is no plain tensor of the CPU", "a gradient with other strides")
        for optimizer in (ours, torchs):
            optimizer.step()
        same(ours, torchs)


def test_a_gradient_of_one_row_may_have_any_stride_there():
    (ours, _) = pair("SGD", torch.float32, ((1, 6),), lr=0.1)
    ours.param_groups[0]["params"][0].grad = torch.randn(1, 12)[:, :6]
    assert served(ours)


def test_tensors_that_share_memory():
    def build(library):
        memory = torch.arange(20.0)
        optimizer = library.SGD([torch.nn.Parameter(memory[:12]), torch.nn.Parameter(memory[8:])], lr=0.1, momentum=0.9)
        return run(optimizer, 0, 3) and optimizer

    ours, torchs = build(pydl.optim), build(torch.optim)
    assert why(ours) == "tensors share memory"
    same(ours, torchs)
    ours, torchs = pair("SGD", torch.float32, ((6,), (6,)), lr=0.1)
    for optimizer in (ours, torchs):
        a, b = optimizer.param_groups[0]["params"]
        a.grad = b.grad = torch.ones(6)
    assert served(ours)  # a gradient is read alone
    for optimizer in (ours, torchs):
        optimizer.param_groups[0]["params"][0].grad = optimizer.param_groups[0]["params"][1].data
    assert why(ours) == "tensors share memory"


def test_scaled_gradients():
    """What torch.amp.GradScaler hands to a fused step."""
    results = []
    for library in (pydl.optim, torch.optim):
        optimizer = library.Adam(parameters(torch.float32), fused=True)
        run(optimizer, 0, 2)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
        run(optimizer, 2, 3)
        assert library is torch.optim or why(optimizer) == "the gradients are scaled"
        optimizer.found_inf = torch.tensor(1.0)
        run(optimizer, 3, 4)
        results.append(optimizer.param_groups[0]["params"])
        del optimizer.grad_scale, optimizer.found_inf
    for p, q in zip(*results, strict=True):
        assert_close(p, q)


def test_grad_scaler_skips_what_overflows():
    ours, _ = pair("SGD", torch.float32, ((5,),), lr=0.1, momentum=0.9)
    (p,) = run(ours, 0, 2)
    before, scaler = p.detach().clone(), torch.amp.GradScaler("cpu", init_scale=4.0)
    p.grad = torch.full((5,), float("inf"))
    scaler.scale(torch.ones(()))
    scaler.step(ours)
    scaler.update()
    assert torch.equal(p, before)


class Own(torch.optim.Adam):
    def step(self, closure=None):
        return super().step(closure)


def test_swap_leaves_what_is_not_torchs_own():
    for optimizer, reason in (
        (Own(parameters(torch.float32)), "a subclass of Adam"),
        (torch.optim.Adagrad(parameters(torch.float32)), "pydl has no kernel for Adagrad"),
    ):
        cls = type(optimizer)
        assert type(pydl.swap(optimizer)) is cls
        assert pydl.report(optimizer).rows[0].reason == reason
    patched = torch.optim.Adam(parameters(torch.float32))
    patched.step = lambda: "patched"
    assert type(pydl.swap(patched)) is torch.optim.Adam
    assert pydl.report(patched).rows[0].reason == "its step was replaced on the instance"
    assert pydl.unswap(patched).step() == "patched"
    with pytest.raises(TypeError, match="swap: expected module"):
        pydl.swap(3)


def test_replaced_parts_of_torchs_class(monkeypatch):
    ours, _ = pair("SGD", lr=0.1)
    params = run(ours, 0, 2)
    called = []

    def init_group(self, *args):
        called.append("group")
        return torchs(self, *args)

    torchs = torch.optim.SGD._init_group
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "_init_group", init_group)
        run(ours, 2, 3)
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", lambda self, closure=None: called.append("step"))
        run(ours, 3, 4)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["torch.optim.sgd"], "sgd", lambda *args, **options: called.append("function"))
        before = [p.detach().clone() for p in params]
        run(ours, 4, 5)
        assert all(map(torch.equal, params, before))
    assert called == ["group", "step", "function"]
    assert served(ours)


def test_moments_that_torch_is_to_see():
    ours, torchs = pair("Adam")
    for optimizer in (ours, torchs):
        run(optimizer, 0, 2)
    with torch.autocast("cpu"):
        assert not served(ours)
    with pydl.backend.use("torch"):
        assert not served(ours)
        for optimizer in (ours, torchs):
            run(optimizer, 2, 3)
    with torch.overrides.TorchFunctionMode():
        assert not served(ours)
    assert served(ours)
    for p, q in zip(ours.param_groups[0]["params"], torchs.param_groups[0]["params"], strict=True):
        assert_close(p, q)


def test_compiled():
    ours, torchs = pair("SGD", torch.float32, ((5, 3),), lr=0.1, momentum=0.9)
    for optimizer in (ours, torchs):
        run(optimizer, 0, 2)
    set_grads(ours.param_groups[0]["params"], 2)
    torch.compile(ours.step, backend="eager")()
    assert served(ours)  # what torch.compile has put around parts of torch's classes is no change of theirs
    run(torchs, 2, 3)
    for p, q in zip(ours.param_groups[0]["params"], torchs.param_groups[0]["params"], strict=True):
        assert_close(p, q)


def test_without_the_module_in_cpp(monkeypatch):
    ours, torchs = pair("Adam")
    monkeypatch.setattr(_nodes, "why_not", "built beside another torch")
    for optimizer in (ours, torchs):
        run(optimizer, 0, 3)
        params = optimizer.param_groups[0]["params"]
        clip = pydl.optim.clip_grad_norm_ if optimizer is ours else torch.nn.utils.clip_grad_norm_
        clip(params, 0.1)
    assert why(ours) == "built beside another torch"
    same(ours, torchs)
    assert len(params) == len(SHAPES)
