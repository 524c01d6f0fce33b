"""What `groups(n)` costs, beside the loops that a user would write without statistics.

    python -m benchmarks.groups

All columns are ratios to one plain gradient of the whole batch in the same run: time (median over
interleaved rounds) / temporary memory. Without statistics: ``scan`` and ``unrolled`` accumulate the
mean gradient in a `jax.lax.scan` and in a Python loop. With statistics: ``groups``, the same with a
``mask`` of ones and with half of the rows ``half`` masked out, and ``vmap`` with all groups side by
side (``shards=n``).
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp

import adaoptax
from benchmarks.models import PROBLEMS
from benchmarks.timing import machine, measure

COLUMNS = ("scan", "unrolled", "groups", "mask", "half", "vmap")


def accumulation(loss_fn: Any, n: int, unrolled: bool) -> Any:
    """Mean loss and gradient over n contiguous groups: what a user would write."""

    def fn(params: Any, batch: Any) -> Any:
        groups = jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batch)

        def add(total: Any, group: Any) -> tuple[Any, None]:
            new = jax.value_and_grad(loss_fn)(params, group)
            return jax.tree.map(lambda t, x: t + x / n, total, new), None

        total = (jnp.zeros([]), jax.tree.map(jnp.zeros_like, params))
        if not unrolled:
            return jax.lax.scan(add, total, groups)[0]
        for i in range(n):
            total, _ = add(total, jax.tree.map(lambda x, i=i: x[i], groups))
        return total

    return fn


def contenders(problem: Any, n: int) -> dict[str, Any]:
    """The plain gradient and every column, as `measure` takes them."""
    loss_fn, params, batch = problem
    rows = jax.tree.leaves(batch)[0].shape[0]
    method = adaoptax.measure.groups
    ours = adaoptax.value_grad_and_stats(loss_fn, method(n))
    masked = lambda params, batch, mask: ours(params, batch, mask=mask)
    side_by_side = adaoptax.value_grad_and_stats(loss_fn, method(n, shards=n))
    args = (params, batch)
    return {
        "plain": (jax.value_and_grad(loss_fn), args),
        "scan": (accumulation(loss_fn, n, unrolled=False), args),
        "unrolled": (accumulation(loss_fn, n, unrolled=True), args),
        "groups": (ours, args),
        "mask": (masked, (*args, jnp.ones(rows, bool))),
        "half": (masked, (*args, jnp.arange(rows) < rows // 2)),
        "vmap": (side_by_side, args),
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21, help="interleaved rounds")
    parser.add_argument("--only", choices=tuple(PROBLEMS), help="one model instead of all")
    parser.add_argument("--groups", type=int, nargs="+", default=[2, 8], help="numbers of groups")
    options = parser.parse_args()
    print(f"{machine()}, {options.rounds} rounds\n")
    header = "".join(f"{name:>13}" for name in COLUMNS)
    print(f"{'model':<13}{'rows':>6}{'groups':>7}{header}", flush=True)
    for name in [options.only] if options.only else PROBLEMS:
        problem = PROBLEMS[name]()
        rows = jax.tree.leaves(problem[2])[0].shape[0]
        for n in options.groups:
            results = measure(contenders(problem, n), options.rounds)
            plain = results["plain"]
            cells = [
                f"{results[c].time_ratio(plain):.2f} / {results[c].memory_ratio(plain):.2f}"
                for c in COLUMNS
            ]
            line = "".join(f"{cell:>13}" for cell in cells)
            print(f"{name:<13}{rows:>6}{n:>7}{line}", flush=True)


if __name__ == "__main__":
    main()
