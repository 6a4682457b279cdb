"""A reward model in training: which of two texts that go on from one prompt is the better one."""

import torch

from pydl.rlhf import pairwise_loss
from pydl.rlhf.preferences import PairRows
from pydl.training import pictures_of_feedback as pictures
from pydl.training.build import build
from pydl.training.feedback import positions
from pydl.training.learner import Learner, called

SHOWN = 3  # held-out pairs in a sample


class RewardLearner(Learner):
    """A :class:`pydl.training.learner.Learner` of pairs, which are its examples; right is a pair in its order.

    Args:
        dataset: a :class:`pydl.training.feedback.FeedbackDataset`.
        at: the device of the examples.
    """

    samples, shows_images, has_classes = True, False, False

    def __init__(self, config, dataset, at, backend_name, device, processes=None):
        self.dataset = dataset
        most = positions(config.options)
        parts = [PairRows(part, dataset.tokenizer, most, at) for part in (dataset.train, dataset.test)]
        super().__init__(config, *parts, len(dataset.classes), backend_name, device, processes)
        self.classifies = True

    def _build(self, num_classes):
        model = build(self.config, num_classes, None)
        if "start" in self.dataset.kept:  # not where a run is resumed
            model.body.load_state_dict(self.dataset.kept["start"])
        return model

    def _criteria(self):
        return [_loss, _loss]

    @torch.no_grad()
    def pair_scores(self):
        """(N, 2) scores of the held-out pairs, on the CPU."""
        self.model.eval()
        with self.use(), self.precision():
            batches = self._test_batches(torch.arange(len(self.test)))
            return torch.cat([called(self.model, inputs).float().cpu() for inputs, _ in batches])

    def sample(self, number):
        """Held-out pairs with their scores."""
        lines = []
        for pair, scores in zip(self.dataset.test[:SHOWN], self.pair_scores()[:SHOWN].tolist(), strict=True):
            lines.append(f"after {pair.prompt!r}")
            lines += [f"  {s:+6.2f}  {text}" for s, text in zip(scores, (pair.better, pair.worse), strict=True)]
        return "\n".join(lines)

    def draw(self, folder, title):
        """Draws ``scores.png``; returns the names of the files."""
        pictures.draw_scores(folder / "scores.png", self.pair_scores(), title)
        return ["scores.png"]


def _loss(scores, targets):
    """Of scores (N, 2), the better text's first."""
    return pairwise_loss(*scores.unbind(1))
