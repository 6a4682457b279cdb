"""Linear cross entropy: one block of rows from its logits to the three gradients."""

from shared.card import BLUE, GREEN, GREY, ORANGE, VIOLET, arrow, box, card, draw, write


def make():
    """A block's buffer changes its meaning in place; the tensors around it stay in memory."""
    figure, axes = card(5.5)
    write(axes, 3, 5, "a block of rows at a time", ha="left", weight="bold")
    for i in range(4):
        box(axes, 4, 11 + i * 9, 20, 8, BLUE, "x" if i == 1 else "", fill=i == 1)
    box(axes, 34, 11, 34, 17, GREEN, "W\nclasses × features", size=10.3)
    arrow(axes, (24, 24), (37, 45), bend=0.1)
    arrow(axes, (51, 28), (51, 45))
    write(axes, 72, 24, "1  logits\n    = x Wᵀ + b", ha="left")
    box(axes, 34, 46, 62, 20, VIOLET, "12 MB in the last cache\nlogits → their gradient,\nin the same place")
    write(axes, 4, 56, "2  cross\n    entropy", ha="left")
    write(axes, 4, 75, "3", ha="left")
    box(axes, 4, 80, 28, 16, ORANGE, "grad x\n= grad · W")
    box(axes, 36, 80, 28, 16, ORANGE, "grad W\n+= gradᵀ x")
    box(axes, 68, 80, 28, 16, ORANGE, "grad b\n+= sums")
    for x in (40, 52, 80):
        arrow(axes, (x, 66), (x - 18 if x == 40 else x, 79))
    write(
        axes,
        4,
        105,
        "next block: the same buffer. All logits at once\nwould be, for 2048 rows of 10,000 classes:",
        ha="left",
        va="top",
    )
    box(axes, 4, 120, 78, 6.5, GREY)
    write(axes, 84, 123.4, "82 MB", ha="left")
    box(axes, 4, 129, 11.5, 6.5, VIOLET)
    write(axes, 18, 132.4, "12 MB", ha="left")
    return figure


if __name__ == "__main__":
    draw(make)
