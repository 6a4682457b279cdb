"""Early stopping: the run ends when the test loss has not fallen for some epochs.

It is decided by the history alone, so that a resumed run needs no state for it. As in the book the test split stands in
for a validation set: the accuracy of the best epoch is then chosen on the very images it is measured on.

Source: d2l section "Generalization in Deep Learning", early stopping.
"""

import math


def best(history):
    """The epoch (from 1) with the lowest test loss, the first of equals; 0 where there is none."""
    losses = [row["test_loss"] if math.isfinite(row["test_loss"]) else math.inf for row in history]
    return losses.index(min(losses)) + 1 if losses else 0


def over(patience, history):
    """Whether the last ``patience`` epochs (None: any number) have all failed to better the best before them."""
    return patience is not None and len(history) - best(history) >= patience and bool(history)


def why(patience, history):
    """The sentence that says so."""
    number = best(history)
    return (
        f"the test loss has not fallen for {patience} epochs since epoch {number} "
        f"({history[number - 1]['test_loss']:.4f}), which best.pt keeps"
    )
