"""The ways of measuring that `benchmarks.measure` compares, as programs to time."""

import functools
from collections.abc import Callable
from typing import Any

import jax

import adaoptax
from adaoptax import measure
from benchmarks.timing import Program, compile_program

PLAIN = "plain step"
SUBSETS: tuple[tuple[str, ...], ...] = (
    (),
    ("norm",),
    ("inner",),
    ("coordinate",),
    ("norm", "inner"),
    ("norm", "coordinate"),
    ("norm", "inner", "coordinate"),
)

Make = Callable[[Any, Any, Any], Program]
"""``(loss_fn, params, batch)`` → the compiled program."""


def _plain(loss_fn: Any, params: Any, batch: Any) -> Program:
    return compile_program(jax.value_and_grad(loss_fn), (params, batch))


def _with(make_method: Callable[[], Any]) -> Make:
    """A step with statistics by one method, which is made only when it is measured."""

    def make(loss_fn: Any, params: Any, batch: Any) -> Program:
        step = adaoptax.value_grad_and_stats(loss_fn, make_method())
        return compile_program(step, (params, batch))

    return make


def _every(n: int, statistics: tuple[str, ...]) -> Make:
    """The mean over n steps of the two programs of `measure.every`, between which the host chooses.

    Each round runs one step of either kind, so that drift hits them and the plain step alike.
    """

    def make(loss_fn: Any, params: Any, batch: Any) -> Program:
        method = measure.every(n, measure.exact(statistics))
        step = adaoptax.value_grad_and_stats(loss_fn, method)
        between, measured = (
            compile_program(functools.partial(step, due=due), (params, batch))
            for due in (False, True)
        )
        mean = lambda rare, common: (rare + (n - 1) * common) / n
        return Program(
            run=lambda: mean(measured.run(), between.run()),
            temp_bytes=max(measured.temp_bytes, between.temp_bytes),
            flops=mean(measured.flops, between.flops),
            compile_seconds=measured.compile_seconds + between.compile_seconds,
        )

    return make


def _exact(statistics: tuple[str, ...], **options: Any) -> Make:
    return _with(lambda: measure.exact(statistics, **options))


def _per_example(statistics: tuple[str, ...], chunk_size: int | None = None) -> Make:
    return _with(lambda: measure.per_example(chunk_size, statistics=statistics))


ALL = SUBSETS[-1]

METHODS: dict[str, Make] = {
    PLAIN: _plain,
    **{f"exact: {' + '.join(names) or 'no statistics'}": _exact(names) for names in SUBSETS},
    "exact, groups of 4: norm": _exact(("norm",), group_size=4),
    "every(16), exact: norm": _every(16, ("norm",)),
    "every(16), exact: all three": _every(16, ALL),
    "one jvp: inner": _with(lambda: measure.inner_products(None)),
    "groups(8): norm": _with(lambda: measure.groups(8)),
    "vmap(grad): norm": _per_example(("norm",)),
    "vmap(grad): all three": _per_example(ALL),
    "vmap(grad), 16 at once: norm": _per_example(("norm",), 16),
    "vmap(grad), 16 at once: all three": _per_example(ALL, 16),
}
"""Name → what makes its program; `PLAIN` is what the others are compared with."""
