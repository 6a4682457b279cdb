"""What users wrap around a swapped model: checkpointing, autocast, torch.func, processes, compile with new shapes."""

import copy
import os
import socket

import pytest
import torch
from testing import assert_close
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import pydl


def net():
    """Convolution, batch normalisation, dropout and an affine layer on (N, 2, 9, 9)."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.4), nn.Flatten(), nn.Linear(486, 5)
    )


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.best_isa
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_gives_the_same_gradients(device, reentrant):
    model = pydl.swap(net()).to(device)
    x = torch.randn(4, 2, 9, 9, device=device, requires_grad=True)
    torch.manual_seed(7)
    expected = gradients(model, model(x).square().sum())
    for run in (
        lambda: checkpoint(model, x, use_reentrant=reentrant),
        lambda: checkpoint_sequential(model, 2, x, use_reentrant=reentrant),
    ):
        torch.manual_seed(7)
        actual = gradients(model, run().square().sum())
        weight, bias, *others = zip(expected, actual, strict=True)
        for p, q in (weight, *others):
            assert torch.equal(p, q)  # the same mask, the same order of summation
        # zero, since a batch norm follows; checkpoint_sequential calls layers one by one, and gets its rounding
        assert not bias[0].any()
        assert_close(bias[1], torch.zeros(6).double(), torch.float32)


def test_autocast_takes_torchs_dtypes():
    model = pydl.swap(net()[:3])
    plain = pydl.unswap(copy.deepcopy(model))
    x = torch.randn(4, 2, 9, 9)
    loss = pydl.swap(nn.CrossEntropyLoss())
    with torch.autocast("cpu", torch.bfloat16):
        for ours, theirs, value in zip(model, plain, (x, model[0](x), model[1](model[0](x))), strict=True):
            assert ours(value).dtype == theirs(value).dtype
        logits = model(x).flatten(1)
        value = loss(logits, torch.tensor([0, 1, 2, 3]))
        expected = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3]))
    assert value.dtype == expected.dtype == torch.float32
    assert_close(value, expected.double(), torch.bfloat16)
    value.backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_grad_scaler_sees_the_scaled_gradient():
    model, loss = pydl.swap(net()), pydl.swap(nn.CrossEntropyLoss())
    x, target = torch.randn(4, 2, 9, 9), torch.tensor([0, 1, 2, 3])
    torch.manual_seed(1)
    expected = gradients(model, loss(model(x), target))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    torch.manual_seed(1)
    model.zero_grad()
    scaler.scale(loss(model(x), target)).backward()
    scaler.unscale_(torch.optim.SGD(model.parameters(), lr=1.0))
    for p, q in zip(expected, model.parameters(), strict=True):
        assert_close(q.grad, p.double())


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_per_example_gradients_by_torch_func():
    model = pydl.swap(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(147, 5)))
    plain = pydl.unswap(copy.deepcopy(model)).double()
    x, target = torch.randn(4, 2, 9, 9), torch.tensor([0, 4, 2, 2])

    def loss_of(module, criterion):
        def loss(params, x, target):
            return criterion(torch.func.functional_call(module, params, x[None]), target[None])

        return loss

    def per_example(module, criterion, x):
        params = {name: p.detach() for name, p in module.named_parameters()}
        grad = torch.func.grad(loss_of(module, criterion))
        return torch.func.vmap(grad, in_dims=(None, 0, 0))(params, x, target)

    actual = per_example(model, pydl.nn.CrossEntropyLoss(), x)
    expected = per_example(plain, nn.CrossEntropyLoss(), x.double())
    for name, value in expected.items():
        assert_close(actual[name], value, scale=5)


def test_gradient_penalty_differentiates_twice():
    """The values, not only that something comes: an op without autograd would give zeros."""
    model = pydl.swap(
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Sigmoid(), nn.Flatten(), nn.Linear(147, 5))
    )
    model.double()
    plain = pydl.unswap(copy.deepcopy(model))
    x, target = torch.randn(4, 2, 9, 9).double(), torch.tensor([0, 4, 2, 2])
    found = []
    for module, criterion in ((model, pydl.nn.CrossEntropyLoss()), (plain, nn.CrossEntropyLoss())):
        image = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(criterion(module(image), target), image, create_graph=True)
        found.append(gradients(module, grad.square().sum()))
    for (name, _), p, q in zip(plain.named_parameters(), *found, strict=True):
        # the batch norm takes the bias before it away again: what torch has there is rounding
        if name != "0.bias" and (name != "4.bias" or q.abs().max() > 0):
            assert p.abs().max() > 0, name
        assert_close(p, q, scale=100)


def test_deterministic_algorithms_and_runs():
    model, loss = pydl.swap(net()), pydl.swap(nn.CrossEntropyLoss())
    x, target = torch.randn(16, 2, 9, 9), torch.randint(5, (16,))
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(2):
            torch.manual_seed(3)
            runs.append(gradients(model, loss(model(x), target)))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(p, q) for p, q in zip(*runs, strict=True))


def test_compile_takes_new_batch_sizes_without_a_break():
    model = pydl.swap(net()).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 3, 7):
        x = torch.randn(batch, 2, 9, 9)
        assert_close(compiled(x), model(x).double())


def test_compiled_training_steps_do_not_recompile():
    torch._dynamo.reset()
    model, loss = pydl.swap(net()), pydl.swap(nn.CrossEntropyLoss())
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    step = torch.compile(lambda x, target: loss(model(x), target), fullgraph=True, backend=backend)
    for _ in range(4):
        step(torch.randn(4, 2, 9, 9), torch.tensor([0, 1, 2, 3])).backward()
    assert len(graphs) == 1


def _train_rank(rank, port, model, x, target, queue):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    parallel = nn.parallel.DistributedDataParallel(model)
    half = slice(rank * len(x) // 2, (rank + 1) * len(x) // 2)
    pydl.nn.CrossEntropyLoss()(parallel(x[half]), target[half]).backward()
    if rank == 0:
        queue.put([p.grad.numpy() for p in model.parameters()])
    torch.distributed.barrier()  # rank 0 holds the store: it must not be gone before the other is done
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel_on_two_processes():
    model = pydl.swap(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(147, 5)))
    x, target = torch.randn(8, 2, 9, 9), torch.randint(5, (8,))
    expected = gradients(model, pydl.nn.CrossEntropyLoss()(model(x), target))
    model.zero_grad()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    ranks = [
        context.Process(target=_train_rank, args=(rank, port, model, x, target, queue), daemon=True) for rank in (0, 1)
    ]
    for process in ranks:
        process.start()
    try:
        actual = queue.get(timeout=120)
    finally:
        for process in ranks:
            process.join(timeout=120)
    assert [process.exitcode for process in ranks] == [0, 0]
    for p, q in zip(expected, actual, strict=True):
        assert_close(torch.from_numpy(q), p.double())
