"""The later edition's frame: a module that knows its loss, data that knows its loaders, a trainer that joins both."""

import inspect
import weakref

import torch
from torch import nn
from torch.utils.data import TensorDataset

from pydl.d2l import places, serving
from pydl.d2l.animator import curves, subplots
from pydl.d2l.counting import Timer, moved
from pydl.d2l.drawing import numbers, set_axes
from pydl.d2l.images import Loader
from pydl.d2l.training import grad_clipping
from pydl.live import Chart, use_svg_display


def add_to_class(Class):
    """A decorator that makes a function a method of ``Class``, under its own name."""

    def add(function):
        setattr(Class, function.__name__, function)

    return add


class HyperParameters:
    """What keeps the arguments of its constructor as attributes."""

    def save_hyperparameters(self, ignore=()):
        """Sets what is local where this is called, but for names in ``ignore``; ``hparams`` holds all of it."""
        there = inspect.currentframe().f_back.f_locals
        left = {"self", *ignore}
        self.hparams = {name: value for name, value in there.items() if name not in left and name[:1] != "_"}
        for name, value in self.hparams.items():
            setattr(self, name, value)


class ProgressBoard(HyperParameters):
    """Curves that grow, by label; where they are drawn is said at :class:`Animator`.

    Labels, limits and scales are read at each drawing; ``display=False`` draws nothing.
    """

    def __init__(
        self, xlabel=None, ylabel=None, xlim=None, ylim=None, xscale="linear", yscale="linear",
        ls=("-", "--", "-.", ":"), colors=("C0", "C1", "C2", "C3"), fig=None, axes=None, figsize=(3.5, 2.5),
        display=True,
    ):  # fmt: skip
        self.save_hyperparameters()
        self.data, self._waiting, self._chart, self._options = {}, {}, None, {}

    def draw(self, x, y, label, every_n=1):
        """Adds the mean of every ``every_n`` points to the curve ``label``."""
        waiting = self._waiting.setdefault(label, [])
        waiting.append((float(numbers(x)), float(numbers(y))))
        if len(waiting) < every_n:
            return
        curve = self.data.setdefault(label, ([], []))
        for values, found in zip(curve, zip(*waiting, strict=True), strict=True):
            values.append(sum(found) / len(found))
        waiting.clear()
        if not self.display:
            return
        names = ("xlabel", "ylabel", "xlim", "ylim", "xscale", "yscale")
        self._options.update({name: getattr(self, name) for name in names}, legend=list(self.data))
        if self._chart is None:
            self._begin()
        self._chart.changed()

    def _begin(self):
        use_svg_display()
        data, options = self.data, self._options
        styles = [
            ((), {"linestyle": style, "color": color}) for style, color in zip(self.ls, self.colors, strict=False)
        ]

        if self.axes is None:
            _, (self.axes,) = subplots(self.figsize)
        self.fig, axes = self.axes.figure, self.axes

        def draw(figure):
            curves(axes, data.values(), styles)
            set_axes(axes, **options)

        self._chart = Chart(draw, self.fig)
        weakref.finalize(self, self._chart.flush)

    def flush(self):
        """Draws what is new."""
        if self._chart is not None:
            self._chart.flush()


class Module(nn.Module, HyperParameters):
    """A net with its loss and its optimizer: ``loss``, and ``net`` or ``forward``, are the subclass's."""

    def __init__(self, plot_train_per_epoch=2, plot_valid_per_epoch=1):
        super().__init__()
        self.save_hyperparameters()
        self.board = ProgressBoard()

    def loss(self, y_hat, y):
        """The subclass's."""
        raise NotImplementedError

    def forward(self, X):
        """``net(X)``."""
        if not hasattr(self, "net"):
            raise AttributeError(f"{type(self).__name__}: expected self.net to be set, or forward to be defined")
        return self.net(X)

    def plot(self, key, value, train):
        """Adds a point to the curve ``train_<key>`` or ``val_<key>``."""
        trainer = self.trainer
        self.board.xlabel = "epoch"
        if train:
            x = trainer.train_batch_idx / trainer.num_train_batches
            every = trainer.num_train_batches / self.plot_train_per_epoch
        else:
            x = trainer.epoch + 1
            every = trainer.num_val_batches / self.plot_valid_per_epoch
        self.board.draw(x, value, ("train_" if train else "val_") + key, every_n=max(int(every), 1))

    def training_step(self, batch):
        """The loss of a batch, whose last part is the target."""
        found = self.loss(self(*batch[:-1]), batch[-1])
        self.plot("loss", found, train=True)
        return found

    def validation_step(self, batch):
        """Plots the loss of a batch."""
        self.plot("loss", self.loss(self(*batch[:-1]), batch[-1]), train=False)

    def configure_optimizers(self):
        """SGD with the learning rate ``self.lr``."""
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def apply_init(self, inputs, init=None):
        """Calls the net once, so that lazy layers learn their shapes; then applies ``init`` to each layer."""
        self(*inputs)
        if init is not None:
            self.net.apply(init)


class DataModule(HyperParameters):
    """Data with its loaders; ``get_dataloader(train)`` is the subclass's."""

    def __init__(self, root="../data", num_workers=0):
        self.save_hyperparameters()

    def get_dataloader(self, train):
        """The subclass's."""
        raise NotImplementedError

    def train_dataloader(self):
        """The loader of the training data."""
        return self.get_dataloader(train=True)

    def val_dataloader(self):
        """The loader of the validation data."""
        return self.get_dataloader(train=False)

    def get_tensorloader(self, tensors, train, indices=slice(0, None)):
        """A loader of ``self.batch_size`` over parts of tensors, in a new order each time where ``train``."""
        return Loader(TensorDataset(*(tensor[indices] for tensor in tensors)), self.batch_size, shuffle=train)


class Trainer(HyperParameters):
    """Trains a :class:`Module` on a :class:`DataModule`.

    Args:
        max_epochs: how many epochs.
        num_gpus: on how many accelerators: 0, or the first one where there is one.
        gradient_clip_val: the largest norm of all gradients together; 0 for any.
        swap: keyword-only: whether :func:`pydl.swap` is called on the model.
    """

    def __init__(self, max_epochs, num_gpus=0, gradient_clip_val=0, *, swap=True):
        self.save_hyperparameters()
        self.gpus = [places.gpu(i) for i in range(min(num_gpus, places.num_gpus()))]

    def prepare_data(self, data):
        """Takes the loaders, and counts their batches."""
        self.train_dataloader, self.val_dataloader = data.train_dataloader(), data.val_dataloader()
        self.num_train_batches = len(self.train_dataloader)
        self.num_val_batches = 0 if self.val_dataloader is None else len(self.val_dataloader)

    def prepare_model(self, model):
        """Moves the model, and joins it to this trainer."""
        model.trainer = self
        model.board.xlim = [0, self.max_epochs]
        if self.gpus:
            model.to(self.gpus[0])
        self.model = model

    def prepare_batch(self, batch):
        """A batch on the model's device."""
        return moved(batch, self.gpus[0] if self.gpus else None)

    def fit(self, model, data):
        """Trains, draws the curves, and says what pydl's kernels brought."""
        self.prepare_data(data)
        self.prepare_model(model)
        swapped = serving.serve(model, self.swap)
        self.optim = model.configure_optimizers()
        self.epoch = self.train_batch_idx = self.val_batch_idx = 0
        timer = Timer()
        with serving.training(swapped, self.optim):
            for epoch in range(self.max_epochs):
                self.epoch = epoch
                self.fit_epoch()
        seconds = timer.stop()
        model.board.flush()
        if swapped and any(p.requires_grad for p in model.parameters()):
            self._tell(seconds)

    def fit_epoch(self):
        """An epoch of training, and one of validation where there is data for it."""
        self.model.train()
        for batch in self.train_dataloader:
            loss = self.model.training_step(self.prepare_batch(batch))
            self.optim.zero_grad()
            loss.backward()
            if self.gradient_clip_val > 0:
                self.clip_gradients(self.gradient_clip_val, self.model)
            self.optim.step()
            self.train_batch_idx += 1
        if self.val_dataloader is None:
            return
        self.model.eval()
        for batch in self.val_dataloader:
            with torch.no_grad():
                self.model.validation_step(self.prepare_batch(batch))
            self.val_batch_idx += 1

    def clip_gradients(self, grad_clip_val, model):
        """Scales all gradients so that their joint norm is at most ``grad_clip_val``."""
        grad_clipping(model, grad_clip_val)

    def _tell(self, seconds):
        model = self.model
        batch = self.prepare_batch(next(iter(self.train_dataloader)))
        aside = {
            name: model.__dict__.pop(name) for name in ("trainer", "board")
        }  # copies have no use of data and curves
        try:
            serving.tell(model, lambda net: net.loss(net(*batch[:-1]), batch[-1]), seconds)
        finally:
            model.__dict__.update(aside)
