"""What a language model is measured by, and what it writes."""

import math

import torch


def perplexity(loss):
    """e to the mean loss per token: the number of equally likely tokens that would surprise as much.

    >>> text.perplexity(0.0)
    1.0
    """
    return math.exp(loss) if loss < 700 else math.inf


@torch.no_grad()
def continued(model, numbers, length, temperature=1.0, top_k=None, generator=None, top_p=None):
    """The ``length`` token numbers that ``model`` writes after ``numbers``, a list of at least one.

    Args:
        model: (tokens (1, T), state or None) to (logits (1, T, vocabulary), state), in eval mode. It is told each token
            once: the state that it returns goes in again with the next one.
        temperature: the logits are divided by it: below 1 the likely tokens become likelier; at 0 the likeliest is
            taken.
        top_k: draw from this many of the likeliest tokens alone.
        top_p: draw from the fewest of the likeliest tokens that have this much of the probability together; the
            likeliest is always among them.
        generator: of the random numbers, on the CPU; torch's own if None.

    ``<unk>`` (number 0) is never written.
    """
    device = next(model.parameters()).device
    written, coming, state = [], numbers, None
    for _ in range(length):
        logits, state = model(torch.tensor([coming], device=device), state)
        scores = logits[0, -1].double().cpu()
        scores[0] = -math.inf
        if temperature == 0 or top_k == 1:
            number = int(scores.argmax())
        else:
            scores, places = scores.topk(min(top_k or len(scores), len(scores)))  # sorted
            chances = (scores / temperature).softmax(0)
            if top_p is not None:
                chances[chances.cumsum(0) - chances >= top_p] = 0.0  # those before it have as much already
            number = int(places[torch.multinomial(chances, 1, generator=generator)])
        written.append(number)
        coming = [number]
    return written
