"""pydl.optim beside torch.optim: a hundred steps, state in both directions, groups, closures, schedulers, hooks."""

import copy
import io
import subprocess
import sys
import warnings

import pytest
import torch
from optimizers import EVERY, KERNELS, name_of, pair, parameters, run, served, set_grads
from testing import BEST, assert_close, running
from torch.optim.optimizer import register_optimizer_step_pre_hook

import pydl
from pydl.ops import _nodes

pytestmark = pytest.mark.skipif(_nodes.why_not is not None, reason=f"pydl._torch is not loaded: {_nodes.why_not}")


def compare(ours, torchs, scale=1.0):
    """Parameters and state are the same, under the same keys, in the same layout."""
    mine, theirs = ours.state_dict(), torchs.state_dict()
    assert mine["state"].keys() == theirs["state"].keys()
    for one, other in zip(ours.param_groups, torchs.param_groups, strict=True):
        assert {k: v for k, v in one.items() if k != "params"} == {k: v for k, v in other.items() if k != "params"}
        for p, expected in zip(one["params"], other["params"], strict=True):
            assert p.stride() == expected.stride()
            assert_close(p, expected, p.dtype, scale)
    for i, state in mine["state"].items():
        assert state.keys() == theirs["state"][i].keys()
        for key, value in state.items():
            expected = theirs["state"][i][key]
            if key == "step":
                assert value.dtype == expected.dtype
                assert value == expected
            elif value is not None:
                assert value.stride() == expected.stride()
                assert_close(value, expected, value.dtype, scale)


@pytest.mark.parametrize("name, options", EVERY, ids=name_of)
def test_a_hundred_steps(name, options):
    for dtype in (torch.float64, torch.float32):
        ours = getattr(pydl.optim, name)(parameters(dtype), **options)
        exact = getattr(torch.optim, name)(parameters(torch.float64), **options)
        with torch.no_grad():
            for p, q in zip(ours.param_groups[0]["params"], exact.param_groups[0]["params"], strict=True):
                q.copy_(p)
        run(exact, 0, 100)
        run(ours, 0, 3)
        assert served(ours)
        run(ours, 3, 100)
        assert served(ours)
        for (_, one), (_, other) in zip(ours.state.items(), exact.state.items(), strict=True):
            assert one.keys() == other.keys()
        for p, q in zip(ours.param_groups[0]["params"], exact.param_groups[0]["params"], strict=True):
            assert_close(p, q, dtype, 10.0 if dtype == torch.float32 else 1.0)
            if ours.state:
                for key, value in ours.state[p].items():
                    assert_close(value, exact.state[q][key], dtype, 10.0)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("name, options", KERNELS, ids=name_of)
def test_every_remainder_on_every_instruction_set(device, name, options):
    sizes = [(n,) for n in (*range(1, 36), 4095, 4096, 4097, 8200)]
    for dtype in (torch.float32, torch.float64):
        ours, torchs = pair(name, dtype, sizes, **options)
        run(torchs, 0, 4)
        run(ours, 0, 2)
        assert served(ours)
        run(ours, 2, 4)
        compare(ours, torchs)


@pytest.mark.parametrize("name, options", KERNELS, ids=name_of)
def test_state_goes_both_ways(name, options):
    ours, torchs = pair(name, **options)
    run(torchs, 0, 9)
    relay = getattr(torch.optim, name)(ours.param_groups[0]["params"], **options)
    run(relay, 0, 3)
    ours.load_state_dict(_through_a_file(relay.state_dict()))  # a run of torch's goes on with ours
    assert served(ours) or name == "SGD"
    run(ours, 3, 6)
    relay.load_state_dict(_through_a_file(ours.state_dict()))
    run(relay, 6, 9)
    compare(relay, torchs)


def _through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


def test_a_step_is_one_call_of_the_kernel(monkeypatch):
    ours, _ = pair("Adam")
    run(ours, 0, 3)
    told, kernel = [], _nodes.optimizer_step

    def noting(*args):
        told.append(kernel(*args))
        return told[-1]

    monkeypatch.setattr(_nodes, "optimizer_step", noting)
    run(ours, 3, 5)
    assert told == [None, None]


@pytest.mark.parametrize("name, options", [("Adam", {}), ("SGD", {"momentum": 0.9})], ids=name_of)
def test_the_number_of_threads_changes_no_bit(name, options):
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            ours, _ = pair(name, torch.float32, ((5,), (200_003,), (17, 300), (1 << 16,)), **options)
            params = run(ours, 0, 4)
            norm = pydl.optim.clip_grad_norm_(params, 0.5)
            results.append([norm, *params, *(p.grad for p in params)])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            assert torch.equal(one, other)


def test_groups_with_options_of_their_own():
    def groups(dtypes):
        a, b, c, d = (parameters(dtype, ((9, 5), (70,))) for dtype in dtypes)
        return [
            {"params": a, "lr": 0.1},
            {"params": b, "weight_decay": 0.2, "maximize": True},
            {"params": c, "amsgrad": True, "betas": (0.3, 0.7)},
            {"params": d, "eps": 1e-2},
        ]

    dtypes = [torch.float64, torch.float32, torch.float64, torch.float32]
    ours, torchs = (library.Adam(groups(dtypes)) for library in (pydl.optim, torch.optim))
    for step in range(6):
        for optimizer in (ours, torchs):
            for i, group in enumerate(optimizer.param_groups):
                set_grads(group["params"], 10 * step + i)
            optimizer.step()
        assert served(ours)
    compare(ours, torchs)
    ours.add_param_group({"params": parameters(torch.float64, ((3,),)), "lr": 1.0})
    set_grads(ours.param_groups[-1]["params"], 0)
    assert not served(ours)
    ours.step()
    assert served(ours)


def test_options_are_read_at_each_step():
    ours, torchs = pair("SGD", lr=0.1, momentum=0.9)
    for optimizer in (ours, torchs):
        run(optimizer, 0, 2)
        optimizer.param_groups[0].update(lr=0.01, momentum=0.5, nesterov=True)
        run(optimizer, 2, 4)
    compare(ours, torchs)


def test_closures():
    ours, torchs = pair("Adam")
    seen = []
    for optimizer in (ours, torchs):
        params = run(optimizer, 0, 2)

        def closure(optimizer=optimizer, params=params):
            seen.append(torch.is_grad_enabled())
            optimizer.zero_grad()
            loss = sum((p * p).sum() for p in params)
            loss.backward()
            return loss

        with torch.no_grad():
            first = optimizer.step(closure)
        assert optimizer.step(closure=closure) < first
    assert seen == [True] * 4
    compare(ours, torchs)


@pytest.mark.parametrize("when", ["ours", "swap, then schedule", "schedule, then swap"])
def test_schedulers(when):
    ours, torchs = pair("SGD", lr=1.0, momentum=0.9)
    if when != "ours":
        ours = torch.optim.SGD(ours.param_groups[0]["params"], lr=1.0, momentum=0.9)
    if when == "swap, then schedule":
        pydl.swap(ours)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.7) for o in (ours, torchs)]
    if when == "schedule, then swap":
        pydl.swap(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(4):
            for optimizer, schedule in zip((ours, torchs), schedules, strict=True):
                run(optimizer, step, step + 1)
                schedule.step()
        assert served(ours)
        compare(ours, torchs)
        pydl.unswap(ours)
        run(ours, 4, 5)
        schedules[0].step()
    assert not served(ours)


@pytest.mark.parametrize("name, options", EVERY, ids=name_of)
def test_swap_and_unswap(name, options):
    _, swapped = pair(name, **options)
    _, torchs = pair(name, **options)
    cls, keys = type(swapped), set(swapped.__dict__)
    run(swapped, 0, 3)
    assert pydl.swap(swapped) is swapped
    assert type(swapped) is getattr(pydl.optim, name)
    assert isinstance(swapped, cls)
    assert served(swapped)
    assert pydl.swap(swapped) is swapped
    run(swapped, 3, 5)
    assert repr(swapped) == repr(torchs)
    assert pydl.unswap(swapped) is swapped
    assert type(swapped) is cls
    assert set(swapped.__dict__) == keys
    run(swapped, 5, 7)
    run(torchs, 0, 7)
    compare(swapped, torchs)


def test_copies_and_pickles():
    ours, torchs = pair("AdamW")
    run(torchs, 0, 4)
    run(ours, 0, 2)
    for twin in (copy.deepcopy(ours), _through_pickle(ours)):
        assert type(twin) is pydl.optim.AdamW
        assert served(twin)
        run(twin, 2, 4)
        compare(twin, torchs)


def _through_pickle(optimizer):
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_hooks_see_each_step_once():
    ours, _ = pair("Adam")
    run(ours, 0, 2)
    seen = []
    handles = [
        ours.register_step_pre_hook(lambda *a: seen.append("pre")),
        ours.register_step_post_hook(lambda *a: seen.append("post")),
        register_optimizer_step_pre_hook(lambda *a: seen.append("every")),
    ]
    run(ours, 2, 3)
    ours.param_groups[0]["capturable"] = True  # torch's own step, which refuses
    with pytest.raises((AssertionError, RuntimeError)):
        run(ours, 3, 4)
    for handle in handles:
        handle.remove()
    assert seen == ["every", "pre", "post", "every", "pre"]


def test_the_profiler_sees_a_range_of_torchs_name():
    ours, torchs = pair("SGD", momentum=0.9)
    names = []
    for optimizer in (ours, torchs):
        run(optimizer, 0, 2)
        with torch.profiler.profile() as profile:
            run(optimizer, 2, 3)
        names.append({event.key for event in profile.key_averages() if event.key.startswith("Optimizer.")})
    assert names[0] == names[1] == {"Optimizer.step#SGD.step"}


def test_a_backward_after_a_step_is_refused():
    x = torch.randn(3, 4, requires_grad=True)
    for optimizer in pair("SGD", torch.float32, ((4, 4),)):
        (weight,) = optimizer.param_groups[0]["params"]
        version = weight._version
        output = (x @ weight).sum()
        output.backward(retain_graph=True)
        optimizer.step()
        assert weight._version > version
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.backward()


@pytest.mark.parametrize("name, options", EVERY, ids=name_of)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, 0.0])
def test_what_is_not_finite_is_so_where_torchs_is(name, options, value):
    ours, torchs = pair(name, torch.float32, ((40,),), **options)
    for optimizer in (ours, torchs):
        run(optimizer, 0, 2)
        for step in range(2, 5):
            params = optimizer.param_groups[0]["params"]
            set_grads(params, step)
            params[0].grad[::3] = value
            if value == 1e30:
                params[0].grad[1] = -1e30
            if step == 3:
                with torch.no_grad():
                    params[0][5:8] = value
            optimizer.step()
    assert served(ours)
    mine, theirs = ours.param_groups[0]["params"][0], torchs.param_groups[0]["params"][0]
    assert torch.equal(mine.isnan(), theirs.isnan())
    assert torch.equal(mine.isposinf(), theirs.isposinf())
    assert torch.equal(mine.isneginf(), theirs.isneginf())


def test_gradients_become_none_or_zero(monkeypatch):
    ours, _ = pair("SGD", torch.float32, lr=0.1)
    params = ours.param_groups[0]["params"]
    set_grads(params, 0)
    params[0].grad = None
    kept = params[1].grad
    before = kept.clone()
    assert _nodes.zero_grad(ours.param_groups) is None
    assert [p.grad for p in params] == [None] * len(params)
    assert torch.equal(kept, before)
    set_grads(params, 0)
    ours.zero_grad()
    assert [p.grad for p in params] == [None] * len(params)
    set_grads(params, 0)
    ours.zero_grad(set_to_none=False)
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in params)
    with torch.profiler.profile() as profile:
        ours.zero_grad()
    assert "Optimizer.zero_grad#SGD.zero_grad" in {event.key for event in profile.key_averages()}
    assert params[0].grad is None
    set_grads(params, 0)
    calls = []
    monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", lambda self, set_to_none=True: calls.append(set_to_none))
    ours.zero_grad()
    assert calls == [True]


def test_trained_under_a_swapped_model():
    results = []
    for ours in (True, False):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 3)).double()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        if ours:
            pydl.swap(net)
            pydl.swap(optimizer)
        x, y = torch.randn(50, 20).double(), torch.randint(3, (50,))
        for _ in range(20):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
        results.append(loss)
    torch.testing.assert_close(*results)


def test_a_report_says_what_takes_the_next_step():
    ours, torchs = pair("Adam", torch.float32)
    set_grads(ours.param_groups[0]["params"], 0)
    (row,) = pydl.report(ours).rows
    assert (row.layer, row.served_by, row.reason) == ("Adam", "torch", "the step that makes the state is torch's")
    run(ours, 0, 1)
    with running(BEST):
        assert pydl.report(ours).rows[0].served_by == BEST.replace("-", " ")
    assert str(pydl.report(ours)).endswith("pydl serves 1 of 1 optimizers")
    run(torchs, 0, 1)
    assert pydl.report(torchs).rows[0].reason == "not swapped"
    assert served(pydl.swap(torchs))


def test_the_first_step_of_a_process_may_be_a_large_one():
    """For which Python is unlocked: what the kernel needs of Python is fetched before."""
    code = "import torch, pydl\np = torch.nn.Parameter(torch.ones(200_000))\np.grad = torch.ones(200_000)\n"
    code += "pydl.optim.SGD([p], lr=0.5).step()\nassert (p == 0.5).all()"
    subprocess.run([sys.executable, "-c", code], check=True)
