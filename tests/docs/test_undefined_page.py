"""Every row of the table of undefined statistics: its case is caused, for every batch test."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaoptax
from adaoptax.batch_tests import BatchTestState, optimal_split, proximal_inner_product_test

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "guide" / "undefined.md"
TABLE = PAGE.read_text().split("## What")[0]
ROWS = {
    case: words
    for case, *words in (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in TABLE.splitlines()
        if line.startswith("| ")
    )
    if case not in ("case", "---")
}
TESTS: dict[str, Any] = {
    "norm": lambda **o: adaoptax.norm_test(0.5, **o),
    "inner": lambda **o: adaoptax.inner_product_test(0.5, **o),
    "augmented": lambda **o: adaoptax.augmented_inner_product_test(0.5, 0.5, **o),
    "coordinate": lambda **o: adaoptax.coordinate_test(0.5, **o),
    "split": lambda **o: optimal_split(0.5, **o),
    "proximal": lambda **o: adaoptax.proximal_test(0.5, **o),
    "proximal inner": lambda **o: proximal_inner_product_test(0.5, **o),
}
CLEAR = [[1.0, 1.0], [1.1, 0.9], [0.9, 1.0], [1.0, 1.1]]
REAL = [True] * 4
CASES: dict[str, Any] = {  # per-example gradients, mask, and what is put for a statistic
    "one group": (CLEAR, [True, False, False, False], {}),
    "neither gradient nor noise": ([[0.0, 0.0]] * 4, REAL, {}),
    "NaN in the gradient": ([[np.nan, 1.0], *CLEAR[1:]], REAL, {}),
    "infinity in the gradient": ([[np.inf, 1.0], *CLEAR[1:]], REAL, {}),
    "NaN variance": (CLEAR, REAL, {"variance": np.nan, "coordinate_variance": [np.nan] * 2}),
    "infinite variance": (CLEAR, REAL, {"variance": np.inf, "coordinate_variance": [np.inf] * 2}),
    "padding only": (CLEAR, [False] * 4, {}),
    "zero gradient, with noise": ([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], REAL, {}),
    # g = (1/2, 0), S² = 1 = B·‖g‖²
    "zero signal": (
        [[1.0, 0.5], [0.0, 0.5], [1.0, -0.5], [0.0, -0.5]],
        REAL,
        {"variance": 1.0, "coordinate_variance": [1.0, 0.0]},
    ),
    "negative signal": ([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -0.6]], REAL, {}),
    "gradient without noise": ([[1.0, 2.0]] * 4, REAL, {}),
    "not measured at this step": (CLEAR, REAL, {"num_groups": 0.0, "variance": np.nan}),
    "between two tests (`interval`)": (CLEAR, REAL, {}),
}
measure = jax.jit(
    adaoptax.value_grad_and_stats(
        lambda w, x: jnp.mean(x @ w),
        adaoptax.measure.per_example(statistics=("norm", "inner", "coordinate")),
    )
)


def step(tx: Any, state: Any, rows: Any, mask: Any, put: Any) -> tuple[Any, Any]:
    x = np.array(rows, np.float32)
    _, grads, stats = measure(jnp.zeros(2), x, mask=np.array(mask))
    stats = stats._replace(**{name: jnp.asarray(value, jnp.float32) for name, value in put.items()})
    along = lambda v: jnp.var(x @ v, ddof=1)
    return stats, tx.update(grads, state, stats=stats, variance_fn=along)[1]


def moved(before: Any, after: Any, *but: str) -> bool:
    same = jax.tree.map(np.array_equal, before._replace(**dict.fromkeys(but, 0)),
                        after._replace(**dict.fromkeys(but, 0)))  # fmt: skip
    return not all(jax.tree.leaves(same))


def word_of_test(before: BatchTestState, after: BatchTestState) -> str:
    if not moved(before, after):
        return "holds"
    if not after.tested:
        assert not moved(before, after, "tested", "steps_seen")
        return "waits"
    if after.undefined:
        assert int(after.tests_undefined) == 1
        assert after.required_batch_size == before.required_batch_size
        return "undefined"
    if after.noise_dominated:
        assert int(after.tests_noise_dominated) == 1
        return "all noise" if np.isinf(after.required_batch_size) else "?"
    return "requires 0" if after.test_passed and after.required_batch_size == 0 else "a number"


def word_of_adascale(before: Any, after: Any) -> str:
    if after.steps_skipped:
        assert not moved(before, after, "steps_skipped")
        return "skips"
    assert not after.gain_undefined
    return "averages" if after.gain_samples > before.gain_samples else "keeps"


def word_of_tracker(before: Any, after: Any) -> str:
    if not moved(before, after):
        return "holds"
    if after.noise_steps_undefined:
        assert not moved(before, after, "noise_steps_undefined")
        return "undefined"
    return "averages" if after.noise_steps == before.noise_steps + 1 else "?"


def test_the_page_has_every_case() -> None:
    assert set(ROWS) == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_the_row_of_a_case(case: str) -> None:
    rows, mask, put = CASES[case]
    interval = 2 if "interval" in case else 1
    tx = optax.chain(
        *(make(interval=interval) for make in TESTS.values()),
        adaoptax.track_noise_scale(1000),
        adaoptax.scale_by_adascale(2),
    )
    _, before = step(tx, tx.init(jnp.zeros(2)), CLEAR, REAL, {})
    stats, after = step(tx, before, rows, mask, put)
    policy = adaoptax.GrowthPolicy(4, 64)
    seen = adaoptax.observables(jnp.float32(1), stats, after)
    policy.update(seen["required"] if seen["measured"] else None)
    of_tests, *others = ROWS[case]
    for name, *states in zip(TESTS, before, after, strict=False):
        assert word_of_test(*states) == of_tests, name
    adascale, tracker = (
        word_of_adascale(before[-1], after[-1]),
        word_of_tracker(before[-2], after[-2]),
    )
    assert [adascale, tracker, policy.decision] == others
