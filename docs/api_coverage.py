"""Fails the build (under -W) unless the API page documents every public name, and nothing else."""

import importlib

from sphinx.util import logging

import adaoptax

ROOMS = (
    *("measure", "prox", "batch_tests", "scaling", "scaling.rules", "schedules", "loop", "typing"),
    *(f"integrations.{name}" for name in ("flax", "orbax", "plots", "progress", "tensorboard")),
)
# Modules, and a type that has no docstring of its own; the page speaks of them in its text.
NOT_DOCUMENTED = {"measure", "prox", "rules", "Record"}


def public_names() -> set[str]:
    """Every public name once: of a room only what the package itself does not have."""
    names = {f"adaoptax.{name}" for name in adaoptax.__all__ if name not in NOT_DOCUMENTED}
    for room in ROOMS:
        module = importlib.import_module(f"adaoptax.{room}")
        names |= {
            f"adaoptax.{room}.{name}"
            for name in module.__all__
            if getattr(module, name) is not getattr(adaoptax, name, None)
        }
    return names


def check(app, env):
    """Compares the objects of the pages with the public names."""
    del app
    kinds = ("class", "data", "exception", "function")
    objects = env.get_domain("py").objects
    documented = {x for x, entry in objects.items() if entry.objtype in kinds and not entry.aliased}
    log = logging.getLogger(__name__)
    for name in sorted(public_names() - documented):
        log.warning("%s is public, and not on the API page", name)
    for name in sorted(documented - public_names()):
        log.warning("%s is on the API page, and not public", name)


def setup(app):
    """Connects the check."""
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
