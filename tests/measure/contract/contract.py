"""The contract of every method: loss and gradient are the plain ones, or the call is an error."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.flatten_util
import numpy as np
import oracle
from generator import Case

import adaoptax
from adaoptax import measure

REFUSALS = (ValueError, TypeError, NotImplementedError)


def _of(method: Any, **options: Any) -> Callable[..., Any]:
    def make(loss_fn: Any) -> Any:
        step = adaoptax.value_grad_and_stats(loss_fn, method)
        return lambda params, batch: step(params, batch, **options)

    return make


def _micro_steps(loss_fn: Any) -> Any:
    steps = measure.micro_steps(loss_fn)

    def call(params: Any, batch: Any) -> Any:
        half = len(jax.tree.leaves(batch)[0]) // 2
        parts = [jax.tree.map(lambda x, s=s: x[s], batch) for s in (slice(half), slice(half, None))]
        state = steps.init(params, parts[0])
        for part in parts:
            state = steps.add(state, params, part)
        return steps.finish(state, params)

    return call


# What takes a loss and returns ``f(params, batch)`` → ``(loss, grads, stats)``.
METHODS: dict[str, Callable[..., Any]] = {
    "exact": _of(measure.exact()),
    "exact all": _of(measure.exact(("norm", "inner", "coordinate"))),
    "default": _of(None),
    "groups": _of(measure.groups(2)),
    "per_example": _of(measure.per_example()),
    "every": _of(measure.every(2, measure.exact()), due=True),
    "every between": _of(measure.every(2, measure.exact()), due=False),
    "micro_steps": _micro_steps,
}


@functools.lru_cache(4)
def truth_of(case: Case) -> oracle.Truth:
    """What the loss of a case is, found out numerically."""
    return oracle.examine(
        case.inner, case.params, case.batch, case.redraw, prepare=case.prepare, single=False
    )


def outcome(case: Case, method: Any) -> str:
    """``"kept"``, ``"refused: ..."``, ``"BROKEN: ..."`` or ``"skipped: ..."``.

    Args:
        case: A loss.
        method: A name in `METHODS`, or a method of `adaoptax.measure`, or None.
    """
    make = METHODS[method] if isinstance(method, str) else _of(method)
    return judge(make, case.loss_fn, case.params, case.batch, functools.partial(truth_of, case))


def judge(
    make: Callable[..., Any],
    loss_fn: Callable[..., Any],
    params: Any,
    batch: Any,
    find_truth: Callable[[], oracle.Truth],
) -> str:
    """The outcome of ``make(loss_fn)(params, batch)``; the truth is sought if it is accepted."""
    try:
        loss, grads, stats = jax.jit(make(loss_fn))(params, batch)
    except REFUSALS as error:
        return f"refused: {_whose(error)}{_first_words(error)}"
    except Exception as error:
        return f"BROKEN: crash: {type(error).__name__}: {_first_words(error)}"
    truth = find_truth()
    if not (np.isfinite(truth.loss) and np.all(np.isfinite(truth.grad))):
        return "skipped: the plain value is not finite"
    if str(jax.tree.structure(grads)) != str(jax.tree.structure(params)):
        return "BROKEN: the gradient has another structure"
    found = np.float64(jax.flatten_util.ravel_pytree(grads)[0])
    scale = max(np.max(np.abs(truth.grad)), 1e-12)
    allowed = 1e-5 * max(scale, 0.1)
    size = max(abs(truth.loss), 1.0)
    wrong_grad = not np.max(np.abs(found - truth.grad)) <= allowed
    wrong_loss = not abs(float(loss) - truth.loss) <= 1e-5 * size
    same = True  # numbers in float64, as far as float32 can tell
    if wrong_grad or wrong_loss:  # or is it float32 that is not enough?
        plain_loss, plain_grad = _plain(loss_fn, params, batch)
        rounding = np.max(np.abs(plain_grad - truth.grad))
        same = rounding <= 1e-3 * scale
        allowed += 8 * rounding if same else 0.0
        if not np.max(np.abs(found - plain_grad)) <= allowed:
            off = np.linalg.norm(found - plain_grad) / np.linalg.norm(plain_grad)
            return f"BROKEN: gradient off by {off:.1e}"
        rounding = min(abs(plain_loss - truth.loss), 1e-3 * size)
        if not abs(float(loss) - plain_loss) <= 1e-5 * size + 8 * rounding:
            return f"BROKEN: loss {float(loss):.6g} for {plain_loss:.6g}"
    measured = int(stats.num_groups) > 0  # not between two measurements of `every`
    if measured and not truth.additive:
        return "BROKEN: mixes rows but was accepted"
    return (_judge_statistics(stats, truth) if same else None) or "kept"


def _plain(loss_fn: Any, params: Any, batch: Any) -> tuple[float, np.ndarray]:
    loss, grads = jax.jit(jax.value_and_grad(loss_fn))(params, batch)
    return float(loss), np.asarray(jax.flatten_util.ravel_pytree(grads)[0], np.float64)


def _judge_statistics(stats: Any, truth: oracle.Truth) -> str | None:
    """Statistics of the groups that were measured, where contributions of rows are known."""
    n = int(stats.num_groups)
    if truth.contributions is None or n == 0:
        return None
    rows = len(truth.contributions)
    h = truth.contributions.reshape(n, rows // n, -1).mean(1)
    about = h - truth.grad
    per_group = rows / n / (n - 1)
    variance = per_group * np.sum(about**2)
    square = np.sum(truth.grad**2)
    size = variance + square
    expected = {
        "sq_norm": (stats.sq_norm, square, size),
        "variance": (stats.variance, variance, size),
    }
    if stats.inner_product_variance is not None:
        inner = per_group * np.sum((about @ truth.grad) ** 2)
        expected["inner"] = (stats.inner_product_variance, inner, size * square)
    if stats.coordinate_variance is not None:
        found = np.float64(jax.flatten_util.ravel_pytree(stats.coordinate_variance)[0])
        error = np.max(np.abs(found - per_group * np.sum(about**2, 0)))
        expected["coordinate"] = (error, 0.0, size)
    for name, (found, value, size) in expected.items():
        if not abs(float(found) - value) <= 1e-4 * size + 1e-12:
            return f"BROKEN: {name} {float(found):.4g} for {value:.4g}"
    return None


def _whose(error: BaseException) -> str:
    """Marks errors that did not come from the library: they teach nothing about it."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    at = last.tb_frame.f_code.co_filename if last else ""
    return "" if "/adaoptax/" in at else "(not the library's own words) "


def _first_words(error: BaseException) -> str:
    return " ".join(str(error).split())[:90]
