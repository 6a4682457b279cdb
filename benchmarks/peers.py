"""Peers of a training step: the same model in JAX and TensorFlow, and in torch with MKL's own path for this CPU.

Each runs in a process of its own, which waits at its input between rounds, so that no library's threads meet another's.
A peer gets the layers of the model as a list (:func:`layers_of`), and answers a number of steps with their seconds;
its count of parameters must be torch's.
"""

import functools
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
LIBRARIES = {"jax": "jax", "tensorflow": "tensorflow"}  # peer -> the module that it needs


def layers_of(module):
    """The layers of a model of pydl.models in order, as lists that JSON can hold; a block of a ResNet holds its own.

    Raises:
        TypeError: a layer for which there is no word.
    """
    if isinstance(module, nn.Sequential):
        return [word for layer in module for word in layers_of(layer)]
    if hasattr(module, "downsample"):  # relu(f(x) + shortcut(x))
        main = [*layers_of(module.conv1), ["batch_norm"], ["relu"], *layers_of(module.conv2), ["batch_norm"]]
        return [["residual", main, [] if module.downsample is None else layers_of(module.downsample)]]
    if hasattr(module, "layer4"):
        words = [*layers_of(module.conv1), ["batch_norm"], ["relu"], *layers_of(module.maxpool)]
        for stage in (module.layer1, module.layer2, module.layer3, module.layer4):
            words += layers_of(stage)
        return [*words, ["mean"], *layers_of(module.fc)]
    if hasattr(module, "position_embedding"):
        block = module.blocks[0]
        shapes = [*module.embedding.weight.shape, len(module.position_embedding.weight), block.attention.heads]
        return [["gpt", *shapes, len(module.blocks), module.dropout.p]]
    if hasattr(module, "model"):  # BERT, bert.py
        body = module.model.bert
        shapes = [*body.embeddings.word_embeddings.weight.shape, body.positions, len(body.encoder.layer)]
        return [["bert", *shapes, body.encoder.layer[0].attention.self.heads, body.embeddings.dropout.p]]
    if hasattr(module, "rnn"):
        return [["one_hot", module.rnn.input_size], *layers_of(module.rnn), *layers_of(module.output)]
    if isinstance(module, nn.RNN | nn.GRU | nn.LSTM) and module.num_layers == 1 and not module.bidirectional:
        return [[module.mode.lower().removesuffix("_tanh"), module.hidden_size]]
    if isinstance(module, nn.Conv2d):
        (kernel, _), (stride, _), (padding, _) = module.kernel_size, module.stride, module.padding
        return [["conv", module.out_channels, kernel, stride, padding, module.bias is not None]]
    if isinstance(module, nn.Linear):
        return [["linear", module.out_features]]
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return [["batch_norm"]]
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        kind = "max_pool" if isinstance(module, nn.MaxPool2d) else "avg_pool"
        return [[kind, module.kernel_size, module.stride, module.padding]]
    if isinstance(module, nn.Dropout):
        return [["dropout", module.p]]
    for kind, word in ((nn.ReLU, "relu"), (nn.Sigmoid, "sigmoid"), (nn.Flatten, "flatten")):
        if isinstance(module, kind):
            return [[word]]
    raise TypeError(f"peers: expected layers that peers have a word for, got {type(module).__name__}")


class Peer:
    """One step of a peer, timed in its own process; called as the other contestants are, it takes a step.

    Args:
        name: ``"jax"``, ``"tensorflow"`` or ``"mkl"``.
        model: the model that it shall equal, of torch's classes or ours.
        task: what its process is told: ``model``, ``learning_rate`` and ``input``; or, of a language model,
            ``tokens`` (steps, batch), ``characters`` and ``units``; or, of GPT, ``rows`` and ``dropout``; of BERT,
            ``masked`` too.

    Raises:
        RuntimeError: the process ended, with what it said, or has another count of parameters.
    """

    def __init__(self, name, model, task):
        self.name = name
        environment = dict(os.environ)
        if name == "mkl":
            environment["LD_PRELOAD"] = " ".join(filter(None, [intel_cpu(), os.environ.get("LD_PRELOAD")]))
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, HERE / f"peer_{'torch' if name == 'mkl' else name}.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        parameters = self._ask(json.dumps({**task, "layers": layers_of(model)}))
        expected = sum(p.numel() for p in model.parameters())
        if parameters != expected:
            self.close()
            raise RuntimeError(f"peers: expected {name} to have {expected} parameters, got {parameters:g}")

    def _ask(self, line):
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"peers: expected {self.name} to answer, got: {self._errors.read()[-2000:]}")
        return float(answer)

    def seconds(self, calls):
        """Of one step, the mean of ``calls`` of them."""
        return self._ask(str(calls)) / calls

    def __call__(self, *inputs):
        return self._ask("1")

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()


TURN = 0.05  # seconds that a contestant should have in each round, where others run in processes of their own


def settle():
    """Waits until the threads of who had the last turn sleep: they spin for some milliseconds, on the same cores."""
    time.sleep(0.02)


def serve(make):
    """The loop of a peer's process: ``make(task)`` gives a count of parameters and a function that takes n steps.

    That function returns their seconds. Standard output is the answers' alone.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    parameters, steps = make(json.loads(sys.stdin.readline()))
    steps(1)  # compiles
    print(parameters, file=answers, flush=True)
    for line in sys.stdin:
        print(repr(steps(int(line))), file=answers, flush=True)


@functools.cache
def intel_cpu():
    """A library that tells MKL it runs on an Intel CPU: then it takes its best path, AVX-512 where there is any.

    Its path; None where it is of no use (other processors, other libraries) or cannot be made.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64" or not torch.backends.mkl.is_available():
        return None
    if "GenuineIntel" in Path("/proc/cpuinfo").read_text():
        return None  # what MKL finds by itself
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    folder = tempfile.mkdtemp(prefix="pydl-peers-")
    source, library = Path(folder, "intel.c"), Path(folder, "intel.so")
    source.write_text("int mkl_serv_intel_cpu_true(void) { return 1; }\n")
    done = subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=False, capture_output=True)
    return str(library) if done.returncode == 0 else None


@functools.cache
def present():
    """The peers that can take part here."""
    found = ["mkl"] if intel_cpu() else []
    return found + [name for name, module in LIBRARIES.items() if importlib.util.find_spec(module)]


def absent():
    """In words, those that are left out for want of a library; an empty text if none is."""
    missing = [name for name in LIBRARIES if name not in present()]
    return f'left out, not installed: {", ".join(missing)} (pip install "pydl-kernels[peers]")' if missing else ""
