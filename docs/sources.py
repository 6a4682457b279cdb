"""What the site shows that lies elsewhere in the repository, and what is drawn for it.

Sphinx reads no page outside of its own folder: notebooks, notes beside the kernels and the like are copied in before it
reads, examples become a page each, pictures are drawn by their scripts. Links lead to files of the repository wherever
they are read (a reader on a code host follows them there); in the site they lead to the page that shows that file.
"""

import ast
import os
import posixpath
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent

_PAGES = {
    "README.md": "readme.md",
    "README.zh.md": "zh/readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "src/pydl/d2l/NAMES.md": "names.md",
    "notebooks/README.md": "notebooks/index.md",
}
_NOTES = ("build_backend", "csrc", "kernels", "src")


def places():
    """{file of the repository: its page in docs/}, of all that is shown but does not lie there."""
    found = dict(_PAGES)
    for folder in _NOTES:
        for notes in sorted((ROOT / folder).rglob("*.md")):
            if notes.name in ("NOTES.md", "COST.md"):
                path = notes.relative_to(ROOT)
                kind = "" if notes.name == "NOTES.md" else "-cost"
                found[path.as_posix()] = f"notes/{'-'.join(path.parent.parts)}{kind}.md"
    for notebook in sorted(ROOT.glob("notebooks/*.ipynb")):
        found[f"notebooks/{notebook.name}"] = f"notebooks/{notebook.name}"
    for example in sorted(ROOT.glob("examples/*.py")):
        found[f"examples/{example.name}"] = f"examples/{example.stem}.md"
    return found


def _example(script):
    first, _, rest = ast.get_docstring(ast.parse(script.read_text())).partition("\n")
    title = script.stem.replace("_", " ")
    return (
        f"# {title}\n\n{first}\n{rest}\n\n```{{literalinclude}} ../../examples/{script.name}\n:language: python\n```\n"
    )


def _command_line():
    """The page of the command line, as Typer tells it."""
    tell = ["-m", "typer", "pydl.commands", "utils", "docs", "--name", "pydl", "--title", "The command line"]
    return subprocess.run([sys.executable, *tell], check=True, capture_output=True, text=True).stdout


def bring_in():
    """Copies and writes the pages of :func:`places`; pages of files that are gone go, too."""
    shown = places()
    (DOCS / "notebooks").mkdir(exist_ok=True)
    for folder in ("notes", "notebooks", "examples"):
        for old in (DOCS / folder).glob("*"):
            if old.name != "index.md" and f"{folder}/{old.name}" not in shown.values():
                old.unlink()
    for path, page in shown.items():
        text = _example(ROOT / path) if path.startswith("examples/") else (ROOT / path).read_text()
        if page == "notebooks/index.md":
            text += "\n```{toctree}\n:hidden:\n:glob:\n\n*\n```\n"
        _write(DOCS / page, text)
    _write(DOCS / "api" / "command_line.md", _command_line())


def _write(page, text):
    if not page.exists() or page.read_text() != text:  # Sphinx reads again what is newer than its last build
        page.write_text(text)


def copy_mathjax(package):
    """The one script of MathJax and its fonts, of the many that the package has, so that formulas need no network."""
    found, target = Path(package, "static", "mathjax"), DOCS / "static" / "mathjax"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy2(found / "tex-chtml.js", target)
    shutil.copytree(found / "output" / "chtml" / "fonts", target / "output" / "chtml" / "fonts", dirs_exist_ok=True)


def _draw(script):
    picture = DOCS / "pictures" / "build" / f"{script.stem}.svg"
    if not picture.exists() or picture.stat().st_mtime < script.stat().st_mtime:
        subprocess.run([sys.executable, script, picture], check=True, env=os.environ | {"MPLBACKEND": "Agg"})


def draw_pictures():
    """Runs each script of docs/pictures whose picture is older than it."""
    (DOCS / "pictures" / "build").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_draw, sorted(DOCS.glob("pictures/*.py"))))


def relink(text, page):
    """``text`` of a page of docs/, its links to files of the repository led to their pages; others are dropped."""
    shown = places()
    origin = next((path for path, place in shown.items() if place == page), f"docs/{page}")

    def lead(link):
        words, target, anchor = link[1], *link[2].partition("#")[::2]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        if not target or ":" in target or not (ROOT / path).exists():
            return link[0]  # which Sphinx warns of, if it leads nowhere
        if path in shown or path.startswith("docs/"):
            place = posixpath.relpath(shown.get(path, path.removeprefix("docs/")), posixpath.dirname(page) or ".")
            return f"[{words}]({place}{'#' if anchor else ''}{anchor})"
        return words

    return re.sub(r"(?<!!)\[([^\[\]]+)\]\(([^)\s]+)\)", lead, text)
