"""What `groups(n)` costs beside the same accumulation without statistics.

    python -m benchmarks.groups

Columns: time and temporary memory over accumulation by `jax.lax.scan` of the mean gradient, in the
same run (median over interleaved rounds), and the time over one plain gradient of the whole batch.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp

import adaoptax
from benchmarks.models import PROBLEMS
from benchmarks.timing import machine, measure


def accumulation(loss_fn: Any, n: int) -> Any:
    """Mean loss and gradient over n contiguous groups by `scan`: what a user would write."""

    def fn(params: Any, batch: Any) -> Any:
        groups = jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batch)

        def add(total: Any, group: Any) -> tuple[Any, None]:
            new = jax.value_and_grad(loss_fn)(params, group)
            return jax.tree.map(lambda t, x: t + x / n, total, new), None

        zero = (jnp.zeros([]), jax.tree.map(jnp.zeros_like, params))
        return jax.lax.scan(add, zero, groups)[0]

    return fn


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21, help="interleaved rounds")
    parser.add_argument("--only", choices=tuple(PROBLEMS), help="one model instead of all")
    options = parser.parse_args()
    print(f"{machine()}, {options.rounds} rounds\n")
    columns = f"{'time':>8}{'memory':>8}{'with a mask':>13}{'over plain':>12}"
    print(f"{'model':<13}{'rows':>6}{'groups':>7}{columns}", flush=True)
    for name in [options.only] if options.only else PROBLEMS:
        loss_fn, params, batch = PROBLEMS[name]()
        rows = jax.tree.leaves(batch)[0].shape[0]
        for n in (2, 8):
            ours = adaoptax.value_grad_and_stats(loss_fn, adaoptax.measure.groups(n))
            masked = lambda p, b, m, ours=ours: ours(p, b, mask=m)
            results = measure(
                {
                    "plain": (jax.value_and_grad(loss_fn), (params, batch)),
                    "accumulation": (accumulation(loss_fn, n), (params, batch)),
                    "groups": (ours, (params, batch)),
                    "masked": (masked, (params, batch, jnp.ones(rows, bool))),
                },
                options.rounds,
            )
            base = results["accumulation"]
            print(
                f"{name:<13}{rows:>6}{n:>7}{results['groups'].time_ratio(base):>8.2f}"
                f"{results['groups'].memory_ratio(base):>8.2f}"
                f"{results['masked'].time_ratio(base):>13.2f}"
                f"{results['groups'].time_ratio(results['plain']):>12.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
