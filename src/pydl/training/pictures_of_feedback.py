"""Pictures of learning from preferences: the scores of pairs, and the curves of a policy."""

from pydl.training.curves import TEST, TRAIN

# panels of a policy's curves: (title, lines of (key of metrics.jsonl, label, colour))
PANELS = (
    ("reward, standard deviations of stage one", (("train_reward", "train", TRAIN), ("reward", "held out", TEST))),
    ("KL from stage one, nats a response", (("train_kl", "train, estimated", TRAIN), ("kl", "held out, exact", TEST))),
    ("entropy, nats a token", (("train_entropy", "train", TRAIN), ("entropy", "held out", TEST))),
    ("share of tokens that are clipped", (("clip_share", "train", TRAIN),)),
    ("tokens of a response", (("train_length", "train", TRAIN), ("length", "held out", TEST))),
    (
        "what the reward does not see",
        (("known", "words that the text knows", TRAIN), ("distinct_words", "words that differ in a response", TEST)),
    ),
)
WORDS = "letters of a word, held out", (("letters_per_word", "letters of a word", TEST),)
PANELS_OF_PAIRS = (("loss", (("loss", "train", TRAIN), ("test_loss", "held out", TEST))), *PANELS[:3], *PANELS[4:])


def fill_policy(figure, history, title, compare=False):
    """Draws the rows, at least one, of a policy's run into a figure; ``compare`` adds torch's as dashed lines."""
    from matplotlib.ticker import MaxNLocator

    figure.clear()
    figure.set_size_inches(12, 6.4)
    panels = PANELS if "clip_share" in history[-1] else PANELS_OF_PAIRS
    if len({row["length"] for row in history}) == 1:  # nothing ends a response before its last token
        panels = [WORDS if lines[-1][0] == "length" else (name, lines) for name, lines in panels]
    steps = [row["step"] for row in history]
    marker = "o" if len(history) < 3 else None
    for axes, (name, lines) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        for key, label, colour in lines:
            if key not in history[-1]:
                continue
            axes.plot(steps, [row[key] for row in history], color=colour, label=label, marker=marker)
            if compare:
                values = [row[f"torch_{key}"] for row in history]
                axes.plot(steps, values, color=colour, label=f"{label}, torch", linestyle=(0, (4, 3)), alpha=0.6)
        low, high = axes.get_ylim()
        axes.set(xlabel="step", title=name, ylim=(min(0.0, low), max(1.05 * high, 0.01)))
        axes.title.set_fontsize(10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    figure.suptitle(title)


def draw_scores(path, scores, title):
    """Draws the scores (N, 2) of held-out pairs to ``path``: both texts' each, and their differences."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    bins = 30
    span = scores.min().item(), scores.max().item()
    for column, label, colour in ((0, "better text", TRAIN), (1, "worse text", TEST)):
        left.hist(scores[:, column].numpy(), bins, range=span, color=colour, label=label, alpha=0.6)
    left.set(xlabel="score", ylabel="held-out pairs")
    left.legend(frameon=False)
    difference = scores[:, 0] - scores[:, 1]
    right.hist(difference.numpy(), bins, color=TRAIN)
    right.axvline(0, color="black", linewidth=1)
    right.set(xlabel="score of the better less that of the worse", ylabel="held-out pairs")
    right.set_title(f"in their order: {(difference > 0).double().mean().item():.3f}", fontsize=10)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(path)
