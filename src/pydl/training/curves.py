"""``curves.png``: the loss, and beside it what else the rows of a run tell, over the epochs."""

import importlib.util
import math
from dataclasses import dataclass

# Colour tells the split; in a comparison the dash tells torch.
TRAIN, TEST, THIRD = "#4c72b0", "#dd8452", "#55a868"


@dataclass(frozen=True)
class Panel:
    """Axes beside the loss: ``lines`` of (key, label, colour), ``level`` a height of its own, with its name."""

    ylabel: str
    lines: tuple
    share: bool = False  # between 0 and 1
    log: bool = False
    level: tuple | None = None


@dataclass(frozen=True)
class Kind:
    """What is drawn of rows that have ``key``; ``beside_loss`` are more lines of the first axes."""

    key: str
    panels: tuple
    loss: str = "cross entropy"
    beside_loss: tuple = ()


def _shares(ylabel, *lines):
    return (Panel(ylabel, lines, share=True),)


# The first whose key is there: some have perplexities too.
KINDS = (
    Kind(
        "exact_match",
        _shares("test sentences", ("exact_match", "exact match", TRAIN), ("bleu", "BLEU / 100", TEST)),
    ),
    Kind("pairs_found", _shares("listed pairs of words", ("pairs_found", "found among ten neighbours", TEST))),
    Kind(
        "masked_right",
        (
            Panel(
                "cross entropy of what follows",
                (("pair_loss", "test", TEST),),
                level=(math.log(2), "chance"),
            ),
            *_shares(
                "share that is right, test",
                ("masked_right", "masked words", TRAIN),
                ("pairs_right", "what follows or not", TEST),
            ),
        ),
        beside_loss=(("masked_loss", "test, masked words alone", THIRD),),
    ),
    Kind(
        "senses_told",
        _shares(
            "meanings of pseudo-words, test",
            ("senses_told", "told apart", TEST),
            ("static_told", "by static vectors", TRAIN),
        ),
    ),
    Kind(
        "map50",
        _shares(
            "mean average precision, test", ("map50", "at an overlap of 0.5", TEST), ("map", "at 0.5 to 0.95", TRAIN)
        ),
        loss="loss",
    ),
    Kind(
        "mean_iou",
        _shares("pixels, test", ("pixel_accuracy", "right", TRAIN), ("mean_iou", "mean IoU of the classes", TEST)),
    ),
    Kind(
        "generator_loss",
        (Panel("cross entropy of the generator", (("generator_loss", "generator, train", TRAIN),)),),
        loss="cross entropy of the discriminator",
    ),
    Kind(
        "style_loss",
        (
            Panel(
                "its parts, unweighted",
                (("content_loss", "content", TRAIN), ("style_loss", "style", TEST)),
                log=True,
            ),
        ),
        loss="loss",
    ),
    Kind(
        "test_perplexity",
        (Panel("perplexity", (("perplexity", "train", TRAIN), ("test_perplexity", "test", TEST)), log=True),),
    ),
    Kind("test_accuracy", _shares("accuracy", ("train_accuracy", "train", TRAIN), ("test_accuracy", "test", TEST))),
)
REGRESSION = Kind("", (), loss="mean squared error")
NOTHING_YET = Kind("", (Panel("", ()),))


def available():
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def kind_of(history):
    """The :class:`Kind` of a run with these rows."""
    if not history:
        return NOTHING_YET
    return next((kind for kind in KINDS if kind.key in history[-1]), REGRESSION)


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
    kind = kind_of(history)
    count = 1 + len(kind.panels)
    figure.set_size_inches(5 if count == 1 else 4.5 * count, 3.6)
    all_axes = figure.subplots(1, count, squeeze=False)[0]
    left = all_axes[0]
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(history) < 3 else None  # one point is no line

    def draw(axes, lines):
        for key, label, colour in lines if history else ():
            scale = 0.01 if key == "bleu" else 1
            axes.plot(epochs, [scale * row[key] for row in history], color=colour, label=label, marker=marker)
            if compare:
                values = [scale * row[f"torch_{key}"] for row in history]
                axes.plot(epochs, values, color=colour, label=f"{label}, torch", linestyle=(0, (4, 3)), alpha=0.6)

    left.plot(*running, color=TRAIN, alpha=0.35, linewidth=0.8)
    draw(left, (("loss", "train", TRAIN), ("test_loss", "test", TEST), *kind.beside_loss))
    for axes, panel in zip(all_axes[1:], kind.panels, strict=True):
        axes.set(ylabel=panel.ylabel)
        if panel.share:
            axes.set(ylim=(0, 1.05))
        if panel.log:
            axes.set(yscale="log")
        if panel.level:
            axes.axhline(panel.level[0], color="gray", linewidth=0.8, linestyle=":", label=panel.level[1])
        draw(axes, panel.lines)
    left.set(ylabel=kind.loss)
    if kind is REGRESSION or log:
        left.set(yscale="log")
    else:
        # from 0, with room above the first point; a loss that became inf or nan has no place on the axis
        highest = max((v for axis in left.lines for v in axis.get_ydata() if math.isfinite(v)), default=1.0)
        left.set(ylim=(0, 1.1 * highest or 1.0))
    for axes in all_axes:
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
