"""Parameters of BERT and a batch for it as arrays of numpy, for peers without torch; see bert.py."""

import numpy as np


def batch(random, rows, vocabulary, positions, masked):
    """(tokens, segments, places), targets: as of ``bert.inputs``."""
    tokens = random.integers(vocabulary, size=(rows, positions))
    segments = np.tile(np.arange(positions) >= positions // 2, (rows, 1)).astype(np.int64)
    places = random.random((rows, positions)).argsort(1)[:, :masked]
    answers, follows = random.integers(vocabulary, size=(rows, masked)), random.integers(2, size=(rows, 1))
    return (tokens, segments, places), np.concatenate([answers, follows], 1)


def init(random, vocabulary, hidden, positions, layers):
    """The parameters, named by what they do."""

    def affine(inputs, outputs):
        return {"w": 0.03 * random.standard_normal((inputs, outputs)), "b": np.zeros(outputs)}

    def norm():
        return {"w": np.ones(hidden), "b": np.zeros(hidden)}

    def layer():
        sizes = {name: (hidden, hidden) for name in ("query", "key", "value", "output")}
        sizes |= {"up": (hidden, 4 * hidden), "down": (4 * hidden, hidden)}
        return {"norm1": norm(), "norm2": norm()} | {name: affine(*size) for name, size in sizes.items()}

    rows = {"words": vocabulary, "places": positions, "segments": 2}
    embeddings = {name: 0.03 * random.standard_normal((count, hidden)) for name, count in rows.items()}
    heads = {"pooler": affine(hidden, hidden), "transform": affine(hidden, hidden), "follows": affine(hidden, 2)}
    norms = {"norm": norm(), "transform_norm": norm(), "bias": np.zeros(vocabulary)}
    return embeddings | heads | norms | {"layers": [layer() for _ in range(layers)]}
