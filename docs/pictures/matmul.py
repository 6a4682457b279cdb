"""A matrix product: how a task is cut, what is packed, and the block that stays in registers."""

from shared.card import BLUE, GREEN, GREY, LIGHT, ORANGE, VIOLET, arrow, box, card, draw, grid, write


def make():
    """From the output's tasks to the register block."""
    figure, axes = card(6.7)
    write(axes, 3, 5, "output = left × right, cut into tasks", ha="left", weight="bold")
    box(axes, 4, 17, 18, 28, BLUE, "left")
    write(axes, 26, 31, "×")
    box(axes, 30, 17, 32, 18, GREEN, "right")
    write(axes, 66.5, 31, "=")
    box(axes, 71, 17, 26, 28, ORANGE, fill=False)
    box(axes, 71, 17, 13, 14, ORANGE, "task")
    axes.plot([84, 84], [17, 45], color=ORANGE, linewidth=1)
    axes.plot([71, 97], [31, 31], color=ORANGE, linewidth=1)
    write(axes, 13, 12.5, "depth", color=GREY)
    write(axes, 46, 12.5, "columns", color=GREY)

    write(axes, 3, 55, "a panel of right: packed, stays in L1", ha="left", weight="bold")
    box(axes, 4, 60, 38, 32, GREEN, fill=False)
    for i in range(3):
        box(axes, 8 + i * 12, 60, 6, 32, GREEN)
    arrow(axes, (43, 76), (53, 76))
    box(axes, 54, 60, 9, 32, GREEN)
    for i in range(1, 8):
        axes.plot([54, 63], [60 + 4 * i] * 2, color=GREEN, linewidth=0.8)
    write(axes, 66, 68, "nr = 32 columns,", ha="left")
    write(axes, 66, 75, "a step of the depth", ha="left", size=10.3)
    write(axes, 66, 82, "after the other,", ha="left")
    write(axes, 66, 89, "kc ≤ 256 steps", ha="left")

    y = 101
    write(axes, 3, y, "the register block: 14 × 32 sums", ha="left", weight="bold")
    grid(axes, 4, y + 18, 7, 1, 5.2, color=BLUE, fill=lambda *_: LIGHT[BLUE])
    write(axes, 6.5, y + 60, "mr = 14\nbroadcasts", ha="left", va="center", size=10.3)
    for i in range(2):
        box(axes, 34 + i * 24, y + 7, 23, 6, GREEN, "16 lanes")
        for j in range(7):
            box(axes, 34 + i * 24, y + 18 + j * 5.2, 23, 5.2, VIOLET)
    arrow(axes, (11, y + 36), (32, y + 36))
    write(axes, 21.5, y + 41, "sum +=\na · b", color=GREY, size=10.3)
    write(axes, 58, y + 60, "28 sums, 2 vectors and a\nbroadcast in 32 registers", size=10.3)
    write(axes, 84, y + 27, "(every\nother\nrow\ndrawn)", ha="left", color=GREY, va="top", size=10.3)
    return figure


if __name__ == "__main__":
    draw(make)
