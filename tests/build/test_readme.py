"""README as a newcomer reads it: every command and snippet is run, or said to be run elsewhere.

A command or a snippet that is new in README fails here until it stands in one of the tables below.
"""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import command_line  # noqa: F401  (fixtures)
from typer.main import get_command

import pydl
from pydl import models

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
pytestmark = pytest.mark.skipif(not README.is_file(), reason="no source tree around the tests")

TEXT = README.read_text() if README.is_file() else ""
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
SPANS = set(re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)))
SPANS = {" ".join(span.split()) for span in SPANS}

# What .ci/run does in new environments: the two commands, and pip with the extras that they hold.
TESTS = 'pip install ".[test]" && pytest -n 2 --dist loadfile'
BY_CI = {'pip install ".[train]" && pydl train lenet', TESTS, "pip install ."}
PIP = {
    'pip install ".[tensorboard]"',
    'pip install ".[scenes]"',
    'pip install ".[bench]"',
    "pip install",
    "pip install --no-cache-dir",
}
# README's commands as they are run here: short, and with names for what it leaves open.
COMMANDS = {
    "pydl train MODEL": "train mlp --max-steps 1 --out run",
    "pydl predict RUN IMAGE...": "predict run digit.png",
    "pydl train -h": "train -h",
    "pydl info": "info",
    "pydl bench": "bench -h",  # the suite itself: tests/build/test_bench.py
}
# In the clone alone, since the files are the clone's.
IN_THE_CLONE = {
    "pytest benchmarks -k language": ["-m", "pytest", "benchmarks", "-k", "language", "--collect-only", "-q"],
    "pytest benchmarks -k models": ["-m", "pytest", "benchmarks", "-k", "models", "--collect-only", "-q"],
    "python benchmarks/models.py": ["benchmarks/models.py", "-h"],
}
ELSEWHERE = {
    "torchrun --nproc-per-node=2 -m pydl train resnet18": "tests/training/test_train_processes.py",
    "pydl generate RUN PREFIX": "tests/training/test_language.py",
    "pydl translate RUN SENTENCE": "tests/training/test_translation.py",
    "pydl neighbours RUN WORD": "tests/training/test_vectors.py",
    "pydl predict RUN SENTENCE...": "tests/training/test_bert.py",
    "pydl sample RUN": "tests/training/test_gan.py",
    "pydl finetune": "tests/training/test_finetune.py",
    "pydl judge RUN PROMPT TEXT...": "tests/rlhf/test_rlhf_training.py",
    "pydl train gpt": "tests/training/test_gpt.py",
    "pydl train reward --from RUN": "tests/rlhf/test_rlhf_training.py",
    "pydl train ppo --from RUN --reward RUN": "tests/rlhf/test_rlhf_training.py",
    "benchmarks/gpu.sh": "needs a GPU",
    "pytest benchmarks": "takes an hour; tests/build/test_bench.py runs a case",
}


def test_every_command_is_run():
    blocks = {" ".join(text.split()) for language, text in BLOCKS if not language and not text.startswith(">>>")}
    assert blocks == BY_CI - {"pip install ."}
    spans = {span for span in SPANS if re.match(r"(pydl|pip|pytest|python|torchrun|\S+\.sh)( |$)", span)} - {"pydl"}
    assert spans == (set(COMMANDS) | set(IN_THE_CLONE) | set(ELSEWHERE) | PIP | BY_CI) - blocks


@pytest.mark.parametrize("place", ["clone", "outside"])
def test_snippets(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT if place == "clone" else tmp_path)
    (snippet,) = (text for language, text in BLOCKS if language == "python")
    exec(compile(snippet, "README.md", "exec"), {"__name__": "readme"})
    assert re.search(r"pydl serves \d+ of 12 layers", capsys.readouterr().out)


def test_the_report_shown_is_the_report():
    """Which kernel serves which layer, word for word; times and the instruction set are the machine's."""
    (shown,) = (text for _, text in BLOCKS if text.startswith(">>> pydl.report"))
    call, *shown = shown.splitlines()
    names = {"pydl": pydl, "models": models, "torch": torch}
    (assignment,) = (span for span in SPANS if span.startswith("net = "))
    exec(assignment, names)
    now = str(eval(call.removeprefix(">>> "), names)).splitlines()

    def cells(lines):
        return [
            re.split(r"  +", line.replace("avx512", pydl.backend.current_isa())) for line in lines if line[:1].isdigit()
        ]

    assert cells(now) == cells(shown)
    timed = re.compile(
        r"forward and backward: [\d.]+ µ?m?s, [\d.]+ µ?m?s by torch \([\d.]+×\); pydl's kernels take \d+ % of"
    )
    assert timed.match(shown[-2])
    assert timed.match(now[-2])
    assert now[-1] == shown[-1]


def test_commands_outside(pydl, tmp_path):
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "digit.png")
    for name, words in COMMANDS.items():
        code, out, err = pydl(*words.split())
        assert (code, err) == (0, ""), name
        assert out, name


@pytest.mark.parametrize("name", IN_THE_CLONE)
def test_commands_in_the_clone(name):
    pytest.importorskip("pytest_benchmark")
    done = subprocess.run([sys.executable, *IN_THE_CLONE[name]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_option_named_exists():
    from pydl.commands import app

    known = {option for command in get_command(app).commands.values() for p in command.params for option in p.opts}
    named = {option for span in SPANS for option in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", span)}
    assert len(named) > 20
    assert named - known == {"--nproc-per-node", "--no-cache-dir"}  # torchrun's and pip's


def test_every_python_name_exists():
    names = {name for span in SPANS for name in re.findall(r"\b(?:pydl|torch)(?:\.[A-Za-z_]\w*)+", span)}
    assert {"pydl.freeze", "pydl.backend.use", "pydl.nn", "torch.func"} <= names
    for name in names:
        package, *attributes = name.split(".")
        thing = importlib.import_module(package)
        for attribute in attributes:
            if not hasattr(thing, attribute):
                importlib.import_module(f"{thing.__name__}.{attribute}")
            thing = getattr(thing, attribute)


def test_every_file_named_exists():
    files = {span for span in SPANS if re.fullmatch(r"[\w./*-]+/|[\w./*-]+\.(py|md|sh)", span)}
    assert {"examples/", "benchmarks/gpu.sh", "NOTES.md"} <= files
    for name in files:
        assert any(ROOT.rglob(name)), name
