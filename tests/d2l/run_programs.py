"""Runs programs as a user does, one after the other in one process, and says as JSON what came of each.

    python -W error run_programs.py FOLDER NAME...

A name that ends in a plus is run with PYDL_DATA naming a folder of small files of Fashion-MNIST's format. Importing
torch takes seconds, so it happens once; what a program's process would have of its own (the folder, the arguments, the
random state, pyplot's figures) is set before each.
"""

import contextlib
import gc
import io
import itertools
import json
import os
import random
import runpy
import sys
import time
import traceback
from pathlib import Path

import numpy
import torch

from pydl import data, live
from pydl.d2l import images, serving

PROGRAMS = Path(__file__).parent / "programs"


def write_files(folder):
    """Fashion-MNIST's four files, of digits: 320 + 128 pictures."""
    digits = data.get("digits")
    for split, name, count in ((digits.train, "train", 320), (digits.test, "t10k", 128)):
        shown = data.Preprocessing((28, 28), (0.0,), (1.0,))(split.images[:count])
        for values, kind in ((shown.squeeze(1) * 255, "images-idx3"), (split.targets[:count], "labels-idx1")):
            sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
            content = bytes((0, 0, 8, values.dim())) + sizes + values.round().to(torch.uint8).numpy().tobytes()
            (folder / f"{name}-{kind}-ubyte").write_bytes(content)


def run(name, folder):
    """What the program printed and left; ``error`` is its traceback, or empty."""
    from matplotlib import pyplot

    script = PROGRAMS / f"{name.rstrip('+')}.py"
    (folder / "files").mkdir(exist_ok=True)
    os.environ.pop("PYDL_DATA", None)
    if name.endswith("+"):
        if not any((folder / "files").iterdir()):
            write_files(folder / "files")
        os.environ["PYDL_DATA"] = str(folder / "files")
    place = folder / script.stem
    place.mkdir()
    os.chdir(place)
    sys.argv = [str(script)]
    torch.manual_seed(0)
    numpy.random.seed(0)
    random.seed(0)
    live._count = itertools.count(1)
    images._said.clear()
    out, error, began, found = io.StringIO(), "", time.process_time(), {}
    with contextlib.redirect_stdout(out):
        try:
            found = runpy.run_path(str(script), run_name="__main__")
        except BaseException:
            error = traceback.format_exc()
    values = {key: value for key, value in found.items() if isinstance(value, (int, float, str, bool))}
    values |= {key: value.tolist() for key, value in found.items() if torch.is_tensor(value) and value.numel() <= 64}
    values |= {
        key: list(value)
        for key, value in found.items()
        if isinstance(value, (list, tuple)) and all(isinstance(item, (int, float, str)) for item in value)
    }
    del found
    with contextlib.redirect_stdout(out):
        gc.collect()  # animators draw their last points, and say where
    pyplot.close("all")
    return {
        "out": out.getvalue(), "error": error, "seconds": time.process_time() - began, "values": values,
        "pictures": {path.name: path.stat().st_size for path in place.glob("*.png")},
    }  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    serving.LEAST = 0.0  # the comparisons with torch take their three steps and no more
    where, *names = sys.argv[1:]
    stdout = sys.stdout
    print(json.dumps({name: run(name, Path(where)) for name in names}), file=stdout)
