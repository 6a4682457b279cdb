"""Attention's tiles: 64 queries against all keys, what a causal mask leaves out, and the backward's five products."""

from shared.card import BLUE, GREEN, GREY, LIGHT, ORANGE, PALE, VIOLET, arrow, box, card, draw, grid, write


def make():
    """Forward above, causal blocks in the middle, backward below."""
    figure, axes = card(6.7)
    write(axes, 3, 5, "forward: 64 queries, all their keys", ha="left", weight="bold")
    box(axes, 4, 16, 11, 14, BLUE, "Q")
    box(axes, 21, 11, 34, 9, GREEN, "Kᵀ")
    box(axes, 21, 21.5, 34, 9, VIOLET, "S → exp(S)")
    write(axes, 60, 26, "L2", color=GREY)
    box(axes, 66, 11, 11, 19.5, GREEN, "V")
    arrow(axes, (78, 24), (84, 24))
    box(axes, 85, 16, 11, 14, ORANGE, "O")
    write(
        axes,
        4,
        37,
        "the sum of a row divides the finished row of O;\nO and lse = max + log sum are all that is kept",
        ha="left",
        va="top",
    )

    write(axes, 3, 57, "causal: none above the diagonal", ha="left", weight="bold")
    cell = 5.0

    def fill(i, j):
        return LIGHT[VIOLET] if j < i else "#b79fd6" if i == j else PALE

    grid(axes, 4, 62, 6, 6, cell, fill=fill)
    write(axes, 39, 66, "whole", ha="left")
    box(axes, 55, 63.5, 5, 5, VIOLET)
    write(axes, 39, 74, "partly", ha="left")
    axes.add_patch(type(axes.patches[0])((55, 71.5), 5, 5, facecolor="#b79fd6", edgecolor=VIOLET))
    write(axes, 39, 82, "never", ha="left")
    box(axes, 55, 79.5, 5, 5, GREY)
    write(
        axes,
        65,
        74,
        "with few keys\nblocks have 32\nqueries, so that\nsome are left out",
        ha="left",
        color=GREY,
        size=10.3,
    )

    y = 102
    write(axes, 3, y, "backward: a tile of 64 × 64, five products", ha="left", weight="bold")
    box(axes, 4, y + 5, 44, 9, BLUE, "1  S = Q Kᵀ")
    box(axes, 52, y + 5, 45, 9, BLUE, "2  dA = G Vᵀ")
    arrow(axes, (26, y + 14), (35, y + 20))
    arrow(axes, (74, y + 14), (65, y + 20))
    box(axes, 14, y + 20, 72, 15, VIOLET, "P = exp(S − lse),  A = P∘D\ndS = P∘(dA∘D − rowsum(G∘O))")
    for i, name in enumerate(("3  dV += AᵀG", "4  dQ += dS K", "5  dK += dSᵀQ")):
        arrow(axes, (20 + i * 30, y + 35), (20 + i * 30, y + 41))
        box(axes, 4 + i * 31.2, y + 41, 30.5, 9, ORANGE, name, size=10.3)
    write(axes, 4, y + 58, "D: kept / (1 − p), from the same Philox words", ha="left", color=GREY)
    return figure


if __name__ == "__main__":
    draw(make)
