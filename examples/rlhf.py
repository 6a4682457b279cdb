"""Learning from preferences, and why the KL penalty is there: reward rises without it too, and the text falls apart.

A small GPT learns to spell; a reward model learns from ranked pairs of its samples that long words are wanted; then PPO
trains the GPT twice, with the penalty on the distance from where it began and without. One picture holds both.

Run: python examples/rlhf.py [FOLDER]; at the book's size, minutes each, with four commands: pydl train gpt;
pydl train reward --from runs/gpt; pydl train ppo --from runs/gpt --reward runs/reward, and again with --kl 0
"""

import io
import sys
import tempfile
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from pydl.train import Config, train

out = Path(sys.argv[1]) if len(sys.argv) > 1 else None
folder = out or Path(tempfile.mkdtemp())
small = {"hidden": 64, "layers": 2, "positions": 64}
LENGTH = 32  # characters of a response


def stage(name, model, **options):
    """The result of one run in the folder ``name``, in silence."""
    return train(Config(model, threads=1, **options), folder / name, console=Console(file=io.StringIO()))


gpt = stage("gpt", "gpt", options=small, epochs=2, batch_size=16, num_steps=64, lr=5e-3)
print(f"stage one: perplexity {gpt.history[-1]['test_perplexity']:.2f}")
judge = stage("reward", "reward", from_=str(folder / "gpt"), num_steps=LENGTH, lr=2e-3)
print(f"reward model: held-out pairs in their order {judge.history[-1]['test_accuracy']:.3f}")

runs = {}
for name, kl in (("with the penalty", 4.0), ("without", 0.0)):
    options = {"from_": str(folder / "gpt"), "reward": str(folder / "reward"), "num_steps": LENGTH}
    runs[name] = stage(f"kl-{kl:g}", "ppo", kl=kl, epochs=6, batch_size=64, lr=5e-4, **options).history
    last = runs[name][-1]
    print(f"{name}: reward {last['reward']:+.1f}, KL {last['kl']:.1f} nats, words it knows {last['known']:.2f}")
    print("\n".join(f"  {line}" for line in last["sample"].splitlines()[:5]))
reward, decay = (runs["without"][-1][key] - runs["with the penalty"][-1][key] for key in ("reward", "known"))
print(f"without the penalty the reward is higher by {reward:.1f} and known words are fewer by {-decay:.2f}")

if out is not None:
    figure = Figure(figsize=(11, 3.6), dpi=110, layout="constrained")
    panels = (
        ("reward", "reward (standard deviations)"),
        ("kl", "KL (nats a response)"),
        ("known", "share of known words"),
    )
    for axes, (key, label) in zip(figure.subplots(1, 3), panels, strict=True):
        for name, history in runs.items():
            axes.plot([row["step"] for row in history], [row[key] for row in history], label=name)
        axes.set(xlabel="step of PPO", ylabel=label)
        axes.legend(frameon=False)
    figure.savefig(folder / "lesson.png")
    print(f"{folder}/lesson.png holds both")
