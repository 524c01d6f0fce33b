"""SEBS and seesaw in small real runs: loader, loop, optimizer and records agree with the plan."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaoptax
from adaoptax.schedules import (
    add_stage_penalty,
    over_examples,
    plan,
    scale_by_schedule_over_examples,
    sebs,
    seesaw,
)

pytestmark = pytest.mark.sampled

NUM, MICRO = 600, 8
RULES = {
    "seesaw": seesaw(
        optax.warmup_cosine_decay_schedule(0.0, 0.2, 60, 2 * NUM, end_value=0.02),
        16,
        2 * NUM,
        multiple_of=MICRO,
    ),
    "sebs": sebs(16, 0.1, rho=2, first_stage=160, num_stages=3),
}


def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM, 3)).astype(np.float32)
    noise = rng.normal(size=NUM).astype(np.float32)
    return {"x": x, "y": x @ np.array([1, -2, 0.5], np.float32) + 0.1 * noise}


def make_loop(policy, records):
    loader = adaoptax.BatchLoader(
        problem(), 16, micro_batch_size=MICRO, max_batch_size=256, pad_to="max", num_epochs=2
    )
    return adaoptax.AdaptiveLoop(loader, policy, callbacks=[records.append])


class Run:
    """A train step whose records have the learning rate and the stage of every step."""

    def __init__(self, rule):
        self.tx = optax.chain(
            adaoptax.norm_test(eta=0.5),
            add_stage_penalty(rule.batch_sizes, gamma=10.0),
            optax.sgd(1.0, momentum=0.5),
            optax.scale(-1.0),  # back to the sign of a gradient
            scale_by_schedule_over_examples(rule.learning_rate),
        )
        self.w = jnp.zeros(3)
        self.opt_state = self.tx.init(self.w)
        measure = adaoptax.value_grad_and_stats(
            lambda w, batch: jnp.mean((batch["x"] @ w - batch["y"]) ** 2),
            adaoptax.measure.per_example(),
        )

        @jax.jit
        def step(w, opt_state, batch):
            loss, grads, stats = measure(w, batch.data, mask=batch.mask)
            updates, opt_state = self.tx.update(grads, opt_state, w, stats=stats)
            clock = opt_state[-1].examples_clock
            output = {
                "required": adaoptax.required_batch_size(opt_state),
                "loss": loss,
                "stage": opt_state[1].stage_index,
                "seen_after": 65536 * clock.value(),
                "rate": jnp.linalg.norm(updates) / jnp.linalg.norm(opt_state[2][0].trace),
            }
            return optax.apply_updates(w, updates), opt_state, output

        self.step = step

    def through(self, loop, steps=None):
        for _ in range(10**6 if steps is None else steps):
            batch = next(loop, None)
            if batch is None:
                return
            self.w, self.opt_state, output = self.step(self.w, self.opt_state, batch)
            loop.observe(output)


@pytest.mark.parametrize("name", RULES)
def test_a_run_does_what_the_plan_says(name, compilations):
    rule = RULES[name]
    records: list[dict[str, Any]] = []
    run = Run(rule)
    made = plan(rule.batch_sizes, 2 * NUM, micro_batch_size=MICRO)
    with make_loop(rule.batch_sizes, records) as loop:
        run.through(loop, 1)
        compilations.reset()
        run.through(loop)
    assert compilations.count == 0
    planned = [stage.batch_size for stage in made.stages for _ in range(stage.steps)]
    planned[-1] = made.last_batch
    assert [record["batch_size"] for record in records] == planned
    assert len(set(planned)) > 2
    over_steps = jax.vmap(over_examples(rule.learning_rate, rule.batch_sizes, MICRO))
    expected = over_steps(jnp.arange(len(records)))
    np.testing.assert_allclose([r["rate"] for r in records], expected, rtol=1e-5, atol=1e-8)
    assert [r["seen_after"] for r in records] == [r["examples"] for r in records]
    begins = [begin for begin, _ in rule.batch_sizes.stages or ()]
    before = [r["examples"] - r["batch_size"] for r in records]
    assert [r["stage"] for r in records] == [sum(b <= n for b in begins) - 1 for n in before]
    assert records[-1]["loss"] < 0.1 * records[0]["loss"]


@pytest.mark.parametrize("name", RULES)
def test_as_a_lower_bound_the_noise_may_ask_for_more(name):
    rule = RULES[name]
    records: list[dict[str, Any]] = []
    policy = adaoptax.GrowthPolicy(rule.batch_sizes, 256, multiple_of=MICRO)
    with make_loop(policy, records) as loop:
        Run(rule).through(loop)
    before = [r["examples"] - r["batch_size"] for r in records]
    least = [rule.batch_sizes(n) for n in before]
    sizes = [r["batch_size"] for r in records]
    assert all(size >= low for size, low in zip(sizes[:-1], least[:-1], strict=True))
    assert any(size > low for size, low in zip(sizes[:-1], least[:-1], strict=True))


@pytest.mark.topic("resumes")
@pytest.mark.parametrize("name", RULES)
def test_a_resumed_run_has_the_same_sizes_rates_and_stages(name):
    rule = RULES[name]
    expected: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    with make_loop(rule.batch_sizes, expected) as loop:
        Run(rule).through(loop)
    run, loop = Run(rule), make_loop(rule.batch_sizes, records)
    run.through(loop, 17)
    state = json.loads(json.dumps(loop.get_state()))
    del records[16:]
    with make_loop(rule.batch_sizes, records) as resumed:
        resumed.set_state(state)
        run.through(resumed)
    clean = lambda all_records: [
        {k: v for k, v in r.items() if k != "examples_per_s"} for r in all_records
    ]
    assert clean(records) == clean(expected)
