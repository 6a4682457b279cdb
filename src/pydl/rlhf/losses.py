"""What is minimised: PPO's clipped objective and its value loss, the loss of a reward model, and DPO's."""

import torch
from torch.nn import functional as F

from pydl.rlhf.masks import masked_mean


def clipped_loss(log_probs, old_log_probs, advantages, mask, epsilon=0.2):
    """(loss, share of the tokens whose gradient is cut off) of PPO's clipped objective.

    With ρ = exp(log_probs - old_log_probs) the loss is minus the mean of min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) under
    the mask.
    A token gets no gradient once it is likelier by more than ε and better than expected, or less likely and worse;
    at ρ = 1 ± ε itself it still has one.

    Args:
        log_probs, old_log_probs, advantages: (N, T); only the first has a gradient.
        mask: bool (N, T).

    Source: Schulman et al., "Proximal Policy Optimization Algorithms", 2017, equation 7.

    >>> now, before = torch.tensor([[-1.0]]), torch.tensor([[-2.0]])  # e times as likely as before
    >>> rlhf.clipped_loss(now, before, torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))
    (tensor(-1.2000), tensor(1.))
    """
    ratio = torch.exp(torch.where(mask, log_probs - old_log_probs, 0.0))
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    objective = torch.minimum(ratio * advantages, clipped * advantages)
    with torch.no_grad():
        cut = torch.where(advantages > 0, ratio > 1 + epsilon, (advantages < 0) & (ratio < 1 - epsilon))
    return -masked_mean(objective, mask), masked_mean(cut.to(ratio.dtype), mask)


def value_loss(values, returns, mask):
    """Half the mean squared error of the values, all (N, T), under the mask.

    >>> rlhf.value_loss(torch.tensor([[1.0]]), torch.tensor([[3.0]]), torch.ones(1, 1, dtype=torch.bool))
    tensor(2.)
    """
    return 0.5 * masked_mean((values - returns).square(), mask)


def pairwise_loss(better, worse):
    """The mean of -log σ(better - worse): the pairwise logistic loss of scores (N,).

    Source: Bradley and Terry, "Rank Analysis of Incomplete Block Designs", Biometrika 1952; Ouyang et al., 2022,
    equation 1.

    >>> rlhf.pairwise_loss(torch.tensor([2.0]), torch.tensor([0.0]))
    tensor(0.1269)
    """
    return F.softplus(worse - better).mean()


def dpo_loss(better, worse, reference_better, reference_worse, beta=0.1):
    """The mean of -log σ(β ((better - reference_better) - (worse - reference_worse))).

    Args:
        better, worse: (N,) log-probabilities of whole responses by the policy.
        reference_better, reference_worse: those by the model that it began as.
        beta: how dear it is to leave the reference.

    Source: Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", NeurIPS
    2023, equation 7.

    >>> rlhf.dpo_loss(*torch.tensor([[-1.0], [-3.0], [-2.0], [-2.0]]), beta=1.0)
    tensor(0.1269)
    """
    return pairwise_loss(beta * (better - reference_better), beta * (worse - reference_worse))
