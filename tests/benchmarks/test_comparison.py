"""The comparison of methods: a small run of the command, and what every line means."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import comparison


def test_a_small_run_prints_its_table(capsys):
    only = ["--only", "constant 32", "norm_test"]
    comparison.main(["--seeds", "2", "--problems", "logistic", *only])
    printed = capsys.readouterr().out
    rows = [line.split("|") for line in printed.splitlines() if line.startswith("| ")][2:]
    assert [row[1].strip() for row in rows] == ["constant 32", "norm_test"]
    updates, examples, largest = (int(cell) for cell in rows[0][2:5])
    assert (updates, largest) == (-(-30_000 // 32), 32)
    assert examples == 32 * updates
    assert int(rows[1][2]) < updates / 2
    assert all("±" in row[5] for row in rows)


@pytest.mark.parametrize("name", comparison.PROBLEMS)
def test_errors_are_zero_at_the_solution_and_positive_elsewhere(name):
    problem = comparison.PROBLEMS[name]()
    params = problem.init(comparison.jax.random.key(0))
    assert float(problem.error(params)) > 0
    assert jnp.isfinite(problem.loss_fn(params, problem.data))
    if name == "quadratic":
        assert float(problem.error(jnp.zeros(100))) == 0
        assert np.abs(problem.data.mean(0)).max() < 1e-6
