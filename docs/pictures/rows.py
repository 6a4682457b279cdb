"""Softmax and layer norm: rows in step, and how often a row is read."""

from shared.card import BLUE, GREEN, GREY, LIGHT, ORANGE, arrow, box, card, draw, grid, write


def make():
    """Four rows as four chains; then the loops over a row."""
    figure, axes = card(4.3)
    write(axes, 3, 5, "four rows in step", ha="left", weight="bold")
    for i in range(4):
        grid(axes, 4, 11 + i * 6.5, 1, 12, 4.6, fill=lambda _, j: LIGHT[BLUE] if 4 <= j < 6 else None)
    box(axes, 4 + 4 * 4.6, 9.5, 2 * 4.6, 27, BLUE, fill=False)
    write(axes, 63, 22, "a vector of each:\nfour sums that do\nnot wait for one\nanother", ha="left", color=GREY)
    write(axes, 3, 47, "layer norm: a row", ha="left", weight="bold")
    for i, (color, name, what) in enumerate(
        ((BLUE, "1  sums about a near value", "memory → L1"), (GREEN, "2  (x − μ) · scale · w + b", "L1 → memory"))
    ):
        box(axes, 4, 52 + i * 11, 58, 9.5, color, name)
        write(axes, 65, 56.8 + i * 11, what, ha="left", color=GREY)
    write(axes, 3, 81, "softmax: a row", ha="left", weight="bold")
    for i, (color, name) in enumerate(((BLUE, "1  max"), (GREEN, "2  exp, sum"), (ORANGE, "3  scale"))):
        box(axes, 4 + i * 31.5, 86, 29.5, 9.5, color, name)
        if i:
            arrow(axes, (2 + i * 31.5, 90.7), (4 + i * 31.5, 90.7))
    write(axes, 4, 102, "exponentials wait in the output", ha="left", color=GREY)
    return figure


if __name__ == "__main__":
    draw(make)
