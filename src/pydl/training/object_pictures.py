"""Pictures with boxes and scores, and with overlays beside the truth."""

import colorsys

import torch

CONFIDENT = 0.5  # boxes of less are not drawn
OPAQUE = 0.6


def colours(count):
    """(count + 1, 3) of [0, 1]: black for the ground, then hues as far apart as they can be."""
    rows = [(0.0, 0.0, 0.0), *(colorsys.hsv_to_rgb(i / count, 0.9, 1.0 if i % 2 else 0.8) for i in range(count))]
    return torch.tensor(rows)


def overlaid(picture, mask):
    """A picture (3, H, W) of [0, 1] in grey under the colours of a mask (H, W) of classes from 1 on."""
    many = int(mask[mask != 255].max()) if (mask != 255).any() else 0
    palette = torch.cat((colours(max(many, 10)), torch.ones(256 - max(many, 10) - 1, 3)))
    grey = picture.mean(0, keepdim=True).expand(3, -1, -1)
    covered = (mask > 0).unsqueeze(0) * OPAQUE
    return grey * (1 - covered) + palette[mask.long()].permute(2, 0, 1) * covered


def draw_boxes(path, pictures, found, labels, classes, title):
    """Pictures (N, 3, H, W) of [0, 1] with boxes of a confidence of a half and more; dashed: what is there."""
    sheet = _Sheet(path, len(pictures), 1, title)
    for (axes,), picture, boxes, label in zip(sheet.cells, pictures, found, labels, strict=False):
        _show(axes, picture)
        for _, *corners in label[label[:, 0] >= 0].tolist():
            _box(axes, picture, corners, "white", "--", 0.8)
        for kind, confidence, *corners in boxes[boxes[:, 1] >= CONFIDENT].tolist():
            _box(axes, picture, corners, "#ff3030", "-", 1.4, f"{classes[int(kind)]} {confidence:.2f}")
    sheet.save()


def draw_overlays(path, pictures, found, masks, classes, title):
    """Pictures (N, 3, H, W) of [0, 1], what was found in them and the truth, side by side."""
    sheet = _Sheet(path, len(pictures), 3, title)
    for cells, picture, guess, mask in zip(sheet.cells, pictures, found, masks, strict=False):
        views = picture, overlaid(picture, guess), overlaid(picture, mask)
        for axes, view, name in zip(cells, views, ("picture", "found", "truth"), strict=True):
            _show(axes, view)
            axes.set_title(name, fontsize=8)
    palette = colours(max(len(classes), 10))
    sheet.legend([(name, tuple(palette[i + 1].tolist())) for i, name in enumerate(classes[:20])])
    sheet.save()


class _Sheet:
    """A figure with ``count`` groups of ``views`` cells, four groups of one view or two of three in a row."""

    def __init__(self, path, count, views, title):
        from matplotlib.figure import Figure

        across = min(count, 4 if views == 1 else 2)
        down = -(-count // across)
        self.path = path
        self.figure = Figure(
            figsize=(2.6 * across * max(1, views * 0.75), 2.6 * down + 0.6), dpi=110, layout="constrained"
        )
        grid = self.figure.subplots(down, across * views, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        self.cells = [grid[i // across, views * (i % across) : views * (i % across + 1)] for i in range(count)]
        self.figure.suptitle(title, fontsize=10)

    def legend(self, names):
        from matplotlib.patches import Patch

        handles = [Patch(color=colour, label=name) for name, colour in names]
        self.figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=7, frameon=False)

    def save(self):
        self.figure.savefig(self.path)


def _show(axes, picture):
    axes.imshow(picture.clamp(0, 1).permute(1, 2, 0).numpy())


def _box(axes, picture, corners, colour, style, line, text=None):
    from matplotlib.patches import Rectangle

    height, width = picture.shape[1:]
    left, top, right, bottom = corners[0] * width, corners[1] * height, corners[2] * width, corners[3] * height
    axes.add_patch(
        Rectangle(
            (left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=line, linestyle=style
        )
    )
    if text:
        axes.text(
            left,
            top,
            text,
            fontsize=6,
            color="white",
            va="bottom",
            bbox={"facecolor": colour, "linewidth": 0, "pad": 0.6},
        )
