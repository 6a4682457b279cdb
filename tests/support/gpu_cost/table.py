"""README's table of what the CUDA kernels should take on a GPU, made from the cost sheet."""

import re
from pathlib import Path

from gpu_cost.model import GPUS

README = Path(__file__).resolve().parents[3] / "README.md"
BEGIN, END = "<!-- gpu: made by tests/support/gpu_cost/sheet.py -->", "<!-- end of gpu -->"
# one large case of every op and pass, and those that a user of the book meets
CASES = (
    "cross_entropy 8192x32768 bf16 fwd",
    "cross_entropy 8192x32768 bf16 bwd",
    "cross_entropy 32768x4096 bf16 smoothing fwd",
    "cross_entropy 256x10 f32 fwd",
    "dropout 2^28 float32",
    "dropout 2^28 bfloat16",
    "batch_norm+relu 256x64x56x56 bf16 NCHW fwd",
    "batch_norm+relu 256x64x56x56 bf16 NCHW bwd",
    "batch_norm+relu 256x64x56x56 bf16 channels_last fwd",
    "batch_norm+relu 256x64x56x56 bf16 channels_last bwd",
    "conv2d 128@28 3x3/1 -> 128 (x3) bf16 channels_last fwd",
    "conv2d 128@28 3x3/1 -> 128 (x3) bf16 channels_last dgrad",
    "conv2d 128@28 3x3/1 -> 128 (x3) bf16 channels_last wgrad",
    "conv2d 64@24 3x3/1 -> 64 f32 NCHW fwd",
    "conv2d 6@14 5x5/1 -> 16 f32 NCHW fwd",
    "conv2d 6@14 5x5/1 -> 16 f32 NCHW dgrad",
    "conv2d 6@14 5x5/1 -> 16 f32 NCHW wgrad",
    "conv2d 128@56 3x3/1 -> 128, 128 groups f32 channels_last fwd",
    "conv2d 128@56 3x3/1 -> 128, 128 groups f32 channels_last wgrad",
)


def text(sheet):
    """The table, without its markers."""
    lines = [
        f"| CUDA kernels, predicted, not measured | {' | '.join(GPUS)} | bound by, {next(iter(GPUS))} |",
        f"|---|{'---:|' * len(GPUS)}---|",
    ]
    for case in CASES:
        found = sheet["predicted"][case]
        cells = ("–" if each is None else f"{each[0]:,.0f} µs" for each in found.values())
        bound = next(iter(found.values()))[1]
        name = re.sub(r" \(x\d+\)", "", case).replace("fwd", "forward").replace("bwd", "backward")
        name = name.replace("dgrad", "input gradient").replace("wgrad", "weight gradient")
        lines.append(f"| {name} | {' | '.join(cells)} | {bound} |")
    return "\n".join(lines)


def shown():
    """The table that README has."""
    return README.read_text().split(BEGIN)[1].split(END)[0].strip()


def write(sheet):
    before, rest = README.read_text().split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n\n{text(sheet)}\n\n{END}{rest.split(END)[1]}")
