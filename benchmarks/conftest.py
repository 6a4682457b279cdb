"""`pytest benchmarks`: the machine's ceilings, the comparison of a case, and what is shown and kept at the end.

Two processes: this one times everything as it comes; at its end it runs the same cases again in a child whose memory
allocator keeps freed pages (machine.NO_PAGE_FAULTS), so that no figure owes its size to the allocator alone.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import against
import machine
import peers
import probes
import pytest
import report
import runner
import torch

# Kept in the source tree alone: an installed package is no place for results.
RESULTS = machine.TREE and machine.TREE / "benchmarks" / "results"


def pytest_addoption(parser):
    group = parser.getgroup("pydl benchmarks")
    group.addoption("--quick", action="store_true", help="a few cases of each op, in short")
    group.addoption("--results", metavar="FILE", help="keep this run's figures as JSON")
    group.addoption("--against", metavar="FILE", help="compare with a run that --results kept")
    group.addoption(
        "--no-page-faults-child", metavar="FILE", help="(the run's own: writes the child's figures to FILE)"
    )


class Session:
    """What one run collects."""

    def __init__(self, config):
        self.config = config
        self.quick = config.getoption("--quick")
        self.child = config.getoption("--no-page-faults-child")
        self.cache = machine.last_level_cache()
        self.records, self.problems, self.complete = [], [], set()
        self.total, self.start = 0, time.time()
        self._probes = self._ceilings = None

    @property
    def probes(self):
        """The loops that tell what the machine allows; measured at the first use, in this very run."""
        if self._probes is None:
            self._probes = probes.Probes()
            self._ceilings = probes.measure(self._probes)
            self.say(
                "this machine: copy {copy:.1f} GB/s, read {read:.1f} GB/s, multiply-add {fma:.0f} GFLOP/s".format(
                    **self._ceilings
                )
                + report.distance(self._ceilings["round_trip"])
            )
            if peers.absent():
                self.say(peers.absent())
        return self._probes

    @property
    def ceilings(self):
        return self.probes and self._ceilings

    def say(self, line):
        """A line of progress, past pytest's capture."""
        capture = self.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            print(f"\n{line}", end="", flush=True)


def pytest_configure(config):
    config.option.benchmark_quiet = True  # our table says more than the plugin's
    config.stash[_SESSION] = Session(config)
    path = config.getoption("--results")
    if path:
        try:
            with open(path, "a"):
                pass
        except OSError as error:
            raise pytest.UsageError(
                f"bench: expected --results to be a file that can be written, got {error}"
            ) from None


_SESSION = pytest.StashKey[Session]()


def pytest_collection_modifyitems(config, items):
    session = config.stash[_SESSION]
    if session.quick:
        left_out = [item for item in items if not _case(item).quick]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if _case(item).quick]


def pytest_collection_finish(session):
    state = session.config.stash[_SESSION]
    state.total = len(session.items)
    if not state.quick:
        chosen = {}
        for item in session.items:
            chosen.setdefault(item.module, set()).add(_case(item).id)
        state.complete = {m.CASES[0].op for m, ids in chosen.items() if ids == {c.id for c in m.CASES}}


def _case(item):
    return item.callspec.params["case"]


@pytest.fixture
def compare(request, benchmark):
    """compare(case): checks, then times; pytest-benchmark keeps pydl's seconds, we keep everybody's."""
    session = request.config.stash[_SESSION]

    def run(case):
        ceilings = session.ceilings  # before the inputs take memory
        torch.manual_seed(0)
        inputs = case.inputs()
        if not session.child:
            runner.check(case, inputs)
        in_memory = case.read + case.written > session.cache and not case.network
        seconds, rates = measure(
            case, inputs, benchmark, 0.3 if session.quick else case.seconds, session.probes, in_memory
        )
        round_trip = rates.pop("round_trip", None)
        ceilings = {**ceilings, **rates}
        record = {"op": case.op, "case": case.id, **runner.figures(case, seconds, ceilings, session.cache)}
        record |= {f"{name}_gbps": rate for name, rate in rates.items()}
        record["round_trip_ns"] = round_trip
        record["target"] = case.target
        if case.network:
            record["network"] = case.network
        session.records.append(record)
        benchmark.extra_info.update(record)
        session.say(report.line(record, len(session.records), session.total, session.child))

    return run


def measure(case, inputs, benchmark, budget, probes, in_memory):
    """Median seconds by contestant, each timed once per round; pydl's by pytest-benchmark, its peers between.

    Also, taken in the same rounds, how far the cores were from each other, and the rates of memory for cases that go
    beyond the caches (``in_memory``).
    """
    functions = runner.contestants(case)
    try:
        return measured(functions, inputs, benchmark, budget, probes, in_memory)
    finally:
        for function in functions.values():
            if isinstance(function, peers.Peer):
                function.close()


def measured(functions, inputs, benchmark, budget, probes, in_memory):
    for function in functions.values():
        function(*inputs)  # compiles, and fills caches
    once = sum(runner.time_once(function, inputs, 1) for function in functions.values())
    apart = any(isinstance(function, peers.Peer) for function in functions.values())
    calls, rounds = runner.plan(once, budget, peers.TURN * len(functions) if apart else 0.0)
    ours, theirs = functions["pydl"], {name: f for name, f in functions.items() if name != "pydl"}
    seconds = {name: [] for name in functions}
    rates = {"round_trip": [], **({"copy": [], "read": []} if in_memory else {})}

    def others():
        for name, values in rates.items():
            values.append(getattr(probes, name)())
        for name, function in theirs.items():
            seconds[name].append(turn(function))

    def turn(function):
        if apart:
            peers.settle()
            function(*inputs)  # into the caches, which another process had
        return runner.time_once(function, inputs, calls)

    def pydl():
        seconds["pydl"].append(turn(ours))

    benchmark.pedantic(pydl, setup=others, rounds=rounds)
    rates = {name: [value for value in values if value is not None] for name, values in rates.items()}
    return tuple(
        {name: statistics.median(values) for name, values in found.items() if values} for found in (seconds, rates)
    )


def pytest_sessionfinish(session, exitstatus):
    state = session.config.stash[_SESSION]
    if state.child:
        Path(state.child).write_text(json.dumps(state.records))
        return
    if not state.records:
        return
    if sys.platform == "linux":
        state.problems += run_without_page_faults(session.config, state)
    kept = {"machine": machine.describe(), "ceilings": state.ceilings, "records": state.records}
    path = session.config.getoption("--results")
    if path:
        state.problems += write(path, kept)
    if RESULTS and state.complete and not state.problems and exitstatus == 0:
        state.problems += keep(kept, state.complete)
    if state.problems and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def run_without_page_faults(config, state):
    """Runs the same cases in a child and adds its figures to the records; returns problems in words."""
    state.say("\nthe same without page faults:")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "child.json")
        arguments = [str(a) for a in config.invocation_params.args if not str(a).startswith("--results=")]
        if "--results" in arguments:  # the file is a word of its own
            at = arguments.index("--results")
            del arguments[at : at + 2]
        command = [sys.executable, "-m", "pytest", *arguments, f"--no-page-faults-child={path}"]
        quiet = ["-p", "no:cacheprovider", "--no-header", "--no-summary", "-q"]
        environment = {**os.environ, **machine.NO_PAGE_FAULTS}
        capture = config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            status = subprocess.run(
                [*command, *quiet], cwd=config.invocation_params.dir, env=environment, check=False
            ).returncode
        if not path.exists():
            return [f"the run without page faults ended with exit code {status} and no figures"]
        found = {(r["op"], r["case"]): r for r in json.loads(path.read_text())}
    for record in state.records:
        record["no_page_faults"] = found.get((record["op"], record["case"]))
    return [] if status == 0 else [f"the run without page faults ended with exit code {status}"]


def text_of(kept):
    """JSON in which each record is one line, so that a run which measures a few again is a short diff."""
    records = []

    def shorten(value):
        if isinstance(value, dict) and "case" in value:
            records.append(json.dumps(value))
            return f"record {len(records) - 1}"
        if isinstance(value, dict):
            return {name: shorten(v) for name, v in value.items()}
        return [shorten(v) for v in value] if isinstance(value, list) else value

    text = json.dumps(shorten(kept), indent=1)
    return re.sub(r'"record (\d+)"', lambda found: records[int(found[1])], text) + "\n"


def write(path, kept):
    try:
        with open(path, "w") as file:
            file.write(text_of(kept))
    except OSError as error:
        return [f"bench: expected the results to be written to {path}, got {error}"]
    return []


def keep(kept, complete):
    """Replaces these ops' figures in the machine's file; the other ops keep theirs, each with its own date."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{machine.name()}.json"
    ops = json.loads(path.read_text()) if path.exists() else {}
    for op in sorted(complete):
        records = [r for r in kept["records"] if r["op"] == op]
        ops[op] = {"machine": kept["machine"], "ceilings": kept["ceilings"], "records": records}
    return write(path, ops)


def pytest_terminal_summary(terminalreporter, config):
    state = config.stash[_SESSION]
    if state.child or not state.records:
        return
    report.show(state.records, state.ceilings)
    if config.getoption("--against"):
        against.show(state.records, machine.describe(), config.getoption("--against"))
    for problem in state.problems:
        terminalreporter.write_line(problem, red=True)
    terminalreporter.write_line(f"{len(state.records)} cases in {time.time() - state.start:.0f} s")
