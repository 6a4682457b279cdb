"""Gradient-boosted trees, scikit-learn's, beside our multilayer perceptron and LeNet on the digits.

Trees are added one after another, each fitted to the gradient of the loss that the ones before it leave. They take the
pixels as columns of a table, each for itself; LeNet knows which pixels are neighbours.

Friedman, "Greedy Function Approximation: A Gradient Boosting Machine", Annals of Statistics 2001; Ke et al.,
"LightGBM", NeurIPS 2017, for the histograms. Run: python examples/gradient_boosting.py
"""

import io
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sklearn.ensemble import HistGradientBoostingClassifier

from pydl import data
from pydl.train import Config, train

digits, table = data.get("digits"), Table("model", "test accuracy", "seconds")

begin = time.perf_counter()
trees = HistGradientBoostingClassifier(learning_rate=0.2, max_iter=60, max_leaf_nodes=8, random_state=0)
trees.fit(digits.train.images.flatten(1).numpy(), digits.train.targets.numpy())
accuracies = {"trees": trees.score(digits.test.images.flatten(1).numpy(), digits.test.targets.numpy())}
table.add_row("gradient-boosted trees", f"{accuracies['trees']:.4f}", f"{time.perf_counter() - begin:.1f}")

with tempfile.TemporaryDirectory() as folder:
    for name in ("mlp", "lenet"):
        begin = time.perf_counter()
        result = train(Config(name, epochs=15), out=Path(folder) / name, console=Console(file=io.StringIO()))
        accuracies[name] = result.history[-1]["test_accuracy"]
        table.add_row(name, f"{accuracies[name]:.4f}", f"{time.perf_counter() - begin:.1f}")
Console().print(table)
print(f"least accuracy of the three: {min(accuracies.values()):.4f}")
