"""Sphinx configuration. `sphinx-build -W docs docs/_build` builds all of it."""

import hashlib
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

import adaoptax  # noqa: E402

project = "adaoptax"
author = "The adaoptax authors"
version = release = adaoptax.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "api_coverage",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_typehints = "none"
autosummary_generate = False
napoleon_use_ivar = True
default_role = "py:obj"
exclude_patterns = [
    "_build",
    "jupyter_execute",
    "measure_cost.md",  # included
    "results/*",  # included
]

html_theme = "sphinx_book_theme"
html_title = "adaoptax"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {
    "navbar_persistent": [],  # the sidebar has the search
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
}

# Pages that begin with a kernel are run. What they printed is kept for as long as neither they nor
# the package change; an error in a cell fails the build.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_merge_streams = True


def of_sources() -> str:
    """A name for what the package is now."""
    files = sorted(pathlib.Path(adaoptax.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


nb_execution_cache_path = str(HERE / "_build" / ".jupyter_cache" / of_sources())

# What commands write may be missing in a clone: pages then do without it, or name the command.
RESULT = re.compile(r"```\{include\} results/(\w+)\.md\n.*?```\n", re.DOTALL)
WRITTEN_PAGES = ("does_it_work_with_adam", "reliability")


def without_missing(app, docname, source):
    """Takes what was not written yet out of the pages that show it or lead to it."""
    del app, docname
    source[0] = RESULT.sub(result_or_command, source[0])
    for page in WRITTEN_PAGES:
        if not (HERE / f"{page}.md").exists():
            as_text = re.sub(rf"\[([^]]+)\]\((?:\.\./)*{page}\.md\)", r"\1", source[0])
            source[0] = re.sub(rf"^{page}\n", "", as_text, flags=re.MULTILINE)  # of a toctree


def result_or_command(include):
    """The directive itself, or how to make what it includes."""
    name = include[1]
    if (HERE / "results" / f"{name}.md").exists():
        return include[0]
    command = f"python -m benchmarks.experiments {name} --out docs/results"
    return f"## {name}\n\nNot run yet: `{command}`.\n"


def setup(app):
    """Leaves out the fields of named tuples, which their docstrings explain."""
    is_field = lambda app, what, name, obj, skip, options: (
        True if type(obj).__name__ == "_tuplegetter" else skip
    )
    app.connect("autodoc-skip-member", is_field)
    app.connect("source-read", without_missing)
