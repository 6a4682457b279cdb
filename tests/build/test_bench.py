"""The benchmark suite's own behaviour: what it refuses, what it keeps, what it makes of the figures."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from pydl import bench
from pydl.errors import DataError, MissingExtra, OptionError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no source tree around the tests")


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(FOLDER))  # as pytest does for the suite: its modules import each other
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


RECORD = {
    "op": "dropout",
    "case": "4 M f32",
    "pydl_us": 2000.0,
    "eager_us": 40000.0,
    "compile_us": 30000.0,
    "ratio": 15.0,
    "gbps": 33.5,
    "share": 0.5,
    "target": (15, 10),
    "no_page_faults": {"pydl_us": 1600.0, "eager_us": 24000.0, "ratio": 9.0, "gbps": 40.0},
}
KEPT = {
    "machine": {"processor": "P", "threads": 2, "isa": "avx2", "torch": "2", "commit": "c", "date": "2026-01-02"},
    "ceilings": {"copy": 60.0, "read": 40.0, "fma": 500.0},
    "records": [RECORD],
}


def test_the_way_from_core_to_core():
    report = load("report")
    found, threads = load("conftest").probes.Probes(megabytes=1), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert found.round_trip() is None  # nobody answers
        torch.set_num_threads(2)
        trips = [found.round_trip(rounds=100) for _ in range(20)]  # None where the machine let one thread wait too long
        assert any(trip is not None and trip > 0 for trip in trips)
    finally:
        torch.set_num_threads(threads)
    assert report.distance(81.4) == ", 81 ns from core to core and back"
    assert report.distance(None) == ""
    records = [{**RECORD, "round_trip_ns": trip} for trip in (80.0, None, 380.0, 90.0)]
    assert report.distances(records) == ", 90 ns from core to core and back (80 to 380 over the cases)"
    assert report.distances([RECORD]) == ""


def test_figures_from_seconds():
    runner = load("runner")
    case = runner.Case("op", "name", None, None, None, None, read=3 * 10**9, written=10**9, operations=10**9)
    ceilings = {"copy": 20.0, "read": 10.0, "fma": 100.0}
    figures = runner.figures(case, {"pydl": 0.5, "eager": 2.0, "compile": 1.0}, ceilings, cache=1 << 20)
    assert figures["ratio"] == 2.0
    assert figures["gbps"] == 8.0
    # 1 GB copied at 20 GB/s of traffic, 2 GB more read at 10 GB/s: 0.3 s of 0.5
    assert figures["share"] == pytest.approx(0.6)
    in_cache = runner.figures(case, {"pydl": 0.5, "eager": 2.0}, ceilings, cache=1 << 40)
    assert in_cache["share"] == pytest.approx(0.02)  # arithmetic alone limits


def test_a_wrong_result_is_not_timed():
    import torch

    runner = load("runner")
    case = runner.Case(
        "op",
        "name",
        None,
        ours=lambda x: x * 1.001,
        torch=lambda x: x * 1.0,
        timed=runner.forward_backward,
    )
    with pytest.raises(AssertionError, match="name f32: result 0 differs from torch in float64"):
        runner.check(case, [torch.randn(10, requires_grad=True), torch.ones(10)])


def test_peers_have_columns_where_they_took_part():
    report = load("report")
    with_peers = {**RECORD, "case": "lenet", "jax_us": 5e4, "tensorflow_us": 6e4}
    table = report.markdown({"models": {**KEPT, "records": [RECORD, with_peers]}})
    assert "| case | pydl | torch eager | torch.compile | JAX | TensorFlow | ratio to the fastest |" in table
    assert "| 4 M f32 | 2 ms | 40 ms | 30 ms | – | – | 15.00× |" in table
    assert "| lenet | 2 ms | 40 ms | 30 ms | 50 ms | 60 ms | 15.00× |" in table
    assert "JAX" not in report.markdown({"dropout": KEPT})


def test_markdown_and_readme(tmp_path):
    report = load("report")
    table = report.markdown({"dropout": KEPT})
    assert "| 4 M f32 | 2 ms | 40 ms | 30 ms | 15.00× | 9.00× | 62 % |" in table
    assert "2026-01-02" in table
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.insert(readme, table)
    report.insert(readme, table)  # a second time replaces
    assert readme.read_text().count("4 M f32") == 1
    assert "old" not in readme.read_text()
    readme.write_text("no markers")
    with pytest.raises(SystemExit, match=r"report: expected .* to hold the lines"):
        report.insert(readme, table)


def test_targets_are_judged():
    assert load("report").verdict(RECORD) == "15× met / 10× missed"


def test_networks_are_reported_by_geometric_mean_and_worst_case():
    report = load("report")

    def record(what, ratio, calm, last):
        network = {"name": "LeNet", "pass": what, "channels_last": last}
        case = {"op": "conv2d", "case": f"LeNet: 5×5, {what} f32", "ratio": ratio, "network": network}
        return {**case, "no_page_faults": {"ratio": calm}}

    records = [record("forward", 2.0, 1.0, False), record("forward", 8.0, 4.0, False), record("input", 4, 0.5, True)]
    groups, others = report.by_network([*records, RECORD])
    assert others == [RECORD]
    row, everything = report.network_rows(groups)
    assert row == (
        "LeNet f32",
        "3",
        "2.00×",
        "–",
        "–",
        "–",
        "0.50×",
        "–",
        "4.00×",
        "1.26×",
        "0.50×",
        "LeNet: 5×5, input",
    )
    assert everything == ("all networks f32", *row[1:])
    table = report.markdown({"conv2d": {**KEPT, "records": [*records, RECORD]}})
    assert "| LeNet f32 | 3 | 2.00× |" in table
    assert table.count("4 M f32") == 1


def test_layers_of_networks():
    networks = load("networks")
    found = networks.networks()
    assert found["LeNet"] == (256, [(1, 28, 6, 5, 1, 2, 1), (6, 14, 16, 5, 1, 0, 1)])
    counts = {name: len(layers) for name, (_, layers) in found.items()}
    # torchvision's: ResNet-50 has 53 convolutions and MobileNet-V2 52, of which so many differ
    assert counts["ResNet-50"] == 23
    assert counts["MobileNet-V2"] == 30
    assert all(len(set(layers)) == len(layers) for _, layers in found.values())
    assert found["MobileNet-V2"][1][-1] == (320, 7, 1280, 1, 1, 0, 1)
    assert networks.name(found["ResNet-50"][1][0]) == "7×7 3→64@224, stride 2"
    assert networks.name(found["MobileNet-V2"][1][1]) == "depthwise 3×3 32@112"


def test_picture(tmp_path):
    pytest.importorskip("matplotlib")
    load("report").picture({"dropout": KEPT}, tmp_path / "ratios.png")
    assert (tmp_path / "ratios.png").stat().st_size > 1000


def test_unknown_op_names_those_there_are():
    pytest.importorskip("pytest_benchmark")
    with pytest.raises(
        OptionError, match=r"bench: expected the op to be one of .*dropout.*, got 'drpout'; did you mean"
    ):
        bench.command(ops=["drpout"])


def test_without_pytest_benchmark_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'bench needs pytest-benchmark, .* pip install "pydl-kernels\[bench\]"'):
        bench.command()


@pytest.mark.parametrize("text", [None, "", "[]", "no figures"])
def test_a_file_that_is_no_earlier_run_is_refused_before_anything_is_timed(tmp_path, text):
    pytest.importorskip("pytest_benchmark")
    if text is not None:
        (tmp_path / "old.json").write_text(text)
    with pytest.raises(DataError, match=r"bench: expected --against to be a file of --json, got .*old.json"):
        bench.command(against=tmp_path / "old.json")


TINY = """
import pytest
import torch

from pydl.functional import dropout
from runner import Case, forward_backward

CASES = [
    Case("tiny", "100", lambda: [torch.randn(100, requires_grad=True), torch.ones(100)], lambda x: dropout(x, 0.0),
         lambda x: torch.nn.functional.dropout(x, 0.0), forward_backward, compile=False, quick=True, seconds=0.1)
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def bench_tiny(compare, case):
    compare(case)
"""


def test_runs_from_an_installed_copy_in_any_folder(tmp_path, monkeypatch, capfd):
    """The files as `pip install` lays them, without the source tree; with a run of before beside it."""
    pytest.importorskip("pytest_benchmark")
    installed = tmp_path / "site-packages" / "benchmarks"
    shutil.copytree(FOLDER, installed, ignore=shutil.ignore_patterns("results", "__pycache__"))
    (installed / "bench_tiny.py").write_text(TINY)
    monkeypatch.setattr(bench, "FOLDER", installed)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    kept, old = tmp_path / "kept.json", tmp_path / "old.json"
    old.write_text(json.dumps({**KEPT, "records": [{**RECORD, "op": "tiny", "case": "100 f32"}]}))
    assert bench.command(ops=["tiny"], quick=True, json=kept, against=old) == 0
    shown = capfd.readouterr().out
    assert "before / now" in shown
    assert "1 cases, geometric mean" in shown
    assert "not the same: processor: P before" in shown
    assert json.loads(kept.read_text())["machine"]["commit"] is None  # of no tree
    assert not (installed / "results").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_comparison_of_two_runs(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    against = load("against")
    slower = {**RECORD, "no_page_faults": {**RECORD["no_page_faults"], "pydl_us": 3200.0}}
    before = {("dropout", "4 M f32"): RECORD}
    (cells,), (ratio,) = against.rows([slower, {**RECORD, "case": "new"}], before)
    assert (ratio, cells) == (0.5, ("dropout 4 M f32", "1.6 ms", "3.2 ms", "0.50×", "slower"))
    assert against.rows([RECORD], before)[0][0][-1] == ""
    assert against.differences({**KEPT["machine"], "isa": "avx512"}, KEPT["machine"]) == [
        "isa: avx2 before, avx512 now"
    ]


@pytest.mark.parametrize("whole", [True, False], ids=["of --json", "of a machine"])
def test_comparison_reads_both_kinds_of_file(tmp_path, monkeypatch, whole):
    monkeypatch.syspath_prepend(str(FOLDER))
    (tmp_path / "old.json").write_text(json.dumps(KEPT if whole else {"dropout": KEPT}))
    records, machine = load("against").load(tmp_path / "old.json")
    assert list(records) == [("dropout", "4 M f32")]
    assert machine == KEPT["machine"]


def test_results_file_that_cannot_be_written(tmp_path, capfd):
    pytest.importorskip("pytest_benchmark")
    status = bench.command(ops=["dropout"], quick=True, json=tmp_path / "missing" / "run.json")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "bench: expected --results to be a file that can be written" in capfd.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_full_disk(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    conftest = load("conftest")
    (problem,) = conftest.write("/dev/full", {"records": [RECORD] * 10000})
    assert problem.startswith("bench: expected the results to be written to /dev/full, got")
    assert "No space left" in problem


def test_keeping_replaces_only_the_ops_that_ran_whole(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    conftest = load("conftest")
    monkeypatch.setattr(conftest, "RESULTS", tmp_path)
    monkeypatch.setattr(conftest.machine, "name", lambda: "here")
    other = {**RECORD, "op": "conv2d"}
    assert conftest.keep({**KEPT, "records": [RECORD, other]}, {"dropout", "conv2d"}) == []
    assert conftest.keep({**KEPT, "records": [{**RECORD, "ratio": 1.0}, other]}, {"dropout"}) == []
    kept = json.loads((tmp_path / "here.json").read_text())
    assert kept["dropout"]["records"][0]["ratio"] == 1.0
    assert kept["conv2d"]["records"][0]["ratio"] == 15.0
