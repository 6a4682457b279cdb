"""Which tokens count: those that the model wrote, neither the prompt nor the padding behind the end."""

import torch


def response_mask(prompt_lengths, lengths, steps):
    """bool (N, steps), true from a row's prompt to its end.

    Args:
        prompt_lengths: (N,) tokens of the prompts.
        lengths: (N,) tokens of prompt and response together; what stands behind them is padding.
        steps: tokens of a row.

    >>> rlhf.response_mask(torch.tensor([1]), torch.tensor([3]), 4)
    tensor([[False,  True,  True, False]])
    """
    places = torch.arange(steps, device=lengths.device)
    return (places >= prompt_lengths.unsqueeze(1)) & (places < lengths.unsqueeze(1))


def masked_mean(values, mask):
    """The mean of the values under the mask; 0 where it is empty.

    >>> rlhf.masked_mean(torch.tensor([1.0, 3.0, 100.0]), torch.tensor([True, True, False]))
    tensor(2.)
    """
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp_min(1)


def whitened(values, mask):
    """The values under the mask with mean 0 and variance 1 (what does not vary: with mean 0), and 0 elsewhere.

    >>> rlhf.whitened(torch.tensor([1.0, 3.0, 100.0]), torch.tensor([True, True, False]))
    tensor([-1.,  1.,  0.])
    """
    centred = torch.where(mask, values - masked_mean(values, mask), 0.0)
    return centred * (masked_mean(centred.square(), mask) + 1e-8).rsqrt()
