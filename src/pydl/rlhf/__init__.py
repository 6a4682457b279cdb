"""Reinforcement learning from human feedback: the pieces of PPO and DPO for language models, each a function.

What trains with them is in :mod:`pydl.training`. Tensors of one number a token are (N, T) and lie as the tokens do:
column t is about token t, given those before it; a mask says which tokens the model wrote.

Source: Ouyang et al., "Training language models to follow instructions with human feedback", NeurIPS 2022.
"""

from pydl.rlhf.advantages import gae
from pydl.rlhf.divergence import AdaptiveCoefficient, exact_kl, kl_estimates
from pydl.rlhf.log_probs import log_probs, log_probs_and_entropy
from pydl.rlhf.losses import clipped_loss, dpo_loss, pairwise_loss, value_loss
from pydl.rlhf.masks import masked_mean, response_mask, whitened
from pydl.rlhf.preferences import Preference, ranked, read_pairs, write_pairs
from pydl.rlhf.prompts import Prompts
from pydl.rlhf.rollouts import Rollout, rollout
from pydl.rlhf.rules import RULES, make_rule

__all__ = [
    "RULES",
    "AdaptiveCoefficient",
    "Preference",
    "Prompts",
    "Rollout",
    "clipped_loss",
    "dpo_loss",
    "exact_kl",
    "gae",
    "kl_estimates",
    "log_probs",
    "log_probs_and_entropy",
    "make_rule",
    "masked_mean",
    "pairwise_loss",
    "ranked",
    "read_pairs",
    "response_mask",
    "rollout",
    "value_loss",
    "whitened",
    "write_pairs",
]
