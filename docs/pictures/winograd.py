"""Winograd's tiles of 3×3 kernels: what is read, what comes out, how many products that takes."""

from shared.card import BLUE, GREEN, GREY, LIGHT, ORANGE, VIOLET, arrow, box, card, draw, grid, write


def tiles(axes, y, outputs, cell):
    """An image with two neighbouring tiles of outputs + 2 pixels, which overlap by two columns."""
    side, both = outputs + 2, 2 * outputs + 2

    def fill(_, j):
        if outputs <= j < outputs + 2:
            return "#e6d3c4"
        return LIGHT[BLUE] if j < side else LIGHT[ORANGE]

    grid(axes, 4, y, side, both, cell, fill=fill)
    for i, color in enumerate((BLUE, ORANGE)):
        box(axes, 4 + i * outputs * cell, y, side * cell, side * cell, color, fill=False)
    right = 4 + both * cell
    arrow(axes, (right + 2, y + side * cell / 2), (right + 11, y + side * cell / 2))
    for i, color in enumerate((BLUE, ORANGE)):
        x = right + 13 + i * outputs * cell
        grid(axes, x, y + cell, outputs, outputs, cell, fill=lambda *_, c=color: LIGHT[c])
        box(axes, x, y + cell, outputs * cell, outputs * cell, color, fill=False)


def make():
    """F(2×2, 3×3), F(4×4, 3×3), and the three steps."""
    figure, axes = card(6.0)
    write(axes, 3, 5, "F(2×2, 3×3)", ha="left", weight="bold")
    tiles(axes, 10, 2, 6.2)
    write(axes, 3, 40, "16 products for 4 outputs; direct 36", ha="left")
    write(axes, 3, 51, "F(4×4, 3×3)", ha="left", weight="bold")
    tiles(axes, 56, 4, 4.3)
    write(axes, 3, 87, "36 products for 16 outputs; direct 144", ha="left")
    y = 99
    box(axes, 3, y, 27, 15, BLUE, "tiles d\n6×6")
    box(axes, 3, y + 20, 27, 15, GREEN, "kernels g\n3×3")
    arrow(axes, (30, y + 7.5), (37.5, y + 13))
    arrow(axes, (30, y + 27.5), (37.5, y + 22))
    box(axes, 38, y + 7, 30, 21, VIOLET, "36 matrix\nproducts\nM = V U")
    arrow(axes, (68, y + 17.5), (74, y + 17.5))
    box(axes, 74.5, y + 10, 23, 15, ORANGE, "outputs\n4×4")
    write(axes, 34, y + 2, "V = BᵀdB", ha="left", color=GREY)
    write(axes, 34, y + 34, "U = GgGᵀ", ha="left", color=GREY)
    write(axes, 97, y + 34, "Y = AᵀMA", ha="right", color=GREY)
    write(
        axes,
        3,
        y + 45,
        "a product for each of 36 frequencies, over all\ntiles, from input channels to output channels",
        ha="left",
    )
    return figure


if __name__ == "__main__":
    draw(make)
