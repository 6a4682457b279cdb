"""Dropout: from a seed and an element's number to whether it is kept."""

from shared.card import BLUE, GREEN, GREY, ORANGE, PALE, VIOLET, arrow, box, card, draw, grid, write


def make():
    """A counter and a key, ten rounds, four words, four decisions."""
    figure, axes = card(5.2)
    box(axes, 4, 4, 42, 16, BLUE, "counter\nblock = i // 4, 0, 0")
    box(axes, 54, 4, 42, 16, ORANGE, "key\nseed low, seed high")
    arrow(axes, (25, 20), (25, 27))
    arrow(axes, (75, 20), (75, 27))
    box(axes, 4, 27, 92, 38, GREY, fill=False)
    write(axes, 7, 31.5, "a round, ten times", ha="left")
    for j, name in enumerate(("c0", "c1", "c2", "c3")):
        box(axes, 9 + j * 21.5, 36, 17, 7, BLUE, name)
    arrow(axes, (17.5, 43), (71, 55), color=VIOLET)
    arrow(axes, (60.5, 43), (28, 55), color=VIOLET)
    write(axes, 88, 49.5, "× M", color=VIOLET)
    for j, name in enumerate(("high⊕c1⊕k0", "low", "high⊕c3⊕k1", "low")):
        wide = j % 2 == 0
        box(axes, (7, 38, 53, 83.5)[j], 55, 29 if wide else 10.5, 7.5, BLUE, name, size=10.3)
    arrow(axes, (50, 65), (50, 71))
    write(axes, 53, 68.7, "four random words", ha="left", color=GREY)
    for j in range(4):
        box(axes, 4 + j * 23.3, 72, 22, 8, VIOLET, f"word {j}")
        arrow(axes, (15 + j * 23.3, 80), (15 + j * 23.3, 88))
    write(axes, 50, 91.8, "word ≥ round(p · 2³²) ?")
    kept = (True, False, True, True)
    for j in range(4):
        arrow(axes, (15 + j * 23.3, 95), (15 + j * 23.3, 101))
        box(axes, 4 + j * 23.3, 101, 22, 8, GREEN if kept[j] else GREY, "keep" if kept[j] else "drop", fill=kept[j])
    write(axes, 3, 115.5, "elements", ha="left")
    grid(axes, 27, 112, 1, 16, 4.3, fill=lambda _, j: PALE if j // 4 != 2 else ("#cdead8" if kept[j % 4] else "white"))
    write(axes, 27 + 10 * 4.3, 121.5, "i // 4 = 2", color=GREY)
    return figure


if __name__ == "__main__":
    draw(make)
