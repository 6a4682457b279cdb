"""Implicit matrix products of a convolution: windows copied into panels, and windows read where they lie."""

from shared.card import BLUE, GREEN, GREY, LIGHT, ORANGE, PALE, VIOLET, arrow, box, card, draw, grid, write


def make():
    """A 3×3 convolution of stride 2 over a row of windows."""
    figure, axes = card(5.6)
    cell = 5.2
    write(axes, 3, 5, "an image, 3×3 windows, stride 2", ha="left", weight="bold")
    grid(axes, 4, 10, 3, 9, cell)
    for i, color in enumerate((BLUE, ORANGE, GREEN)):
        box(axes, 4 + 2 * i * cell + 0.5 * i, 10 + 0.7 * i, 3 * cell - 0.9, 3 * cell - 1.4, color, fill=False)
    write(axes, 55, 18, "a column between two\nwindows is in both", ha="left", color=GREY)

    write(axes, 3, 36, "panels: every window is copied", ha="left", weight="bold")
    for i, color in enumerate((BLUE, ORANGE, GREEN)):
        grid(axes, 4, 41 + i * 6, 1, 9, cell, fill=lambda *_, c=color: LIGHT[c])
    write(axes, 55, 49.5, "2.25 numbers written\nfor each that is read", ha="left", color=GREY)

    write(axes, 3, 69, "slabs: channels side by side, copied once", ha="left", weight="bold")
    grid(axes, 4, 74, 3, 9, cell, fill=lambda *_: PALE)
    for i, color in enumerate((BLUE, ORANGE, GREEN)):
        x = 4 + (2 * i + 0.5) * cell
        axes.plot([x], [74 + cell / 2], marker="o", color=color, markersize=6)
        write(axes, x, 94, str(i), color=color)
    write(axes, 55, 82, "window i begins\nat base + i · pitch", ha="left", color=GREY)

    write(axes, 3, 105, "either way one matrix product", ha="left", weight="bold")
    box(axes, 4, 110, 26, 22, VIOLET, "windows\npixels ×\n(tap, channel)")
    write(axes, 35.5, 121, "×")
    box(axes, 41, 110, 26, 22, GREEN, "weights\n(tap, channel)\n× outputs", size=10.3)
    arrow(axes, (68.5, 121), (74, 121))
    box(axes, 75, 110, 22, 22, ORANGE, "pixels ×\noutputs")
    return figure


if __name__ == "__main__":
    draw(make)
