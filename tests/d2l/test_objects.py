"""The later edition's modules, data and trainer."""

import pytest
import torch
from torch import nn

from pydl import d2l
from pydl.swapping.layer import is_swapped


def test_a_board_draws_means():
    board = d2l.ProgressBoard(display=False)
    for x in range(6):
        board.draw(x, torch.tensor(x * 10.0, requires_grad=True), "every", every_n=1)
        board.draw(x, x * 10, "pairs", every_n=2)
        board.draw(x, x, "fours", every_n=4)
    assert board.data["every"] == ([0, 1, 2, 3, 4, 5], [0, 10, 20, 30, 40, 50])
    assert board.data["pairs"] == ([0.5, 2.5, 4.5], [5, 25, 45])
    assert board.data["fours"] == ([1.5], [1.5])


def test_a_board_draws_into_axes_of_ones_own(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="about what matplotlib draws")
    monkeypatch.chdir(tmp_path)
    figure, axes = d2l.plt.subplots()
    board = d2l.ProgressBoard("x", "y", yscale="log", axes=axes)
    board.draw(1, 2, "a")
    board.flush()
    assert board.fig is figure
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("x", "y", "log")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a"]
    d2l.plt.close(figure)


def test_arguments_become_attributes():
    class Base(d2l.HyperParameters):
        def __init__(self, a, b=2, *, c=3):
            d = a + b  # noqa: F841  (a local, which is kept too)
            self.save_hyperparameters(ignore=["b"])

    made = Base(1)
    assert made.hparams == {"a": 1, "c": 3, "d": 3}
    assert (made.a, made.c, hasattr(made, "b"), hasattr(made, "self")) == (1, 3, False, False)


class Counts(d2l.Module):
    """Counts its steps."""

    def __init__(self, lr):
        super().__init__(plot_train_per_epoch=1)
        self.save_hyperparameters()
        self.net = nn.Linear(2, 1)
        self.board.display = False
        self.steps, self.checks = [], 0

    def loss(self, y_hat, y):
        return nn.functional.mse_loss(y_hat, y)

    def training_step(self, batch):
        assert self.training
        self.steps.append(len(batch[-1]))
        return super().training_step(batch)

    def validation_step(self, batch):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.checks += 1
        super().validation_step(batch)


def test_a_trainer_trains(capsys):
    torch.manual_seed(0)
    data = d2l.SyntheticRegressionData(torch.tensor([2, -3.4]), 4.2, num_train=100, num_val=50, batch_size=32)
    assert (data.X.shape, data.y.shape) == ((150, 2), (150, 1))
    model = Counts(lr=0.1)
    trainer = d2l.Trainer(max_epochs=4)
    trainer.fit(model, data)
    assert model.steps == [32, 32, 32, 4] * 4
    assert (model.checks, trainer.train_batch_idx, trainer.val_batch_idx, trainer.epoch) == (8, 16, 8, 3)
    epochs, losses = model.board.data["val_loss"]
    assert epochs == [1, 2, 3, 4]
    assert losses[-1] < losses[0] / 5
    assert len(model.board.data["train_loss"][0]) == 4
    assert model.trainer is trainer
    assert is_swapped(model.net)
    assert "pydl serves 1 of 1 layers: a step takes" in capsys.readouterr().out
    model = Counts(lr=0.1)
    d2l.Trainer(max_epochs=1, swap=False).fit(model, data)
    assert not is_swapped(model.net)
    assert capsys.readouterr().out == ""


def test_a_trainer_clips_gradients():
    data = d2l.SyntheticRegressionData(torch.tensor([200, -340.0]), 4.2, num_train=32, num_val=1)
    model = Counts(lr=1.0)
    before = nn.utils.parameters_to_vector(model.parameters()).clone()
    d2l.Trainer(max_epochs=1, gradient_clip_val=0.5, swap=False).fit(model, data)
    moved = nn.utils.parameters_to_vector(model.parameters()) - before
    assert moved.norm().item() == pytest.approx(0.5, abs=1e-3)


def test_what_a_module_lacks_is_said():
    class Empty(d2l.Module):
        pass

    with pytest.raises(AttributeError, match=r"Empty: expected self\.net to be set, or forward to be defined"):
        Empty()(torch.ones(1))
    with pytest.raises(NotImplementedError):
        Empty().loss(1, 2)
    with pytest.raises(NotImplementedError):
        d2l.DataModule().train_dataloader()


def test_a_classifier(capsys):
    model = d2l.SoftmaxRegression(3, lr=0.1)
    scores, y = torch.tensor([[0.0, 1, 2], [3, 2, 1]]), torch.tensor([2, 1])
    assert model.accuracy(scores, y) == 0.5
    assert model.accuracy(scores, y, averaged=False).tolist() == [1, 0]
    expected = nn.functional.cross_entropy(scores, y, reduction="none")
    torch.testing.assert_close(model.loss(scores, y, averaged=False), expected)
    torch.testing.assert_close(model.loss(scores[None], y[None]), expected.mean())
    model.apply_init(
        [torch.ones(2, 1, 4, 4)], lambda layer: isinstance(layer, nn.Linear) and nn.init.ones_(layer.weight)
    )
    assert (model.net[1].weight == 1).all()
    model.layer_summary((2, 1, 4, 4))
    assert capsys.readouterr().out.splitlines()[-1].split("\t") == ["Linear output shape:", " torch.Size([2, 3])"]


def test_images():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    data = d2l.FashionMNIST(batch_size=32, resize=(14, 20))
    assert len(data.train) > len(data.val)
    image, label = data.val[-1]
    assert image.shape == (1, 14, 20)
    assert data.text_labels([label]) == d2l.get_fashion_mnist_labels(torch.tensor([label]))
    X, y = next(iter(data.val_dataloader()))
    assert X.shape == (32, 1, 14, 20)
    assert torch.equal(X[3], data.val[3][0])
    assert int(y[3]) == data.val[3][1]
    seen = sum(len(y) for _, y in data.train_dataloader())
    assert seen == len(data.train)


def test_descent_from_scratch():
    model = d2l.LinearRegressionScratch(2, lr=0.5)
    X, y = torch.ones(4, 2), torch.full((4, 1), 2.0)
    with torch.no_grad():
        model.w.zero_()
    model.loss(model(X), y).backward()
    optimizer = model.configure_optimizers()
    optimizer.step()
    assert model.w.tolist() == [[1], [1]]
    assert model.b.tolist() == [1]
    optimizer.zero_grad()
    assert not model.w.grad.any()
