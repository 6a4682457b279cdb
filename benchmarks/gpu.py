"""Times every op on the GPU beside torch eager and torch.compile; run by benchmarks/gpu.sh.

A case is checked against torch first. Times are of graph replays over several input sets, each call's outputs allocated
inside the graph, so that neither launch gaps nor a cache that holds the inputs enter; ``call`` is what a Python loop
without graphs sees. Bytes count each tensor as often as the op must read or write it in device memory, and shares are
of the copy bandwidth (memory-bound ops) or of cuDNN's time (conv2d) measured in the same run.
"""

import argparse
import json
import math
import platform
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import pydl
import pydl.functional as PF

BF16 = torch.bfloat16
LAST = torch.channels_last
SETS_BYTES = 512 << 20  # the input sets of a case together: several times the L2


def median_ms(run, repeats=15, inner=1):
    """The median time of run() by events, in ms, without synchronising in between; run does ``inner`` calls."""
    for _ in range(3):
        run()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events) / inner


def graph_ms(calls):
    """The median time of one of ``calls``, which do the same on different inputs, replayed from a graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return median_ms(graph.replay, inner=len(calls))


def copy_bandwidth():
    """Bytes read and written per second by a device-to-device copy."""
    a = torch.empty(1 << 31, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    return 2 * a.numel() / median_ms(lambda: b.copy_(a)) * 1e3


def error(actual, expected):
    """Norm of the difference over the norm, of the worst of several tensors; nan never passes."""
    worst = 0.0
    for a, e in zip(actual, expected, strict=True):
        if e is not None:
            value = float((a.double() - e.double()).norm() / e.double().norm().clamp(min=1e-30))
            worst = value if math.isnan(value) else max(worst, value)
    return worst


class Case:
    """One op at one size: ``make()`` gives an input set, ``ours`` and ``torchs`` take it and return tensors."""

    def __init__(self, name, make, ours, torchs, bytes=0, flops=0, compare=True, compile=True):
        self.name, self.make, self.ours, self.torchs = name, make, ours, torchs
        self.bytes, self.flops, self.compare, self.compile = bytes, flops, compare, compile

    def run(self, bandwidth):
        first = self.make()
        size = sum(t.numel() * t.element_size() for t in first)
        sets = [first] + [self.make() for _ in range(max(min(SETS_BYTES // max(size, 1), 8), 1))]
        row = {"case": self.name}
        if self.compare:
            row["error"] = error(self.ours(*first), self.torchs(*first))
            if not row["error"] < 2e-2:
                row["failed"] = f"error {row['error']:.2e}"
                return row
        row["ms"] = graph_ms([lambda s=s: self.ours(*s) for s in sets])
        row["call_ms"] = median_ms(lambda: self.ours(*sets[0]))
        row["torch_ms"] = graph_ms([lambda s=s: self.torchs(*s) for s in sets])
        if self.compile:
            compiled = torch.compile(self.torchs, dynamic=False)
            row["compile_ms"] = graph_ms([lambda s=s: compiled(*s) for s in sets])
            torch._dynamo.reset()
        if self.bytes:
            row["gbps"] = self.bytes / row["ms"] / 1e6
            row["share"] = self.bytes / row["ms"] * 1e3 / bandwidth
        if self.flops:
            row["tflops"] = self.flops / row["ms"] / 1e9
            row["share"] = row["torch_ms"] / row["ms"]
        return row


def with_gradient(function, *leaves):
    """The output of ``function`` and its gradients for ``leaves``, with a gradient of ones times two."""

    def run(*inputs):
        y = function(*inputs)
        g = torch.full_like(y, 2.0)
        return (y.detach(), *torch.autograd.grad(y, [inputs[i] for i in leaves], g))

    return run


def cross_entropy_cases():
    for rows, classes in ((32768, 4096), (16384, 8192), (8192, 32768), (8192, 50257), (2048, 131072), (131072, 1000)):

        def make(rows=rows, classes=classes):
            x = torch.randn(rows, classes, device="cuda", dtype=BF16).requires_grad_()
            return x, torch.randint(classes, (rows,), device="cuda")

        size, name = 2 * rows * classes, f"cross_entropy {rows}x{classes} bf16"

        def forward(f):
            def run(x, t):
                with torch.no_grad():
                    return (f(x, t),)

            return run

        yield Case(f"{name} fwd", make, forward(PF.cross_entropy), forward(F.cross_entropy), bytes=size)
        ours, torchs = with_gradient(PF.cross_entropy, 0), with_gradient(F.cross_entropy, 0)
        yield Case(f"{name} fwd+bwd", make, ours, torchs, bytes=3 * size)


def dropout_cases():
    for dtype in (BF16, torch.float32):

        def make(dtype=dtype):
            return (torch.randn(1 << 28, device="cuda", dtype=dtype),)

        size = torch.finfo(dtype).bits // 8 << 28
        name = f"dropout 2^28 {str(dtype).removeprefix('torch.')}"
        ours, torchs = (lambda x: (PF.dropout(x, 0.1),)), (lambda x: (F.dropout(x, 0.1),))
        yield Case(name, make, ours, torchs, bytes=2 * size, compare=False)


def batch_norm_cases():
    shapes = ((256, 64, 56, 56), (256, 256, 28, 28), (512, 2048, 7, 7), (256, 16, 112, 112))
    for shape in shapes:
        for format, label in ((torch.contiguous_format, "NCHW"), (LAST, "channels_last")):

            def make(shape=shape, format=format):
                x = torch.randn(shape, device="cuda", dtype=BF16).to(memory_format=format).requires_grad_()
                w, b = (torch.rand(shape[1], device="cuda").requires_grad_() for _ in range(2))
                return x, w, b

            def ours(x, w, b):
                return PF.batch_norm(x, None, None, w, b, True, activation="relu")

            def torchs(x, w, b):
                return F.relu(F.batch_norm(x, None, None, w, b, True))

            def forward(f):
                def run(*inputs):
                    with torch.no_grad():
                        return (f(*inputs),)

                return run

            size, name = 2 * math.prod(shape), f"batch_norm+relu {'x'.join(map(str, shape))} bf16 {label}"
            yield Case(f"{name} fwd", make, forward(ours), forward(torchs), bytes=3 * size)
            both = with_gradient(ours, 0, 1, 2), with_gradient(torchs, 0, 1, 2)
            yield Case(f"{name} fwd+bwd", make, *both, bytes=8 * size, compile=label == "NCHW")


# (channels, size, outputs, kernel, stride, how often) of ResNet-50's convolutions at 224 x 224
RESNET50 = (
    (3, 224, 64, 7, 2, 1), (64, 56, 64, 1, 1, 1), (64, 56, 64, 3, 1, 3), (64, 56, 256, 1, 1, 4), (256, 56, 64, 1, 1, 2),
    (256, 56, 128, 1, 1, 1), (128, 56, 128, 3, 2, 1), (128, 28, 512, 1, 1, 4), (256, 56, 512, 1, 2, 1),
    (512, 28, 128, 1, 1, 3), (128, 28, 128, 3, 1, 3), (512, 28, 256, 1, 1, 1), (256, 28, 256, 3, 2, 1),
    (256, 14, 1024, 1, 1, 6), (512, 28, 1024, 1, 2, 1), (1024, 14, 256, 1, 1, 5), (256, 14, 256, 3, 1, 5),
    (1024, 14, 512, 1, 1, 1), (512, 14, 512, 3, 2, 1), (512, 7, 2048, 1, 1, 3), (1024, 14, 2048, 1, 2, 1),
    (2048, 7, 512, 1, 1, 2), (512, 7, 512, 3, 1, 2),
)  # fmt: skip


def conv2d_cases(batch=64):
    for channels, size, outputs, kernel, stride, times in RESNET50:
        padding = kernel // 2
        out = (size + 2 * padding - kernel) // stride + 1
        flops = 2 * batch * out * out * outputs * channels * kernel * kernel
        label = f"conv2d {channels}@{size} {kernel}x{kernel}/{stride} -> {outputs} (x{times}) bf16"

        def make(channels=channels, size=size, outputs=outputs, kernel=kernel, out=out):
            def random(*shape):
                return torch.randn(shape, device="cuda", dtype=BF16).to(memory_format=LAST)

            return (
                random(batch, channels, size, size),
                random(outputs, channels, kernel, kernel),
                random(batch, outputs, out, out),
            )

        options = ((stride, stride), (padding,) * 4, (1, 1), 1)

        def torch_backward(g, x, w, mask, stride=stride, padding=padding):
            return torch.ops.aten.convolution_backward(
                g, x, w, None, (stride,) * 2, (padding,) * 2, (1, 1), False, (0, 0), 1, mask
            )

        ops = pydl.backend.ops_for(torch.empty(0, device="cuda"))
        common = {"flops": flops, "compile": False}
        yield Case(
            f"{label} fwd", make,
            lambda x, w, g, ops=ops, o=options: (ops.conv2d_forward(x, w, None, *o, "none", True),),
            lambda x, w, g, s=stride, p=padding: (F.conv2d(x, w, None, s, p),), **common,
        )  # fmt: skip
        if channels > 3:  # images need no gradient
            yield Case(
                f"{label} dgrad", make,
                lambda x, w, g, ops=ops, o=options: (ops.conv2d_backward_input(g, w, x.shape, *o, True),),
                lambda x, w, g, b=torch_backward: (b(g, x, w, (True, False, False))[0],), **common,
            )  # fmt: skip
        yield Case(
            f"{label} wgrad", make,
            lambda x, w, g, ops=ops, o=options: (ops.conv2d_backward_weight(g, x, w.shape, *o, True),),
            lambda x, w, g, b=torch_backward: (b(g, x, w, (False, True, False))[1],), **common,
        )  # fmt: skip


def show(row):
    if "failed" in row:
        print(f"{row['case']:<66} FAILED: {row['failed']}", flush=True)
        return
    rate = f"{row['gbps']:7.0f} GB/s" if "gbps" in row else f"{row['tflops']:5.0f} TFLOP/s"
    compiled = f"{row['torch_ms'] and row['compile_ms'] / row['ms']:5.2f}" if "compile_ms" in row else "    -"
    print(
        f"{row['case']:<66}{row['ms']:9.4f}{row['call_ms']:9.4f}{row['torch_ms'] / row['ms']:7.2f}{compiled:>7}"
        f"{rate:>14}{100 * row['share']:6.0f} %",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="triton")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--seconds", type=float, default=500, help="starts no case after this many")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    arguments = parser.parse_args()
    begun = time.monotonic()
    torch.backends.cudnn.benchmark = True
    gpu = torch.cuda.get_device_name()
    record = {
        "gpu": gpu,
        "backend": arguments.backend,
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "triton": str(pydl.backend.available()["triton"].reason),
        "copy_gbps": copy_bandwidth() / 1e9,
    }
    print(f"{gpu}, torch {torch.__version__}, copy {record['copy_gbps']:.0f} GB/s; pydl by {arguments.backend}")
    print(f"{'':<66}{'ms':>9}{'call':>9}{'torch':>7}{'compile':>7}{'rate':>14}  share")
    rows = record["cases"] = []
    target = arguments.out / f"{gpu.replace(' ', '-').lower()}-{arguments.backend}.json"
    with pydl.backend.use(arguments.backend):
        for cases in (cross_entropy_cases, dropout_cases, batch_norm_cases, conv2d_cases):
            for case in cases():
                if arguments.only not in case.name:
                    continue
                if time.monotonic() - begun > arguments.seconds:
                    print("out of time")
                    record["complete"] = False
                    break
                try:
                    row = case.run(record["copy_gbps"] * 1e9)
                except Exception as exception:  # one case must not cost the rest of a lent machine's time
                    row = {"case": case.name, "failed": f"{type(exception).__name__}: {str(exception)[:200]}"}
                rows.append(row)
                show(row)
                target.write_text(json.dumps(record, indent=1) + "\n")
    conv = [row for row in rows if "tflops" in row]
    for kind in ("fwd", "dgrad", "wgrad"):
        part = [(r, int(r["case"].split("(x")[1].split(")")[0])) for r in conv if r["case"].endswith(kind)]
        if part:
            ours, theirs = (sum(r[key] * n for r, n in part) for key in ("ms", "torch_ms"))
            print(
                f"ResNet-50 {kind}: {ours:.2f} ms, torch {theirs:.2f} ms, {100 * theirs / ours:.0f} % of cuDNN's speed"
            )
    return 1 if any("failed" in row for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
