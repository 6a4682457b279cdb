"""Softmax cross entropy: when memory is read and when it is written, row after row and woven together."""

from shared.card import BLUE, GREEN, GREY, arrow, box, card, draw, write

READ, WRITE = BLUE, GREEN


def make():
    """Two ways to make the gradient in the forward."""
    figure, axes = card(3.3)
    write(axes, 3, 5.5, "one row after another", ha="left")
    for i in range(3):
        x = 4 + i * 30
        box(axes, x, 10, 14, 9, READ, f"sum {i}")
        box(axes, x + 15, 10, 14, 9, WRITE, f"grad {i}")
    write(axes, 3, 27.5, "row i's gradient woven into row i+1's sum", ha="left")
    for i in range(3):
        x = 4 + i * 18
        box(axes, x, 32, 17, 9, READ, f"sum {i}")
        if i:
            box(axes, x, 42, 17, 9, WRITE, f"grad {i - 1}")
    box(axes, 58, 42, 17, 9, WRITE, "grad 2")
    arrow(axes, (4, 57), (96, 57))
    write(axes, 96, 61.5, "time", ha="right", color=GREY)
    box(axes, 4, 66, 6, 6, READ)
    write(axes, 12, 69, "reads logits", ha="left")
    box(axes, 4, 74, 6, 6, WRITE)
    write(axes, 12, 77, "writes the gradient past the caches", ha="left")
    return figure


if __name__ == "__main__":
    draw(make)
