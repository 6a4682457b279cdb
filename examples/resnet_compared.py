"""ResNet-18 trained twice from the same weights on the same batches, on our kernels and on torch's, by turns.

d2l section "Residual Networks (ResNet) and ResNeXt". Run: python examples/resnet_compared.py
"""

import tempfile

from pydl.train import Config, train

config = Config(
    "resnet18",
    size=16,  # the book's 96 needs 30 times the work
    optimizer="sgd",
    lr=0.01,
    batch_size=64,
    max_steps=4,  # leave it away for the whole training
    compare=True,
)
with tempfile.TemporaryDirectory() as folder:
    result = train(config, out=folder)
row = result.history[-1]
print(f"losses: {row['loss']:.5f} by pydl, {row['torch_loss']:.5f} by torch; pydl is {result.ratio:.2f} times as fast")
