"""One model in training: weights, optimizer, order of the data and random state, advanced by steps on request."""

import contextlib
import math
import time
from dataclasses import dataclass

import torch

import pydl.nn
from pydl import backend
from pydl.errors import OptionError, TrainingError
from pydl.training.build import build
from pydl.training.recipes import initialise, recipe
from pydl.training.schedule import factor

EVALUATION_BATCH = 256


@dataclass
class Epoch:
    """What an epoch came to: means over its examples, and the seconds its steps took (evaluation excluded)."""

    loss: float
    accuracy: float | None
    examples: int
    seconds: float


class NotFinite(TrainingError):
    """The loss became nan or infinite at ``step``, counted from 1 over the whole run."""

    def __init__(self, step, value, layer):
        where = f"; {layer} is the first layer whose output is not finite" if layer else ""
        super().__init__(f"the loss became {value} in step {step}{where}; a smaller --lr may help")
        self.step = step


def make_optimizer(config, parameters):
    """torch's optimizer in its fused form: one call for all parameters, so that small models are not held up by it."""
    if config.optimizer in ("sgd", "momentum"):
        momentum = 0.9 if config.optimizer == "momentum" else 0.0
        return torch.optim.SGD(
            parameters, lr=config.lr, momentum=momentum, weight_decay=config.weight_decay, fused=True
        )
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


class Learner:
    """A model, its optimizer, the order of its batches and its own random state, on one backend.

    Two learners of the same config start from the same weights and see the same batches, whatever their backends.

    Attributes:
        step: steps done so far, over all epochs.
        step_in_epoch, epoch_steps: steps done of this epoch, and how many it has.
    """

    def __init__(self, config, train, test, num_classes, backend_name, device):
        self.config, self.train, self.test = config, train, test
        self.backend, self.device = backend_name, torch.device(device)
        self.step = self.step_in_epoch = 0
        with torch.random.fork_rng(devices=self._cuda_devices()):
            torch.manual_seed(config.seed)
            features = None if num_classes else train.images.shape[1]
            self.model = build(config, num_classes, train.preprocessing, features).to(self.device)
            initialise(self.model, recipe(config.model).init)
            self._random = self._get_random()
        self.regression = not num_classes
        self.criterion = torch.nn.MSELoss() if self.regression else pydl.nn.CrossEntropyLoss()
        self._parameters = list(self.model.parameters())
        self.optimizer = make_optimizer(config, self._parameters)
        self.lr, self._scheduled = config.lr, config.schedule != "constant" or config.warmup > 0
        self.order = torch.Generator().manual_seed(config.seed)  # of the data, apart from what layers draw
        self._check_batch_norm()
        self._begin_epoch()

    def use(self):
        """The context in which this learner's backend serves the layers."""
        return backend.use(self.backend)

    @property
    def epoch_steps(self):
        return len(self._batches)

    def _check_batch_norm(self):
        if self.config.batch_size == 1:
            for name, module in self.model.named_modules():
                if isinstance(module, torch.nn.BatchNorm1d):
                    raise OptionError(
                        f"--batch-size: expected at least 2 for {self.config.model}, whose layer {name} "
                        "normalises over the batch, got 1"
                    )

    def _begin_epoch(self):
        """Draws the order of the next epoch's batches and clears its sums."""
        self._order_at_begin = self.order.get_state()
        order = torch.randperm(len(self.train), generator=self.order).to(self.device)
        batches = list(order.split(self.config.batch_size))
        if len(batches) > 1 and len(batches[-1]) == 1:
            # a last batch of one would leave BatchNorm one value per channel: it joins the batch before
            batches[-2:] = [torch.cat(batches[-2:])]
        self._batches = batches
        self._losses = torch.zeros(len(batches), device=self.device)
        self._correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self.step_in_epoch, self.seconds = 0, 0.0

    def run(self, steps):
        """Trains for ``steps`` steps, at most to the end of the epoch; returns (examples, seconds).

        Raises:
            NotFinite: when a loss is nan or infinite. On a CPU the weights are then still those that led to it.
        """
        batches = self._batches[self.step_in_epoch : self.step_in_epoch + steps]
        examples = sum(map(len, batches))
        self.model.train()
        with self.use(), self._own_random():
            begin = time.perf_counter()
            for batch in batches:
                self._one(batch)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds = time.perf_counter() - begin
        self.seconds += seconds
        if self.device.type != "cpu":
            self._find_not_finite(len(batches))
        return examples, seconds

    def _one(self, batch):
        images, targets = self.train[batch]
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.model(images)
        loss = self.criterion(logits, targets)
        if self.device.type == "cpu":  # reading the value costs nothing here, and stops before the weights are spoilt
            value = loss.item()
            if not math.isfinite(value):
                raise NotFinite(self.step + 1, value, self._first_not_finite(images))
        loss.backward()
        if self.config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self.config.clip)
        if self._scheduled:
            self.lr = self.config.lr * factor(self.config.schedule, self.step, self.total_steps, self.config.warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr
        self.optimizer.step()
        with torch.no_grad():
            self._losses[self.step_in_epoch] = loss
            if not self.regression:
                self._correct += (logits.argmax(1) == targets).sum()
        self.step_in_epoch += 1
        self.step += 1

    def _find_not_finite(self, steps):
        """On a GPU losses are looked at after several steps, without stopping the stream at each."""
        first = self.step_in_epoch - steps
        bad = (~self._losses[first : self.step_in_epoch].isfinite()).nonzero()
        if len(bad):
            at = first + int(bad[0])
            images, _ = self.train[self._batches[at]]
            value = float(self._losses[at])
            raise NotFinite(self.step - self.step_in_epoch + at + 1, value, self._first_not_finite(images))

    def _first_not_finite(self, images):
        """The name of the first layer, in the order they run, whose output is not all finite; None when all are."""
        found = []

        def look(name, kind):
            def hook(module, inputs, output):
                if not found and torch.is_tensor(output) and not output.isfinite().all():
                    found.append(f"{name} ({kind})")

            return hook

        leaves = [(name, m) for name, m in self.model.named_modules() if name and not list(m.children())]
        handles = [m.register_forward_hook(look(name, type(m).__name__)) for name, m in leaves]
        try:
            with torch.no_grad():
                self.model(images)
        finally:
            for handle in handles:
                handle.remove()
        return found[0] if found else None

    def end_epoch(self):
        """Sums up the epoch (all of it, or the part that was run) and draws the order of the next one if it is over."""
        sizes = torch.tensor([len(b) for b in self._batches[: self.step_in_epoch]], dtype=torch.float64)
        losses = self._losses[: self.step_in_epoch].double().cpu()
        examples = int(sizes.sum())
        accuracy = None if self.regression else int(self._correct) / examples
        epoch = Epoch(float(losses @ sizes) / examples, accuracy, examples, self.seconds)
        if self.step_in_epoch == self.epoch_steps:
            self._begin_epoch()
        return epoch

    def running(self):
        """(loss of the last step, accuracy of the epoch so far or None)."""
        examples = sum(len(b) for b in self._batches[: self.step_in_epoch])
        accuracy = None if self.regression else int(self._correct) / examples
        return float(self._losses[self.step_in_epoch - 1]), accuracy

    @property
    def total_steps(self):
        """Steps of all epochs, which the schedule is laid over; ``max_steps`` only stops earlier."""
        return self.config.epochs * self.epoch_steps

    @torch.no_grad()
    def probabilities(self):
        """(N, classes) of the test split, on the CPU."""
        self.model.eval()
        with self.use():
            chunks = torch.arange(len(self.test), device=self.device).split(EVALUATION_BATCH)
            return torch.cat([self.model(self.test[chunk][0]).float().softmax(1).cpu() for chunk in chunks])

    @torch.no_grad()
    def evaluate(self):
        """(mean loss, accuracy) on the test split; a regression's accuracy is None."""
        self.model.eval()
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        with self.use():
            for indices in torch.arange(len(self.test), device=self.device).split(EVALUATION_BATCH):
                images, targets = self.test[indices]
                logits = self.model(images)
                loss += self.criterion(logits, targets).double() * len(indices)
                if not self.regression:
                    correct += (logits.argmax(1) == targets).sum()
        return float(loss) / len(self.test), None if self.regression else int(correct) / len(self.test)

    # Layers draw from torch's generators; each learner has its own stream of them.
    def _cuda_devices(self):
        return [self.device.index or 0] if self.device.type == "cuda" else []

    def _get_random(self):
        return {"cpu": torch.get_rng_state(), "cuda": [torch.cuda.get_rng_state(d) for d in self._cuda_devices()]}

    @contextlib.contextmanager
    def _own_random(self):
        with torch.random.fork_rng(devices=self._cuda_devices()):
            torch.set_rng_state(self._random["cpu"])
            for device, state in zip(self._cuda_devices(), self._random["cuda"], strict=False):
                torch.cuda.set_rng_state(state, device)
            yield
            self._random = self._get_random()

    def state_dict(self):
        """All that decides the steps to come, in types that ``torch.load(weights_only=True)`` reads."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": self._random,
            "order": self._order_at_begin,
            "step": self.step,
            "step_in_epoch": self.step_in_epoch,
            "losses": self._losses[: self.step_in_epoch].clone(),
            "correct": int(self._correct),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state):
        """Puts the learner where :meth:`state_dict` was taken, in the middle of an epoch as well."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._random = state["random"]
        self.order.set_state(state["order"])
        self._begin_epoch()
        self.step, self.step_in_epoch, self.seconds = state["step"], state["step_in_epoch"], state["seconds"]
        self._losses[: self.step_in_epoch] = state["losses"].to(self.device)
        self._correct += state["correct"]
