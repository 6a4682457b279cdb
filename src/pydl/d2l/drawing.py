"""Lines, pictures and tables of numbers by matplotlib, which is imported when something is drawn."""

import torch

from pydl.live import pyplot, use_svg_display

FMTS = ("-", "m--", "g-.", "r:")


def set_figsize(figsize=(3.5, 2.5)):
    """The size of pyplot's figures from now on, in inches."""
    use_svg_display()
    pyplot().rcParams["figure.figsize"] = figsize


def set_axes(axes, xlabel, ylabel, xlim, ylim, xscale, yscale, legend):
    """Labels, limits, scales, legend and a grid; None leaves a label or a limit as it is."""
    axes.set_xscale(xscale)
    axes.set_yscale(yscale)
    for name, value in (("xlabel", xlabel), ("ylabel", ylabel), ("xlim", _range(xlim)), ("ylim", _range(ylim))):
        if value is not None:
            axes.set(**{name: value})
    if legend:
        axes.legend(legend)
    axes.grid(True)


def _range(limits):
    """Limits that differ, as matplotlib wants them: of a single epoch they do not."""
    if limits is None or limits[0] != limits[1]:
        return limits
    return limits[0] - 0.5, limits[1] + 0.5


def numbers(values):
    """What matplotlib takes, of tensors with gradients too."""
    if torch.is_tensor(values):
        return values.detach().cpu().numpy()
    if isinstance(values, list | tuple):
        return [numbers(value) for value in values]
    return values


def _curves(values):
    """A list of curves: of a list of them, of a matrix's rows, or of one curve."""
    values = numbers(values)
    many = values.ndim > 1 if hasattr(values, "ndim") else bool(len(values)) and hasattr(values[0], "__len__")
    return list(values) if many else [values]


def plot(
    X, Y=None, xlabel=None, ylabel=None, legend=(), xlim=None, ylim=None, xscale="linear", yscale="linear",
    fmts=FMTS, figsize=(3.5, 2.5), axes=None,
):  # fmt: skip
    """Curves into pyplot's axes, or into ``axes``, in the place of what they hold.

    Args:
        X, Y: one curve or several: sequences, arrays or tensors. One X serves all Y; without Y, X is drawn over its
            indices.
    """
    X = _curves(X)
    if Y is None:
        X, Y = [range(len(curve)) for curve in X], X
    else:
        Y = _curves(Y)
    if len(X) != len(Y):
        X = X * len(Y)
    set_figsize(figsize)
    axes = axes or pyplot().gca()
    axes.cla()
    for number, (x, y) in enumerate(zip(X, Y, strict=False)):
        axes.plot(x, y, fmts[number % len(fmts)])
    set_axes(axes, xlabel, ylabel, xlim, ylim, xscale, yscale, legend)


def show_images(imgs, num_rows, num_cols, titles=None, scale=1.5):
    """Pictures in rows and columns: tensors (H, W) or (H, W, C), arrays or PIL images. Returns the axes."""
    _, axes = pyplot().subplots(num_rows, num_cols, figsize=(num_cols * scale, num_rows * scale), squeeze=False)
    axes = axes.flatten()
    for number, (place, image) in enumerate(zip(axes, imgs, strict=False)):
        place.imshow(numbers(image))
        place.set_axis_off()
        if titles is not None:
            place.set_title(titles[number])
    return axes


def show_heatmaps(matrices, xlabel, ylabel, titles=None, figsize=(2.5, 2.5), cmap="Reds"):
    """Matrices (rows, columns, H, W) as a table of coloured ones, with one scale of colours."""
    rows, columns = len(matrices), len(matrices[0])
    figure, axes = pyplot().subplots(
        rows, columns, figsize=figsize, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for i in range(rows):
        for j in range(columns):
            image = axes[i, j].imshow(numbers(matrices[i][j]), cmap=cmap)
            if i == rows - 1:
                axes[i, j].set_xlabel(xlabel)
            if j == 0:
                axes[i, j].set_ylabel(ylabel)
            if titles:
                axes[i, j].set_title(titles[j])
    figure.colorbar(image, ax=axes, shrink=0.6)
