"""What is shown and made of the figures: a line per case, a table per op, README's table and a picture.

python benchmarks/report.py                        # the table in Markdown, of the machine's kept results
python benchmarks/report.py --readme README.md     # writes it between the two marker lines there
python benchmarks/report.py --picture ratios.png   # bars of the ratio and of the share of the machine's limit
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

BEGIN, END = "<!-- benchmarks: made by benchmarks/report.py -->", "<!-- end of benchmarks -->"


# beside pydl: our backend of torch.compile, torch's two ways, torch with MKL's own path for this CPU, and other
# libraries (peers.py)
TITLES = {
    "pydl_compiled": "pydl, compiled",
    "eager": "torch eager",
    "compile": "torch.compile",
    "mkl": "eager, MKL's own path",
    "jax": "JAX",
    "tensorflow": "TensorFlow",
}
CONTESTANTS = tuple(TITLES)


def duration(microseconds):
    """Three digits and a unit."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= size:
            return f"{microseconds / size:.3g} {unit}"
    return f"{microseconds:.3g} µs"


def rate(record):
    """GFLOP/s where the case counts operations, else GB/s where it counts bytes."""
    if "gflops" in record:
        return f"{record['gflops']:.0f} GFLOP/s"
    return f"{record['gbps']:.1f} GB/s" if "gbps" in record else "–"


def share(record):
    return f"{100 * record['share']:.0f} %" if "share" in record else "–"


def distance(round_trip):
    """How far the cores are from each other, as the end of a line."""
    return f", {round_trip:.0f} ns from core to core and back" if round_trip else ""


def without_page_faults(record):
    return record.get("no_page_faults") or {}


def line(record, number, total, child):
    """The progress line of one case."""
    peers = ", ".join(f"{n} {duration(record[f'{n}_us'])}" for n in CONTESTANTS if f"{n}_us" in record)
    place = f"[{number}/{total}]{' no page faults' if child else ''}"
    return (
        f"{place} {record['op']} {record['case']}: pydl {duration(record['pydl_us'])}, {peers}: {record['ratio']:.2f}×"
        f"{distance(record.get('round_trip_ns'))}"
    )


def verdict(record):
    """Whether the targets are met, for those cases that have one."""
    if not record.get("target"):
        return ""
    ratios = (record["ratio"], without_page_faults(record).get("ratio"))
    return " / ".join(
        f"{goal:g}× {'met' if ratio >= goal else 'missed'}"
        for ratio, goal in zip(ratios, record["target"], strict=True)
        if ratio is not None
    )


def columns(records):
    """Of the table of an op: those contestants that take part in one of its cases."""
    beside = [name for name in CONTESTANTS if name in ("eager", "compile") or any(f"{name}_us" in r for r in records)]
    return beside, ("case", "pydl", *beside, "ratio", "no page faults", "rate", "of the limit", "target")


def row(record, beside):
    calm = without_page_faults(record)
    return (
        record["case"],
        duration(record["pydl_us"]),
        *(duration(record[f"{name}_us"]) if f"{name}_us" in record else "–" for name in beside),
        f"{record['ratio']:.2f}×",
        f"{calm['ratio']:.2f}×" if calm else "–",
        rate(calm or record),
        share({**record, **({"share": share_of(record, calm)} if calm and "share" in record else {})}),
        verdict(record),
    )


def share_of(record, calm):
    """The share of the limit without page faults, of the limit that was measured beside it where there is one."""
    return calm.get("share", record["share"] * record["pydl_us"] / calm["pydl_us"])


def by_network(records):
    """{(network, dtype): records} of the cases that belong to a network, and the others as a list."""
    groups, others = {}, []
    for record in records:
        if "network" in record:
            key = record["network"]["name"], record["case"].rsplit(" ", 1)[1]
            groups.setdefault(key, []).append(record)
        else:
            others.append(record)
    return groups, others


NETWORK_COLUMNS = (
    "network",
    "cases",
    *(f"{memory}, {what}" for memory in ("NCHW", "channels_last") for what in ("forward", "input", "weight")),
    "all",
    "no page faults",
    "worst",
    "worst case",
)


def network_rows(groups):
    """A row per network: geometric means of the ratio by memory format and pass, and the worst case of all.

    The last rows are of all networks together, one per dtype.
    """
    everything = {}
    for (_, dtype), records in groups.items():
        everything.setdefault(("all networks", dtype), []).extend(records)
    for (name, dtype), records in [*groups.items(), *everything.items()]:
        calm = [without_page_faults(r) or r for r in records]
        worst = min(range(len(records)), key=lambda i: calm[i]["ratio"])
        parts = [
            [
                c["ratio"]
                for r, c in zip(records, calm, strict=True)
                if r["network"]["channels_last"] == last and r["network"]["pass"] == what
            ]
            for last in (False, True)
            for what in ("forward", "input", "weight")
        ]
        case = records[worst]["case"].rsplit(" ", 1)[0]
        yield (
            f"{name} {dtype}",
            str(len(records)),
            *(f"{statistics.geometric_mean(p):.2f}×" if p else "–" for p in parts),
            f"{statistics.geometric_mean([r['ratio'] for r in records]):.2f}×",
            f"{statistics.geometric_mean([c['ratio'] for c in calm]):.2f}×",
            f"{calm[worst]['ratio']:.2f}×",
            case,
        )


def by_op(records):
    ops = {}
    for record in records:
        ops.setdefault(record["op"], []).append(record)
    return ops


def show(records, ceilings):
    """One table per op on the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 170)
    for op, rows in by_op(records).items():
        groups, rows = by_network(rows)
        if groups:
            table = Table(title=f"{op}, all layers of networks", title_justify="left", title_style="bold")
            for i, column in enumerate(NETWORK_COLUMNS):
                table.add_column(column, justify="left" if i in (0, len(NETWORK_COLUMNS) - 1) else "right")
            for row_of_network in network_rows(groups):
                table.add_row(*row_of_network)
            console.print()
            console.print(table)
        if not rows:
            continue
        table = Table(title=op, title_justify="left", title_style="bold")
        beside, names = columns(rows)
        for i, column in enumerate(names):
            table.add_column(column, justify="left" if i in (0, len(names) - 1) else "right")
        for record in rows:
            table.add_row(*row(record, beside))
        console.print()
        console.print(table)
    console.print(
        "ratio: the fastest of the others over pydl, medians of one run; of networks, geometric "
        "means of it (memory formats, passes and worst without page faults); rate and share of the limit without page "
        "faults; memory's limit is measured between the rounds of each case; at the start: copy "
        f"{ceilings['copy']:.1f} GB/s, read {ceilings['read']:.1f} GB/s, multiply-add {ceilings['fma']:.0f} GFLOP/s"
        f"{distance(ceilings.get('round_trip'))}"
    )


def markdown(ops):
    """README's tables: one part per op to unfold, with machine, date and versions above each table."""
    lines = []
    for op, kept in ops.items():
        m, c = kept["machine"], kept["ceilings"]
        lines += [
            f"<details><summary>{summary(op, kept['records'])}</summary>",
            "",
            f"{m['processor']}, {m['threads']} threads, {m['isa']}; torch {m['torch']}, "
            f"commit {m['commit']}, {m['date']}; limits: copy {c['copy']:.0f} GB/s, read {c['read']:.0f} GB/s, "
            f"{c['fma']:.0f} GFLOP/s{distances(kept['records'])}.",
            "",
        ]
        groups, records = by_network(kept["records"])
        beside, _ = columns(records)
        names = ("case", "pydl", *(TITLES[name] for name in beside), "ratio to the fastest", "no page faults")
        names = (*names, "share of the limit")
        lines += [f"| {' | '.join(names)} |", "|---|" + "---:|" * (len(names) - 1)]
        for record in records:
            *cells, _, limit, _ = row(record, beside)
            lines.append(f"| {' | '.join((*cells, limit))} |")
        lines.append("")
        if groups:
            lines += [
                f"**{op}, every distinct layer of networks**: geometric means of the ratio to torch eager in the same "
                "memory format, without page faults (all: also as it comes), and the worst case.",
                "",
                f"| {' | '.join(NETWORK_COLUMNS)} |",
                "|---|" + "---:|" * (len(NETWORK_COLUMNS) - 2) + "---|",
                *(f"| {' | '.join(cells)} |" for cells in network_rows(groups)),
                "",
            ]
        lines += ["</details>", ""]
    return "\n".join(lines)


def distances(records):
    """The median way from core to core, and the shortest and longest of the cases."""
    trips = [r["round_trip_ns"] for r in records if r.get("round_trip_ns")]
    if not trips:
        return ""
    return f"{distance(statistics.median(trips))} ({min(trips):.0f} to {max(trips):.0f} over the cases)"


def summary(op, records):
    """One line for a folded table: how many cases, their geometric mean, the worst and the best."""
    calm = [(without_page_faults(r) or r)["ratio"] for r in records]
    return (
        f"<b>{op}</b>: {len(records)} cases, {statistics.geometric_mean(calm):.2f}× the fastest of its "
        f"peers without page faults (geometric mean; {min(calm):.2f}× to {max(calm):.2f}×)"
    )


def picture(ops, path):
    """Bars: ratio to the fastest of the others without page faults, and the share of the machine's limit."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = [r for kept in ops.values() for r in kept["records"] if "network" not in r]
    labels = [f"{r['op']}  {r['case']}" for r in records]
    calm = [without_page_faults(r) or r for r in records]
    shares = [100 * share_of(r, c) if "share" in r else 0 for r, c in zip(records, calm, strict=True)]
    height = 0.9 + 0.22 * len(records)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, height), sharey=True, width_ratios=(2, 1))
    left.barh(labels, [c["ratio"] for c in calm], color="#3b6ea5")
    left.axvline(1, color="black", linewidth=0.8)
    left.set_xscale("log")
    left.set_xlabel("times as fast as the fastest of the others, no page faults")
    right.barh(labels, shares, color="#c98b2b")
    right.set_xlim(0, 100)
    right.set_xlabel("% of the machine's limit")
    left.invert_yaxis()
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def insert(readme, table):
    """Puts the table between the marker lines of a file."""
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        sys.exit(f"report: expected {readme} to hold the lines {BEGIN!r} and {END!r}, got neither or one")
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    readme.write_text(f"{before}\n\n{table}\n{after}")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=Path, help="a kept file; default: the newest in benchmarks/results")
    parser.add_argument("--readme", type=Path, help="write the table between the marker lines of this file")
    parser.add_argument("--picture", type=Path, help="draw the bars into this file")
    options = parser.parse_args(arguments)
    path = options.results
    if path is None:
        kept = sorted((Path(__file__).parent / "results").glob("*.json"), key=lambda p: p.stat().st_mtime)
        if not kept:
            sys.exit("report: expected kept results in benchmarks/results, got none; run `pytest benchmarks` first")
        path = kept[-1]
    ops = json.loads(path.read_text())
    if "records" in ops:  # a file of --results: one run of several ops
        ops = {op: {**ops, "records": rows} for op, rows in by_op(ops["records"]).items()}
    if options.picture:
        picture(ops, options.picture)
    if options.readme:
        insert(options.readme, markdown(ops))
    if not options.picture and not options.readme:
        print(markdown(ops))


if __name__ == "__main__":
    main()
