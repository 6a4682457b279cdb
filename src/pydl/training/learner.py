"""One model in training: weights, optimizer, order of the data and random state, advanced by steps on request."""

import contextlib
import math
import time
from dataclasses import dataclass

import torch

import pydl.nn
from pydl import backend, data, models
from pydl.data.loader import moved
from pydl.errors import OptionError, UserError
from pydl.training import not_finite, tuning
from pydl.training.build import build
from pydl.training.monitor import Monitor
from pydl.training.not_finite import NotFinite
from pydl.training.optimizers import Stepper
from pydl.training.processes import Processes, distributed
from pydl.training.recipes import initialise
from pydl.training.schedule import factor

EVALUATION_BATCH = 256


@dataclass
class Epoch:
    """What an epoch came to: means over its units, and the seconds its steps took (evaluation excluded)."""

    loss: float
    accuracy: float | None
    units: int  # examples, or tokens
    seconds: float


class Learner:
    """A model, its optimizer, the order of its batches and its own random state, on one backend.

    Two learners of the same config start from the same weights and see the same batches, whatever their backends. With
    several processes each holds a learner and takes its part of every batch; the steps are those of one process.

    Attributes:
        step: steps done so far, over all epochs.
        step_in_epoch, epoch_steps: steps done of this epoch, and how many it has.
        unit: what is counted, ``examples``, or the ``tokens`` of :class:`pydl.training.language.LanguageLearner`.
        samples: whether there is a text, :meth:`sample`, that shows what the model has learnt.
        shows_images: whether its inputs can be drawn.
        sparse: whether its gradients are sparse.
        has_classes: whether what it tells apart has names.
        monitor: the :class:`pydl.training.monitor.Monitor` of each epoch's first step, or None.
    """

    unit, units_per_row = "examples", 1
    samples, shows_images, sparse, has_classes = False, True, False, True

    def __init__(self, config, train, test, num_classes, backend_name, device, processes=None):
        self.config, self.train, self.test = config, train, test
        self.backend, self.device = backend_name, torch.device(device)
        self.processes = processes or Processes()
        self.classifies = models.kind(config.model) == "classifier"
        self.step = self.step_in_epoch = 0
        with torch.random.fork_rng(devices=self._cuda_devices()):
            torch.manual_seed(config.seed)
            self.model = self._build(num_classes).to(self.device)
            initialise(self.model, config.init)
            self._check_batch_norm()
            if not self.processes.first:  # layers draw their own numbers for their own examples
                torch.manual_seed((config.seed + self.processes.rank * 0x9E3779B97F4A7C15) % 2**63)
            self._random = self._get_random()
        if self.processes.world > 1:
            self.model = pydl.nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self._frozen_norms = tuning.freeze(self.model, config.freeze) if config.freeze else []
        if backend_name != "torch":
            pydl.swap(self.model)  # built from our layers already: this fuses neighbours
        several = self.processes.world > 1
        self._stepped = distributed(self.model, self.device) if several else self.model  # what a training step calls
        self.criterion, self.measure = self._criteria() if num_classes else [torch.nn.MSELoss()] * 2
        self.stepper = self._make_stepper()
        self.lr, self._scheduled = config.lr, config.schedule != "constant" or config.warmup > 0
        self.order = torch.Generator().manual_seed(config.seed)  # of the data, apart from what layers draw
        self.augment = data.Augment(config.augment, config.seed) if config.augment else None
        self.monitor = Monitor(self.model) if config.monitor else None
        self._begin_epoch()

    def _build(self, num_classes):
        """The model on the CPU."""
        features = None if num_classes else self.train.images.shape[1]
        return build(self.config, num_classes, self.train.preprocessing, features)

    def _make_stepper(self):
        parameters = tuning.groups(self.model, self.config.lr, self.config.head_lr_factor)
        return Stepper(self.config, parameters, self.device, self.sparse)

    def _criteria(self):
        """What is trained by, and what tests measure by: without smoothing."""
        smoothing = self.config.label_smoothing
        return pydl.nn.CrossEntropyLoss(label_smoothing=smoothing), pydl.nn.CrossEntropyLoss()

    def use(self):
        """The context in which this learner's backend serves the layers."""
        return backend.use(self.backend)

    def precision(self):
        """Mixed precision, where it is asked for, of one forward: its casts of weights are kept until its end."""
        dtype = torch.bfloat16 if self.device.type == "cpu" else torch.float16
        return torch.autocast(self.device.type, dtype, enabled=self.config.amp)

    @property
    def epoch_steps(self):
        return len(self._batches)

    @property
    def total_steps(self):
        """Steps of all epochs, which the schedule is laid over; ``max_steps`` only stops earlier."""
        return self.config.epochs * self.epoch_steps

    def _check_batch_norm(self):
        """Sets the least examples that can be computed together, and refuses batches of less."""
        self._least = 1
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                self._least = 2
                if self.config.batch_size == 1 and isinstance(module, torch.nn.BatchNorm1d):
                    raise OptionError(
                        f"--batch-size: expected at least 2 for {self.config.model}, whose layer {name} "
                        "normalises over the batch, got 1"
                    )

    def _begin_epoch(self):
        """Draws the order of the next epoch's batches and clears its sums."""
        self._order_at_begin = self.order.get_state()
        self._batches, self._coming = self._draw(), None
        self._losses = torch.zeros(len(self._batches), device=self.device)
        self._correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self.step_in_epoch, self.seconds = 0, 0.0

    def _draw(self):
        """The index tensors of an epoch's batches."""
        order = torch.randperm(len(self.train), generator=self.order).to(self.train.device)
        batches = list(order.split(self.config.batch_size))
        if len(batches) > 1 and len(batches[-1]) == 1:
            # a last batch of one would leave BatchNorm one value per channel: it joins the batch before
            batches[-2:] = [torch.cat(batches[-2:])]
        return batches

    def _take(self):
        """(images, targets) of the step that comes: this process's part, made ready ahead where there are workers."""
        if self._coming is None:
            shards = [self.processes.shard(batch) for batch in self._batches[self.step_in_epoch :]]
            self._coming = data.in_order(self.train, shards, self.config.workers, self.device)
        try:
            images, targets = next(self._coming)
        except UserError as error:
            error.local = self.processes.world > 1  # a file of this process's part, of which the others know nothing
            raise
        if self.augment is not None:
            size = len(self._batches[self.step_in_epoch])
            images, targets = self._augmented(images, targets, size, self.processes.bounds(size)[0])
        return images, targets

    def _augmented(self, images, targets, size, start):
        """(images, targets) varied, which are ``start …`` of a batch of ``size``."""
        return self.augment(images, self.step, size, start), targets

    def run(self, steps):
        """Trains for ``steps`` steps, at most to the end of the epoch; returns (examples or tokens, seconds).

        Raises:
            NotFinite: when a loss is nan or infinite. On a CPU the weights are then still those that led to it.
        """
        batches = self._batches[self.step_in_epoch : self.step_in_epoch + steps]
        units = sum(map(self._units, batches))
        self._stepped.train()
        for norm in self._frozen_norms:  # its statistics stay as they are, too
            norm.eval()
        with self.use(), self._own_random():
            begin = time.perf_counter()
            for batch in batches:
                if self.monitor is not None and self.step_in_epoch == 0:
                    with self.monitor.watch(self.step + 1, self.stepper.scaler.get_scale()):
                        self._one(batch)
                else:
                    self._one(batch)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds = time.perf_counter() - begin
        self.seconds += seconds
        if self.device.type != "cpu":
            self._find_not_finite(len(batches))
        return units, seconds

    def _units(self, batch):
        """Examples or tokens of a batch."""
        return len(batch) * self.units_per_row

    def _forward(self, inputs, part, parts):
        """What a training step's model puts out for number ``part`` of the ``parts`` of its batch."""
        return called(self._stepped, inputs)

    def _one(self, batch):
        images, targets = self._take()
        self.stepper.clear()
        parts, size, value = self._parts(len(batch)), self._units(batch), 0.0
        for part, pair in enumerate(zip(_split(images, parts), _split(targets, parts), strict=True)):
            # gradients are averaged over the processes once, with those of the last part
            alone = self.processes.world > 1 and part < parts - 1
            with self._stepped.no_sync() if alone else contextlib.nullcontext():
                value = value + self._part(*pair, part, parts, size)
        if self._scheduled:
            self._schedule()
        self.stepper.step()
        self._losses[self.step_in_epoch] = value
        self.step_in_epoch += 1
        self.step += 1

    def _schedule(self):
        self.lr = self.config.lr * factor(self.config.schedule, self.step, self.total_steps, self.config.warmup)
        self.stepper.set_lr(self.lr)

    def _parts(self, size):
        """How many parts a batch of ``size`` is computed in: each has something, for batch norm two, to each process.

        The short batch at the end of an epoch may have less than ``--accumulate`` asks for.
        """
        return min(self.config.accumulate, max(1, size // (self._least * self.processes.world)))

    def _part(self, images, targets, part, parts, size):
        """Adds one part's gradients to those there are; returns its share of the loss of all ``size`` units."""
        with self.precision():
            logits = self._forward(images, part, parts)
            loss = self._loss(logits, targets, size)
        value = self.processes.sum(loss.detach() / self.processes.world) if self.processes.world > 1 else loss.detach()
        if self.device.type == "cpu":  # reading the value costs nothing here, and stops before the weights are spoilt
            number = value.item()
            if not math.isfinite(number):
                raise NotFinite(self.step + 1, number, self._first_layer(images))
        self.stepper.backward(loss)
        if self.classifies:
            with torch.no_grad():
                self._correct += (logits.argmax(1) == targets).sum()
        return value

    def _loss(self, logits, targets, size):
        """This part's share of the mean loss over all ``size`` units of a step.

        Of several processes times their number: DistributedDataParallel takes the mean of their gradients.
        """
        if self.processes.world == 1 and self._count(targets) == size:
            return self._criterion(logits, targets)
        if not len(logits):
            return logits.sum()  # 0, and a gradient of 0 for every parameter, which the other processes wait for
        return self._criterion(logits, targets) * (self._count(targets) * self.processes.world / size)

    def _count(self, targets):
        """Examples or tokens of these targets."""
        return len(targets) * self.units_per_row

    def _criterion(self, logits, targets):
        return (self.criterion if self.model.training else self.measure)(logits, targets)

    def _find_not_finite(self, steps):
        """On a GPU losses are looked at after several steps, without stopping the stream at each."""
        first = self.step_in_epoch - steps
        bad = (~self._losses[first : self.step_in_epoch].isfinite()).nonzero()
        if len(bad):
            at = first + int(bad[0])
            images, _ = self.train[self.processes.shard(self._batches[at])]
            value = float(self._losses[at])
            step = self.step - self.step_in_epoch + at + 1
            raise NotFinite(step, value, self._first_layer(moved(images, self.device)))

    def _first_layer(self, images):
        with self.precision():
            found = not_finite.first_layer(self.model, images)
        found = [one for one in self.processes.gather(found) if one]
        return min(found)[1] if found else None

    def end_epoch(self):
        """Sums up the epoch (all of it, or the part that was run) and draws the order of the next one if it is over."""
        sizes = torch.tensor([self._units(b) for b in self._batches[: self.step_in_epoch]], dtype=torch.float64)
        losses = self._losses[: self.step_in_epoch].double().cpu()
        units = int(sizes.sum())
        accuracy = int(self.processes.sum(self._correct.clone())) / units if self.classifies else None
        epoch = Epoch(float(losses @ sizes) / units, accuracy, units, self.seconds)
        if self.step_in_epoch == self.epoch_steps:
            self._begin_epoch()
        return epoch

    def running(self):
        """(loss of the last step, accuracy of the epoch so far or None), the latter of this process's examples."""
        examples = sum(len(self.processes.shard(b)) for b in self._batches[: self.step_in_epoch])
        accuracy = int(self._correct) / max(examples, 1) if self.classifies else None
        return float(self._losses[self.step_in_epoch - 1]), accuracy

    def _test_batches(self, indices):
        batches = list(indices.to(self.test.device).split(EVALUATION_BATCH)) if len(indices) else []
        return data.in_order(self.test, batches, self.config.workers, self.device)

    @torch.no_grad()
    def probabilities(self):
        """(N, classes) of the test split, on the CPU, by this process alone."""
        self.model.eval()
        with self.use(), self.precision():
            batches = self._test_batches(torch.arange(len(self.test)))
            return torch.cat([called(self.model, images).float().softmax(1).cpu() for images, _ in batches])

    @torch.no_grad()
    def evaluate(self):
        """(mean loss, accuracy) on the test split; the accuracy of what is no classifier is None."""
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)  # of losses and of right answers
        with self.use(), self.precision():
            for images, targets in self._test_batches(self.processes.shard(torch.arange(len(self.test)))):
                logits = called(self.model, images)
                sums[0] += self._criterion(logits, targets).double() * len(targets)
                if self.classifies:
                    sums[1] += (logits.argmax(1) == targets).sum()
        loss, correct = (self.processes.sum(sums) / len(self.test)).tolist()
        return loss, correct if self.classifies else None

    def example(self):
        """What the model takes, for two examples."""
        return self.train[torch.zeros(2, dtype=torch.int64)][0]

    def scores(self):
        """What else the test split shows, {name: number}, after :meth:`evaluate`."""
        return {}

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
        """All that decides the steps to come, in types that ``torch.load(weights_only=True)`` reads.

        With several processes all of them make this call, for each has a random state and counts of its own.
        """
        random = self.processes.gather(self._random)
        return {
            "model": self.model.state_dict(),
            **self.stepper.state_dict(),
            "random": random[0],
            "random_of_others": random[1:],
            "order": self._order_at_begin,
            "step": self.step,
            "step_in_epoch": self.step_in_epoch,
            "losses": self._losses[: self.step_in_epoch].clone(),
            "correct": int(self.processes.sum(self._correct.clone())),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state):
        """Puts the learner where :meth:`state_dict` was taken, in the middle of an epoch as well."""
        self.model.load_state_dict(state["model"])
        self.stepper.load_state_dict(state)
        random = [state["random"], *state.get("random_of_others", [])]
        if self.processes.rank < len(random):  # with more processes than before, the new ones keep their own
            self._random = random[self.processes.rank]
        self.order.set_state(state["order"])
        self._begin_epoch()
        self.step, self.step_in_epoch, self.seconds = state["step"], state["step_in_epoch"], state["seconds"]
        self._losses[: self.step_in_epoch] = state["losses"].to(self.device)
        if self.processes.first:
            self._correct += state["correct"]


def called(model, inputs):
    """What ``model`` puts out for a tensor, or for a tuple of them."""
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _split(inputs, parts):
    """The parts of a batch along its first dimension: of a tensor, or of each of a tuple of them."""
    if torch.is_tensor(inputs):
        return inputs.tensor_split(parts)
    return tuple(zip(*(each.tensor_split(parts) for each in inputs), strict=True))
