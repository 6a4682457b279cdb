"""The book's chapters beside what pydl gives: chapters.md and zh/chapters.md, made of chapters.yml.

python docs/chapters.py    writes both; tests/docs fails where they are not what this gives

Figures are read where they were measured: benchmarks/results/*.json, README's tables of models, and, by their words,
the notes beside the kernels.
"""

import functools
import operator
import re
import statistics
from pathlib import Path

import yaml
from figures import MACHINES, calm, dates, records, times

DOCS = Path(__file__).parent
ROOT = DOCS.parent
# README's tables of models: the machine of a table is told in the sentence before it.
README_MACHINES = {
    "A": "skipgram cbow bert bert_classifier elmo ssd fcn densenet vgg16 dcgan style",
    "B": "linear_regression polynomial_regression weight_decay softmax_regression lenet lenet_bn mlp nin cifar_net "
    "googlenet alexnet vgg11 resnet18 resnet50 resnext50 preact_resnet18 wide_resnet",
    "C": "ngram nnlm rnn_lm lstm_lm gru_lm gpt seq2seq seq2seq_attention transformer",
}


def _case(op, case):
    for letter in MACHINES:
        for record in records(letter, op):
            if record["case"] == case:
                return letter, times(record)
    raise KeyError(f"no machine's results have {op}/{case}")


def _network(name):
    """The geometric mean over the distinct convolutions of a network, both memory formats, three passes."""
    network, dtype = name.rsplit(" ", 1)
    for letter in MACHINES:
        of_network = [r for r in records(letter, "conv2d") if "network" in r and r["case"].endswith(f" {dtype}")]
        found = [r for r in of_network if network in ("all networks", r["network"]["name"])]
        if found:
            ratio, without = (statistics.geometric_mean(map(of, found)) for of in (operator.itemgetter("ratio"), calm))
            return letter, f"{ratio:.2f}× ({without:.2f}×)", len(found)
    raise KeyError(f"no machine's results have the network {name}")


@functools.cache
def readme_ratios():
    """{model: ratio} of README's tables whose first column names models and that have a column ``ratio``."""
    found, place = {}, None
    for line in (ROOT / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            place = None
        elif cells[0] == "model":
            place = cells.index("ratio")
        elif place is not None and re.match(r"\w+", cells[0]):
            found[re.match(r"\w+", cells[0])[0]] = cells[place]
    return found


def _ratio(key, words, up):
    kind, _, rest = key.partition(" ")
    if kind == "network":
        letter, ratio, cases = _network(rest)
        what = words["network"].format(cases=cases) + f" ({rest.split()[-1]})"
        return f"{ratio} {letter}, {what}"
    if kind == "train":
        letter = next(letter for letter, names in README_MACHINES.items() if rest in names.split())
        return f"{readme_ratios()[rest]} {letter}, {words['step'].format(name='train ' + rest)}"
    if kind == "notes":
        path, figure = rest.split(": ")
        if figure not in (ROOT / path).read_text():
            raise KeyError(f"{path} does not say {figure}")
        return f"{figure}: {words['notes'].format(path=up + path)}"
    op, _, case = key.partition("/")
    letter, ratio = _case(op, case)
    return f"{ratio} {letter}, {op}: {case}"


def _use(key, words, up):
    kind, _, rest = key.partition(" ")
    if kind == "train":
        return f"`pydl train {rest}`"
    if kind == "example":
        return f"[{rest}.py]({up}examples/{rest}.py)"
    if kind == "notebook":
        return f"[{rest}]({up}notebooks/{rest}.ipynb)"
    if kind == "program":
        return f"{words['program']} `{rest}.py`"
    return f"`{key}`"


def _torchs(name, language, vocabulary):
    if name not in vocabulary:
        return f"`{name}`"
    return name if language == "en" else vocabulary[name]


def _title(entry, language):
    if language == "en":
        return entry["en"]
    if "zh" not in entry:
        return f"[{entry['en']}]"
    number = entry["en"].split()[0]
    return f"{entry['zh']} [{number}]" if number[0].isdigit() else entry["zh"]


def _row(section, language, words, vocabulary, up):
    measured = [_ratio(key, words, up) for key in section.get("ratio", ())]
    cells = (
        _title(section, language),
        words["join"].join(f"`{name}`" for name in section.get("pydl", ())),
        words["join"].join(_torchs(name, language, vocabulary) for name in section.get("torch", ())),
        "<br>".join(_use(key, words, up) for key in section.get("use", ())),
        "<br>".join(measured) or (f"*{words['unmeasured']}*" if section.get("pydl") else ""),
    )
    return "| " + " | ".join(cells) + " |"


def _machines(words):
    told = (
        words["machine"].format(letter=letter, name=MACHINES[letter][1], dates=dates(letter)) for letter in MACHINES
    )
    return words["join"].join(told)


def page(language):
    """The page of a language, in Markdown."""
    source = yaml.safe_load((DOCS / "chapters.yml").read_text())
    words, up = source["text"][language], "../" if language == "en" else "../../"
    head = words["head"].strip().format(machines=_machines(words))
    lines = ["<!-- made by docs/chapters.py of chapters.yml -->", "", head]
    for chapter in source["chapters"]:
        lines += ["", f"## {_title(chapter, language)}"]
        if chapter["sections"]:
            lines += ["", "| " + " | ".join(words["columns"]) + " |", "|" + "---|" * len(words["columns"])]
            lines += [_row(section, language, words, source["words"], up) for section in chapter["sections"]]
    return "\n".join(lines) + "\n"


PAGES = {"en": DOCS / "chapters.md", "zh": DOCS / "zh" / "chapters.md"}

if __name__ == "__main__":
    for language, path in PAGES.items():
        path.write_text(page(language))
