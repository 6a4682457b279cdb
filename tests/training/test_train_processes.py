"""More than one process: SyncBatchNorm over our kernels, and a run of two processes that equals one."""

import copy
import json
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from runs import no_pictures, one_thread, run  # noqa: F401  (fixtures)

import pydl
from pydl.text import prose
from pydl.training.processes import Elsewhere, Processes, environment

CASES = {
    "unequal parts": ((7, 4, 5, 5), [5, 2], torch.float32),
    "an empty part": ((3, 4, 6), [0, 3], torch.float32),
    "one value each": ((2, 6), [1, 1], torch.float64),
    "bfloat16": ((8, 3, 4, 4), [3, 5], torch.bfloat16),
    "channels_last": ((6, 16, 3, 3), [2, 4], torch.float32),
    "by torch's ops": ((7, 4, 5, 5), [3, 4], torch.float32),
    "without parameters, cumulative": ((5, 4, 2), [2, 3], torch.float32),
}


def case(name):
    """(layer for the whole batch, input, gradient, sizes of the two parts)."""
    shape, sizes, dtype = CASES[name]
    torch.manual_seed(3)
    kind = {2: pydl.nn.BatchNorm1d, 3: pydl.nn.BatchNorm1d, 4: pydl.nn.BatchNorm2d}[len(shape)]
    options = {"affine": False, "momentum": None} if "cumulative" in name else {}
    layer = kind(shape[1], **options)
    if layer.affine:
        torch.nn.init.normal_(layer.weight), torch.nn.init.normal_(layer.bias)
    layer = layer.to(torch.float64 if dtype == torch.float64 else torch.float32)
    x, grad = torch.randn(shape).to(dtype) * 3 + 5, torch.randn(shape).to(dtype)
    if name == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    return layer, x, grad, sizes


def step(layer, x, grad):
    """What one training step gives: output, gradients, running statistics."""
    x = x.detach().requires_grad_()
    y = layer(x)
    y.backward(grad)
    parameters = [p.grad for p in layer.parameters()]
    return {"output": y.detach(), "grad_input": x.grad, "parameters": parameters, "buffers": list(layer.buffers())}


def one_of_two(rank, folder):
    """The body of each of two processes: every case on its part of the batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = {}
    for name in CASES:
        layer, x, grad, sizes = case(name)
        layer = pydl.nn.SyncBatchNorm.convert_sync_batchnorm(layer)
        part = slice(0, sizes[0]) if rank == 0 else slice(sizes[0], None)
        with pydl.backend.use("torch" if "torch" in name else "cpu"):
            results[name] = step(layer, x[part], grad[part])
    x = torch.randn(2, 3, requires_grad=True)
    (first,) = torch.autograd.grad(pydl.nn.SyncBatchNorm(3)(x).square().sum(), x, create_graph=True)
    try:
        first.sum().backward()
        results["twice"] = "silent"
    except RuntimeError as error:
        results["twice"] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """What each of two processes got, by case."""
    folder = tmp_path_factory.mktemp("processes")
    context = torch.multiprocessing.get_context("spawn")
    children = [context.Process(target=one_of_two, args=(rank, str(folder))) for rank in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", CASES)
def test_sync_batch_norm_of_two_processes_is_batch_norm_of_the_whole(parts, name):
    layer, x, grad, sizes = case(name)
    exact = copy.deepcopy(layer).double()
    with pydl.backend.use("torch"):
        expected = step(exact, x.double(), grad.double())
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.05}[x.dtype]
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    ours = [part[name] for part in parts]
    assert [len(part["output"]) for part in ours] == sizes
    for key in ("output", "grad_input"):
        torch.testing.assert_close(torch.cat([part[key] for part in ours]), expected[key], **close)
    for index, whole in enumerate(expected["parameters"]):
        total = sum(part["parameters"][index].double() for part in ours)
        torch.testing.assert_close(total, whole, rtol=tolerance, atol=20 * tolerance, check_dtype=False)
    for one, other, whole in zip(ours[0]["buffers"], ours[1]["buffers"], expected["buffers"], strict=True):
        assert torch.equal(one, other)  # the same bits in every process
        torch.testing.assert_close(one, whole, rtol=1e-5, atol=1e-5, check_dtype=False)


def test_sync_batch_norm_refuses_a_second_derivative_in_words(parts):
    for part in parts:
        assert "once_differentiable" in part["twice"]


def test_sync_batch_norm_alone_is_batch_norm():
    layer, x, grad, _ = case("unequal parts")
    alone = pydl.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer))
    expected, got = step(layer, x, grad), step(alone, x, grad)
    assert torch.equal(got["output"], expected["output"])
    assert torch.equal(got["grad_input"], expected["grad_input"])
    assert list(alone.state_dict()) == list(layer.state_dict())
    alone.eval(), layer.eval()
    assert torch.equal(alone(x), layer(x))
    with pytest.raises(ValueError, match="at least 2D"):
        alone(torch.ones(3))


def test_conversion_takes_parameters_over_and_reports_itself():
    net = pydl.models.get("lenet_bn")
    parameters, keys = list(net.parameters()), list(net.state_dict())
    converted = pydl.nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert converted is net
    assert sum(isinstance(layer, pydl.nn.SyncBatchNorm) for layer in net.modules()) == 4
    assert all(one is other for one, other in zip(net.parameters(), parameters, strict=True))
    assert list(net.state_dict()) == keys
    rows = [row for row in pydl.report(net).rows if row.layer == "SyncBatchNorm"]
    assert len(rows) == 4
    assert not any(row.reason for row in rows)
    theirs = torch.nn.SyncBatchNorm(3)
    assert pydl.report(pydl.swap(theirs)).rows[0].reason == ""
    assert theirs(torch.randn(4, 3)).shape == (4, 3)


@pytest.mark.parametrize("size", [0, 1, 5, 8])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_parts_of_a_batch(size, world):
    batch = torch.arange(size)
    every = [Processes(rank, world) for rank in range(world)]
    assert torch.equal(torch.cat([one.shard(batch) for one in every]), batch)
    for one in every:
        start, end = one.bounds(size)
        assert torch.equal(one.shard(batch), batch[start:end])


def test_places_that_do_not_fit_are_refused(monkeypatch):
    assert environment() == Processes()
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK: expected a number from 0 to WORLD_SIZE - 1 = 1, got 2"):
        environment()
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ValueError, match="RANK, WORLD_SIZE: expected numbers"):
        environment()
    assert Elsewhere("no", 2).exit_code == 2


def torchrun(folder, *arguments):
    """``torchrun --nproc-per-node=2 -m pydl train ...`` in ``folder``; (exit code, stdout, stderr)."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "pydl"]
    done = subprocess.run([*command, "train", *arguments], cwd=folder, capture_output=True, text=True, timeout=180)
    return done.returncode, done.stdout, done.stderr


def test_two_processes_train_as_one_with_the_whole_batch(tmp_path):
    # the last batch, 1438 - 4 · 359, holds 2 examples; a batch of 359 has parts of 180 and 179
    options = {"batch_size": 359, "optimizer": "sgd", "lr": 0.5, "epochs": 2, "augment": ["crop"]}
    alone, _ = run(tmp_path / "alone", "lenet_bn", **options)
    words = ["--batch-size", "359", "--optimizer", "sgd", "--lr", "0.5", "--epochs", "2", "--augment", "crop"]
    code, out, err = torchrun(tmp_path, "lenet_bn", *words, "--out", "two")
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "two/metrics.jsonl").read_text().splitlines()]
    for row, expected in zip(rows, alone.history, strict=True):
        for key in ("loss", "test_loss", "train_accuracy", "test_accuracy"):
            assert row[key] == pytest.approx(expected[key], rel=1e-4, abs=2e-3 * ("accuracy" in key)), key
    assert out.count("epoch 1/2") == out.count("two/ holds checkpoint.pt") == 1  # one log
    content = torch.load(tmp_path / "two/checkpoint.pt", weights_only=True)
    assert len(content["random_of_others"]) == 1
    for name, tensor in torch.load(tmp_path / "alone/checkpoint.pt", weights_only=True)["model"].items():
        torch.testing.assert_close(content["model"][name], tensor, rtol=2e-2, atol=1e-3)
    # one process goes on from where two stopped, and what cannot be is said once
    result, _ = run(None, resume=tmp_path / "two", epochs=3)
    assert len(result.history) == 3


TINY = {"hidden": 16, "layers": 1, "dropout": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, model, more",
    [
        ("gpt", TINY, {"num_steps": 8}),
        ("bert", TINY, {"num_steps": 16}),
        ("cbow", {"width": 8}, {}),
        ("elmo", TINY, {"num_steps": 8}),
    ],
)
def test_two_processes_accumulate_as_one_trains_with_the_whole_batch(tmp_path, name, model, more):
    options = {"data": "text", "root": str(tmp_path / "novel.txt"), "batch_size": 11, "epochs": 1, **more}
    (tmp_path / "novel.txt").write_text(". ".join(prose.sentences(prose.topics()["types"]))[:9_000])
    alone, _ = run(tmp_path / "alone", name, options=model, **options)
    words = [f"--option={name}={value}" for name, value in model.items()] + ["--accumulate=3", "--out=two"]
    words += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    code, _, err = torchrun(tmp_path, name, *words)
    assert code == 0, err
    (row,) = (json.loads(line) for line in (tmp_path / "two/metrics.jsonl").read_text().splitlines())
    for key in ("loss", "test_loss"):
        assert row[key] == pytest.approx(alone.history[0][key], rel=1e-5), key
