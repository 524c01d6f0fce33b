"""What a scaling rule may ask for, gathered over steps: averaged statistics, examples seen."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaoptax import _tree, _validate
from adaoptax.averages import Averages, debiased
from adaoptax.clock import Clock, init_clock
from adaoptax.scaling.gain import (
    CONVENTIONS,
    NoiseAndSignal,
    add_sample,
    checked_decay,
    init_gain_averages,
)
from adaoptax.scaling.skip import next_count
from adaoptax.stats import GradientStats, signal

# Rule(batch_size, base_batch_size, **what it names of: stats, noise_scale, examples_seen) → factor.
Rule = Callable[..., Any]

# The clock counts in units of 2^16 examples, exact in binary: int32 then lasts for 10^14 of them.
_UNIT = 65536


class RuleInForce(NamedTuple):
    """A rule and what it is run with.

    Attributes:
        rule: The rule.
        base_batch_size: Batch size at which its factor is 1.
        noise_scale: What the rule gets as such, or None.
        decay: Share of the averages kept for each base batch.
    """

    rule: Rule
    base_batch_size: Any
    noise_scale: Any
    decay: Any


class RuleEvidence(NamedTuple):
    """What a rule decides by, and what came of it.

    Attributes:
        batch_factor: Factor of the last step that had one; 1 at first.
        factor_undefined: Whether the rule had nothing to decide by at the last step: factor 1.
        factors_undefined: Steps of which this held.
        rule_averages: Averages of per-example variance and debiased squared gradient norm.
        rule_samples: Samples in them.
        rule_clock: Examples seen before the next step, in units of 65536.
    """

    batch_factor: jax.Array
    factor_undefined: jax.Array
    factors_undefined: jax.Array
    rule_averages: Averages
    rule_samples: jax.Array
    rule_clock: Clock


def init_evidence(dtype: Any) -> RuleEvidence:
    """Evidence of no step yet."""
    return RuleEvidence(
        batch_factor=jnp.ones([], dtype),
        factor_undefined=jnp.zeros([], jnp.bool_),
        factors_undefined=jnp.zeros([], jnp.int32),
        rule_averages=init_gain_averages(dtype),
        rule_samples=jnp.zeros([], jnp.int32),
        rule_clock=init_clock(dtype),
    )


def add_step(evidence: RuleEvidence, force: RuleInForce, stats: GradientStats) -> RuleEvidence:
    """The evidence after one step, whose factor it holds. A batch of padding only adds nothing."""
    dtype = evidence.batch_factor.dtype
    real = stats.num_examples > 0
    batch = jnp.where(real, stats.num_examples, force.base_batch_size).astype(dtype)
    base = jnp.asarray(force.base_batch_size, dtype)

    sample = NoiseAndSignal(stats.variance.astype(dtype), signal(stats).astype(dtype))
    usable = jnp.isfinite(sample.base_variance) & jnp.isfinite(sample.signal)
    usable = real & usable & (stats.num_groups > 1)
    samples = evidence.rule_samples + usable.astype(jnp.int32)
    old, convention = evidence.rule_averages, CONVENTIONS["adaoptax"]
    added = add_sample(convention, old, sample, batch / base, force.decay, samples)
    averages = _tree.select(usable, added, old)

    known, seen = averaged_stats(averages, stats), _UNIT * evidence.rule_clock.value()
    factor = jnp.asarray(call_rule(force, batch, base, known, seen), dtype)
    defined = jnp.isfinite(factor)
    stepped = RuleEvidence(
        batch_factor=jnp.where(defined, factor, 1).astype(dtype),
        factor_undefined=~defined,
        factors_undefined=next_count(evidence.factors_undefined, ~defined),
        rule_averages=averages,
        rule_samples=samples,
        rule_clock=evidence.rule_clock.advance(batch / _UNIT),
    )
    return _tree.select(real, stepped, evidence)


def averaged_stats(averages: Averages, stats: GradientStats) -> GradientStats:
    """Averages as statistics of infinitely many examples: `sq_norm` is the debiased signal."""
    mean = debiased(averages)
    known = averages.weight > 0
    dtype = averages.weight.dtype
    return GradientStats(
        num_examples=jnp.full([], jnp.inf, dtype),
        num_groups=stats.num_groups.astype(dtype),
        sq_norm=jnp.where(known, mean.signal, jnp.nan),
        variance=jnp.where(known, mean.base_variance, jnp.nan),
    )


def call_rule(
    force: RuleInForce, batch_size: Any, base_batch_size: Any, stats: GradientStats, seen: Any
) -> Any:
    """The factor of a rule, which is given of the evidence what it names."""
    evidence: dict[str, Any] = {"stats": stats, "examples_seen": seen}
    if force.noise_scale is not None:
        evidence["noise_scale"] = force.noise_scale
    named = _parameters(force.rule)
    given = {name: value for name, value in evidence.items() if name in named}
    return force.rule(batch_size, base_batch_size, **given)


def rule_in_force(rule: Any, base_batch_size: Any, noise_scale: Any, decay: Any) -> RuleInForce:
    """Raises unless `rule` can be called with the evidence there is, and gives one number."""
    _validate.base_batch_size(base_batch_size, "the learning rate")
    force = RuleInForce(rule, base_batch_size, noise_scale, checked_decay(decay))
    if not callable(rule):
        raise TypeError(
            f"Expected rule to be a function of batch_size and base_batch_size, got {rule!r}: pass "
            "one of adaoptax.scaling.rules, for example rules.sqrt, without calling it."
        )
    known = {"stats", "examples_seen", "noise_scale"}
    needed = [
        name
        for name, parameter in list(_parameters(rule).items())[2:]
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if unknown := [name for name in needed if name not in known]:
        raise ValueError(
            f"Expected a rule that needs no more than its evidence, got {_name(rule)}, which needs "
            f"{unknown[0]} too: bind it, as in functools.partial(rule, {unknown[0]}=...)."
        )
    if noise_scale is not None and "noise_scale" not in _parameters(rule):
        raise ValueError(
            f"Expected noise_scale=None for {_name(rule)}, got noise_scale={noise_scale!r}: the "
            "rule does not use one; leave it out, or choose rules.mccandlish or rules.surge."
        )
    scalar: Any = jax.ShapeDtypeStruct((), jnp.float32)
    stats = GradientStats(scalar, scalar, scalar, scalar)
    call = lambda size, stats: jnp.asarray(call_rule(force, size, size, stats, size))
    shape = jax.eval_shape(call, scalar, stats).shape
    if shape != ():
        raise ValueError(
            f"Expected rule to return one number, got shape {shape} from {_name(rule)}: one factor "
            "multiplies the whole update."
        )
    return force


def _parameters(rule: Rule) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(rule).parameters)


def _name(rule: Any) -> str:
    while isinstance(rule, functools.partial):
        rule = rule.func
    return getattr(rule, "__name__", repr(rule))
