"""SEBS: its stages, its updates as in the paper's setting, and what is refused."""

import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaoptax.schedules import plan, sebs

pytestmark = pytest.mark.sampled

IMAGES, EPOCHS, MILESTONES = 50_000, 160, (80, 120)


def updates_in_epochs(batch_sizes):
    """Updates where every epoch ends with its own short batch."""
    return sum(plan(batch_sizes(epoch * IMAGES), IMAGES).num_steps for epoch in range(EPOCHS))


@pytest.mark.parametrize(
    ("rho", "updates", "without_a_seam"),
    [(10, 33_040, 31_250 + 1_563 + 157), (5, 35_080, 31_250 + 3_125 + 625)],
)
def test_updates_of_160_epochs_on_50000_images(rho, updates, without_a_seam):
    """62,560 of a fixed batch of 128 become 33,040 or 35,080."""
    milestones = [epoch * IMAGES for epoch in MILESTONES]
    batch_sizes, rate = sebs(128, 0.1, rho=rho, milestones=milestones)
    assert updates_in_epochs(lambda examples: 128) == 62_560
    assert updates_in_epochs(batch_sizes) == updates
    made = plan(batch_sizes, EPOCHS * IMAGES, learning_rate=rate)
    assert made.num_steps == without_a_seam  # a loader's epochs follow each other
    assert made.fixed_steps == 62_500
    for stage in made.stages:
        assert stage.last_rate == pytest.approx(0.1, rel=1e-6)


@given(st.integers(2, 12), st.integers(1, 64), st.integers(1, 400), st.integers(2, 6))
def test_under_the_theory_budget_every_stage_has_the_same_updates(rho, batch, updates, stages):
    batch_sizes, _ = sebs(batch, 0.1, rho=rho, first_stage=batch * updates, num_stages=stages)
    total = sum(batch * updates * rho**stage for stage in range(stages))
    made = plan(batch_sizes, total)
    assert [stage.steps for stage in made.stages] == [updates] * stages
    assert [stage.batch_size for stage in made.stages] == [batch * rho**s for s in range(stages)]


def test_a_fractional_rho_is_rounded_to_whole_examples():
    batch_sizes, _ = sebs(10, 0.1, rho=1.5, first_stage=100, num_stages=4)
    assert batch_sizes.stages == ((0, 10), (100, 15), (250, 22), (475, 34))


def test_a_schedule_of_the_learning_rate_is_left_as_it_is():
    warm_up = optax.linear_schedule(0.0, 0.1, 50)
    assert sebs(8, warm_up, rho=2, milestones=[100]).learning_rate is warm_up


@pytest.mark.parametrize("rate", [0.5, optax.linear_schedule(0.0, 0.5, 50)])
def test_above_the_largest_size_the_learning_rate_is_divided(rate):
    """b / eta grows by rho at every milestone, by the batch as long as it may."""
    batch_sizes, capped = sebs(8, rate, rho=4, milestones=[100, 300, 900], max_batch_size=48)
    assert batch_sizes.stages == ((0, 8), (100, 32), (300, 48), (900, 48))
    ratios = [batch_sizes(n) / float(jax.jit(capped)(n)) for n in (50, 99, 100, 300, 900)]
    np.testing.assert_allclose(ratios, np.array([1, 1, 4, 16, 64]) * 8 / 0.5, rtol=1e-6)


milestones = {"milestones": [100]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 1, **milestones}, "rho > 1 and finite, got rho=1: it is the factor"),
        ({"rho": 0.1, **milestones}, "got rho=0.1.*by which you would divide the learning rate"),
        ({"rho": np.nan, **milestones}, "got rho=nan"),
        ({"rho": np.inf, **milestones}, "got rho=inf"),
        ({"rho": "10", **milestones}, "got rho='10'"),
        ({}, "a budget for the stages.*milestones=None and first_stage=None"),
        ({**milestones, "first_stage": 9, "num_stages": 2}, "either milestones or first_stage"),
        ({"first_stage": 100}, "first_stage and num_stages together.*num_stages=None"),
        ({**milestones, "num_stages": 2}, "together, got first_stage=None"),
        ({"first_stage": 0, "num_stages": 2}, "first_stage >= 1, got first_stage=0"),
        ({"first_stage": 100, "num_stages": 1}, "num_stages >= 2, got num_stages=1: with one"),
        ({"first_stage": 7, "num_stages": 2}, "at least one batch, got 7 examples from 0 on.*of 8"),
        ({"milestones": []}, r"milestones that increase, got milestones=\[\]"),
        ({"milestones": [100, 100]}, r"that increase, got milestones=\[100, 100\]"),
        ({"milestones": [0, 100]}, "each milestone >= 1, got each milestone=0"),
        ({"milestones": [100, 110]}, "got 10 examples from 100 on with a batch of 16"),
        ({"batch_size": 0, **milestones}, "batch_size >= 1, got batch_size=0"),
        ({"learning_rate": -0.1, **milestones}, "learning_rate > 0 and finite, got learning_r"),
        ({"learning_rate": 0.0, **milestones}, "learning_rate > 0 and finite, got learning_r"),
        ({"max_batch_size": 4, **milestones}, "max_batch_size >= 8, got max_batch_size=4"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(options, message):
    options = {"batch_size": 8, "learning_rate": 0.1, "rho": 2, **options}
    with pytest.raises(ValueError, match=message) as error:
        sebs(**options)
    assert "\n" not in str(error.value)
