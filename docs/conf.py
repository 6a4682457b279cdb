"""The site: ``pip install ".[docs]" && sphinx-build -W docs build/docs``."""

import importlib.util
import sys
from pathlib import Path

import pydl

sys.path.insert(0, str(Path(__file__).parent))
import sources

project = "pydl"
release = pydl.__version__
copyright = "the authors of pydl"
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
source_suffix = {".md": "myst-nb", ".rst": "restructuredtext", ".ipynb": "myst-nb"}
exclude_patterns = ["pictures", "static", "**/.ipynb_checkpoints"]

html_theme = "furo"
html_title = "pydl"
html_static_path = ["static"]
html_css_files = ["pydl.css"]
html_copy_source = False

# MathJax out of a package (sphinx-mathjax-offline), whose setup would copy all of its 24 MB
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"chtml": {"displayAlign": "left", "displayIndent": "1.5em"}}

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # of a cell, for machines that are shared
nb_execution_in_temp = True  # what they write stays out of the source tree
nb_merge_streams = True
highlight_language = "text"  # of blocks that name none: commands
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # torch's docstrings are torch's to show
autodoc_typehints = "none"
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|np|numpy|matplotlib)\b.*"),  # their sites cannot be asked without a network
    (r"py:.*", r"pydl\.(aside|training|models\.gpt|data\.folder|text\.(pairs|pseudo_words))\b.*"),  # the inside
    (r"py:data", r".*"),
    (r"py:class", r"LayerMix"),
]

sources.copy_mathjax(importlib.util.find_spec("sphinx-mathjax-offline").submodule_search_locations[0])
sources.draw_pictures()
sources.bring_in()


def _relink(app, docname, source):
    source[0] = sources.relink(source[0], app.env.doc2path(docname, base=False).as_posix())


def _resolve_error(app, env, node, content):
    """``DataError`` in a docstring's list of errors is ``pydl.errors.DataError``."""
    name = f"pydl.errors.{node['reftarget']}"
    if node.get("reftype") != "exc" or not hasattr(pydl.errors, node["reftarget"]):
        return None
    return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "exc", name, node, content)


def setup(app):
    """Sphinx calls this."""
    app.connect("source-read", _relink)
    app.connect("missing-reference", _resolve_error)
