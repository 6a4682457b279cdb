"""How far the ops are from what the machine can do: products by their arithmetic, the others by their bytes."""

from shared.card import BLUE, GREEN, GREY, INK, ORANGE, RED, VIOLET, WIDTH, draw, plt
from shared.results import MACHINE, results

FAMILIES = {  # op -> colour, name
    "linear": (BLUE, "linear"),
    "conv2d": (ORANGE, "conv2d"),
    "attention": (GREEN, "attention"),
    "linear_cross_entropy": (VIOLET, "linear +\ncross entropy"),
}
STREAMS = [  # op, case, name: tensors beyond the caches
    ("layer_norm", "32768×256 f32", "layer norm"),
    ("layer_norm", "RMS norm 32768×256 f32", "RMS norm"),
    ("softmax", "8×8×512×512 f32", "softmax"),
    ("elementwise", "gelu 32768×256 f32", "GELU"),
    ("elementwise", "relu 32768×256 f32", "ReLU"),
]


def points(kept, op):
    """(flops for each byte, share of the multiply-add limit) of an op's float32 cases."""
    fma = kept[op]["ceilings"]["fma"]
    return [
        (r["gflops"] / r["gbps"], r["gflops"] / fma)
        for r in kept[op]["records"]
        if "f32" in r["case"] and r.get("gflops", 0) > 1 and "bias" not in r["case"]
    ]


def make():
    """The roofline of the committed results."""
    kept = results()
    figure, (top, low) = plt.subplots(2, 1, figsize=(WIDTH, 5.9), height_ratios=(2.1, 1))
    figure.subplots_adjust(left=0.235, right=0.965, top=0.925, bottom=0.085, hspace=0.62)
    for op, (color, name) in FAMILIES.items():
        x, y = zip(*points(kept, op), strict=True)
        many = len(x) > 100
        top.scatter(
            x, y, s=5 if many else 15, color=color, alpha=0.35 if many else 0.9, label=name, linewidths=0,
            zorder=1 if many else 2,
        )  # fmt: skip
    ceilings = kept["conv2d"]["ceilings"]
    knee = ceilings["fma"] / ceilings["copy"]
    top.plot([0.5, knee, 2000], [0.5 / knee, 1, 1], color=INK, linewidth=1.3)
    top.set(xscale="log", yscale="log", xlim=(0.9, 1500), ylim=(0.02, 7))
    top.set_yticks([0.03, 0.1, 0.3, 1, 3], ["3 %", "10 %", "30 %", "100 %", "300 %"])
    top.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
    top.minorticks_off()
    top.set(xlabel="flops for each byte", title="share of the multiply-adds\n" + MACHINE)
    legend = top.legend(loc="lower right", frameon=False, handletextpad=0.1, borderpad=0, labelspacing=0.3)
    for handle in legend.legend_handles:
        handle.set(alpha=1, sizes=[20])
    top.text(1.05, 0.2, "memory", rotation=41, rotation_mode="anchor", fontsize=10.5)
    top.text(60, 4, "Winograd", ha="center", fontsize=10.5)
    names, shares = [], []
    for op, case, name in reversed(STREAMS):
        found = next(r for r in kept[op]["records"] if r["case"] == case)
        names.append(name)
        shares.append(100 * (found.get("no_page_faults") or found)["share"])
    low.barh(names, shares, color=RED, alpha=0.75, height=0.62)
    for i, value in enumerate(shares):
        low.text(value - 2, i, f"{value:.0f} %", ha="right", va="center", color="white", fontsize=10.5)
    low.set(xlim=(0, 105), title="share of what memory delivers")
    low.set_xticks([0, 50, 100], ["0", "50 %", "100 %"])
    for axes in (top, low):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=GREY, alpha=0.2)
    return figure


if __name__ == "__main__":
    draw(make)
