"""Batch norm's two passes: what moves through memory for planes and for channels that lie side by side."""

from shared.card import BLUE, GREEN, GREY, LIGHT, ORANGE, arrow, box, card, draw, grid, write


def make():
    """A channel of NCHW fits the second cache, one of channels_last is spread over all lines."""
    figure, axes = card(5.7)
    cell = 4.6
    write(axes, 3, 5, "NCHW: a channel is whole runs", ha="left", weight="bold")
    grid(axes, 4, 9, 3, 8, cell, fill=lambda i, _: LIGHT[BLUE] if i == 1 else None)
    write(axes, 45, 16, "one channel, one task,\none core's cache", ha="left", color=GREY)
    y = 29
    box(axes, 4, y, 22, 12, GREY, "memory")
    box(axes, 38, y, 24, 12, BLUE, "L2")
    box(axes, 75, y, 22, 12, GREY, "memory")
    arrow(axes, (26, y + 6), (38, y + 6), color=BLUE)
    arrow(axes, (62, y + 6), (75, y + 6), color=GREEN)
    write(axes, 4, y + 18, "1  sums: x read", ha="left", color=BLUE)
    write(axes, 4, y + 24.5, "2  x again from L2, y written", ha="left", color=GREEN)
    write(axes, 97, y + 18, "2 streams", ha="right", weight="bold")

    write(axes, 3, 66, "channels_last: a channel is a column", ha="left", weight="bold")
    grid(axes, 4, 70, 5, 8, cell, fill=lambda _, j: LIGHT[ORANGE] if j == 1 else None)
    write(
        axes,
        45,
        76,
        "sums run down columns,\na vector of channels wide;\nthe end is known when all\nhas been read",
        ha="left",
        va="top",
        color=GREY,
    )
    y = 99
    box(axes, 4, y, 22, 12, GREY, "memory")
    box(axes, 38, y, 24, 12, ORANGE, "registers")
    box(axes, 75, y, 22, 12, GREY, "memory")
    arrow(axes, (26, y + 3.5), (38, y + 3.5), color=BLUE)
    arrow(axes, (26, y + 8.5), (38, y + 8.5), color=GREEN)
    arrow(axes, (62, y + 8.5), (75, y + 8.5), color=GREEN)
    write(axes, 4, y + 18, "1  sums: x read, upwards", ha="left", color=BLUE)
    write(axes, 4, y + 24.5, "2  x once more, downwards, y written", ha="left", color=GREEN)
    write(axes, 4, y + 33.5, "3 streams, less what L3 still holds:\nthe last rows are read first", ha="left")
    return figure


if __name__ == "__main__":
    draw(make)
