"""Times every op on the GPU beside torch eager and torch.compile; run by benchmarks/gpu.sh.

A case is checked against torch first. Times are of graph replays over several input sets, each call's outputs allocated
inside the graph, so that neither launch gaps nor a cache that holds the inputs enter; ``call`` is what a Python loop
without graphs sees. Bytes count each tensor as often as the op must read or write it in device memory, and shares are
of the copy bandwidth (memory-bound ops) or of cuDNN's time (conv2d) measured in the same run. ``step`` is a training
step without its optimizer: captured in a graph, and by ``call`` eager. The last table puts what the cost sheet predicts
of the CUDA kernels (kernels/cuda/COST.md) beside what was measured.

``--prepare I/N`` only compiles: every N-th case from the I-th on, so that several processes fill the compilers' caches
while tests run. ``--dry-run`` goes through all of it on tiny CPU tensors (TRITON_INTERPRET=1 for the Triton backend).
"""

import argparse
import itertools
import json
import math
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import pydl
import pydl.functional as PF

BF16, F32 = torch.bfloat16, torch.float32
LAST = torch.channels_last
SHEET = Path(__file__).parent / "results" / "gpu-cost.json"
SETS_BYTES = 512 << 20  # the input sets of a case together: several times the L2
DRY = False  # tiny tensors on the CPU

# ---- timing


def device():
    return "cpu" if DRY else "cuda"


def median_ms(run, repeats=15, inner=1):
    """The median time of run() by events, in ms, without synchronising in between; run does ``inner`` calls."""
    if DRY:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3 / inner
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
    if DRY:
        return median_ms(lambda: [call() for call in calls], inner=len(calls))
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
    a = torch.empty(1 << (20 if DRY else 31), dtype=torch.uint8, device=device())
    b = torch.empty_like(a)
    return 2 * a.numel() / median_ms(lambda: b.copy_(a)) * 1e3


def error(actual, expected):
    """Norm of the difference over the norm, of the worst of several tensors; nan never passes."""
    worst = 0.0
    for a, e in zip(actual, expected, strict=True):
        value = float((a.double() - e.double()).norm() / e.double().norm().clamp(min=1e-30))
        worst = value if math.isnan(value) else max(worst, value)
    return worst


# ---- cases


class Case:
    """One op at one size: ``make()`` gives an input set, ``ours`` and ``torchs`` take it and return tensors.

    ``compiled()``, where given, returns torch.compile's version of ``torchs``.
    """

    def __init__(self, name, make, ours, torchs, bytes=0, flops=0, compare=True, compiled=None):
        self.name, self.make, self.ours, self.torchs = name, make, ours, torchs
        self.bytes, self.flops, self.compare, self.compiled = bytes, flops, compare, compiled

    def prepare(self, backends):
        """Compiles whatever ``run`` will."""
        inputs = self.make()
        for backend in backends:
            with pydl.backend.use(backend):
                self.ours(*inputs)
        if self.compiled is not None and not DRY:
            self.compiled()(*inputs)
            torch._dynamo.reset()

    def run(self, backends, bandwidth):
        """A row of the record: the times of torch, torch.compile and each backend; what fails is said in its place."""
        first = self.make()
        size = sum(t.numel() * t.element_size() for t in first)
        sets = [first] + [self.make() for _ in range(max(min(SETS_BYTES // max(size, 1), 1 if DRY else 8), 1))]
        row = {"case": self.name}
        row["torch"] = attempt(lambda: {"ms": graph_ms([lambda s=s: self.torchs(*s) for s in sets])})
        if self.compiled is not None and not DRY:
            row["compile"] = attempt(lambda: {"ms": compiled_ms(self.compiled(), sets)})
        for backend in backends:
            with pydl.backend.use(backend):
                row[backend] = attempt(lambda: self._ours(sets, bandwidth, row["torch"].get("ms")))
        return row

    def _ours(self, sets, bandwidth, torch_ms):
        found = {}
        if self.compare:
            found["error"] = error(self.ours(*sets[0]), self.torchs(*sets[0]))
            if not found["error"] < 2e-2:
                return {"failed": f"error {found['error']:.2e}"}
        found["ms"] = graph_ms([lambda s=s: self.ours(*s) for s in sets])
        found["call_ms"] = median_ms(lambda: self.ours(*sets[0]))
        if torch_ms is not None:
            found["ratio"] = torch_ms / found["ms"]
        if self.bytes:
            found["gbps"] = self.bytes / found["ms"] / 1e6
            found["share"] = self.bytes / found["ms"] * 1e3 / bandwidth
        if self.flops:
            found["tflops"] = self.flops / found["ms"] / 1e9
            found["share"] = found.get("ratio")
        return found


def attempt(measure):
    """What ``measure`` returns, or its failure in words: one case must not cost the rest of a lent machine's time."""
    try:
        return measure()
    except Exception as exception:
        return {"failed": f"{type(exception).__name__}: {str(exception)[:200]}"}


def compiled_ms(function, sets):
    try:
        return graph_ms([lambda s=s: function(*s) for s in sets])
    finally:
        torch._dynamo.reset()


def forward_only(function):
    def run(*inputs):
        with torch.no_grad():
            return (function(*inputs),)

    return run


def with_gradient(*leaves):
    """Wraps a function: its output and the gradients of ``leaves``, for an upstream gradient of twos."""

    def wrap(function):
        def run(*inputs):
            y = function(*inputs)
            g = torch.full_like(y, 2.0)
            return (y.detach(), *torch.autograd.grad(y, [inputs[i] for i in leaves], g))

        return run

    return wrap


def pair(name, make, ours, torchs, wrap, **options):
    """A case of two functions under one wrapper; only the function goes through torch.compile, autograd stays eager."""
    return Case(
        name, make, wrap(ours), wrap(torchs), compiled=lambda: wrap(torch.compile(torchs, dynamic=False)), **options
    )


def cross_entropy_cases():
    sizes = ((8192, 32768), (32768, 4096), (16384, 8192), (8192, 50257), (2048, 131072), (131072, 1000), (16, 131072))
    for rows, classes in ((6, 40), (2, 5000)) if DRY else sizes:

        def make(rows=rows, classes=classes):
            x = torch.randn(rows, classes, device=device(), dtype=BF16).requires_grad_()
            return x, torch.randint(classes, (rows,), device=device())

        size, name = 2 * rows * classes, f"cross_entropy {rows}x{classes} bf16"
        functions = PF.cross_entropy, F.cross_entropy
        yield pair(f"{name} fwd", make, *functions, forward_only, bytes=size)
        yield pair(f"{name} fwd+bwd", make, *functions, with_gradient(0), bytes=3 * size)
        if classes in (40, 4096):
            smooth = [lambda x, t, f=f: f(x, t, label_smoothing=0.1) for f in functions]
            yield pair(f"{name} smoothing fwd", make, *smooth, forward_only, bytes=size)
            yield pair(f"{name} smoothing fwd+bwd", make, *smooth, with_gradient(0), bytes=3 * size)


def dropout_cases():
    log2 = 10 if DRY else 28
    for dtype in (BF16, F32):

        def make(dtype=dtype):
            return (torch.randn(1 << log2, device=device(), dtype=dtype),)

        bytes = 2 * dtype.itemsize << log2
        name = f"dropout 2^{log2} {str(dtype).removeprefix('torch.')}"
        functions = (lambda x: PF.dropout(x, 0.1)), (lambda x: F.dropout(x, 0.1))
        yield pair(name, make, *functions, forward_only, bytes=bytes, compare=False)  # masks differ
    shape = (2, 8, 4, 4) if DRY else (64, 64, 56, 56)

    def make_last():
        return (torch.randn(shape, device=device(), dtype=BF16).to(memory_format=LAST),)

    name = f"dropout {'x'.join(map(str, shape))} bfloat16 channels_last"
    yield pair(name, make_last, *functions, forward_only, bytes=4 * math.prod(shape), compare=False)


def batch_norm_relu(x, w, b):
    return PF.batch_norm(x, None, None, w, b, True, activation="relu")


def torch_batch_norm_relu(x, w, b):
    return F.relu(F.batch_norm(x, None, None, w, b, True))


def batch_norm_cases():
    shapes = ((256, 64, 56, 56), (256, 256, 28, 28), (512, 2048, 7, 7), (256, 16, 112, 112))
    formats = ((torch.contiguous_format, "NCHW"), (LAST, "channels_last"))
    for shape, (format, label) in itertools.product(((4, 6, 5, 5),) if DRY else shapes, formats):

        def make(shape=shape, format=format):
            x = torch.randn(shape, device=device(), dtype=BF16).to(memory_format=format).requires_grad_()
            return x, *(torch.rand(shape[1], device=device()).requires_grad_() for _ in range(2))

        size, name = 2 * math.prod(shape), f"batch_norm+relu {'x'.join(map(str, shape))} bf16 {label}"
        functions = batch_norm_relu, torch_batch_norm_relu
        yield pair(f"{name} fwd", make, *functions, forward_only, bytes=3 * size)
        yield pair(f"{name} fwd+bwd", make, *functions, with_gradient(0, 1, 2), bytes=8 * size)


# (channels, size, outputs, kernel, stride, how often) of ResNet-50's convolutions at 224 x 224
RESNET50 = (
    (3, 224, 64, 7, 2, 1), (64, 56, 64, 1, 1, 1), (64, 56, 64, 3, 1, 3), (64, 56, 256, 1, 1, 4), (256, 56, 64, 1, 1, 2),
    (256, 56, 128, 1, 1, 1), (128, 56, 128, 3, 2, 1), (128, 28, 512, 1, 1, 4), (256, 56, 512, 1, 2, 1),
    (512, 28, 128, 1, 1, 3), (128, 28, 128, 3, 1, 3), (512, 28, 256, 1, 1, 1), (256, 28, 256, 3, 2, 1),
    (256, 14, 1024, 1, 1, 6), (512, 28, 1024, 1, 2, 1), (1024, 14, 256, 1, 1, 5), (256, 14, 256, 3, 1, 5),
    (1024, 14, 512, 1, 1, 1), (512, 14, 512, 3, 2, 1), (512, 7, 2048, 1, 1, 3), (1024, 14, 2048, 1, 2, 1),
    (2048, 7, 512, 1, 1, 2), (512, 7, 512, 3, 1, 2),
)  # fmt: skip
PASSES = ("fwd", "dgrad", "wgrad")


def conv2d_pass(which, x, w, g, stride, padding, groups):
    """One pass by the op of the backend in use."""
    ops = pydl.backend.ops_for(x)
    if which == "bias":
        return ops.conv2d_backward_bias(g)
    options = ((stride, stride), (padding,) * 4, (1, 1), groups)
    last = x.is_contiguous(memory_format=LAST) and not x.is_contiguous()
    if which == "fwd":
        return ops.conv2d_forward(x, w, None, *options, "none", last)
    if which == "dgrad":
        return ops.conv2d_backward_input(g, w, x.shape, *options, last)
    return ops.conv2d_backward_weight(g, x, w.shape, *options, last)


def torch_conv2d_pass(which, x, w, g, stride, padding, groups):
    if which == "bias":
        return g.sum((0, 2, 3))
    if which == "fwd":
        return F.conv2d(x, w, None, stride, padding, 1, groups)
    mask = (which == "dgrad", which == "wgrad", False)
    options = ((stride, stride), (padding, padding), (1, 1), False, (0, 0), groups, mask)
    return torch.ops.aten.convolution_backward(g, x, w, None, *options)[0 if which == "dgrad" else 1]


def conv2d_case(name, which, layer, dtype=BF16, format=LAST):
    """One pass of a layer: batch, channels, size, outputs, kernel, stride, padding, groups."""
    batch, channels, size, outputs, kernel, stride, padding, groups = layer
    out = (size + 2 * padding - kernel) // stride + 1
    depth = channels // groups
    flops = 0 if which == "bias" else 2 * batch * out * out * outputs * depth * kernel * kernel
    bytes = dtype.itemsize * batch * outputs * out * out if which == "bias" else 0

    def make():
        shapes = (batch, channels, size, size), (outputs, depth, kernel, kernel), (batch, outputs, out, out)
        return tuple(torch.randn(s, device=device(), dtype=dtype).to(memory_format=format) for s in shapes)

    def one(function):
        return lambda x, w, g: (function(which, x, w, g, stride, padding, groups),)

    label = f"conv2d {name} {'f32' if dtype == F32 else 'bf16'} {'channels_last' if format == LAST else 'NCHW'} {which}"
    # torch.compile takes no part: for a single convolution it calls the same library
    return Case(label, make, one(conv2d_pass), one(torch_conv2d_pass), flops=flops, bytes=bytes)


def conv2d_cases():
    for channels, size, outputs, kernel, stride, times in ((20, 6, 24, 3, 2, 1),) if DRY else RESNET50:
        layer = (1 if DRY else 64, channels, size, outputs, kernel, stride, kernel // 2, 1)
        for which in PASSES:
            if which == "dgrad" and channels == 3:
                continue  # images need no gradient
            yield conv2d_case(f"{channels}@{size} {kernel}x{kernel}/{stride} -> {outputs} (x{times})", which, layer)


def conv2d_other_cases():
    """The default layout and dtype, and the passes that are no large matrix product."""
    plain = torch.contiguous_format
    resnet, first, second = (256, 64, 24, 64, 3, 1, 1, 1), (256, 1, 28, 6, 5, 1, 2, 1), (256, 6, 14, 16, 5, 1, 0, 1)
    depthwise = (64, 128, 56, 128, 3, 1, 1, 128)
    if DRY:
        resnet, first, second = (1, 18, 5, 20, 3, 1, 1, 1), (1, 1, 7, 6, 5, 1, 2, 1), (1, 6, 7, 16, 5, 1, 0, 1)
        depthwise = (1, 8, 6, 8, 3, 1, 1, 8)
    cases = [(resnet, which, F32, plain) for which in (*PASSES, "bias")]
    cases += [(resnet, "bias", BF16, LAST)]
    cases += [(first, which, F32, plain) for which in ("fwd", "wgrad", "bias")]
    cases += [(second, which, F32, plain) for which in (*PASSES, "bias")]
    cases += [(depthwise, which, F32, format) for format in (plain, LAST) for which in PASSES]
    for layer, which, dtype, format in cases:
        _, channels, size, outputs, kernel, stride, _, groups = layer
        name = f"{channels}@{size} {kernel}x{kernel}/{stride} -> {outputs}" + (f", {groups} groups" * (groups > 1))
        yield conv2d_case(name, which, layer, dtype, format)


def step_cases():
    """A training step without its optimizer."""
    steps = (("lenet", 28, 256, F32), ("resnet18", 96, 256, F32), ("resnet18", 96, 256, BF16))
    for name, size, batch, dtype in (("softmax_regression", 28, 2, F32),) if DRY else steps:
        model = pydl.models.get(name, input_size=size).to(device(), dtype)
        parameters = list(model.parameters())

        def make(batch=batch, size=size, dtype=dtype):
            x = torch.randn(batch, 1, size, size, device=device(), dtype=dtype)
            return x, torch.randint(10, (batch,), device=device())

        def step(x, target, model=model, parameters=parameters):
            loss = PF.cross_entropy(model(x), target)
            return loss.detach(), *torch.autograd.grad(loss, parameters)

        def torchs(x, target, step=step):
            with pydl.backend.use("torch"):
                return step(x, target)

        label = f"step {name} {batch}x{size}x{size} {'f32' if dtype == F32 else 'bf16'}"
        yield Case(label, make, step, torchs, compare=dtype == F32)


def all_cases(only):
    """One case of each op after the other, so that a run that is cut short has seen them all."""
    lists = (step_cases, cross_entropy_cases, conv2d_other_cases, batch_norm_cases, conv2d_cases, dropout_cases)
    for turn in itertools.zip_longest(*([c for c in cases() if only in c.name] for cases in lists)):
        yield from (case for case in turn if case is not None)


# ---- the table

HEAD = f"{'':<72}{'torch':>9}{'compile':>9}"


def cell(found, backend=False):
    if found is None:
        return f"{'-':>9}" + (f"{'':>14}" if backend else "")
    if "failed" in found:
        return f"{'FAILED':>9}" + (f"{'':>14}" if backend else "")
    text = f"{found['ms']:9.4f}"
    if backend:
        text += f"{found.get('ratio', math.nan):7.2f}{100 * (found.get('share') or math.nan):5.0f} %"
    return text


def show(row, backends):
    line = f"{row['case']:<72}{cell(row['torch'])}{cell(row.get('compile'))}"
    print(line + "".join(cell(row[backend], True) for backend in backends), flush=True)
    for name in ("torch", "compile", *backends):
        if "failed" in row.get(name, {}):
            print(f"    {name}: {row[name]['failed']}", flush=True)


def summary(rows, backends):
    """Geometric means of the ratios to torch, and what ResNet-50's convolutions take together."""
    for backend in backends:
        done = [row for row in rows if "ms" in row[backend] and "ms" in row["torch"]]
        print(f"{backend}: {len(done)} of {len(rows)} cases; times as fast as torch, geometric mean:", end="")
        for op in dict.fromkeys(row["case"].split()[0] for row in done):
            ratios = [row[backend]["ratio"] for row in done if row["case"].startswith(op)]
            if ratios:
                print(f" {op} {statistics.geometric_mean(ratios):.2f}", end="")
        print()
        for which in PASSES:
            conv2d = [r for r in done if "(x" in r["case"] and r["case"].endswith(which)]
            part = [(r, int(r["case"].split("(x")[1].split(")")[0])) for r in conv2d]
            if part:
                ours, theirs = (sum(r[who]["ms"] * n for r, n in part) for who in (backend, "torch"))
                print(
                    f"  ResNet-50 {which}: {ours:.2f} ms, torch {theirs:.2f} ms, {100 * theirs / ours:.0f} % of cuDNN"
                )


def predicted_ms(name, gpu, sheet):
    """What the cost sheet says of a case of the CUDA kernels on ``gpu``, in ms; None where it says nothing."""
    known = [model for model in ("H200", "A100", "T4") if model in gpu]
    parts = [name] if not name.endswith("fwd+bwd") else [name.replace("fwd+bwd", "fwd"), name.replace("fwd+bwd", "bwd")]
    found = [sheet["predicted"].get(part, {}).get(model) for part in parts for model in known]
    return sum(each[0] for each in found) / 1e3 if found and all(found) else None


def beside_predictions(rows, gpu):
    """The sheet's predictions beside the measurements: where they differ, the sheet's model has something to learn."""
    sheet = json.loads(SHEET.read_text())
    print(f"{'the CUDA kernels: predicted, measured':<72}{'ms':>9}{'ms':>9}{'ratio':>7}")
    for row in rows:
        predicted, measured = predicted_ms(row["case"], gpu, sheet), row.get("cuda", {}).get("ms")
        if predicted is not None and measured is not None:
            print(f"{row['case']:<72}{predicted:9.4f}{measured:9.4f}{measured / predicted:7.2f}")


# ---- the run


def chosen(names):
    """The backends that are there; the others are said."""
    status = pydl.backend.available()
    for name in names:
        if not status[name]:
            print(f"{name}: {status[name].reason}", flush=True)
    return [name for name in names if status[name]]


def main():
    global DRY
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", default="triton,cuda")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--seconds", type=float, default=300, help="starts no case after this many")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--prepare", default="", metavar="I/N", help="only compile, every N-th case from the I-th on")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    begun = time.monotonic()
    DRY = arguments.dry_run
    if DRY:
        sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
        import interpreter

        interpreter.install()
    backends = chosen(arguments.backends.split(","))
    if not backends:
        return 1
    cases = list(all_cases(arguments.only))
    if arguments.prepare:
        first, step = map(int, arguments.prepare.split("/"))
        for case in cases[first::step]:
            failure = attempt(lambda case=case: case.prepare(backends))
            if failure is not None:
                print(f"{case.name}: {failure['failed']}", flush=True)
            if time.monotonic() - begun > arguments.seconds:
                break
        return 0
    torch.backends.cudnn.benchmark = True
    gpu = "dry run" if DRY else torch.cuda.get_device_name()
    bandwidth = copy_bandwidth()
    record = {
        "gpu": gpu,
        "backends": {name: str(pydl.backend.available()[name].reason) for name in backends},
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "copy_gbps": bandwidth / 1e9,
        "complete": False,
        "cases": [],
    }
    print(f"{gpu}, torch {torch.__version__}, copy {bandwidth / 1e9:.0f} GB/s; ms, times as fast as torch, share")
    print(HEAD + "".join(f"{name:>9}{'ratio':>7}{'share':>7}" for name in backends))
    target = arguments.out / f"{gpu.replace(' ', '-').lower()}.json"
    rows = record["cases"]
    for case in cases:
        if time.monotonic() - begun > arguments.seconds:
            print("out of time")
            break
        row = attempt(lambda case=case: case.run(backends, bandwidth))
        if "failed" in row:  # its inputs could not even be made
            print(f"{case.name}: {row['failed']}", flush=True)
            continue
        rows.append(row)
        record["complete"] = len(rows) == len(cases)
        show(row, backends)
        target.write_text(json.dumps(record, indent=1) + "\n")
        if not DRY:
            torch.cuda.empty_cache()
    summary(rows, backends)
    beside_predictions(rows, gpu)
    failed = [row for row in rows if any("failed" in row.get(name, {}) for name in backends)]
    return 1 if failed or not record["complete"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
