"""A training that is stopped, continued exactly, and used to read digits from picture files.

The same on the command line: pydl train lenet --max-steps 300 --out runs/example; pydl train --resume runs/example;
pydl predict runs/example IMAGE... Run: python examples/resume_and_predict.py
"""

import tempfile
from pathlib import Path

from PIL import Image

from pydl import data
from pydl.predict import Predictor, save_pictures
from pydl.train import Config, resumed, train

with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    train(Config("lenet", epochs=15, max_steps=230), out=folder / "run")  # stopped after 10 of 15 epochs

    config, checkpoint = resumed(folder / "run", max_steps=None)
    result = train(config, resume=checkpoint)  # the numbers are those of a run that was never stopped
    print(f"test accuracy {result.history[-1]['test_accuracy']:.4f} after {len(result.history)} epochs")

    digits, paths = data.get("digits"), []
    for index in range(8):
        paths.append(folder / f"{index}.png")
        Image.fromarray((digits.test.images[index, 0] * 255).byte().numpy()).save(paths[-1])
    predictions = Predictor(folder / "run")(paths)
    for prediction, target in zip(predictions, digits.test.targets.tolist(), strict=False):
        name, probability = prediction.ranking[0]
        print(f"{prediction.path.name}: {name} with {probability:.1%}, in truth {digits.classes[target]}")
    print(f"{len(save_pictures(predictions, folder / 'labelled'))} labelled pictures")
