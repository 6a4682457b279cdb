"""The learning rate as a function of the step alone, so that a resumed run needs no state for it."""

import math

SCHEDULES = ("constant", "step", "cosine")


def factor(schedule, step, total, warmup=0):
    """What the learning rate is multiplied by in ``step`` (from 0) of ``total``.

    Linear warm-up from ``1 / warmup`` to 1 over the first ``warmup`` steps; then ``constant``; ``step``, which divides
    by 10 after one half and after three quarters of all steps; or ``cosine``, which falls from 1 towards 0.

    Source: d2l chapter "Learning Rate Scheduling"; Loshchilov and Hutter, "SGDR", ICLR 2017, for the cosine.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "step":
        return 0.1 ** ((2 * step >= total) + (4 * step >= 3 * total))
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
    return 1.0
