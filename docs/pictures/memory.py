"""What page faults cost: torch's time over ours, as it comes and with page faults taken out of torch's."""

from shared.card import BLUE, GREY, ORANGE, WIDTH, draw, plt
from shared.results import MACHINE, record, results

CASES = [  # op, case, name
    ("elementwise", "relu 32768×256 f32", "ReLU, 8 M"),
    ("elementwise", "gelu 32768×256 f32", "GELU, 8 M"),
    ("layer_norm", "32768×256 f32", "layer norm, 8 M"),
    ("softmax", "8×8×512×512 f32", "softmax, 17 M"),
    ("embedding", "50257×768, 2048 places f32", "embedding,\n39 M"),
    ("linear", "32768 × 128 × 256, forward f32", "linear, 8 M out"),
    ("linear", "512 × 512 × 512, forward f32", "linear 512³"),
]


def make():
    """Two bars a case."""
    kept = results()
    figure, axes = plt.subplots(figsize=(WIDTH, 4.7))
    figure.subplots_adjust(left=0.345, right=0.965, top=0.84, bottom=0.105)
    for i, (op, case, _) in enumerate(reversed(CASES)):
        found = record(kept, op, case)
        axes.barh(i + 0.2, found["ratio"], height=0.38, color=ORANGE, label="as it comes" if i == 0 else None)
        axes.barh(i - 0.2, found["no_page_faults"]["ratio"], height=0.38, color=BLUE,
                  label="without page faults" if i == 0 else None)  # fmt: skip
    axes.axvline(1, color=GREY, linewidth=1)
    axes.set_yticks(range(len(CASES)), [name for *_, name in reversed(CASES)])
    axes.set(xlabel="torch's best time over ours", xlim=(0, 10.5), xticks=range(0, 11, 2))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="upper center", ncols=2, frameon=False, handlelength=1, columnspacing=1)
    figure.text(0.5, 0.895, MACHINE, ha="center", fontsize=10.5, color=GREY)
    return figure


if __name__ == "__main__":
    draw(make)
