"""A generative adversarial network in training: the discriminator and the generator take their steps by turns."""

import torch

import pydl.nn
from pydl.errors import OptionError
from pydl.training import grid
from pydl.training.learner import EVALUATION_BATCH, Learner
from pydl.training.not_finite import NotFinite
from pydl.training.optimizers import Stepper

BETAS = 0.5, 0.999  # of Adam: the paper found 0.9 to oscillate
SAMPLES, COLUMNS = 100, 10  # of the picture of an epoch


class Turns:
    """Two steppers under one name: the discriminator's, and the generator's.

    ``state_dict`` keeps the discriminator's under the names that every run's checkpoint has.
    """

    def __init__(self, config, model, device):
        self.discriminator, self.generator = (
            Stepper(config, part.parameters(), device) for part in (model.discriminator, model.generator)
        )
        for stepper in (self.discriminator, self.generator):
            for group in stepper.optimizer.param_groups:
                if "betas" in group:
                    group["betas"] = BETAS
        self.scaler = self.discriminator.scaler

    def set_lr(self, lr):
        self.discriminator.set_lr(lr), self.generator.set_lr(lr)

    def state_dict(self):
        theirs = {f"generator_{name}": state for name, state in self.generator.state_dict().items()}
        return self.discriminator.state_dict() | theirs

    def load_state_dict(self, state):
        self.discriminator.load_state_dict(state)
        self.generator.load_state_dict({name: state[f"generator_{name}"] for name in ("optimizer", "scaler")})


class GanLearner(Learner):
    """A :class:`pydl.training.learner.Learner` of a :class:`pydl.models.dcgan.GAN` on images without classes.

    A step: the discriminator's, by binary cross entropy of the batch's images as real and as many generated ones as
    not, the mean of both; then the generator's, by the loss of the same generated images as real to the discriminator
    that has just learnt. ``loss`` is the discriminator's, the generator's is a score of its own.

    Source: d2l sections "Generative Adversarial Networks" and "Deep Convolutional Generative Adversarial Networks".
    """

    pictures = ("samples.png",)

    def __init__(self, config, train, test, num_classes, backend_name, device, processes=None):
        if processes is not None and processes.world > 1:
            raise OptionError(f"torchrun: expected one process to train {config.model}, got {processes.world}")
        if config.accumulate > 1:
            raise OptionError(
                f"--accumulate: expected 1 for {config.model}, whose two networks take steps by turns, "
                f"got {config.accumulate}"
            )
        super().__init__(config, train, test, num_classes, backend_name, device, processes)
        self._shown = self.model.noise(SAMPLES, torch.Generator().manual_seed(config.seed)).to(self.device)

    def _make_stepper(self):
        return Turns(self.config, self.model, self.device)

    def _criteria(self):
        return [pydl.nn.BCEWithLogitsLoss(), pydl.nn.BCEWithLogitsLoss()]

    def _begin_epoch(self):
        super()._begin_epoch()
        self._generator_losses = torch.zeros_like(self._losses)

    def _one(self, batch):
        images, _ = self._take()
        if self._scheduled:
            self._schedule()
        with self.precision():
            fake = self.model.generator(self.model.noise(len(images)).to(self.device))
            loss = self._discriminator_loss(images, fake.detach())
        self._turn(self.stepper.discriminator, loss, images)
        # the generator's gradient passes through the discriminator, whose own is not needed
        self.model.discriminator.requires_grad_(False)
        with self.precision():
            scores = self.model(fake)
            generators = self.criterion(scores, torch.ones_like(scores))
        self._turn(self.stepper.generator, generators, images)
        self.model.discriminator.requires_grad_(True)
        self._losses[self.step_in_epoch] = loss.detach()
        self._generator_losses[self.step_in_epoch] = generators.detach()
        self.step_in_epoch += 1
        self.step += 1

    def _turn(self, stepper, loss, images):
        if self.device.type == "cpu" and not loss.isfinite():
            self.model.discriminator.requires_grad_(True)
            raise NotFinite(self.step + 1, loss.item(), self._first_layer(images))
        stepper.clear()
        stepper.backward(loss)
        stepper.step()

    def _discriminator_loss(self, images, fake):
        real, made = self.model(images), self.model(fake)
        return (self.criterion(real, torch.ones_like(real)) + self.criterion(made, torch.zeros_like(made))) / 2

    def end_epoch(self):
        self._generators = self._generator_losses[: self.step_in_epoch].mean().item()
        return super().end_epoch()

    @torch.no_grad()
    def evaluate(self):
        """(the discriminator's mean loss of the test images and as many generated ones, whose noise is always the
        same; None).
        """
        self.model.eval()
        noise, total = torch.Generator().manual_seed(self.config.seed), 0.0
        with self.use(), self.precision():
            for images, _ in self._test_batches(torch.arange(len(self.test))):
                fake = self.model.generator(self.model.noise(len(images), noise).to(self.device))
                total += self._discriminator_loss(images, fake).double() * len(images)
        return (total / len(self.test)).item(), None

    def scores(self):
        """The mean loss of the generator over the epoch's steps."""
        return {"generator_loss": self._generators}

    @torch.no_grad()
    def draw_epoch(self, folder, number):
        """Draws what the generator makes of the same noise each time: ``samples/NNN.png`` and ``samples.png``."""
        self.model.eval()
        with self.use():
            images = torch.cat([self.model.generator(part) for part in self._shown.split(EVALUATION_BATCH)])
        picture = grid.grid(self.train.preprocessing.undo(images).float().cpu(), COLUMNS)
        (folder / "samples").mkdir(exist_ok=True)
        for path in (folder / "samples" / f"{number:03d}.png", folder / "samples.png"):
            grid.save(path, picture)

    def state_dict(self):
        return super().state_dict() | {"generator_losses": self._generator_losses[: self.step_in_epoch].clone()}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self._generator_losses[: self.step_in_epoch] = state["generator_losses"].to(self.device)
