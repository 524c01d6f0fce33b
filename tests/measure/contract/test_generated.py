"""Random losses: every method returns the plain loss and gradient, or refuses."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from contract import METHODS, judge, outcome, truth_of
from generator import make_loss

SEEDS = 200
case_of = functools.lru_cache(4)(make_loss)


def cases() -> list[Any]:
    """Two methods on all seeds, all methods on every fifth; by default on 45 of the seeds.

    Not `sampled`, which chooses by name: methods on one seed share what was found out about it.
    """
    found = []
    for seed in range(SEEDS):
        marks = [] if seed % 5 == 1 or seed % 40 == 0 else [pytest.mark.slow]
        names = METHODS if seed % 5 == 0 else ("exact", "default")
        found += [pytest.param(seed, name, marks=marks) for name in names]
    return found


@pytest.mark.parametrize(("seed", "method"), cases())
def test_kept_or_refused(seed, method):
    case = case_of(seed)
    found = outcome(case, method)
    assert not found.startswith("BROKEN"), f"{found}\n{case.description}"


@pytest.mark.sampled
@pytest.mark.parametrize("seed", range(60))
def test_blocks_are_what_their_labels_say(seed):
    """A loss without a block that mixes rows is a sum over rows, found out numerically."""
    case = case_of(seed)
    assert case.mixes or truth_of(case).additive, case.description


def test_seeds_decide():
    """And the families all come up."""
    assert make_loss(3).description == make_loss(3).description
    families = {family for seed in range(SEEDS) for family in make_loss(seed).families}
    assert len(families) >= 15, families


def faulty(fault):
    """What `measure.per_example` returns for the first case that is a mean, spoilt by `fault`."""
    case = next(case for case in map(case_of, range(SEEDS)) if truth_of(case).even)

    def make(loss_fn):
        step = METHODS["per_example"](loss_fn)
        return lambda params, batch: fault(*step(params, batch))

    find = functools.partial(truth_of, case)
    return judge(make, case.loss_fn, case.params, case.batch, find)


def raise_(error):
    raise error


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (lambda v, g, s: (v, g, s), "kept"),
        (lambda v, g, s: (1.001 * v + 0.001, g, s), "BROKEN: loss"),
        (lambda v, g, s: (v, jax.tree.map(lambda x: 1.001 * x, g), s), "BROKEN: gradient"),
        (lambda v, g, s: (v, g, s._replace(variance=1.01 * s.variance)), "BROKEN: variance"),
        (lambda v, g, s: (v, g, s._replace(variance=jnp.nan)), "BROKEN: variance"),
        (lambda v, g, s: (v, jax.tree.map(lambda x: x * jnp.nan, g), s), "BROKEN: gradient"),
        (lambda v, g, s: (v, [g], s), "BROKEN: the gradient has another structure"),
        (lambda v, g, s: raise_(ValueError("no")), "refused: (not the library's own words) no"),
        (lambda v, g, s: raise_(KeyError("no")), "BROKEN: crash: KeyError"),
    ],
)
def test_the_judge_sees_faults(fault, found):
    assert faulty(fault).startswith(found)
