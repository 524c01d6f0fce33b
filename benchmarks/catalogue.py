"""Every method in one table, made from the code.

    python -m benchmarks.catalogue > docs/methods.md

What a method decides and where it comes from are the first sentence and the references of its
docstring. Which statistics it needs is found by leaving them out, and what it keeps between steps
by counting its state.
"""

import inspect
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaoptax
from adaoptax import GradientStats
from benchmarks.tables import markdown

_SIZE = 1000  # parameters of the probe, so that the thousands of a state count copies of them


class Method(NamedTuple):
    """One line of the table.

    Attributes:
        factory: What the user calls.
        kwargs: Arguments of the probe.
        probed: Makes the transformation that is probed; None for the factory itself, or where
            there is none (a pure function, a schedule).
    """

    factory: Callable[..., Any]
    kwargs: Mapping[str, Any] = types.MappingProxyType({})
    probed: Callable[..., Any] | None = None


_BASE = {"base_batch_size": 2}
_RATE = {"learning_rate": 0.1}
_STAGES = "0:4 1K:8"


def _averaged_norm_test(**kwargs: Any) -> Any:
    return adaoptax.batch_tests.averaged_gradient(adaoptax.norm_test(0.5), **kwargs)


def _searched_step(**kwargs: Any) -> Any:
    tx = adaoptax.scaling.lipschitz_descent(**kwargs)
    value_fn = lambda params: 0.5 * jnp.sum(params["w"] ** 2)
    return adaoptax.bind_extra_args(tx, value=jnp.float32(5.0), value_fn=value_fn)


def _along_the_step(**kwargs: Any) -> Any:
    tx = adaoptax.batch_tests.proximal_inner_product_test(**kwargs)
    return adaoptax.bind_extra_args(tx, variance_fn=lambda step: jnp.sum(step["w"] ** 2))


TESTS = [
    Method(adaoptax.norm_test, {"eta": 0.5}),
    Method(adaoptax.inner_product_test, {"theta": 0.9}),
    Method(adaoptax.augmented_inner_product_test, {"theta": 0.9, "nu": 0.5}),
    Method(adaoptax.batch_tests.optimal_split, {"epsilon": 0.5}),
    Method(adaoptax.coordinate_test, {"eta": 0.5}),
    Method(adaoptax.proximal_test, {"theta": 0.5}),
    Method(adaoptax.batch_tests.proximal_inner_product_test, {"theta": 0.5}, _along_the_step),
    Method(adaoptax.batch_tests.averaged_gradient, {"window": 10}, _averaged_norm_test),
]
STEPS = [
    Method(adaoptax.scale_by_adascale, _BASE),
    Method(adaoptax.adascale, _BASE | _RATE),
    Method(adaoptax.scale_by_batch, _BASE | {"rule": adaoptax.rules.sqrt}),
    Method(adaoptax.rules.linear),
    Method(adaoptax.rules.sqrt),
    Method(adaoptax.rules.adascale),
    Method(adaoptax.rules.legw),
    Method(adaoptax.rules.mccandlish),
    Method(adaoptax.rules.surge),
    Method(adaoptax.rules.surge_exact),
    Method(adaoptax.scale_by_adam_with_batch, _BASE),
    Method(adaoptax.adamw_with_batch, _BASE | _RATE),
    Method(adaoptax.scaling.add_decayed_weights_with_batch, _BASE | {"weight_decay": 0.1}),
    Method(adaoptax.average_params, {"half_life": 100.0}),
    Method(adaoptax.scaling.scale_by_adagrad_norm, {"eps": 0.0}),
    Method(adaoptax.adagrad_norm, _RATE),
    Method(adaoptax.adadagrad_norm, _RATE),
    Method(adaoptax.adadagrad, _RATE),
    Method(adaoptax.prox.proximal_gradient, _RATE | {"prox": adaoptax.prox.l1(0.01)}),
    Method(adaoptax.scaling.lipschitz_descent, {"initial_lipschitz": 1.0}, _searched_step),
    Method(adaoptax.scaling.optimal_step_size),
    Method(adaoptax.skip_nonfinite, {"inner": optax.identity()}),
]
SCHEDULES = [
    Method(adaoptax.BatchSizeSchedule),
    Method(adaoptax.over_examples),
    Method(adaoptax.scale_by_schedule_over_examples, {"schedule": optax.constant_schedule(0.1)}),
    Method(adaoptax.seesaw),
    Method(adaoptax.sebs),
    Method(adaoptax.schedules.add_stage_penalty, {"batch_sizes": _STAGES, "gamma": 5.0}),
    Method(adaoptax.schedules.apply_stage_prox, _RATE | {"batch_sizes": _STAGES, "gamma": 5.0}),
]
INSTRUMENTS = [
    Method(adaoptax.noise_scale),
    Method(adaoptax.track_noise_scale, {"horizon": 1000.0}),
    Method(adaoptax.noise_windows),
    Method(adaoptax.signal),
    Method(adaoptax.orthogonal_variance),
    Method(adaoptax.scaling.adascale_gain),
]
SECTIONS = {
    "Tests: which batch size does this step require?": TESTS,
    "Steps: what happens to the step when the batch grows?": STEPS,
    "Schedules: sizes and rates that are known before": SCHEDULES,
    "Instruments: what is the noise?": INSTRUMENTS,
}

_NORM = GradientStats(*(jnp.float32(x) for x in (8, 4, 4.0, 10 / 3)))


def probe(method: Method) -> tuple[str, str]:
    """``(statistics needed, state kept)`` of a transformation, by running it."""
    make = method.probed or method.factory
    tx = make(**method.kwargs)
    if not hasattr(tx, "update"):
        return "", ""
    params = {"w": jnp.full(_SIZE, 0.1)}
    offers = {  # from the cheapest to measure
        "none": None,
        "norm": _NORM,
        "norm, inner": _NORM._replace(inner_product_variance=jnp.float32(8 / 3)),
        "norm, coordinate": _NORM._replace(coordinate_variance={"w": jnp.full(_SIZE, 0.01)}),
    }
    tx = optax.with_extra_args_support(tx)
    for name, stats in offers.items():
        extra = {} if stats is None else {"stats": stats}
        state = tx.init(params)
        try:
            tx.update(params, state, params, **extra)
        except (TypeError, ValueError):
            continue
        return name, _kept(state)
    raise AssertionError(f"{method.factory.__name__} runs with no statistics of the probe")


def _kept(state: Any) -> str:
    sizes = [np.size(leaf) for leaf in jax.tree.leaves(state)]
    copies = sum(size // _SIZE for size in sizes)
    scalars = sum(size % _SIZE for size in sizes)
    numbers = "1 number" if scalars == 1 else f"{scalars} numbers"
    parts = [f"{copies} × parameters"] * bool(copies) + [numbers] * bool(scalars)
    return " + ".join(parts) or "nothing"


def _name(factory: Callable[..., Any]) -> str:
    """As it is found under `adaoptax`."""
    for namespace in ("rules", "prox"):
        if getattr(getattr(adaoptax, namespace), factory.__name__, None) is factory:
            return f"{namespace}.{factory.__name__}"
    return factory.__name__


def first_sentence(factory: Callable[..., Any]) -> str:
    """What it does, by its docstring."""
    text = (inspect.getdoc(factory) or "").split("\n\n")[0].replace("\n", " ")
    return _markdown(text)


def references(factory: Callable[..., Any]) -> str:
    """Where it comes from, by its docstring."""
    doc = inspect.getdoc(factory) or ""
    found = re.search(r"\nReferences:\n((?:    .*\n?|\n)+)", doc + "\n")
    if found is None:
        return ""
    return _markdown(" ".join(line.strip() for line in found[1].splitlines()))


def _markdown(text: str) -> str:
    text = re.sub(r"`([^`<]+?)\s*<([^>]+)>`_+", r"[\1](\2)", " ".join(text.split()))
    text = re.sub(r":math:`([^`]*)`", r"$\1$", text).replace("``", "`")
    return text.replace("|", "\\|")


def page() -> str:
    """The page in Markdown."""
    lines = [
        "# Every method, one table",
        "",
        "Made from the code by `python -m benchmarks.catalogue > docs/methods.md`, and compared"
        " with it by the tests.",
        "*Needs* are the statistics without which a method refuses to run; *keeps* is its state"
        " between two steps.",
        "How methods compare on real problems is [measured](comparison.md).",
    ]
    for title, methods in SECTIONS.items():
        header = ["name", "what it does", "needs", "keeps", "source"]
        lines += ["", f"## {title}", "", markdown(header, [_cells(method) for method in methods])]
    return "\n".join(lines) + "\n"


def _cells(method: Method) -> list[str]:
    needs, keeps = probe(method) if method.kwargs or method.probed else ("", "")
    name = f"`{_name(method.factory)}`"
    return [name, first_sentence(method.factory), needs, keeps, references(method.factory)]


if __name__ == "__main__":
    print(page(), end="")
