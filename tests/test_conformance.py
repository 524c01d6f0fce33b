"""What every transformation of the library must pass: one list, so that a new one adds its name.

The items are those of Optax's own tests for contributed methods, plus sharding, donation and
serialisation. An entry of `TRANSFORMATIONS` is a factory and its arguments; everything else is
derived from them.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import adaoptax
from adaoptax import GradientStats, prox, scaling
from adaoptax.batch_tests import (
    averaged_gradient,
    optimal_split,
    proximal_inner_product_test,
    proximal_test,
)
from adaoptax.noise_tracker import TrackNoiseScaleState, track_noise_scale
from adaoptax.scaling import LipschitzDescentState, lipschitz_descent, rules
from adaoptax.schedules import (
    add_stage_penalty,
    apply_stage_prox,
    scale_by_schedule_over_examples,
)

pytestmark = [pytest.mark.sampled, pytest.mark.topic("contract of Optax")]


class Entry(NamedTuple):
    """One transformation under test.

    Attributes:
        factory: What the user calls.
        kwargs: Arguments it is called with; numbers among them are injected as hyperparameters.
        needs_stats: Whether `update` requires ``stats=``.
        optimizes: Whether its updates can be applied as they are (it minimizes a function).
        static: Arguments that must not become arrays under `optax.inject_hyperparams`.
    """

    factory: Callable[..., Any]
    kwargs: dict[str, Any]
    needs_stats: bool = True
    optimizes: bool = False
    static: tuple[str, ...] = ()

    def make(self, **changes: Any) -> Any:
        return self.factory(**{**self.kwargs, **changes})


def skipping_adam(learning_rate: Any) -> Any:
    return adaoptax.skip_nonfinite(optax.adam(learning_rate))


def along_step(
    theta: Any,
    learning_rate: Any,
    signal: str = "debiased",
    dataset_size: Any = None,
    decay: Any = None,
    interval: Any = 1,
) -> Any:
    tx = proximal_inner_product_test(
        theta,
        learning_rate=learning_rate,
        signal=signal,
        dataset_size=dataset_size,
        decay=decay,
        interval=interval,
    )
    return adaoptax.bind_extra_args(tx, variance_fn=lambda v: optax.tree.norm(v, squared=True))


def complete_step_on_schedule(theta: Any) -> Any:
    return proximal_test(theta, learning_rate=optax.linear_schedule(1.0, 0.5, 9))


def averaged_norm(eta: Any, window: Any, gamma: Any) -> Any:
    return averaged_gradient(adaoptax.norm_test(eta), window, gamma)


def lipschitz_on_a_model(initial_lipschitz: Any, growth: Any) -> Any:
    """On the quadratic of curvature 1 that has the gradient at hand."""
    tx = lipschitz_descent(initial_lipschitz, growth=growth)

    def update(updates: Any, state: Any, params: Any, **extra: Any) -> Any:
        wide = lambda tree: jax.tree.map(lambda x: x.astype(state.lipschitz.dtype), tree)

        def value_fn(p: Any) -> Any:
            way = optax.tree.sub(wide(p), wide(params))
            linear = jax.tree.map(lambda g, w: jnp.sum(g * w), wide(updates), way)
            return optax.tree.sum(linear) + 0.5 * optax.tree.norm(way, squared=True)

        return tx.update(
            updates, state, params, **{**extra, "value": jnp.float32(0), "value_fn": value_fn}
        )

    return optax.GradientTransformationExtraArgs(tx.init, update)


# Four examples a step: 400 steps are eleven stages.
STAGES = "0:4 " + " ".join(f"{begin}:8" for begin in range(150, 1600, 150))


def adagrad_with_stage_penalty(learning_rate: Any, gamma: Any) -> Any:
    return optax.chain(add_stage_penalty(STAGES, gamma), optax.adagrad(learning_rate))


def momentum_with_stage_prox(learning_rate: Any, gamma: Any) -> Any:
    steps = optax.sgd(learning_rate, momentum=0.9)
    return optax.chain(steps, apply_stage_prox(STAGES, gamma, learning_rate))


TRANSFORMATIONS: dict[str, Entry] = {}
for _name, _test, _kwargs in (
    ("norm_test", adaoptax.norm_test, {"eta": 0.5}),
    ("inner_product_test", adaoptax.inner_product_test, {"theta": 0.9}),
    (
        "augmented_inner_product_test",
        adaoptax.augmented_inner_product_test,
        {"theta": 0.9, "nu": 0.5},
    ),
    ("coordinate_test", adaoptax.coordinate_test, {"eta": 0.5}),
    ("optimal_split", optimal_split, {"epsilon": 0.5}),
    ("proximal_test", proximal_test, {"theta": 0.5, "learning_rate": 0.1}),
    ("proximal_inner_product_test", along_step, {"theta": 0.5, "learning_rate": 0.1}),
):
    for _label, _more in (
        ("", {}),
        (" decay", {"decay": 0.9}),
        (" interval", {"interval": 3}),
        (" plug-in", {"signal": "plug-in", "dataset_size": 1000}),
    ):
        TRANSFORMATIONS[_name + _label] = Entry(_test, {**_kwargs, **_more})

_adascale: dict[str, Any] = {"base_batch_size": 2.0}
for _convention in ("adaoptax", "paper", "fairscale"):
    TRANSFORMATIONS[f"scale_by_adascale {_convention}"] = Entry(
        adaoptax.scale_by_adascale, {**_adascale, "convention": _convention}
    )
    TRANSFORMATIONS[f"scale_by_adascale {_convention} learning_rate"] = Entry(
        adaoptax.scale_by_adascale,
        {**_adascale, "convention": _convention, "learning_rate": 0.1},
        optimizes=True,
    )
TRANSFORMATIONS.update(
    {
        "scale_by_adascale square root": Entry(
            adaoptax.scale_by_adascale, {**_adascale, "exponent": 0.5, "decay": 0.99}
        ),
        "adascale": Entry(adaoptax.adascale, {**_adascale, "learning_rate": 0.1}, optimizes=True),
        "adascale momentum weight_decay": Entry(
            adaoptax.adascale,
            {**_adascale, "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 1e-4},
            optimizes=True,
            static=("momentum", "weight_decay"),  # Optax's parts take on their dtype
        ),
        "inner_product_test leave-one-out": Entry(
            adaoptax.inner_product_test, {"theta": 0.9, "leave_one_out": True}
        ),
        "proximal_test schedule": Entry(complete_step_on_schedule, {"theta": 0.5}),
        "averaged_gradient": Entry(averaged_norm, {"eta": 0.5, "window": 2, "gamma": 0.9}),
        "lipschitz_descent": Entry(
            lipschitz_on_a_model, {"initial_lipschitz": 0.1, "growth": 1.5}, optimizes=True
        ),
        "proximal_gradient box": Entry(
            prox.proximal_gradient,
            {"prox": prox.box(-9.0, 9.0), "learning_rate": 0.1},
            needs_stats=False,
            optimizes=True,
        ),
        "proximal_gradient l1 theta": Entry(
            prox.proximal_gradient,
            {"prox": prox.l1(1e-4), "learning_rate": 0.1, "theta": 0.5},
            optimizes=True,
        ),
        "scale_by_adagrad_norm": Entry(
            adaoptax.scaling.scale_by_adagrad_norm, {}, needs_stats=False
        ),
        "adagrad_norm": Entry(
            adaoptax.adagrad_norm, {"learning_rate": 1.0}, needs_stats=False, optimizes=True
        ),
        "adadagrad": Entry(
            adaoptax.adadagrad, {"learning_rate": 0.5}, optimizes=True, static=("test",)
        ),
        "adadagrad norm test": Entry(
            adaoptax.adadagrad,
            {"learning_rate": 0.5, "test": "norm"},
            optimizes=True,
            static=("test",),
        ),
        "adadagrad_norm": Entry(adaoptax.adadagrad_norm, {"learning_rate": 1.0}, optimizes=True),
        "scale_by_schedule_over_examples": Entry(
            scale_by_schedule_over_examples,
            {"schedule": optax.constant_schedule(0.1)},
            optimizes=True,
            static=("schedule",),
        ),
        "track_noise_scale": Entry(track_noise_scale, {"horizon": 1000.0}),
        "track_noise_scale layers": Entry(
            track_noise_scale, {"horizon": 1000.0, "per_layer": True}
        ),
        "add_stage_penalty": Entry(
            add_stage_penalty, {"batch_sizes": STAGES, "gamma": 5.0}, static=("batch_sizes",)
        ),
        "apply_stage_prox": Entry(
            apply_stage_prox,
            {"batch_sizes": STAGES, "gamma": 5.0, "learning_rate": 0.1},
            static=("batch_sizes",),
        ),
        "add_stage_penalty adagrad": Entry(
            adagrad_with_stage_penalty, {"learning_rate": 0.5, "gamma": 5.0}, optimizes=True
        ),
        "apply_stage_prox momentum": Entry(
            momentum_with_stage_prox, {"learning_rate": 0.05, "gamma": 5.0}, optimizes=True
        ),
        "skip_nonfinite adam": Entry(skipping_adam, {"learning_rate": 0.1}, optimizes=True),
    }
)

_base: dict[str, Any] = {"base_batch_size": 2.0}
_rules: tuple[tuple[Any, dict[str, Any]], ...] = (
    (rules.linear, {}),
    (rules.adascale, {"decay": 0.99}),
    (rules.mccandlish, {"noise_scale": 32.0}),
    (rules.surge, {"noise_scale": 32.0}),
    (functools.partial(rules.legw, base_warmup_examples=16), {}),
)
for _rule, _more in _rules:
    TRANSFORMATIONS[f"scale_by_batch {getattr(_rule, '__name__', 'legw')}"] = Entry(
        scaling.scale_by_batch, {**_base, "rule": _rule, **_more}, static=("rule",)
    )

_moments = ("b1", "b2", "eps", "eps_root")  # in bfloat16 the last bit of a moment is 1 % of it
for _moves in ("half-life", "marek", "malladi"):
    TRANSFORMATIONS[f"scale_by_adam_with_batch {_moves}"] = Entry(
        scaling.scale_by_adam_with_batch, {**_base, "rule": _moves}, static=_moments
    )
TRANSFORMATIONS.update(
    {
        "scale_by_adam_with_batch nesterov": Entry(
            scaling.scale_by_adam_with_batch, {**_base, "nesterov": True}, static=_moments
        ),
        "adamw_with_batch": Entry(
            scaling.adamw_with_batch,
            {**_base, "learning_rate": 0.1, "rule": "malladi"},
            optimizes=True,
            static=_moments,
        ),
        "add_decayed_weights_with_batch": Entry(
            scaling.add_decayed_weights_with_batch, {**_base, "weight_decay": 0.1}
        ),
        "average_params": Entry(scaling.average_params, {"half_life": 16.0}),
    }
)
every = pytest.mark.parametrize("name", TRANSFORMATIONS)
with_stats = pytest.mark.parametrize(
    "name", [name for name, entry in TRANSFORMATIONS.items() if entry.needs_stats]
)
optimizers = pytest.mark.parametrize(
    "name", [name for name, entry in TRANSFORMATIONS.items() if entry.optimizes]
)
scheduled = pytest.mark.parametrize(
    "name", [name for name, entry in TRANSFORMATIONS.items() if "learning_rate" in entry.kwargs]
)


def make(name: str) -> Any:
    return TRANSFORMATIONS[name].make()


@functools.cache
def compiled(name: str) -> Any:
    """``(init, update)`` that all tests on float32 share."""
    tx = make(name)
    return tx.init, jax.jit(tx.update)


def some_params(dtype: Any = jnp.float32) -> Any:
    return {"w": jnp.linspace(-1, 2, 12).reshape(3, 4).astype(dtype), "b": jnp.ones(5, dtype)}


def some_grads(dtype: Any = jnp.float32, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    random = lambda p: jnp.asarray(rng.normal(size=p.shape) + 0.5, dtype)
    return jax.tree.map(random, some_params())


def some_stats(dtype: Any = jnp.float32, like: Any = None, seed: int = 0) -> GradientStats:
    rng = np.random.default_rng(seed + 100)
    scalar = lambda x: jnp.asarray(x, dtype)
    random = lambda p: jnp.asarray(rng.uniform(0.5, 2, p.shape), dtype)
    return GradientStats(
        num_examples=scalar(8),
        num_groups=scalar(4),
        sq_norm=scalar(12.5 + seed % 5),
        variance=scalar(20.0),
        inner_product_variance=scalar(60.0),
        coordinate_variance=jax.tree.map(random, some_params() if like is None else like),
        leave_one_out_variance=scalar(80.0),
    )


def not_measured(seed: int = 0) -> GradientStats:
    """As `measure.every` gives them at a step between."""
    stats = some_stats(seed=seed)
    kept = {"num_examples": stats.num_examples, "sq_norm": stats.sq_norm}
    nothing = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), stats)
    return nothing._replace(num_groups=jnp.zeros_like(stats.num_groups), **kept)


def kinds(tree: Any) -> list[str]:
    """Shape, dtype, weak type and sharding of each leaf, and where it stands."""
    return [
        f"{jax.tree_util.keystr(path)}: {jax.typeof(leaf)} weak={jax.typeof(leaf).weak_type}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def same_structure(left: Any, right: Any) -> None:
    jax.tree.map(lambda a, b: None, left, right)  # raises where they differ
    assert len(jax.tree.leaves(left)) == len(jax.tree.leaves(right))


def assert_same(left: Any, right: Any, rtol: float = 0.0) -> None:
    same_structure(left, right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=rtol, atol=rtol
        )


@every
def test_returns_the_extra_args_type(name):
    assert isinstance(make(name), optax.GradientTransformationExtraArgs)


@every
def test_accepts_unknown_extra_arguments(name):
    (init, update), params = compiled(name), some_params()
    state = init(params)
    plain = update(some_grads(), state, params, stats=some_stats())
    more = update(
        some_grads(), state, params, stats=some_stats(), value=1.0, foreign={"a": jnp.ones(3)}
    )
    assert_same(plain, more)


@with_stats
def test_dropped_stats_are_a_type_error(name):
    tx, params = make(name), some_params()
    with pytest.raises(TypeError, match="stats"):
        tx.update(some_grads(), tx.init(params), params)
    positional = inspect.signature(tx.update).parameters.get("stats")
    assert positional is None or positional.kind is inspect.Parameter.KEYWORD_ONLY


# What a step without statistics must leave as it was: all of a test, what AdaScale knows.
HELD: dict[type, tuple[str, ...]] = {
    adaoptax.batch_tests.BatchTestState: adaoptax.batch_tests.BatchTestState._fields,
    adaoptax.scaling.ScaleByAdaScaleState: (
        "gain_averages",
        "gain_samples",
        "gain_undefined",
        "steps_undefined",
        "steps_skipped",
    ),
    adaoptax.scaling.SkipNonfiniteState: ("nonfinite_skipped",),
    TrackNoiseScaleState: TrackNoiseScaleState._fields,
    LipschitzDescentState: ("searches_failed", "steps_skipped"),
    scaling.RuleEvidence: ("rule_averages", "rule_samples", "factor_undefined"),
    scaling.ScaleByBatchState: ("updates_zeroed",),
    scaling.ScaleByAdamWithBatchState: ("decays_held", "adam_steps_skipped"),
    scaling.AddDecayedWeightsWithBatchState: ("decays_skipped",),
    scaling.AverageParamsState: ("averaged_steps_skipped",),
}


def held(state: Any) -> list[Any]:
    """The fields of `HELD` wherever they stand in `state`."""
    found: list[Any] = []

    def visit(node: Any) -> bool:
        found.extend(getattr(node, field) for field in HELD.get(type(node), ()))
        return False

    jax.tree.leaves(state, is_leaf=visit)
    return found


@with_stats
def test_a_step_that_was_not_measured_holds_what_decides(name):
    (init, update), params = compiled(name), some_params()
    state = init(params)
    for seed in range(4):  # the last is one at which a test with interval=3 runs
        _, state = update(some_grads(seed=seed), state, params, stats=some_stats(seed=seed))
    before = held(state)
    assert before or "schedule" in name or "stage" in name  # they count examples alone
    for seed in range(3):
        grads, stats = some_grads(seed=seed), not_measured(seed)
        updates, after = update(grads, state, params, stats=stats)
        assert_same(held(after), before)
        assert kinds(after) == kinds(state)
        for leaf in jax.tree.leaves((updates, after)):
            assert np.isfinite(leaf).all()
        assert any(np.any(leaf) for leaf in jax.tree.leaves(updates))  # the step is taken
        state = after


@pytest.mark.parametrize("name", [n for n, e in TRANSFORMATIONS.items() if not e.needs_stats])
def test_works_without_stats(name):
    tx, params = make(name), some_params()
    assert_same(
        tx.update(some_grads(), tx.init(params), params),
        tx.update(some_grads(), tx.init(params), params, stats=some_stats()),
    )


@every
def test_second_call_does_not_compile(name, compilations):
    tx, params = make(name), some_params()
    update = jax.jit(tx.update)
    inputs = [(some_grads(seed=s), some_stats(seed=s)) for s in range(3)]
    state = tx.init(params)
    _, state = update(inputs[0][0], state, params, stats=inputs[0][1])
    assert compilations.count > 0
    compilations.reset()
    for grads, stats in inputs[1:]:
        _, state = update(grads, state, params, stats=stats)
    assert compilations.count == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@every
def test_state_and_update_types_are_stable(name, dtype):
    """Under every dtype of parameters, and statistics of right and deliberately wrong dtypes."""
    with jax.enable_x64(dtype == "float64"):
        tx, params, grads = make(name), some_params(dtype), some_grads(dtype)
        state = tx.init(params)
        assert not any(jax.typeof(leaf).weak_type for leaf in jax.tree.leaves(state))
        right, wrong = jnp.float32, jnp.float16
        if dtype == "float64":
            right, wrong = jnp.float64, jnp.float32

        def maybe(go: Any, state: Any, stats: Any) -> Any:
            take = lambda s: tx.update(grads, s, params, stats=stats)[::-1]
            return jax.lax.cond(go, take, lambda s: (s, grads), state)

        def types(tree: Any) -> list[Any]:
            return [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]

        expected = types(jax.eval_shape(lambda *x: x, state, grads))
        for each in (right, wrong, jnp.float16):
            stats = some_stats(each)
            assert types(jax.eval_shape(maybe, True, state, stats)) == expected
            step = lambda state, stats: tx.update(grads, state, params, stats=stats)[::-1]
            assert types(jax.eval_shape(step, state, stats)) == expected
        if dtype == "bfloat16":  # once without jit
            updates, new = tx.update(grads, state, params, stats=some_stats(right))
            assert kinds(new) == kinds(state)
            assert kinds(updates) == kinds(grads)
        if dtype == "float16":  # once with numbers
            for leaf in jax.tree.leaves(compiled(name)[1](grads, state, params, stats=stats)):
                assert np.isfinite(np.asarray(leaf, np.float64)).all()


@every
def test_map_params_is_a_no_op_on_the_structure(name):
    tx, params = make(name), some_params()
    state = tx.init(params)
    assert_same(optax.tree.map_params(tx, lambda x: x, state), state)
    shapes = jax.tree.map(jnp.shape, optax.tree.map_params(tx, lambda x: x + 1, state))
    assert shapes == jax.tree.map(jnp.shape, state)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@every
def test_equals_itself_under_inject_hyperparams(name, dtype):
    entry = TRANSFORMATIONS[name]
    params = some_params(dtype)
    injected = optax.inject_hyperparams(
        entry.factory, static_args=entry.static, hyperparam_dtype=jnp.dtype(jnp.float32)
    )(**entry.kwargs)
    init, update = compiled(name)
    state, injected_state = init(params), injected.init(params)
    injected_update = jax.jit(injected.update)
    for seed in range(3):
        grads, stats = some_grads(dtype, seed), some_stats(seed=seed)
        updates, state = update(grads, state, params, stats=stats)
        others, injected_state = injected_update(grads, injected_state, params, stats=stats)
        if dtype == "float32":  # an injected float32 learning rate of Optax promotes bfloat16
            assert kinds(others) == kinds(updates)
        assert_same(updates, others, rtol=1e-5 if dtype == "float32" else 1e-2)
        assert_same(state, injected_state.inner_state, rtol=1e-4)
    assert kinds(injected_state) == kinds(injected.init(params))


@every
def test_multi_steps_gives_exact_zeros_between(name):
    tx, params = optax.MultiSteps(make(name), 3), some_params()
    update, state = jax.jit(tx.update), tx.init(params)
    for step in range(6):
        updates, state = update(some_grads(seed=step), state, params, stats=some_stats(seed=step))
        zero = [bool((leaf == 0).all()) for leaf in jax.tree.leaves(updates)]
        assert all(zero) if step % 3 < 2 else not any(zero)


@scheduled
def test_constant_schedule_is_the_constant(name):
    entry, params = TRANSFORMATIONS[name], some_params()
    constant = entry.kwargs["learning_rate"]
    results = []
    for learning_rate in (constant, optax.constant_schedule(constant)):
        tx = entry.make(learning_rate=learning_rate)
        update = compiled(name)[1] if learning_rate is constant else jax.jit(tx.update)
        state, all_updates = tx.init(params), []
        for seed in range(4):
            updates, state = update(
                some_grads(seed=seed), state, params, stats=some_stats(seed=seed)
            )
            all_updates.append(updates)
        results.append(all_updates)
    assert_same(results[0], results[1], rtol=1e-6)


@every
def test_init_on_shapes_and_under_transformations(name):
    tx, params = make(name), some_params()
    state = tx.init(params)
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    assert kinds(tx.init(shapes)) == kinds(state)
    assert kinds(jax.jit(tx.init)(params)) == kinds(state)
    same_structure(jax.eval_shape(tx.init, params), state)

    many = jax.tree.map(lambda p: jnp.stack([p, 2 * p, -p]), params)
    stacked = jax.vmap(tx.init)(many)
    for one, three in zip(jax.tree.leaves(state), jax.tree.leaves(stacked), strict=True):
        assert three.shape == (3, *one.shape)
        assert three.dtype == one.dtype
    update = lambda g, s, p: tx.update(g, s, p, stats=some_stats())
    batched = jax.vmap(update)(jax.tree.map(lambda p: p + 1, many), stacked, many)
    alone = update(jax.tree.map(lambda p: p[0] + 1, many), state, params)
    assert_same(jax.tree.map(lambda x: x[0], batched), alone, rtol=1e-6)


@every
def test_stable_as_scan_carry(name):
    tx, params = make(name), some_params()
    inputs = [(some_grads(seed=s), some_stats(seed=s)) for s in range(5)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *inputs)

    @jax.jit
    def scan(state: Any, xs: Any) -> Any:
        step = lambda s, x: tx.update(x[0], s, params, stats=x[1])[::-1]
        return jax.lax.scan(step, state, xs)

    final, updates = scan(tx.init(params), stacked)
    state, one_by_one = tx.init(params), []
    update = compiled(name)[1]
    for grads, stats in inputs:
        each, state = update(grads, state, params, stats=stats)
        one_by_one.append(each)
    assert kinds(final) == kinds(state)
    assert_same(final, state, rtol=1e-6)
    assert_same(updates, jax.tree.map(lambda *x: jnp.stack(x), *one_by_one), rtol=1e-6)


@pytest.mark.topic("devices")
@every
def test_explicit_mesh_of_eight_keeps_the_type_of_every_state_leaf(name):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
        cut = {"w": P(None, "x"), "b": P()}
        put = lambda tree: {key: place(tree[key], cut[key]) for key in tree}
        rng = np.random.default_rng(0)
        w, b = rng.normal(size=(4, 16)), rng.normal(size=3)
        params = put({"w": jnp.asarray(w, jnp.float16), "b": jnp.asarray(b, jnp.float16)})
        grads = put({"w": jnp.asarray(w + 1, jnp.float16), "b": jnp.asarray(b, jnp.float16)})
        stats = some_stats()._replace(
            coordinate_variance=put({"w": jnp.ones([4, 16]), "b": jnp.ones(3)})
        )
        tx = make(name)
        state = tx.init(params)
        before = kinds(state)
        local = GradientStats(*jax.tree.map(np.asarray, tuple(stats)))
        alone = make(name)
        host = jax.tree.map(np.asarray, (grads, params))
        for update in (tx.update, jax.jit(tx.update)):
            new_updates, new_state = update(grads, state, params, stats=stats)
            assert kinds(new_state) == before
            assert kinds(new_updates) == kinds(grads)
    # The numbers are those of one device.
    on_one = jax.tree.map(jnp.asarray, host)
    expected = alone.update(
        on_one[0], alone.init(on_one[1]), on_one[1], stats=jax.tree.map(jnp.asarray, local)
    )
    assert_same(jax.tree.map(np.asarray, (new_updates, new_state)), expected, rtol=2e-3)


@every
def test_state_may_be_donated(name):
    tx, params = make(name), some_params()
    update, plain = jax.jit(tx.update, donate_argnums=1), compiled(name)[1]
    kept, state = tx.init(params), tx.init(params)
    for seed in range(3):
        grads, stats = some_grads(seed=seed), some_stats(seed=seed)
        expected, kept = plain(grads, kept, params, stats=stats)
        updates, state = update(grads, state, params, stats=stats)
        assert_same(updates, expected)
    assert_same(state, kept)


@every
def test_no_two_leaves_of_the_state_share_a_buffer(name):
    tx, params = make(name), some_params()
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((tx.init(params), params))]
    assert len(set(pointers)) == len(pointers)


@functools.cache
def parabola(name: str) -> Any:
    """Losses along 400 steps on ‖w − c‖²/2, whose examples differ by a little noise."""
    target = {"w": jnp.linspace(-1, 1, 12).reshape(3, 4), "b": jnp.full(5, 0.5)}
    tx, start = make(name), jax.tree.map(jnp.zeros_like, target)
    loss = lambda w: 0.5 * optax.tree.norm(optax.tree.sub(w, target), squared=True)

    def step(carry: Any, _: Any) -> Any:
        w, state = carry
        grads = jax.grad(loss)(w)
        square = optax.tree.norm(grads, squared=True)
        stats = GradientStats(
            num_examples=jnp.float32(4),
            num_groups=jnp.float32(4),
            sq_norm=square,
            variance=square,
            inner_product_variance=square**2 / 2,
            coordinate_variance=jax.tree.map(jnp.square, grads),
        )
        updates, state = tx.update(grads, state, w, stats=stats)
        return (optax.apply_updates(w, updates), state), loss(w)

    return jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), length=400))()[1]


@optimizers
def test_converges_on_a_parabola(name):
    losses = np.asarray(parabola(name))
    assert np.isfinite(losses).all()
    assert losses[0] > 1
    assert losses[-1] < 1e-4 * losses[0]


@every
def test_state_survives_flax_serialization(name):
    tx, params = make(name), some_params()
    update = compiled(name)[1]
    state = tx.init(params)
    for seed in range(2):
        _, state = update(some_grads(seed=seed), state, params, stats=some_stats(seed=seed))
    as_dict = flax.serialization.to_state_dict(state)
    restored = flax.serialization.from_state_dict(tx.init(params), as_dict)
    assert_same(restored, state)
    data = flax.serialization.to_bytes(state)
    restored = jax.tree.map(jnp.asarray, flax.serialization.from_bytes(tx.init(params), data))
    assert kinds(restored) == kinds(state)
    last = (some_grads(seed=9), some_stats(seed=9))
    assert_same(
        update(last[0], restored, params, stats=last[1]),
        update(last[0], state, params, stats=last[1]),
    )


@every
def test_works_in_a_chain_with_adam(name):
    params = some_params()
    chained = optax.chain(make(name), optax.adam(1e-2))
    update, state = jax.jit(chained.update), chained.init(params)
    (init, mine), adam = compiled(name), optax.adam(1e-2)
    my_state, adam_state, adam_update = init(params), adam.init(params), jax.jit(adam.update)
    for seed in range(3):
        grads, stats = some_grads(seed=seed), some_stats(seed=seed)
        updates, state = update(grads, state, params, stats=stats)
        expected, my_state = mine(grads, my_state, params, stats=stats)
        expected, adam_state = adam_update(expected, adam_state, params)
        assert_same(updates, expected, rtol=1e-5)
    assert kinds(state) == kinds(chained.init(params))


@every
def test_runs_under_a_transfer_guard(name):
    (init, update), params = compiled(name), some_params()
    grads, stats, state = some_grads(), some_stats(), init(params)
    update(grads, state, params, stats=stats)
    with jax.transfer_guard("disallow"):
        for _ in range(2):
            _, state = update(grads, state, params, stats=stats)


@every
def test_state_fields_are_documented(name):
    named_tuples: list[Any] = []

    def visit(node: Any) -> bool:
        if hasattr(node, "_fields") and type(node).__module__.startswith("adaoptax"):
            named_tuples.append(type(node))
        return False

    jax.tree.leaves(make(name).init(some_params()), is_leaf=visit)
    assert named_tuples
    for kind in named_tuples:
        assert "Attributes:" in kind.__doc__, kind
        for field in kind._fields:
            assert f"\n    {field}: " in inspect.cleandoc(kind.__doc__), (kind, field)
