"""Equations are read alike in every JAX; one that is written otherwise is an error that says so."""

import csv
import pathlib
import tomllib

import jax
import jax.numpy as jnp
import pytest

from adaoptax import measure, value_grad_and_stats
from adaoptax.measure.programs import describe
from adaoptax.measure.programs.equations import (
    KNOWN_TO_WORK,
    Parameters,
    UnknownEquationError,
    read_scan,
)

ROOT = pathlib.Path(__file__).parents[2]
W, XS = jnp.eye(3), jnp.ones((4, 5, 3))


def recurrent(w, xs):
    """Two constants, one carried value, two that are scanned over, two results a turn."""
    bias = w[0]

    def step(h, x):
        h = jnp.tanh(h @ w + x[0] + bias)
        return h, (h.sum(), x[1])

    over = jnp.moveaxis(xs, 1, 0)
    h, _ = jax.lax.scan(step, xs[:, 0], (over, 2 * over), reverse=True, unroll=5)
    return jnp.mean(h**2)


def scan_of(loss_fn):
    return next(e for e in jax.make_jaxpr(loss_fn)(W, XS).eqns if e.primitive.name == "scan")


def test_the_parts_of_a_scan():
    eqn = scan_of(recurrent)
    scan = read_scan(eqn)
    assert (scan.num_consts, scan.num_carry) == (2, 1)
    assert scan.options == {"length": 5, "reverse": True, "unroll": 5}
    inside, outside = scan.body.jaxpr.invars, eqn.invars
    assert [v.aval.shape for v in inside[:3]] == [v.aval.shape for v in outside[:3]]
    assert [v.aval.shape for v in inside[3:]] == [v.aval.shape[1:] for v in outside[3:]]
    assert scan.body.jaxpr.outvars[0].aval.shape == (4, 3)


def test_an_unknown_parameter_names_equation_line_and_versions():
    with pytest.raises(UnknownEquationError) as error:
        Parameters(scan_of(recurrent))["turns"]
    message = str(error.value)
    assert "the equation scan at " in message
    assert "test_equations.py:" in message
    assert "(recurrent)" in message
    assert "a parameter 'turns', got [" in message
    assert f"jax {jax.__version__} writes it otherwise than jax 0.10.2 to " in message
    assert message.endswith('loss_kind="assumed" and adaoptax.measure.groups(n).')


@pytest.mark.parametrize("method", [None, measure.exact(), measure.exact(("inner",))], ids=repr)
@pytest.mark.parametrize("lost", ["length", "jaxpr", "dimension_numbers", "axes", "y"])
def test_a_jax_that_renames_a_parameter_is_an_error_in_every_way_of_reading(
    monkeypatch, method, lost
):
    read = Parameters.__init__

    def renamed(self, eqn):
        read(self, eqn)
        self.pop(lost, None)

    loss_fn = lambda w, xs: recurrent(w, xs) + jnp.mean(xs @ w)
    measured = value_grad_and_stats(loss_fn, method)
    measured(W, XS)
    monkeypatch.setattr(Parameters, "__init__", renamed)
    with pytest.raises(UnknownEquationError, match=f"a parameter '{lost}'"):
        measured(W, XS)


def test_groups_of_an_assumed_loss_read_nothing(monkeypatch):
    monkeypatch.setattr(describe, "describe", None)
    method = measure.groups(2)
    loss, _, stats = value_grad_and_stats(recurrent, method, loss_kind="assumed")(W, XS)
    assert jnp.isfinite(loss + stats.variance)


def test_the_versions_known_to_work_are_those_that_ran():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"jax>={KNOWN_TO_WORK[0]}" in project["dependencies"]
    with (ROOT / "docs" / "versions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    whole = [row["jax"] for row in rows if row["tests"] == "all"]
    assert (whole[0], whole[-1]) == KNOWN_TO_WORK
