"""``monitor.png``: how large each layer's activations and gradients are over the steps that were watched.

The book's vanishing gradients are lines that lie decades below the others, exploding ones lines that rise by decades.
"""

import math

PANELS = (("activation", "outputs"), ("gradient", "gradients of the loss by the outputs"))
PANELS += (("weight_gradient", "gradients of the weights"),)


def draw(path, steps, title):
    """Draws the lines of ``monitor.jsonl`` (``{"step": …, "layers": [row, …]}``) to ``path``.

    Colours go from the input (dark) to the output (light); layers without the quantity are left out of its panel.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = {row["name"]: f"{row['name']} {row['kind']}" for line in steps for row in line["layers"]}
    colours = colormaps["viridis"]
    figure = Figure(figsize=(13, 4.2), dpi=120, layout="constrained")
    for axes, (key, label) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for place, (name, words) in enumerate(names.items()):
            points = [
                (line["step"], row[key])
                for line in steps
                for row in line["layers"]
                # 0, inf and nan have no place on a logarithmic axis
                if row["name"] == name and row.get(key) and math.isfinite(row[key])
            ]
            if points:
                colour = colours(0.95 * place / max(1, len(names) - 1))
                axes.plot(*zip(*points, strict=True), color=colour, label=words, marker=".", linewidth=1)
        axes.set(title=f"{label}, root mean square", xlabel="step", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    if lines:
        legend = {words: lines[words] for words in names.values() if words in lines}
        columns = -(-len(legend) // 24)  # a deep network's names beside each other
        figure.legend(
            legend.values(), legend.keys(), loc="outside right center", frameon=False, fontsize=7, ncols=columns
        )
    figure.suptitle(title)
    figure.savefig(path)
