"""The site: ``pip install ".[docs]" && sphinx-build -W docs build/docs``.

Before Sphinx reads the pages, what is made is made: pictures by their scripts, and copies of the notebooks, since
Sphinx reads no file outside of its own folder.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydl

DOCS = Path(__file__).parent
ROOT = DOCS.parent

project = "pydl"
release = pydl.__version__
copyright = "the authors of pydl"
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
source_suffix = {".md": "myst-nb", ".rst": "restructuredtext", ".ipynb": "myst-nb"}
exclude_patterns = ["pictures/build", "**/.ipynb_checkpoints"]

html_theme = "furo"
html_title = "pydl"
html_static_path = ["static"]
html_css_files = ["pydl.css"]
html_copy_source = False

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # torch's docstrings are torch's to show
autodoc_typehints = "none"
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(torch|np|numpy|matplotlib)\b.*")]  # their sites cannot be asked without a network


# ---- formulas: MathJax out of a package, so that the site needs no network

_MATHJAX = importlib.util.find_spec("sphinx-mathjax-offline").submodule_search_locations[0]
html_extra_path = []
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"chtml": {"displayAlign": "left", "displayIndent": "1.5em"}}


def _copy_mathjax():
    """The one script of MathJax and its fonts, of the many that the package has."""
    found, target = Path(_MATHJAX, "static", "mathjax"), DOCS / "static" / "mathjax"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy2(found / "tex-chtml.js", target)
    shutil.copytree(found / "output" / "chtml" / "fonts", target / "output" / "chtml" / "fonts", dirs_exist_ok=True)


# ---- pictures


def _draw(script):
    picture = DOCS / "pictures" / "build" / f"{script.stem}.svg"
    if not picture.exists() or picture.stat().st_mtime < script.stat().st_mtime:
        environment = os.environ | {"MPLBACKEND": "Agg"}
        subprocess.run([sys.executable, script, picture], check=True, env=environment)


def _draw_pictures():
    (DOCS / "pictures" / "build").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_draw, sorted(DOCS.glob("pictures/*.py"))))


# ---- notebooks


def _copy_notebooks():
    for old in DOCS.glob("notebooks/*.ipynb"):
        if not (ROOT / "notebooks" / old.name).exists():
            old.unlink()
    for notebook in sorted(ROOT.glob("notebooks/*.ipynb")):
        shutil.copy2(notebook, DOCS / "notebooks" / notebook.name)


_copy_mathjax()
_draw_pictures()
_copy_notebooks()
