"""The white card that every picture is drawn on, and what makes it legible where it is read.

A picture is 4 inches wide, 384 pixels of a browser, so that a phone shows it nearly as large as it is. It is saved only
if its letters are large enough there, and if no text is cut off or lies on another.
"""

import argparse
from itertools import combinations

import matplotlib

matplotlib.use("agg")  # whose renderer measures texts; a figure is saved as SVG all the same
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.text import Text

INK, GREY, PALE = "#222222", "#6b6b6b", "#e9e9e9"
BLUE, ORANGE, GREEN, RED, VIOLET = "#2f6fb0", "#d9822b", "#3a8f5c", "#c0453f", "#7a5aa6"
LIGHT = {BLUE: "#cfe0f1", ORANGE: "#f9dfc2", GREEN: "#cdead8", RED: "#f4cdca", VIOLET: "#e0d6ef", GREY: PALE}

WIDTH = 4.0  # inches
PHONE = 342  # pixels that a page leaves for a picture where the screen has 390
LEAST_POINTS = 9.0  # of a letter on that phone
FONT = 10.5

plt.rcParams.update(
    {
        "font.size": FONT,
        "axes.titlesize": FONT + 0.5,
        "axes.labelsize": FONT,
        "xtick.labelsize": FONT - 0.3,
        "ytick.labelsize": FONT - 0.3,
        "legend.fontsize": FONT - 0.3,
        "text.color": INK,
        "axes.edgecolor": GREY,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "figure.facecolor": "white",
        "axes.facecolor": "white",
        "font.family": "DejaVu Sans",
        "svg.fonttype": "path",  # letters as outlines: no font is needed where the picture is seen
        "svg.hashsalt": "pydl",  # the same names of parts, and so the same file, at every run
    }
)


def card(height):
    """A figure of the pictures' width, and axes over all of it: x from 0 to 100, y downwards in the same unit."""
    figure = plt.figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 100), ylim=(100 * height / WIDTH, 0))
    axes.axis("off")
    return figure, axes


def box(axes, x, y, width, height, color=BLUE, text="", fill=True, size=FONT, **kwargs):
    """A rectangle with a text in its middle; (x, y) is its upper left corner."""
    face = LIGHT.get(color, color) if fill else "none"
    axes.add_patch(Rectangle((x, y), width, height, facecolor=face, edgecolor=color, linewidth=1.1, **kwargs))
    if text:
        write(axes, x + width / 2, y + height / 2, text, size=size)


def grid(axes, x, y, rows, columns, cell, color=GREY, fill=None):
    """rows × columns squares; ``fill``: the colour of square (row, column), or None for white."""
    for i in range(rows):
        for j in range(columns):
            face = fill(i, j) if fill else None
            axes.add_patch(
                Rectangle(
                    (x + j * cell, y + i * cell), cell, cell, facecolor=face or "white", edgecolor=color, linewidth=0.7
                )
            )


def write(axes, x, y, text, size=FONT, ha="center", va="center", color=INK, **kwargs):
    return axes.text(x, y, text, fontsize=size, ha=ha, va=va, color=color, linespacing=1.25, **kwargs)


def arrow(axes, start, end, color=GREY, bend=0.0, **kwargs):
    style = {"arrowstyle": "-|>", "mutation_scale": 9, "linewidth": 1.2, "color": color, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", **(style | kwargs)))


def faults(figure):
    """What a reader could not read, in words."""
    figure.canvas.draw()
    renderer, edge = figure.canvas.get_renderer(), figure.bbox
    scale = min(1.0, PHONE / (figure.get_figwidth() * 96))
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts]
    small = [f"{t.get_text()!r} has {t.get_fontsize() * scale:.1f} points" for t in texts
             if t.get_fontsize() * scale < LEAST_POINTS]  # fmt: skip
    cut = [f"{text!r} is cut off" for text, b in boxes
           if b.x0 < 0 or b.y0 < 0 or b.x1 > edge.x1 or b.y1 > edge.y1]  # fmt: skip
    over = []
    for (first, a), (second, b) in combinations(boxes, 2):
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1:
            over.append(f"{first!r} and {second!r} lie on one another")
    return small + cut + over


def draw(make):
    """Runs a script: ``python NAME.py OUT.svg``, with ``make()`` returning the figure (.png is for looking at it)."""
    parser = argparse.ArgumentParser(description=make.__doc__)
    parser.add_argument("output", help="the file to write, .svg or .png")
    output = parser.parse_args().output
    figure = make()
    if found := faults(figure):
        raise SystemExit("\n".join(found))
    figure.savefig(output, dpi=192, metadata={"Date": None} if output.endswith(".svg") else None)
    plt.close(figure)
