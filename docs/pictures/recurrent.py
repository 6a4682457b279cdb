"""A recurrent layer unrolled: steps, threads, and the gradient's way back."""

from shared.card import BLUE, GREEN, ORANGE, RED, VIOLET, arrow, box, card, draw, write


def make():
    """Forward to the right, gradients to the left; sequences shared among threads."""
    figure, axes = card(5.9)
    write(axes, 3, 5, "unrolled over time", ha="left", weight="bold")
    for t in range(3):
        x = 16 + t * 28
        box(axes, x, 12, 14, 8, ORANGE, f"h{t + 1}")
        box(axes, x, 28, 14, 11, VIOLET, "cell")
        box(axes, x, 47, 14, 8, BLUE, f"x{t + 1}")
        arrow(axes, (x + 5, 47), (x + 5, 39))
        arrow(axes, (x + 5, 28), (x + 5, 20))
        arrow(axes, (x + 10, 20), (x + 10, 28), color=RED)
        arrow(axes, (x + 10, 39), (x + 10, 47), color=RED)
        arrow(axes, (x - 14, 31.5), (x, 31.5))
        arrow(axes, (x, 36.5), (x - 14, 36.5), color=RED)
    write(axes, 50, 61, "gradients go back through every step", color=RED)

    y = 72
    write(axes, 3, y, "sequences are shared among threads", ha="left", weight="bold")
    for i, color in enumerate((GREEN, BLUE)):
        write(axes, 4, y + 11 + i * 14, f"thread {i}", ha="left")
        for t in range(4):
            box(axes, 28 + t * 17, y + 5.5 + i * 14, 16, 11, color, f"step {t + 1}")
    write(axes, 4, y + 37, "each takes its own sequences through all\nsteps; nobody waits inside the loop", ha="left")

    y = 121
    write(axes, 3, y, "a tile: all gates of 16 units, some sequences", ha="left", weight="bold")
    for j, name in enumerate(("i", "f", "g", "o")):
        box(axes, 4 + j * 14, y + 6, 13, 14, VIOLET, name)
    arrow(axes, (61, y + 13), (68, y + 13))
    write(axes, 70, y + 13, "c', h' where\nthe sums are", ha="left")
    return figure


if __name__ == "__main__":
    draw(make)
