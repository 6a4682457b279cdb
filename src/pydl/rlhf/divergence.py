"""How far the policy has gone from the model that it began as: KL(policy ‖ reference), estimated and exact."""

import torch


def kl_estimates(log_probs, reference_log_probs):
    """(k1, k2, k3): three estimates of the KL divergence for each token that the policy itself drew.

    With d = log π - log π_ref: k1 = d, the unbiased one, which may be negative; k2 = d² / 2, biased, of less variance;
    k3 = e^-d - 1 + d, unbiased and never negative.

    Source: Schulman, "Approximating KL Divergence", 2020.

    >>> rlhf.kl_estimates(torch.tensor([-1.0]), torch.tensor([-2.0]))
    (tensor([1.]), tensor([0.5000]), tensor([0.3679]))
    """
    difference = log_probs - reference_log_probs
    return difference, 0.5 * difference.square(), torch.expm1(-difference) + difference


def exact_kl(log_distribution, reference_log_distribution):
    """Σ p (log p - log q) over the last dimension, of log-probabilities of all tokens.

    >>> rlhf.exact_kl(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log())
    tensor(0.1438)
    """
    return (log_distribution.exp() * (log_distribution - reference_log_distribution)).sum(-1)


class AdaptiveCoefficient:
    """The coefficient of the KL penalty, which grows while the divergence is above ``target`` and shrinks below it.

    Attributes:
        value: the coefficient now.

    Source: Ziegler et al., "Fine-Tuning Language Models from Human Preferences", 2019, section 2.2.
    """

    MOST, RATE = 0.2, 0.2  # the relative error that counts, and how much of it goes into a step

    def __init__(self, value, target):
        self.value, self.target = value, target

    def update(self, divergence):
        """Takes the divergence of a step's responses, in nats a response."""
        error = max(-self.MOST, min(self.MOST, divergence / self.target - 1))
        self.value *= 1 + self.RATE * error
