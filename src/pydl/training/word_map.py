"""Word vectors as a map: their two main directions, by principal component analysis."""

import torch


def principal(vectors, count=2):
    """((N, count) coordinates along the main directions of vectors (N, width), the share of the variance of each).

    The signs are such that the largest coordinate of each direction is positive.
    """
    centred = (vectors - vectors.mean(0)).double()
    left, scales, _ = torch.linalg.svd(centred, full_matrices=False)
    out = left[:, :count] * scales[:count]
    out = out * out.gather(0, out.abs().argmax(0, keepdim=True)).sign()
    return out, scales[:count] ** 2 / (scales**2).sum()


def draw(path, vectors, words, pairs, title):
    """Draws ``words`` at the places of their ``vectors`` (N, width), scaled to length 1, lines between ``pairs``."""
    from matplotlib.figure import Figure

    places, shares = principal(vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-12))
    at = dict(zip(words, places.tolist(), strict=True))
    figure = Figure(figsize=(11, 8), dpi=110, layout="constrained")
    axes = figure.subplots()
    for pair in pairs:
        axes.plot(*zip(*(at[word] for word in pair), strict=True), color="#4c72b0", linewidth=0.8, alpha=0.5)
    axes.scatter(places[:, 0], places[:, 1], s=8, color="#dd8452")
    for word, place in at.items():
        axes.annotate(word, place, xytext=(3, 2), textcoords="offset points", fontsize=8)
    axes.set(xlabel=f"direction 1, {float(shares[0]):.0%} of the variance")
    axes.set(ylabel=f"direction 2, {float(shares[1]):.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title)
    figure.savefig(path)
