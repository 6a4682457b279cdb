"""What a trained model confuses: ``confusion.png`` and ``mistakes.png``."""

import torch

# Beyond this many classes the numbers in the cells cannot be read, and the colours alone are drawn.
NUMBERED = 20
PAGE = 24


def confusion(targets, predicted, classes):
    """(classes, classes) counts: row is the true class, column the predicted one."""
    return torch.bincount(targets * classes + predicted, minlength=classes * classes).view(classes, classes)


def draw_confusion(path, counts, names):
    """The matrix as a picture; shades are shares of the row, numbers are counts."""
    from matplotlib.figure import Figure

    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    side = min(3 + 0.4 * len(names), 14)
    figure = Figure(figsize=(side, side), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    if len(names) <= NUMBERED:
        for row, column in counts.nonzero().tolist():
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, int(counts[row, column]), ha="center", va="center", color=colour, fontsize=9)
    ticks = range(len(names))
    long = max(map(len, names)) > 2
    axes.set_xticks(ticks, names, rotation=90 if long else 0)
    axes.set_yticks(ticks, names)
    axes.set(xlabel="predicted", ylabel="true")
    accuracy = counts.diagonal().sum() / counts.sum()
    axes.set_title(f"{int(counts.sum()):,} test examples, {float(accuracy):.1%} right")
    figure.savefig(path)


def draw_mistakes(path, test, targets, probabilities, names):
    """The wrongly classified images, the surest mistakes first.

    Args:
        test: the :class:`pydl.data.Batches` of the test split.
        probabilities: (N, classes).

    Returns:
        Whether there was a mistake to draw.
    """
    from matplotlib.figure import Figure

    sure, predicted = probabilities.max(1)
    wrong = (predicted != targets).nonzero().flatten()
    if len(wrong) == 0:
        return False
    wrong = wrong[sure[wrong].argsort(descending=True)][:PAGE]
    columns = min(6, len(wrong))
    rows = -(-len(wrong) // columns)
    figure = Figure(figsize=(1.7 * max(columns, 2), 2.1 * rows), dpi=110, layout="constrained")
    pictures = test.preprocessing.undo(test[wrong.to(test.device)][0].cpu())
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, index, image in zip(grid, wrong.tolist(), pictures, strict=False):
        image = image.clamp(0, 1).permute(1, 2, 0).numpy()
        axes.imshow(image if image.shape[2] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
        axes.set_title(f"{names[targets[index]]} as {names[predicted[index]]}\n{float(sure[index]):.0%}", fontsize=9)
    for axes in figure.axes:
        axes.axis("off")
    figure.savefig(path)
    return True
