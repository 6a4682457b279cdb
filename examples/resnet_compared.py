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
ours, torchs = f"{row['loss']:.5f}", f"{row['torch_loss']:.5f}"
print(f"losses: {ours} by pydl, {torchs} by torch; pydl is {result.ratio:.2f} times as fast")
difference = abs(row["loss"] - row["torch_loss"])
if ours != torchs:
    print(
        f"They differ by {difference:.0e}, by rounding alone: the kernels add up in another order. The first step\n"
        "agrees to six digits; batch norm over maps of one pixel, and a step this large, enlarge whatever differs:\n"
        "torch in float64, or with weights changed by 1e-7, is as far from torch in float32."
    )
