"""Sphinx configuration."""

import adaoptax

project = "adaoptax"
author = "The adaoptax authors"
version = release = adaoptax.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
autodoc_typehints = "none"
napoleon_use_ivar = True
default_role = "py:obj"
exclude_patterns = ["_build", "measure_cost.md"]  # the latter is included
html_theme = "sphinx_book_theme"
html_title = "adaoptax"


def setup(app):
    """Leaves out the fields of named tuples, which their docstrings explain."""
    is_field = lambda app, what, name, obj, skip, options: (
        True if type(obj).__name__ == "_tuplegetter" else skip
    )
    app.connect("autodoc-skip-member", is_field)
