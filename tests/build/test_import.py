"""What ``import pydl`` costs, and that it changes nothing but itself."""

import json
import os
import subprocess
import sys

import pytest

from pydl import backend
from pydl.errors import OptionError

CODE = """
import gc, json, os, sys, time, warnings
begin = time.process_time()
import torch
torch_seconds = time.process_time() - begin
sys.pycache_prefix, sys.dont_write_bytecode = sys.argv[1], False  # compiled once, as an installed package is
before, filters, path, environment = set(sys.modules), list(warnings.filters), list(sys.path), dict(os.environ)


def state():
    from torch.nn import functional, modules
    names = {f"{m.__name__}.{k}": id(v) for m in (torch, functional, modules, torch.Tensor) for k, v in vars(m).items()}
    names |= {"random": torch.get_rng_state().sum().item(), "threads": torch.get_num_threads()}
    names |= {"dtype": str(torch.get_default_dtype()), "grad": torch.is_grad_enabled()}
    hooks = vars(modules.module)
    names |= {k: len(v) for k, v in hooks.items() if k.startswith("_global_") and hasattr(v, "__len__")}
    names.pop("torch.__warningregistry__", None)
    return names


then, start = state(), time.process_time()
import pydl
seconds = time.process_time() - start
now = state()
print(json.dumps({
    "share": seconds / torch_seconds,
    "modules": sorted(set(sys.modules) - before),
    "changed": sorted(k for k in then if then[k] != now.get(k)),
    "around": [filters == warnings.filters, path == sys.path, environment == dict(os.environ), gc.isenabled()],
}))
"""


def imported(cache):
    found = subprocess.run([sys.executable, "-c", CODE, str(cache)], capture_output=True, text=True, check=True)
    assert found.stderr == ""
    return json.loads(found.stdout)


def test_import_takes_no_heavy_module_and_changes_nothing(tmp_path):
    found = imported(tmp_path)
    # what torch itself has imported is no matter of ours: these take from a tenth of a second to two seconds
    heavy = {"torch._dynamo", "torch._inductor", "torch._functorch.aot_autograd", "torch.onnx", "torch.testing"}
    heavy |= {"torch.profiler", "torch.distributed", "torch.utils.tensorboard", "torch._export", "torch.export"}
    heavy |= {"sympy", "numpy", "rich", "typer", "click", "matplotlib", "PIL", "sklearn", "triton", "pytest"}
    assert not [name for name in found["modules"] if name in heavy or name.split(".")[0] in heavy]
    assert found["changed"] == []
    assert found["around"] == [True, True, True, True]


FORMULAS = """
import sys
sys.path.insert(0, sys.argv[1])  # where a Triton lies
import importlib.util
import torch, pydl
assert "triton" not in sys.modules
sys.path.pop(0)
importlib.util.find_spec("torch.utils.flop_counter")  # who only asks where it is imports nothing
finders = len(sys.meta_path)
from torch.utils.flop_counter import FlopCounterMode
assert len(sys.meta_path) == finders - 1
with FlopCounterMode(display=False) as counter:
    pydl.functional.linear(torch.randn(2, 3), torch.randn(4, 3))
print(counter.get_total_flops())
"""


def test_formulas_of_flops_wait_for_the_counter(tmp_path):
    """torch's counter imports Triton, where there is one; pydl does not, and its formulas are there all the same."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("")
    done = subprocess.run([sys.executable, "-c", FORMULAS, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["48"], done.stderr
    late = FORMULAS.replace("import torch, pydl", "import torch, torch.utils.flop_counter, pydl")
    late = late.replace("assert", "None #").replace("sys.argv[1]", "'nowhere'")  # imported before: registered at once
    done = subprocess.run([sys.executable, "-c", late, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["48"], done.stderr


def test_import_is_quick(tmp_path):
    """At most 0.2 s where torch takes 1.0: of the processor's time, so that a busy machine moves both alike."""
    assert min(imported(tmp_path)["share"] for _ in range(3)) < 0.2


@pytest.mark.parametrize(
    "variable, value, message",
    [
        ("PYDL_BACKEND", "gpu", "PYDL_BACKEND=gpu: backend: expected the name to be one of torch, cpu, cuda, triton"),
        ("PYDL_CPU_ISA", "avx1024", "PYDL_CPU_ISA=avx1024: isa: expected the instruction set to be one of baseline"),
    ],
)
def test_a_variable_that_cannot_be_taken_is_named(monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(OptionError, match=message):
        backend._read_environment()


def test_the_variables_choose(monkeypatch):
    with backend.use(None), backend.isa(backend.current_isa()):
        monkeypatch.setenv("PYDL_BACKEND", "torch")
        monkeypatch.setenv("PYDL_CPU_ISA", "baseline")
        backend._read_environment()
        assert (backend.current("cpu"), backend.current_isa()) == ("torch", "baseline")


def test_the_command_says_it_in_a_sentence():
    environment = {**os.environ, "PYDL_BACKEND": "gpu"}
    words = [sys.executable, "-m", "pydl", "info"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pydl: PYDL_BACKEND=gpu: backend: expected the name to be one of ")
    assert done.stderr.count("\n") == 1
