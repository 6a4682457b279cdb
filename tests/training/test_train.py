"""pydl train: what it computes."""

import math

import pytest
import torch
from runs import learner, no_pictures, one_thread, run  # noqa: F401  (fixtures)

from pydl.training import schedule


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_optimizers_are_torchs(optimizer):
    trained = learner("softmax_regression", optimizer=optimizer, lr=0.01)
    model = torch.nn.Linear(784, 10)
    model.load_state_dict({key.removeprefix("1."): value for key, value in trained.model.state_dict().items()})
    kinds = {
        "sgd": lambda p: torch.optim.SGD(p, 0.01),
        "momentum": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, 0.01),
        "adamw": lambda p: torch.optim.AdamW(p, 0.01),
    }
    reference = kinds[optimizer](model.parameters())
    for batch in trained._batches[:5]:
        images, targets = trained.train[batch]
        reference.zero_grad()
        torch.nn.functional.cross_entropy(model(images.flatten(1)), targets).backward()
        reference.step()
    trained.run(5)
    torch.testing.assert_close(trained.model[1].weight, model.weight, rtol=1e-4, atol=1e-5)


def test_an_epoch_sees_every_example_once_in_another_order_each_time():
    one = learner("softmax_regression")
    orders = []
    for _ in range(2):
        orders.append(torch.cat(one._batches))
        one.run(one.epoch_steps)
        one.end_epoch()
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(len(one.train)))
    assert not torch.equal(*orders)


def test_a_last_batch_of_one_joins_the_one_before():
    one = learner("lenet_bn", batch_size=3)
    assert len(one.train) % 3 == 1
    assert [len(batch) for batch in one._batches[-2:]] == [3, 4]


def test_losses_and_accuracies_are_means_over_examples(tmp_path):
    result, _ = run(tmp_path, "softmax_regression", epochs=1, batch_size=1000, lr=1e-12, optimizer="sgd")
    model, row = result.model, result.history[0]
    one = learner("softmax_regression")
    for split, loss, accuracy in ((one.train, "loss", "train_accuracy"), (one.test, "test_loss", "test_accuracy")):
        images, targets = split[torch.arange(len(split))]
        logits = model(images).double()
        assert row[loss] == pytest.approx(torch.nn.functional.cross_entropy(logits, targets).item(), rel=1e-5)
        assert row[accuracy] == (logits.argmax(1) == targets).double().mean().item()


def test_seeds_decide_weights_order_and_dropout(tmp_path):
    runs = [run(tmp_path / name, max_steps=3, seed=seed)[0] for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    losses = [result.history[0]["loss"] for result in runs]
    assert losses[0] == losses[1] != losses[2]


def test_training_leaves_the_callers_random_state_alone(tmp_path):
    before = torch.get_rng_state()
    run(tmp_path, max_steps=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_compare_trains_torch_from_the_same_weights_and_batches(tmp_path):
    result, text = run(tmp_path / "both", "lenet", max_steps=30, compare=True)
    alone, _ = run(tmp_path / "torch", "lenet", max_steps=30, backend="torch")
    for row, reference in zip(result.history, alone.history, strict=True):
        for key in ("loss", "train_accuracy", "test_loss", "test_accuracy"):
            assert row[f"torch_{key}"] == reference[key]
        assert row["loss"] == pytest.approx(row["torch_loss"], rel=1e-4)
    assert len(result.rates) == 2
    assert result.ratio > 0
    for words in ("pydl / torch", "final loss", "test accuracy", "examples/s", f"{result.ratio:.2f}×"):
        assert words in text


def test_schedules():
    at = [0, 4, 5, 10, 49, 50, 75, 99]
    constant, step, cosine = ([schedule.factor(name, i, 100, 5) for i in at] for name in ("constant", "step", "cosine"))
    assert constant == [0.2, 1, 1, 1, 1, 1, 1, 1]
    assert step == pytest.approx([0.2, 1, 1, 1, 1, 0.1, 0.01, 0.01])
    assert cosine == pytest.approx([0.2, 1] + [0.5 * (1 + math.cos(math.pi * (i - 5) / 95)) for i in at[2:]])


def test_schedule_clip_and_weight_decay_reach_the_optimizer():
    options = {"optimizer": "sgd", "lr": 0.1, "epochs": 1}
    ours = learner("softmax_regression", schedule="step", warmup=2, clip=0.5, weight_decay=0.3, **options)
    weight = ours.model[1].weight.detach().double().clone()
    bias = ours.model[1].bias.detach().double().clone()
    for number in range(15):
        images, targets = ours.train[ours._batches[number]]
        weight.requires_grad_(), bias.requires_grad_()
        logits = images.flatten(1).double() @ weight.T + bias
        gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, targets), [weight, bias])
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        scale, lr = min(1.0, 0.5 / norm), 0.1 * schedule.factor("step", number, 23, 2)
        weight, bias = (
            value.detach() - lr * (scale * gradient + 0.3 * value.detach())
            for value, gradient in zip((weight, bias), gradients, strict=True)
        )
    ours.run(15)
    assert ours.lr == pytest.approx(0.01)
    torch.testing.assert_close(ours.model[1].weight.double(), weight, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_no_step_waits_for_the_gpu():
    one = learner("lenet_bn", backend="torch", device="cuda")
    one.run(2)  # allocations and first launches may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        with one.use():
            for batch in one._batches[2:5]:
                one._one(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
