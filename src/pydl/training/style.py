"""Style transfer in training: every step moves the numbers of one picture."""

import torch

import pydl.nn
from pydl import backend, data
from pydl.errors import OptionError
from pydl.training import grid, not_finite
from pydl.training.build import build
from pydl.training.learner import Learner
from pydl.training.not_finite import NotFinite
from pydl.training.optimizers import Stepper

STEPS = 50  # of an epoch: then there is a picture
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which torchvision's bodies were trained on
PARTS = "content_loss", "style_loss", "variation_loss"


class StyleLearner(Learner):
    """A :class:`pydl.training.learner.Learner` of a picture, which begins as the content picture.

    The losses of content and style are mean squared differences over the mean square of what they compare with, so
    that weights mean the same for every body; the style's is the mean over its layers. The variation's is the mean
    absolute difference of neighbours, the mean of both directions. After a step the picture is brought back to what a
    screen can show.

    Args:
        dataset: a :class:`pydl.data.StylePictures`. The content picture is brought to the height ``config.size``, the
            style picture to the same number of rows and columns.
    """

    shows_images, pictures = False, ("transfer.png", "result.png")

    def __init__(self, config, dataset, backend_name, device, processes=None):
        refused = {"--batch-size": config.batch_size != 1, "--workers": config.workers, "--augment": config.augment}
        refused |= {"--init": config.init != "torch", "--tensorboard": config.tensorboard}
        refused |= {"torchrun": processes is not None and processes.world > 1}
        for option, given in refused.items():
            if given:
                raise OptionError(
                    f"{option}: expected a model that is trained on batches to take it, got {config.model}"
                )
        height, width = dataset.content.shape[1:]
        self._size = config.size, max(1, round(config.size * width / height))
        self.preprocessing = data.Preprocessing(self._size, MEAN, STD)
        content, style = dataset.content.unsqueeze(0), dataset.style.unsqueeze(0)
        self._content, self._style = self.preprocessing(content), self.preprocessing(_filling(style, self._size))
        self._targets = None
        super().__init__(config, None, None, 0, backend_name, device, processes)
        bounds = torch.stack([self.preprocessing(torch.full((1, 3, 1, 1), end)) for end in (0.0, 1.0)])
        self._bounds = bounds.to(self.device)
        self.criterion = self.measure = pydl.nn.MSELoss()

    def _build(self, num_classes):
        model = build(self.config, num_classes, None, self._size)
        with backend.use("torch"):  # the same body for every backend
            model.randomise(torch.cat([self._content, self._style]))
        with torch.no_grad():
            model.image.copy_(self._content)
        return model

    def _make_stepper(self):
        return Stepper(self.config, [self.model.image], self.device)

    def _draw(self):
        return [torch.zeros(1, dtype=torch.int64)] * STEPS

    def run(self, steps):
        """As :meth:`pydl.training.learner.Learner.run`."""
        with self.use():
            self._compared()  # before the monitor looks
        return super().run(steps)

    def _compared(self):
        """(content features, Gram matrices) that the picture is to have, and the mean squares of both."""
        if self._targets is None:  # the body may have been loaded since the learner was made
            with torch.no_grad(), self.precision():
                content, _ = self.model(self._content.to(self.device))
                _, grams = self.model(self._style.to(self.device))
            scales = [t.square().mean().clamp_min(1e-12) for t in (content, *grams)]
            self._targets = content, grams, scales
        return self._targets

    def _parts_of_loss(self):
        content, grams, scales = self._compared()
        found, found_grams = self.model()
        of_content = self.criterion(found, content) / scales[0]
        pairs = zip(found_grams, grams, scales[1:], strict=True)
        of_style = sum(self.criterion(a, b) / scale for a, b, scale in pairs) / len(grams)
        image = self.model.image
        across, down = image[..., 1:] - image[..., :-1], image[..., 1:, :] - image[..., :-1, :]
        return of_content, of_style, (across.abs().mean() + down.abs().mean()) / 2

    def _whole(self, parts):
        weights = self.model.content, self.model.style, self.model.variation
        return sum(weight * part for weight, part in zip(weights, parts, strict=True))

    def _one(self, batch):
        if self._scheduled:
            self._schedule()
        self.stepper.clear()
        with self.precision():
            loss = self._whole(self._parts_of_loss())
        if self.device.type == "cpu" and not loss.isfinite():
            raise NotFinite(self.step + 1, loss.item(), self._first_layer(()))
        self.stepper.backward(loss)
        self.stepper.step()
        with torch.no_grad():
            self.model.image.clamp_(*self._bounds)
        self._losses[self.step_in_epoch] = loss.detach()
        self.step_in_epoch += 1
        self.step += 1

    def _find_not_finite(self, steps):
        first = self.step_in_epoch - steps
        bad = (~self._losses[first : self.step_in_epoch].isfinite()).nonzero()
        if len(bad):
            step = self.step - self.step_in_epoch + first + int(bad[0]) + 1
            raise NotFinite(step, float(self._losses[first + int(bad[0])]), self._first_layer(()))

    def _first_layer(self, images):
        with self.precision():
            found = not_finite.first_layer(self.model, images)
        return found[1] if found else None

    @torch.no_grad()
    def evaluate(self):
        """(the loss of the picture as it is now, None)."""
        with self.use(), self.precision():
            parts = self._parts_of_loss()
            self._scores = [float(part) for part in parts]
            return float(self._whole(parts)), None

    def scores(self):
        """The three losses, unweighted."""
        return dict(zip(PARTS, self._scores, strict=True))

    def draw_epoch(self, folder, number):
        """Saves ``steps/STEP.png`` and ``result.png``, the picture, and ``transfer.png``: content, picture, style."""
        image = self.model.image.detach().cpu()
        three = self.preprocessing.undo(torch.cat([self._content, image, self._style]))
        (folder / "steps").mkdir(exist_ok=True)
        for path in (folder / "steps" / f"{self.step:04d}.png", folder / "result.png"):
            grid.save(path, three[1])
        grid.save(folder / "transfer.png", grid.grid(three, 3))

    def load_state_dict(self, state):
        self._targets = None
        super().load_state_dict(state)


def _filling(image, size):
    """The middle of ``image`` (1, 3, H, W) that has the proportions of ``size``, in its pixels."""
    height, width = image.shape[2:]
    scale = min(height / size[0], width / size[1])
    rows, columns = max(1, round(scale * size[0])), max(1, round(scale * size[1]))
    top, left = (height - rows) // 2, (width - columns) // 2
    return image[..., top : top + rows, left : left + columns]
