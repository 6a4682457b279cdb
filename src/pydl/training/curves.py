"""``curves.png``: the loss and both accuracies, or perplexities, or the scores of a translator, over the epochs."""

import importlib.util
import math

# Colour tells the split; in a comparison the dash tells torch.
TRAIN, TEST = "#4c72b0", "#dd8452"


def available():
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def fill(figure, history, title, compare=False, log=False, running=((), ())):
    """Draws the rows of ``metrics.jsonl`` into a figure, in the place of what it holds.

    Args:
        history: rows; of a run's first epoch none yet.
        compare: torch's rows as dashed lines, too.
        log: the loss on a logarithmic axis.
        running: (epochs, in fractions; losses) of single steps, drawn behind.
    """
    from matplotlib.ticker import FixedLocator, MaxNLocator

    figure.clear()
    last = history[-1] if history else {}
    translation, vectors, masked = "exact_match" in last, "pairs_found" in last, "masked_right" in last
    senses = "senses_told" in last
    language = not translation and not senses and "test_perplexity" in last
    boxes, overlays = "map50" in last, "mean_iou" in last
    gan, style = "generator_loss" in last, "style_loss" in last
    others = language, translation, vectors, masked, senses, boxes, overlays, gan, style
    regression = bool(history) and not any(others) and "test_accuracy" not in last
    figure.set_size_inches(5 if regression else 9, 3.6)
    panels = figure.subplots(1, 1 if regression else 2, squeeze=False)[0]
    left = panels[0]
    epochs = [row["epoch"] for row in history]
    lines = [(left, "loss", "train", TRAIN), (left, "test_loss", "test", TEST)]
    if language:
        right = panels[1]
        right.set(ylabel="perplexity", yscale="log")
        lines += [(right, "perplexity", "train", TRAIN), (right, "test_perplexity", "test", TEST)]
    elif translation:
        right = panels[1]
        right.set(ylabel="test sentences", ylim=(0, 1.05))
        lines += [(right, "exact_match", "exact match", TRAIN), (right, "bleu", "BLEU / 100", TEST)]
    elif vectors:
        right = panels[1]
        right.set(ylabel="listed pairs of words", ylim=(0, 1.05))
        lines += [(right, "pairs_found", "found among ten neighbours", TEST)]
    elif masked:
        right = panels[1]
        right.set(ylabel="share that is right, test", ylim=(0, 1.05))
        lines += [(right, "masked_right", "masked words", TRAIN), (right, "pairs_right", "next sentence or not", TEST)]
    elif boxes:
        right = panels[1]
        right.set(ylabel="mean average precision, test", ylim=(0, 1.05))
        lines += [(right, "map50", "at an overlap of 0.5", TEST), (right, "map", "at 0.5 to 0.95", TRAIN)]
    elif overlays:
        right = panels[1]
        right.set(ylabel="pixels, test", ylim=(0, 1.05))
        lines += [(right, "pixel_accuracy", "right", TRAIN), (right, "mean_iou", "mean IoU of the classes", TEST)]
    elif gan:
        right = panels[1]
        right.set(ylabel="cross entropy of the generator")
        lines += [(right, "generator_loss", "generator, train", TRAIN)]
    elif style:
        right = panels[1]
        right.set(ylabel="its parts, unweighted", yscale="log")
        lines += [(right, "content_loss", "content", TRAIN), (right, "style_loss", "style", TEST)]
    elif senses:
        right = panels[1]
        right.set(ylabel="meanings of pseudo-words, test", ylim=(0, 1.05))
        lines += [(right, "senses_told", "told apart", TEST), (right, "static_told", "by static vectors", TRAIN)]
    elif history and not regression:
        right = panels[1]
        right.set(ylabel="accuracy", ylim=(0, 1.05))
        lines += [(right, "train_accuracy", "train", TRAIN), (right, "test_accuracy", "test", TEST)]
    marker = "o" if len(history) < 3 else None  # one point is no line
    left.plot(*running, color=TRAIN, alpha=0.35, linewidth=0.8)
    for axes, key, label, colour in lines if history else ():
        scale = 0.01 if key == "bleu" else 1
        axes.plot(epochs, [scale * row[key] for row in history], color=colour, label=label, marker=marker)
        if compare:
            values = [scale * row[f"torch_{key}"] for row in history]
            axes.plot(epochs, values, color=colour, label=f"{label}, torch", linestyle=(0, (4, 3)), alpha=0.6)
    if regression:
        left.set(ylabel="mean squared error")
    else:
        # from 0, with room above the first point; a loss that became inf or nan has no place on the axis
        highest = max((v for axis in left.lines for v in axis.get_ydata() if math.isfinite(v)), default=1.0)
        what = "loss" if style or boxes else "cross entropy of the discriminator" if gan else "cross entropy"
        left.set(ylabel=what, ylim=(0, 1.1 * highest or 1.0))
    if regression or log:
        left.set(ylim=(None, None), yscale="log")
    for axes in panels:
        axes.set(xlabel="epoch")
        # the axis around one value would be cut into hundredths of an epoch
        if len(set(epochs)) == 1 and not running[0]:
            axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
            axes.xaxis.set_major_locator(FixedLocator(epochs[:1]))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False)
    figure.suptitle(title)
