"""What a policy writes after many prompts at a time."""

from dataclasses import dataclass

import torch

from pydl._brief import Brief
from pydl.rlhf.masks import response_mask


@dataclass(repr=False)
class Rollout(Brief):
    """Prompts with the responses that a model wrote.

    Attributes:
        tokens: int64 (N, T), 0 behind each row's end.
        prompt_lengths, lengths: (N,) tokens of the prompts, and of prompt and response together.
    """

    tokens: torch.Tensor
    prompt_lengths: torch.Tensor
    lengths: torch.Tensor

    @property
    def mask(self):
        """The tokens of the responses, as booleans (N, T)."""
        return response_mask(self.prompt_lengths, self.lengths, self.tokens.shape[1])

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, rows):
        return Rollout(self.tokens[rows], self.prompt_lengths[rows], self.lengths[rows])

    def texts(self, tokenizer):
        """(prompts, responses): two lists of texts."""
        prompts, responses = [], []
        lengths = self.prompt_lengths.tolist(), self.lengths.tolist()
        for row, prompt_length, length in zip(self.tokens.tolist(), *lengths, strict=True):
            prompts.append(tokenizer.decode(row[:prompt_length]))
            responses.append(tokenizer.decode(row[:length])[len(prompts[-1]) :])
        return prompts, responses


@torch.no_grad()
def rollout(model, prompts, prompt_lengths, length, end=None, generator=None):
    """The :class:`Rollout` of ``length`` tokens after each prompt, drawn as the model says; ``<unk>`` is never written.

    The model reads each token once: its state, the keys and values so far, goes in again with the next one. A row whose
    prompt is longer than the shortest goes on with the prompt while the others write.

    Args:
        model: (tokens (N, T), state or None) to (logits (N, T, vocabulary), state), in eval mode.
        prompts: int64 (N, longest), padded with 0.
        prompt_lengths: (N,) of at least 1.
        end: the token that ends a response, which it belongs to; None for none.
        generator: of the random numbers, on the CPU; torch's own if None.
    """
    shortest, longest = int(prompt_lengths.min()), int(prompt_lengths.max())
    tokens = prompts.new_zeros(len(prompts), longest + length)
    tokens[:, :longest] = prompts[:, :longest]
    lengths, over = prompt_lengths + length, torch.zeros_like(prompt_lengths, dtype=torch.bool)
    coming, state = tokens[:, :shortest], None
    for step in range(shortest, longest + length):
        logits, state = model(coming, state)
        chances = logits[:, -1, 1:].float().cpu().softmax(-1)
        drawn = torch.multinomial(chances, 1, generator=generator).squeeze(1).to(tokens.device) + 1
        writes = (step >= prompt_lengths) & (step < lengths) & ~over
        tokens[:, step] = torch.where(writes, drawn, tokens[:, step])
        if end is not None:
            ended = writes & (drawn == end)
            lengths, over = torch.where(ended, step + 1, lengths), over | ended
            if over.all():
                break
        coming = tokens[:, step : step + 1]
    return Rollout(tokens[:, : int(lengths.max())], prompt_lengths, lengths)
