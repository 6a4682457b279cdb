"""Where a translator looked while it wrote: weights as pictures, a row for each word that it wrote."""


def draw(path, sentences, title):
    """Draws (source words, written words, weights (heads, written, source)) of each sentence, a row of pictures each.

    Colours go from 0 (light) to 1 (dark).
    """
    from matplotlib.figure import Figure

    heads = max(len(weights) for _, _, weights in sentences)
    across = max(len(source) for source, _, _ in sentences)
    down = [max(len(written), 3) for _, written, _ in sentences]
    size = max(5.0, 0.28 * across * heads + 1.6 * heads), 0.24 * sum(down) + 1.4 * len(down) + 0.4
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    grid = figure.subplots(len(sentences), heads, squeeze=False, gridspec_kw={"height_ratios": down})
    for row, (source, written, weights) in zip(grid, sentences, strict=True):
        for head, axes in enumerate(row):
            image = axes.imshow(weights[head].numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axes.set_xticks(range(len(source)), source, rotation=90, fontsize=8)
            axes.set_yticks(range(len(written)), written, fontsize=8)
            if heads > 1:
                axes.set_title(f"head {head + 1}", fontsize=9)
    figure.colorbar(image, ax=grid.ravel().tolist(), shrink=0.6, label="weight")
    figure.suptitle(title)
    figure.savefig(path)
