"""Fails the build (under -W) unless the API page documents every public name, and nothing else."""

import importlib
import inspect

from sphinx.util import logging

import adaoptax

ROOMS = (
    *("batch_tests", "loop", "measure", "noise_tracker", "prox", "scaling", "scaling.rules"),
    *("schedules", "stats", "typing"),
    *(f"integrations.{name}" for name in ("flax", "orbax", "plots", "progress", "tensorboard")),
)
# Rooms, and a type that has no docstring of its own; the page speaks of them in its text.
NOT_DOCUMENTED = {name for name in adaoptax.__all__ if inspect.ismodule(getattr(adaoptax, name))}
NOT_DOCUMENTED |= {"Record"}


def public_names() -> set[str]:
    """Every public name once: of a room only what the package itself does not have."""
    names = {f"adaoptax.{name}" for name in adaoptax.__all__ if name not in NOT_DOCUMENTED}
    for room in ROOMS:
        module = importlib.import_module(f"adaoptax.{room}")
        names |= {
            f"adaoptax.{room}.{name}"
            for name in module.__all__
            if name not in NOT_DOCUMENTED
            and getattr(module, name) is not getattr(adaoptax, name, None)
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
