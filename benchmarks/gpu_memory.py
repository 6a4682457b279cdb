"""One small call of every CUDA kernel, for compute-sanitizer to watch; run by benchmarks/gpu.sh.

compute-sanitizer --tool memcheck --error-exitcode 9 python benchmarks/gpu_memory.py
compute-sanitizer --tool racecheck --error-exitcode 9 python benchmarks/gpu_memory.py

Sizes are odd on purpose: the ends of rows, tiles and vectors are where an access out of bounds would be. Results are
compared with torch's in float64, so that a kernel that was not launched shows too. ``--device cpu`` runs the same calls
on the CPU's kernels: does the script itself work?
"""

import argparse
import contextlib
import sys

import torch
import torch.nn.functional as F

import pydl
import pydl.functional as PF

BF16, F32 = torch.bfloat16, torch.float32
LAST = torch.channels_last


def cross_entropy(shape, dtype=F32, layout=None, probabilities=False, **options):
    """Warps serve up to 2048 classes in a row, blocks more, several blocks few long rows; others are strided."""
    x = torch.randn(shape).to(dtype)
    x = x.contiguous(memory_format=layout) if layout else x
    if probabilities:
        target = torch.randn(shape).softmax(1).to(dtype)
    else:
        target = torch.randint(shape[1], (shape[0], *shape[2:]))
        target.view(-1)[0] = -100
    return [x], lambda f, x, target: f.cross_entropy(x, target, **options), [target]


def batch_norm(shape, dtype=F32, layout=torch.contiguous_format, training=True):
    x = torch.randn(shape).to(dtype).contiguous(memory_format=layout)
    weight, bias = torch.rand(shape[1]) + 0.5, torch.randn(shape[1])
    statistics = [torch.zeros(shape[1]), torch.ones(shape[1])]
    return [x, weight, bias], lambda f, x, w, b, m, v: f.batch_norm(x, m, v, w, b, training), statistics


def conv2d(shape, weight, dtype=F32, layout=torch.contiguous_format, **options):
    tensors = [torch.randn(shape), torch.randn(weight) / 8]
    tensors = [t.to(dtype).contiguous(memory_format=layout) for t in tensors]
    return [*tensors, torch.randn(weight[0]).to(dtype)], lambda f, x, w, b: f.conv2d(x, w, b, **options), []


CASES = {
    "cross entropy, warps": lambda: cross_entropy((37, 1001)),
    "cross entropy, warps, bf16": lambda: cross_entropy((37, 999), BF16, label_smoothing=0.1),
    "cross entropy, blocks": lambda: cross_entropy((300, 5003), weight=None),
    "cross entropy, several blocks a row": lambda: cross_entropy((2, 70001), BF16),
    "cross entropy, strided": lambda: cross_entropy((3, 21, 7, 5)),
    "cross entropy, channels_last": lambda: cross_entropy((3, 21, 7, 5), layout=LAST),
    "cross entropy, probabilities": lambda: cross_entropy((19, 77), probabilities=True),
    "cross entropy, strided probabilities": lambda: cross_entropy((3, 21, 35), probabilities=True),
    "batch norm, NCHW": lambda: batch_norm((5, 7, 9, 11)),
    "batch norm, NCHW, bf16, few channels": lambda: batch_norm((33, 3, 65, 63), BF16),
    "batch norm, channels_last": lambda: batch_norm((5, 37, 9, 11), layout=LAST),
    "batch norm, channels_last, bf16": lambda: batch_norm((9, 24, 33, 31), BF16, LAST),
    "batch norm, rows of features": lambda: batch_norm((129, 121)),
    "batch norm, evaluation": lambda: batch_norm((5, 7, 9, 11), training=False),
    "conv2d, plain cores": lambda: conv2d((2, 19, 13, 15), (21, 19, 3, 3), F32, LAST, padding=1),
    "conv2d, planes": lambda: conv2d((2, 19, 13, 15), (21, 19, 3, 3), padding=1),
    "conv2d, planes, stride 2": lambda: conv2d((2, 19, 13, 15), (21, 19, 5, 5), stride=2, padding=2),
    "conv2d, planes, few channels": lambda: conv2d((5, 6, 14, 14), (16, 6, 5, 5)),
    "conv2d, direct: groups": lambda: conv2d((2, 12, 13, 15), (12, 3, 3, 3), groups=4, dilation=2),
    "conv2d, direct: depthwise": lambda: conv2d((2, 17, 13, 15), (17, 1, 3, 3), BF16, LAST, groups=17),
    "conv2d, tensor cores": lambda: conv2d((3, 40, 13, 15), (72, 40, 3, 3), BF16, LAST, padding=1),
    "conv2d, tensor cores, stride 2": lambda: conv2d((3, 16, 13, 15), (24, 16, 3, 3), BF16, LAST, stride=2),
    "conv2d, tensor cores, 1x1": lambda: conv2d((3, 136, 9, 9), (264, 136, 1, 1), BF16, LAST),
}
LAYOUTS = {
    "dense": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=LAST),
    "rows of a wider tensor": lambda x: F.pad(x, (0, 3))[..., :-3],
    "not aligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:],
}


def run(functional, case, device, dtype=None):
    """Output and gradients, with an upstream gradient that is not all ones."""
    torch.manual_seed(0)
    leaves, call, rest = case()
    leaves = [t.to(device, dtype).requires_grad_() for t in leaves]
    rest = [t.to(device, dtype if t.is_floating_point() else None) for t in rest]
    output = call(functional, *leaves, *rest)
    upstream = torch.arange(1, output.numel() + 1, device=device).remainder(3).view(output.shape).to(output.dtype)
    statistics = [t for t in rest if t.is_floating_point()]  # batch norm has moved them
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream), *statistics]


def dropout(layout, device):
    """The mask is that of the CPU's kernel, and so is its gradient's."""
    x, seed = torch.rand(3, 5, 23, 31) + 0.5, torch.tensor([7])
    results = []
    for where in ("cpu", device):
        leaf = LAYOUTS[layout](x.to(where)).requires_grad_()
        output = PF.dropout(leaf, 0.3, seed=seed.to(where))
        results.append([t.cpu() for t in (output, *torch.autograd.grad(output, leaf, torch.ones_like(output)))])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True)), f"dropout, {layout}: another mask"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    device = parser.parse_args().device
    with pydl.backend.use("cuda") if device == "cuda" else contextlib.nullcontext():
        for name, case in CASES.items():
            results = run(PF, case, device)
            expected = run(F, case, "cpu", torch.float64)
            for i, (ours, theirs) in enumerate(zip(results, expected, strict=True)):
                error = (ours.cpu().double() - theirs).norm() / theirs.norm().clamp(min=1e-30)
                if not error < 2e-2:
                    sys.exit(f"gpu_memory: {name}: tensor {i} is {error:.3g} from torch's")
        for layout in LAYOUTS:
            dropout(layout, device)
    print(f"{len(CASES) + len(LAYOUTS)} calls on {device} gave torch's results")


if __name__ == "__main__":
    main()
