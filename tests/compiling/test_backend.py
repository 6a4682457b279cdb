"""``torch.compile(net, backend="pydl")`` under what training is made of: modes, sizes, randomness, checkpoints, DDP."""

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from compiled import Recorder, assert_as_eager, calls_of
from swap_models import Residual, image, small_sequential
from testing import assert_close
from torch import nn
from torch.utils.checkpoint import checkpoint

import pydl


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def test_the_backend_is_known_by_its_name_and_importing_pydl_does_not_load_dynamo():
    code = (
        "import sys, torch, pydl; assert 'torch._dynamo' not in sys.modules;"
        "assert 'pydl.compiling.backend' not in sys.modules;"
        "assert 'pydl' in torch._dynamo.list_backends(exclude_tags=())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})


def test_options_are_refused():
    with pytest.raises(Exception, match="unexpected keyword argument"):
        torch.compile(lambda x: x + 1, backend="pydl", options={"max_autotune": True})(torch.ones(1))


def helper(x):
    return x + 1


def test_a_helper_that_is_redefined_is_called_from_then_on(monkeypatch):
    compiled = torch.compile(lambda x: F.relu(helper(x)), backend="pydl")
    assert compiled(torch.ones(2)).tolist() == [2, 2]
    monkeypatch.setitem(globals(), "helper", lambda x: x - 3)
    assert compiled(torch.ones(2)).tolist() == [0, 0]
    monkeypatch.setattr(F, "relu", lambda x: x * 10)
    assert compiled(torch.ones(2)).tolist() == [-20, -20]


def test_options_of_layers_and_modes_that_change():
    net, x = small_sequential(), image()
    net[3].p = 0.0
    compiled = torch.compile(net, backend="pydl")
    for change in (lambda: None, net.eval, lambda: setattr(net[1], "eps", 0.5), net.train):
        change()
        assert_close(compiled(x), net(x).double(), scale=20)


def test_sizes_that_change_make_one_more_graph():
    recorder, net = Recorder(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Residual(4, 4))
    compiled = torch.compile(net, backend=recorder)
    for n in (2, 3, 5, 8):
        x = image(n, 3, 8, 8)
        expected = copy.deepcopy(net)(x)
        assert_close(compiled(x), expected.double(), scale=50)
    assert len(recorder.calls) == 2
    assert recorder.calls[1] == ["convolution_batch_norm"] * 3


def test_dropout_goes_by_the_seed_as_ours_does():
    net, x = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Dropout(0.4), nn.Dropout(0.2)), torch.randn(5, 9)
    compiled, outputs = torch.compile(net, backend="pydl"), []
    for forward in (compiled, compiled, pydl.swap(copy.deepcopy(net))):
        torch.manual_seed(3)
        outputs.append(forward(x))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], compiled(x))


class Checkpointed(nn.Module):
    def __init__(self, context_fn=None):
        super().__init__()
        self.block, self.options = small_sequential()[:4], {} if context_fn is None else {"context_fn": context_fn}

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=False, **self.options).square()


def test_a_checkpoint_is_one_makes_the_same_masks_and_saves_nothing_of_its_inside():
    net, x = Checkpointed(), image().requires_grad_()
    recorder = Recorder()
    compiled = torch.compile(net, backend=recorder, fullgraph=True)
    plain = copy.deepcopy(net)
    plain.block = pydl.swap(plain.block)
    found, saved = [], []
    for forward in (compiled, lambda x: plain.block(x).square(), plain):
        torch.manual_seed(1)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            output = forward(x)
        saved.append(sum(t.shape == (4, 4, 6, 6) for t in kept))
        output.sum().backward()
        found.append(x.grad)
        x.grad = None
    assert recorder.calls == [["checkpointed", "getitem", "square"]]
    assert "in block.0" in [note.fused for note in recorder.notes[0]]
    assert_close(found[0], found[1].double(), scale=10)
    assert_close(found[0], found[2].double(), scale=10)
    assert saved[0] == saved[2] < saved[1]


def test_autocast_around_and_inside():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.out = small_sequential()[:3], nn.Linear(6, 6)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                y = F.relu(self.out(self.body(x)))
            with torch.autocast("cpu", enabled=False):
                return self.out(y.float())

    net, x = Net(), image()
    output = torch.compile(net, backend="pydl")(x)
    assert output.dtype == torch.float32
    assert_close(output, net(x).double(), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        output = torch.compile(net.body, backend="pydl")(x)
        assert output.dtype == net.body(x).dtype
        assert_close(output, net.body(x).double())


def test_a_mode_that_changes_between_two_links_keeps_them_apart():
    layer = nn.Linear(6, 6)

    def function(x):
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        return torch.sigmoid(y)

    assert "linear" in calls_of(function, torch.randn(2, 6))
    assert len(calls_of(function, torch.randn(2, 6))) == 4
    assert_close(torch.compile(function, backend="pydl")(torch.ones(2, 6)), function(torch.ones(2, 6)).double())


def test_graph_breaks():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = small_sequential()[:3], Residual(4, 4)

        def forward(self, x):
            x = self.first(x)
            torch._dynamo.graph_break()
            return self.second(x)

    assert_as_eager(Net().double(), image().double(), scale=100)


def test_a_scalar_of_a_tensor_as_the_probability():
    net = nn.Linear(6, 6)

    def function(x, p):
        return F.dropout(torch.relu(net(x)), p, training=p > 0)

    compiled = torch.compile(function, backend="pydl")
    assert (compiled(torch.ones(2, 6), 1.0) == 0).all()
    assert_close(compiled(torch.ones(2, 6), 0.0), function(torch.ones(2, 6), 0.0).double())


def test_a_second_derivative():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid()).double()
    x, found = image().double(), []
    for forward in (torch.compile(net, backend="pydl"), net):
        x.requires_grad_()
        (first,) = torch.autograd.grad(forward(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), x)[0])
    assert_close(found[0], found[1], scale=100)


def test_torchs_backend_at_run_time():
    net, x = small_sequential()[:3], image()
    compiled = torch.compile(net, backend="pydl")
    compiled(x)
    expected = copy.deepcopy(net)(x)
    with pydl.backend.use("torch"):
        assert_close(compiled(x), expected.double(), scale=10)


def test_functions_of_ours_by_name_and_transforms():
    def function(x):
        y = pydl.functional.conv2d(x, x[:, :, :3, :3], activation="relu")
        return pydl.functional.softmax(y, -1) + torch.func.vmap(F.relu)(y)

    x = image()
    assert_close(torch.compile(function, backend="pydl")(x), function(x).double())


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Residual(4, 4)), image()
        oracle = copy.deepcopy(net)
        compiled = torch.compile(nn.parallel.DistributedDataParallel(net), backend="pydl")
        for forward in (compiled, oracle):
            forward(x).square().mean().backward()
        for p, q in zip(net.parameters(), oracle.parameters(), strict=True):
            assert_close(p.grad, q.grad.double(), scale=200)
    finally:
        torch.distributed.destroy_process_group()
