"""Direct preference optimisation: the policy learns from the reward model's pairs, without it and without samples.

Source: Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", NeurIPS 2023.
"""

import torch

from pydl.rlhf import dpo_loss, log_probs, response_mask
from pydl.rlhf.preferences import PairRows
from pydl.training.feedback import positions
from pydl.training.policy import PolicyLearner

BETA = 0.1
ROWS = 128  # pairs whose reference is computed together


class PolicyPairs(PairRows):
    """:class:`PairRows` whose targets are the reference's log-probabilities (N, 2)."""

    reference = None

    def __getitem__(self, indices):
        return super().__getitem__(indices)[0], self.reference[indices.to(self.device)]

    @torch.no_grad()
    def refer(self, model):
        """Takes the log-probabilities of ``model``."""
        self.reference = torch.zeros(len(self), 2, device=self.device)
        for rows in torch.arange(len(self)).split(ROWS):
            self.reference[rows] = pair_log_probs(model, *self[rows][0])


def pair_log_probs(model, tokens, prompt_lengths, lengths):
    """(N, 2): the log-probabilities of both responses of each pair, of tokens (N, 2, T) and lengths (N, 2)."""
    tokens = tokens.flatten(0, 1)
    mask = response_mask(prompt_lengths.flatten(), lengths.flatten(), tokens.shape[1])
    return log_probs(model, tokens, mask).float().sum(1).view(lengths.shape)


class DPOLearner(PolicyLearner):
    """A :class:`PolicyLearner` whose examples are the pairs of the reward model's run."""

    def __init__(self, config, dataset, backend_name, device, processes=None):
        most = positions(config.options)
        parts = [PolicyPairs(part, dataset.tokenizer, most, device) for part in (dataset.train, dataset.test)]
        super().__init__(config, dataset, *parts, backend_name, device, processes)
        with self.use():
            for part in parts:
                part.refer(self.reference)

    def example(self):
        """Tokens alone, as the model takes them."""
        return super().example()[0][:, 0]

    def _criteria(self):
        return [_loss, _loss]

    def _forward(self, inputs, part, parts):
        return pair_log_probs(self.model.body, *inputs)

    @torch.no_grad()
    def evaluate(self):
        """(mean loss of the held-out pairs, None)."""
        self.model.eval()
        total, right = 0.0, 0
        with self.use(), self.precision():
            for inputs, reference in self._test_batches(torch.arange(len(self.test))):
                values = pair_log_probs(self.model.body, *inputs)
                total += float(_loss(values, reference)) * len(values)
                gained = values - reference
                right += int((gained[:, 0] > gained[:, 1]).sum())
        self._scores = {**self.judge(), "pair_accuracy": right / len(self.test)}
        return total / len(self.test), None


def _loss(values, reference):
    """Of (N, 2) log-probabilities, the better response's first."""
    return dpo_loss(*values.unbind(1), *reference.unbind(1), BETA)
