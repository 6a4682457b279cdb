"""Compiles the Triton kernels ahead of time, on a machine without a GPU: every configuration for five architectures,
and each kernel once for five more, which are like one of those.

A test fails on a compile error, on registers spilled to memory, on more shared memory than the architecture has, and
where a kernel's instructions are not those of benchmarks/results/triton-cost.json.

Run as ``pytest -m triton_compile`` (minutes), in a process without TRITON_INTERPRET; ``-k sm_90`` for one architecture.
``PYDL_RENEW=1 pytest -m triton_compile -k instructions`` writes that file anew where a change is meant.
"""

import json
import os
from pathlib import Path

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("nothing is compiled under TRITON_INTERPRET=1", allow_module_level=True)
triton = pytest.importorskip("triton", minversion="3.6", reason="Triton is not installed")

from triton_compile.cases import ALL_TARGETS, CASES, CONSUMER, ONE_OF_EACH, TARGETS
from triton_compile.compiler import Compiler

pytestmark = pytest.mark.triton_compile

SHEET = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "triton-cost.json"
PRICED = "sm_90"
PAIRS = [(architecture, name) for architecture in TARGETS for name in CASES]
PAIRS += [(architecture, name) for architecture in CONSUMER for name in ONE_OF_EACH]

# On AMD a scalar register that does not fit goes to one of the 64 lanes of a vector register, by one instruction, and
# never to memory as long as vector registers are left (which the counts of those show). One vector register's worth.
SCALAR_SPILLS = 64


@pytest.fixture(scope="module")
def compiler(request, tmp_path_factory):
    """The kernels of all the tests that were selected, being compiled."""
    compiler = Compiler()
    with pytest.MonkeyPatch.context() as monkeypatch:
        for item in request.session.items:
            if item.function in (test_compiles, test_instructions_are_those_of_the_sheet):
                parameters = item.callspec.params
                compiler.collect(parameters["name"], parameters.get("architecture", PRICED), monkeypatch)
    compiler.start(tmp_path_factory.mktemp("triton"))
    yield compiler
    compiler.pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("architecture,name", PAIRS)
def test_compiles(architecture, name, compiler):
    most = ALL_TARGETS[architecture][1].shared_bytes
    reports = compiler.reports(name, architecture)
    assert reports, "no kernel was compiled"
    wrong = []
    for report in reports:  # pytest -s shows the table
        print(report)
        if report["error"] is not None:
            wrong.append(f"{report['name']}: {report['error']}")
            continue
        if report["shared"] > most:
            wrong.append(f"{report['name']}: {report['shared']} bytes of shared memory, {architecture} has {most}")
        if report["spilled"]:
            wrong.append(f"{report['name']} spills to memory: {report}")
        if report["scalar"] > SCALAR_SPILLS:
            wrong.append(f"{report['name']} spills {report['scalar']} scalar registers")
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def sheet():
    """What the kernels of each case are, by the file; written anew at the end where that is asked for."""
    stored = json.loads(SHEET.read_text()) if SHEET.is_file() else {}
    if os.environ.get("PYDL_RENEW") != "1":
        if stored["triton"] != triton.__version__:
            pytest.skip(f"the sheet is of Triton {stored['triton']}, this is {triton.__version__}")
        yield stored["cases"]
        return
    cases = stored.get("cases", {})
    yield cases
    what = "the Triton kernels' PTX, instructions as written (loops once), and ptxas' registers; nothing was measured"
    lines = (
        f"  {json.dumps(name)}: [\n   " + ",\n   ".join(map(json.dumps, each)) + "\n  ]" for name, each in cases.items()
    )
    head = f' "what": {json.dumps(what)},\n "triton": "{triton.__version__}",\n "architecture": "{PRICED}",\n'
    SHEET.write_text("{\n" + head + ' "cases": {\n' + ",\n".join(lines) + "\n }\n}\n")


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_instructions_are_those_of_the_sheet(name, compiler, sheet):
    """A change of what a kernel compiles to shows in review."""
    wanted = ("name", "programs", "warps", "registers", "shared", "instructions")
    found = [{key: launch[key] for key in wanted} for launch in compiler.launched(name, PRICED)]
    if os.environ.get("PYDL_RENEW") == "1":
        sheet[name] = found
    assert found == sheet[name]
