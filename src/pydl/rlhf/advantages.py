"""How much better than expected each token was."""

import torch


def gae(rewards, values, mask, gamma=1.0, lam=0.95):
    """(advantages, returns), each (N, T) and 0 outside the mask, by generalised advantage estimation.

    With δ_t = r_t + γ V_{t+1} - V_t, where V is 0 behind the last token, A_t = δ_t + γλ A_{t+1}, and the return is
    A_t + V_t. λ = 0 trusts the values, λ = 1 the rewards alone.

    Args:
        rewards: (N, T), for each token.
        values: (N, T): what is expected before each token is written.
        mask: bool (N, T); the tokens of a row that count stand side by side.

    Source: Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation", ICLR 2016,
    equation 16.

    >>> rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.zeros(1, 3)
    >>> rlhf.gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.5, lam=1.0)
    (tensor([[0.2500, 0.5000, 1.0000]]), tensor([[0.2500, 0.5000, 1.0000]]))
    """
    advantages, following = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    expected = torch.zeros_like(following)
    for step in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, step] + gamma * expected - values[:, step]
        following = torch.where(mask[:, step], delta + gamma * lam * following, 0.0)
        expected = torch.where(mask[:, step], values[:, step], 0.0)
        advantages[:, step] = following
    return advantages, torch.where(mask, advantages + values, 0.0)
