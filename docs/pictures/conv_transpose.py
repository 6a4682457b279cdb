"""A transposed convolution: each input pixel spreads a kernel; with large strides, disjoint cells."""

from shared.card import BLUE, GREEN, GREY, LIGHT, ORANGE, arrow, box, card, draw, grid, write


def make():
    """A scatter above; the same as products of cells below."""
    figure, axes = card(5.0)
    write(axes, 3, 5, "every input pixel spreads a kernel", ha="left", weight="bold")
    grid(axes, 4, 17, 2, 2, 8, fill=lambda i, j: LIGHT[(BLUE, ORANGE)[j]] if i == 0 else None)
    arrow(axes, (22, 25), (31, 25))
    grid(axes, 33, 11, 6, 6, 4.7)
    for j, color in enumerate((BLUE, ORANGE)):
        box(axes, 33 + j * 2 * 4.7, 11, 4 * 4.7, 4 * 4.7, color, fill=False)
    write(axes, 65, 24, "4×4, stride 2:\nthey overlap,\nsums collide", ha="left", color=GREY)

    write(axes, 3, 51, "cells of stride × stride outputs", ha="left", weight="bold")
    grid(axes, 4, 63, 2, 2, 8, fill=lambda *_: LIGHT[GREEN])
    arrow(axes, (22, 71), (31, 71))
    cell = 9.4
    grid(axes, 33, 57, 3, 3, cell, fill=lambda i, j: "#f9dfc2" if (i, j) == (1, 1) else None)
    write(axes, 65, 71, "a cell sees 2×2\ninputs: all its\npixels at once", ha="left", color=GREY)
    box(axes, 4, 93, 27, 20, GREEN, "inputs of a\ncell: 4 × C")
    write(axes, 35.5, 103, "×")
    box(axes, 40, 93, 25, 20, BLUE, "weights")
    arrow(axes, (66.5, 103), (73, 103))
    box(axes, 74, 93, 23, 20, ORANGE, "the cell's\npixels")
    write(axes, 4, 119.5, "each output is written once, with its bias", ha="left")
    return figure


if __name__ == "__main__":
    draw(make)
