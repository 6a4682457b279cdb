"""Pairs of texts that go on from one prompt, one better than the other: by a rule, or out of a file."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from pydl.errors import DataError, OptionError

KEYS = "prompt", "better", "worse"


@dataclass(frozen=True)
class Preference:
    """A prompt and what two writers wrote after it."""

    prompt: str
    better: str
    worse: str


def ranked(prompts, responses, rule, samples, doubt=0.0, generator=None):
    """The pairs of the best and the worst of each ``samples`` responses to one prompt; none where all are equal.

    Args:
        prompts, responses: lists alike, ``samples`` of one prompt side by side.
        rule: (response) -> number.
        doubt: how unsure the person is that the rule stands for: a pair comes in the wrong order with probability
            σ(-gap / doubt), where both are measured in standard deviations of all responses. A reward model that learns
            from such pairs grows in proportion to the rule; one that learns from sure ones only tells yes from no.
        generator: of the random numbers; torch's own if None.
    """
    scores = torch.tensor([rule(response) for response in responses], dtype=torch.float64)
    found, unit = [], doubt * scores.std().item()
    for first in range(0, len(prompts), samples):
        group = scores[first : first + samples]
        best, worst = first + int(group.argmax()), first + int(group.argmin())
        gap = (scores[best] - scores[worst]).item()
        if gap > 0:
            if unit > 0 and torch.rand((), generator=generator).item() < 1 / (1 + math.exp(min(gap / unit, 700))):
                best, worst = worst, best
            found.append(Preference(prompts[first], responses[best], responses[worst]))
    return found


def write_pairs(path, preferences):
    """Writes the file that :func:`read_pairs` reads."""
    lines = [
        json.dumps({"prompt": p.prompt, "better": p.prompt + p.better, "worse": p.prompt + p.worse})
        for p in preferences
    ]
    Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_pairs(path):
    """The pairs of a file: a JSON object a line with ``prompt`` and two whole texts that begin with it.

    Raises:
        DataError: for a file that cannot be read, a line of another form, a text that does not begin with the prompt
            or ends with it, and two equal texts.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a file of pairs: {getattr(error, 'strerror', None) or error}") from None
    found = [_pair(f"{path}: line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError(f"{path}: expected pairs, got an empty file")
    return found


def _pair(where, line):
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or set(row) != set(KEYS) or not all(isinstance(row[key], str) for key in KEYS):
        raise DataError(f"{where}: expected a JSON object with the texts {', '.join(KEYS)}, got {line[:60]!r}")
    prompt, *texts = (row[key] for key in KEYS)
    if not prompt:
        raise DataError(f"{where}: expected a prompt, got an empty one")
    for key, text in zip(KEYS[1:], texts, strict=True):
        if not text.startswith(prompt):
            raise DataError(
                f"{where}: expected both texts to begin with the prompt {prompt!r}, got {key} {text[:60]!r}"
            )
        if text == prompt:
            raise DataError(f"{where}: expected {key} to go on from the prompt, got nothing more")
    if texts[0] == texts[1]:
        raise DataError(f"{where}: expected two texts that differ, got the same twice")
    return Preference(prompt, *(text[len(prompt) :] for text in texts))


class PairRows:
    """Preferences as rows: places (N,) give ((tokens (N, 2, T), prompt_lengths (N, 2), lengths (N, 2)), zeros (N,)).

    The better text stands first, and the zeros say so; rows are padded with 0.

    Args:
        preferences: a list of :class:`Preference`.
        tokenizer: a :class:`pydl.text.Tokenizer`.
        positions: the most tokens that a text may have.

    Raises:
        DataError: for a text that is longer, or has a token that the vocabulary lacks.
    """

    def __init__(self, preferences, tokenizer, positions, device="cpu"):
        self.device, rows, prompts = torch.device(device), [], []
        for preference in preferences:
            prompt, *responses = (_numbers(tokenizer, preference, key) for key in KEYS)
            rows.append([prompt + response for response in responses])
            prompts.append(len(prompt))
        lengths = torch.tensor([[len(text) for text in row] for row in rows]).view(-1, 2)
        longest = int(lengths.max()) if rows else 0
        if longest > positions:
            raise DataError(f"pairs: expected texts of at most {positions} tokens with their prompts, got {longest}")
        padded = [[text + [0] * (longest - len(text)) for text in row] for row in rows]
        self.tokens = torch.tensor(padded, dtype=torch.int64).view(-1, 2, longest).to(device)
        self.lengths = lengths.to(device)
        self.prompt_lengths = torch.tensor(prompts, dtype=torch.int64).unsqueeze(1).expand(-1, 2).to(device)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, indices):
        at = indices.to(self.device)
        lengths = self.lengths[at]
        width = int(lengths.max()) if len(at) else 1
        return (self.tokens[at, :, :width], self.prompt_lengths[at], lengths), torch.zeros_like(at)


def _numbers(tokenizer, preference, key):
    text = getattr(preference, key)
    try:
        return tokenizer.encode_known(text)
    except OptionError as error:
        why = str(error).removeprefix("PREFIX: ")
        raise DataError(f"pairs: {key} of the prompt {preference.prompt!r}: {why}") from None
