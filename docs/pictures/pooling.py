"""Maximum pooling of 3×3, stride 2: rows pooled once forward, gradients gathered backward."""

from shared.card import BLUE, GREEN, GREY, LIGHT, ORANGE, arrow, box, card, draw, grid, write


def make():
    """A ring of pooled rows above, one pixel and the windows that cover it below."""
    figure, axes = card(5.3)
    write(axes, 3, 5, "forward: each row along itself, once", ha="left", weight="bold")
    cell = 5.4
    grid(axes, 4, 10, 5, 7, cell, fill=lambda i, _: LIGHT[BLUE] if i == 2 else None)
    arrow(axes, (43, 23.5), (49, 23.5))
    grid(axes, 50, 10, 5, 3, cell, fill=lambda i, _: LIGHT[BLUE] if i == 2 else None)
    arrow(axes, (67.5, 18), (75, 20))
    arrow(axes, (67.5, 29), (75, 27))
    grid(axes, 76, 18.1, 2, 3, cell, fill=lambda *_: LIGHT[ORANGE])
    write(
        axes,
        4,
        42,
        "the blue row serves two rows of outputs,\nand is pooled along itself once",
        ha="left",
        va="top",
        color=GREY,
    )

    write(axes, 3, 62, "kept: the tap, a byte for each output", ha="left", weight="bold")
    grid(axes, 4, 67, 3, 3, cell)
    for k in range(9):
        write(axes, 4 + (k % 3 + 0.5) * cell, 67 + (k // 3 + 0.5) * cell, str(k), size=10.3)
    write(axes, 26, 75, "9 taps of a window; torch\nkeeps an int64 instead", ha="left", color=GREY)

    write(axes, 3, 95, "backward: each pixel gathers", ha="left", weight="bold")
    grid(axes, 4, 101, 5, 5, cell, fill=lambda i, j: LIGHT[GREEN] if (i, j) == (2, 2) else None)
    for i in range(2):
        for j in range(2):
            box(
                axes,
                4 + 2 * j * cell + 0.4,
                101 + 2 * i * cell + 0.4,
                3 * cell - 0.8,
                3 * cell - 0.8,
                ORANGE,
                fill=False,
            )
    write(
        axes,
        37,
        114.5,
        "four windows cover it; it adds\ngradients of those whose tap\nit is, in torch's order,\nand is written once",
        ha="left",
        color=GREY,
    )
    return figure


if __name__ == "__main__":
    draw(make)
