"""Statistics in the metric of a preconditioner: closed forms, and those of the rescaled problem.

With params = r·z the gradient of z is r·g: measuring that problem without a preconditioner is what
measuring the plain one with P = r² must equal, by every method.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from device_problem import AUTO, BATCH, BY_ROWS, EXPLICIT, PARAMS, WHOLE, loss_fn, mesh_of, put
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from numpy_reference import flat, mlp, mlp_loss

import adaoptax
from adaoptax import measure, value_grad_and_stats
from adaoptax.measure import adam_preconditioner, every, exact, groups, inner_products, per_example

pytestmark = pytest.mark.sampled

ALL = ("norm", "inner", "coordinate")
STACKED = (*ALL, "leave-one-out")
ROWS = 12
SCALARS = [name for name in adaoptax.GradientStats._fields if name != "coordinate_variance"]


def rescaled(loss: Any, roots: Any) -> Any:
    """The loss of z, with params = roots·z."""
    return lambda z, *rest: loss(jax.tree.map(jnp.multiply, roots, z), *rest)


def some_roots(params: Any, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: np.float32(np.exp(rng.normal(size=np.shape(p)))), params)


def squared(roots: Any) -> Any:
    return jax.tree.map(np.square, roots)


def in_z(params: Any, roots: Any) -> Any:
    return jax.tree.map(np.divide, params, roots)


def assert_same_stats(got: Any, expected: Any, rtol: float = 2e-5) -> None:
    """All scalars; the coordinates of one are those of the other times P, tested elsewhere."""
    for name in SCALARS:
        ours, theirs = getattr(got, name), getattr(expected, name)
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            np.testing.assert_allclose(ours, theirs, rtol=rtol, err_msg=name)


METHODS: dict[str, tuple[Any, Any]] = {
    "per_example": (per_example(statistics=STACKED), None),
    "per_example in chunks": (per_example(5, statistics=STACKED), None),
    "groups": (groups(4, statistics=("norm", "coordinate")), None),
    "groups of norms": (groups(3), None),
    "inner_products": (inner_products(groups(4)), None),
    "inner_products alone": (inner_products(None), None),
    "exact": (exact(), per_example(statistics=("norm",))),
    "exact, all": (exact(ALL), per_example(statistics=ALL)),
    "exact, inner": (exact(("inner",)), per_example(statistics=("norm", "inner"))),
    "exact, of groups": (exact(group_size=3), groups(4)),
    "exact, of a probe": (exact(ALL, probe_size=6, group_size=2), None),
}  # fmt: skip


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_equals_measuring_the_rescaled_problem(name: str, masked: bool) -> None:
    method, other = METHODS[name]
    params, batch = mlp(ROWS)
    roots = some_roots(params)
    mask: Any = np.arange(ROWS) < 8 if masked else None
    if masked and "inner_products" in name:
        mask = np.ones(ROWS, bool)
    run = jax.jit(value_grad_and_stats(mlp_loss, method))
    loss, grads, stats = run(params, batch, mask=mask, preconditioner=squared(roots))
    plain = jax.jit(value_grad_and_stats(rescaled(mlp_loss, roots), other or method))
    _, z_grads, expected = plain(in_z(params, roots), batch, mask=mask)
    if name == "exact, inner":
        assert np.isnan(stats.variance)  # not asked for; per_example always measures it
        expected = expected._replace(variance=stats.variance)
    assert_same_stats(stats, expected)
    np.testing.assert_allclose(flat(grads) * flat(roots), flat(z_grads), rtol=1e-3, atol=1e-6)
    # Loss, gradient and coordinates are to the bit those without a preconditioner.
    same_loss, same_grads, without = run(params, batch, mask=mask)
    np.testing.assert_allclose(loss, same_loss, rtol=1e-6)
    np.testing.assert_allclose(flat(grads), flat(same_grads), rtol=1e-5, atol=1e-7)
    if stats.coordinate_variance is not None:
        np.testing.assert_allclose(
            flat(stats.coordinate_variance), flat(without.coordinate_variance), rtol=1e-4, atol=1e-6
        )
        total = flat(stats.coordinate_variance) @ flat(roots) ** 2
        np.testing.assert_allclose(stats.variance, total, rtol=1e-5)


def quadratic() -> tuple[Any, Any, Any, Any]:
    """``(loss_fn, w, targets, (G, Σ))`` of ½ (w − c_i)ᵀ A (w − c_i), with Σ diagonal.

    Columns of a Hadamard matrix are orthogonal and without mean: eight examples whose gradients
    A (w − c_i) have the mean G and the unbiased covariance Σ, exactly.
    """
    signs = np.array([[(-1) ** bin(i & j).count("1") for j in range(1, 6)] for i in range(8)])
    curvature = np.array([100.0, 30.0, 10.0, 3.0, 1.0])
    spread = np.array([0.02, 0.1, 0.3, 0.5, 1.0])
    w = np.array([0.05, -0.1, 0.2, 0.6, -1.0])
    targets = np.float32(signs * spread)
    loss = lambda w, c: 0.5 * jnp.mean(jnp.sum(np.float32(curvature) * (w - c) ** 2, axis=-1))
    return loss, np.float32(w), targets, (curvature * w, (curvature * spread) ** 2 * 8 / 7)


@pytest.mark.parametrize(
    "method", [per_example(), exact(("norm", "inner")), inner_products(groups(8))], ids=str
)
@pytest.mark.parametrize("kind", ["newton", "adam", "hessian"])
def test_closed_forms_on_a_quadratic(method: Any, kind: str) -> None:
    loss, w, targets, (mean, covariance) = quadratic()
    curvature = np.array([100.0, 30.0, 10.0, 3.0, 1.0])
    preconditioner = {
        "newton": 1 / curvature,
        "adam": 1 / np.sqrt(mean**2 + covariance),
        "hessian": curvature,
    }[kind]
    _, grads, stats = value_grad_and_stats(loss, method)(
        w, targets, preconditioner=np.float32(preconditioner)
    )
    noise, square = preconditioner @ covariance, preconditioner @ mean**2
    np.testing.assert_allclose(grads, mean, rtol=1e-5)
    np.testing.assert_allclose(stats.variance, noise, rtol=1e-5)
    np.testing.assert_allclose(stats.sq_norm, square, rtol=1e-5)
    along = (preconditioner**2 * mean**2) @ covariance  # GᵀPΣPG
    assert stats.inner_product_variance is not None
    np.testing.assert_allclose(stats.inner_product_variance, along, rtol=1e-4)
    # tr(HΣ)/GᵀHG for P = H: McCandlish's B_noise, where tr Σ/GᵀG is only B_simple.
    signal = square - noise / 8
    np.testing.assert_allclose(adaoptax.noise_scale(stats), noise / signal, rtol=1e-4)

    tx = optax.chain(
        adaoptax.norm_test(eta=0.3),
        adaoptax.inner_product_test(theta=0.4),
        adaoptax.scale_by_adascale(2),
    )
    updates, state = tx.update(grads, tx.init(grads), stats=stats)
    norm, inner, scaling = state
    np.testing.assert_allclose(norm.required_batch_size, noise / signal / 0.09, rtol=1e-4)
    np.testing.assert_allclose(inner.required_batch_size, along / signal**2 / 0.16, rtol=1e-4)
    gain = (noise / 2 + signal) / (noise / 8 + signal)
    np.testing.assert_allclose(scaling.gain, gain, rtol=1e-4)
    np.testing.assert_allclose(updates, gain * mean, rtol=1e-4)  # of the gradient as it is


def test_the_transformed_quadratic_takes_the_same_steps() -> None:
    """AdaScale with P·g on w, and without it on z = w/√P: one and the same run."""
    loss, w, targets, (mean, covariance) = quadratic()
    roots = np.float32((mean**2 + covariance) ** -0.25)
    tx = adaoptax.scale_by_adascale(2, learning_rate=0.05)
    z, state, z_state = w / roots, tx.init(w), tx.init(w)
    with_p = jax.jit(value_grad_and_stats(loss, per_example()))
    plain = jax.jit(value_grad_and_stats(rescaled(loss, roots), per_example()))
    rng = np.random.default_rng(0)
    for _ in range(10):
        batch = targets + np.float32(rng.normal(size=targets.shape))
        _, grads, stats = with_p(w, batch, preconditioner=roots**2)
        updates, state = tx.update(grads * roots**2, state, stats=stats)
        _, z_grads, z_stats = plain(z, batch)
        z_updates, z_state = tx.update(z_grads, z_state, stats=z_stats)
        w, z = w + updates, z + z_updates
        np.testing.assert_allclose(w, roots * z, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.gain, z_state.gain, rtol=1e-4)


def test_ones_change_nothing_and_zeros_leave_out() -> None:
    params, batch = mlp(ROWS)
    run = jax.jit(value_grad_and_stats(mlp_loss, per_example(statistics=ALL)))
    _, grads, plain = run(params, batch)
    _, _, ones = run(params, batch, preconditioner=jax.tree.map(np.ones_like, params))
    assert_same_stats(ones, plain, rtol=1e-6)
    only_out = jax.tree.map(np.zeros_like, params) | {"out": np.ones_like(params["out"])}
    _, same, stats = run(params, batch, preconditioner=only_out)
    jax.tree.map(np.testing.assert_array_equal, same, grads)
    part = value_grad_and_stats(lambda out, b: mlp_loss({**params, "out": out}, b), per_example())
    assert_same_stats(stats, part(params["out"], batch)[2])


def test_a_bfloat16_gradient_is_not_touched(float64: None) -> None:
    del float64
    params, batch = mlp(ROWS)
    narrow = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), params)
    roots = some_roots(params)
    run = jax.jit(value_grad_and_stats(mlp_loss, groups(4)))
    _, grads, stats = run(narrow, batch, preconditioner=squared(roots))
    jax.tree.map(np.testing.assert_array_equal, grads, run(narrow, batch)[1])
    assert stats.variance.dtype == jnp.float32
    wide = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), params)
    assert run(wide, batch, preconditioner=squared(roots))[2].variance.dtype == jnp.float64


def test_complex_parameters() -> None:
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(8, 3)))
    w = np.complex64(rng.normal(size=3) + 1j * rng.normal(size=3))
    roots = np.array([2.0, 0.5, 1.0], np.float32)
    loss = lambda w, x: jnp.mean(jnp.abs(x @ w - 1) ** 2)
    _, _, stats = value_grad_and_stats(loss, per_example())(w, x, preconditioner=roots**2)
    _, _, expected = value_grad_and_stats(rescaled(loss, roots), per_example())(w / roots, x)
    assert_same_stats(stats, expected)


def test_between_measured_steps_the_norm_is_in_the_metric_too() -> None:
    params, batch = mlp(ROWS)
    roots = some_roots(params)
    method = every(2, groups(4))
    run = value_grad_and_stats(mlp_loss, method)
    expected = value_grad_and_stats(rescaled(mlp_loss, roots), method)
    for static in (True, False):
        fn = jax.jit(run, static_argnames="due" if static else ())
        for due in (True, False):
            _, _, stats = fn(params, batch, due=due, preconditioner=squared(roots))
            assert_same_stats(stats, expected(in_z(params, roots), batch, due=due)[2])


def test_the_default_method_takes_it() -> None:
    params, batch = mlp(ROWS)
    roots = some_roots(params)
    _, _, stats = value_grad_and_stats(mlp_loss)(params, batch, preconditioner=squared(roots))
    method = exact() if float(stats.num_groups) == ROWS else groups(6)
    run = value_grad_and_stats(mlp_loss, method)
    assert_same_stats(stats, run(params, batch, preconditioner=squared(roots))[2])


@pytest.mark.parametrize("method", [None, exact()], ids=str)
def test_micro_steps(method: Any) -> None:
    params, batch = mlp(ROWS)
    roots = some_roots(params)

    def run(loss: Any, params: Any, preconditioner: Any) -> Any:
        steps = measure.micro_steps(loss, method)
        state = steps.init(params, batch)
        for part in np.split(np.arange(ROWS), 3):
            rows = jax.tree.map(lambda x, part=part: x[part], batch)
            state = steps.add(state, params, rows, preconditioner=preconditioner)
        return steps.finish(state, params, preconditioner)

    _, grads, stats = run(mlp_loss, params, squared(roots))
    _, z_grads, expected = run(rescaled(mlp_loss, roots), in_z(params, roots), None)
    assert_same_stats(stats, expected)
    np.testing.assert_allclose(flat(grads) * flat(roots), flat(z_grads), rtol=1e-3, atol=1e-6)


def test_merging_and_group_gradients() -> None:
    rng = np.random.default_rng(0)
    gradients = {"a": np.float32(rng.normal(size=(10, 3))), "b": np.float32(rng.normal(size=10))}
    roots = {"a": np.array([0.1, 1, 10], np.float32), "b": np.float32(2)}
    metric = squared(roots)
    of = functools.partial(
        adaoptax.stats_from_groups, group_size=2, statistics=STACKED, preconditioner=metric
    )
    scaled = jax.tree.map(np.multiply, roots, gradients)
    _, whole = of(gradients)
    assert_same_stats(
        whole, adaoptax.stats_from_groups(scaled, group_size=2, statistics=STACKED)[1]
    )
    parts = [of(jax.tree.map(lambda x, s=s: x[s], gradients)) for s in (slice(4), slice(4, 10))]
    _, merged = adaoptax.merge_stats(*parts[0], *parts[1], preconditioner=metric)
    no_products: Any = {"inner_product_variance": None, "leave_one_out_variance": None}
    assert_same_stats(merged, whole._replace(**no_products))


ROOTS = some_roots(PARAMS, seed=5)


def expected_on_devices(method: Any) -> Any:
    plain = jax.jit(value_grad_and_stats(rescaled(loss_fn, ROOTS), method))
    return plain(in_z(PARAMS, ROOTS), BATCH)[2]


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(
    ("inner", "statistics", "same_as"),
    [
        (None, ("norm",), groups(8)),
        (groups(2), ("norm",), groups(16)),
        (exact(("coordinate",)), ("norm", "coordinate"), per_example()),
    ],
)
def test_on_devices_under_shard_map(
    inner: Any, statistics: tuple, same_as: Any, centred: bool
) -> None:
    method = measure.devices("data", inner, statistics=statistics, centred=centred)
    fn = value_grad_and_stats(loss_fn, method)
    mapped = jax.jit(
        jax.shard_map(
            lambda p, b, m: fn(p, b, preconditioner=m),
            mesh=mesh_of((8,)),
            in_specs=(WHOLE, BY_ROWS, WHOLE),
            out_specs=WHOLE,
        )
    )
    _, grads, stats = mapped(PARAMS, BATCH, squared(ROOTS))
    expected = expected_on_devices(same_as)._replace(inner_product_variance=None)
    assert_same_stats(stats, expected, rtol=1e-4)
    np.testing.assert_allclose(flat(grads), flat(jax.grad(loss_fn)(PARAMS, BATCH)), atol=1e-5)


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
@pytest.mark.parametrize("method", [groups(8), exact()], ids=str)
def test_on_a_mesh_under_plain_jit(method: Any, kind: Any) -> None:
    mesh = mesh_of((4, 2), kind)
    specs = {"a": P(None, "model"), "b": P("model"), "c": P()}
    if isinstance(method, type(exact())) and kind == EXPLICIT:  # it wants whole parameters there
        specs = dict.fromkeys(specs, P())
    with jax.set_mesh(mesh):
        params, batch = put(mesh, specs)
        metric = {
            name: jax.device_put(root**2, NamedSharding(mesh, specs[name]))
            for name, root in ROOTS.items()
        }
        fn = jax.jit(value_grad_and_stats(loss_fn, method))
        _, _, stats = fn(params, batch, preconditioner=metric)
    assert_same_stats(stats, expected_on_devices(method), rtol=1e-4)


def test_gradients_on_an_axis() -> None:
    rng = np.random.default_rng(0)
    local = np.float32(rng.normal(size=(8, 3)))
    metric = np.array([0.1, 1, 10], np.float32)
    fn = lambda g: adaoptax.stats_from_axis(g, "data", 4, preconditioner=metric)
    _, stats = jax.vmap(fn, out_axes=None, axis_name="data")(local)
    _, expected = adaoptax.stats_from_groups(local * np.sqrt(metric), 4, statistics=("norm",))
    assert_same_stats(stats, expected)


def test_new_values_do_not_compile_nor_travel(compilations: Any) -> None:
    params, batch = jax.device_put(mlp(ROWS))
    run = jax.jit(value_grad_and_stats(mlp_loss, groups(4)))
    metrics = [jax.device_put(some_roots(params, seed)) for seed in range(3)]
    run(params, batch, preconditioner=metrics[0])
    compilations.reset()
    with jax.transfer_guard("disallow"):
        for metric in metrics[1:]:
            run(params, batch, preconditioner=metric)
    assert compilations.count == 0


def test_wrong_preconditioners_are_refused_in_one_sentence() -> None:
    params, batch = mlp(ROWS)
    ones = jax.tree.map(np.ones_like, params)
    run = value_grad_and_stats(mlp_loss, groups(4))
    cases = {
        r"pytree like the parameters, PyTreeDef\(.*got PyTreeDef": {"out": ones["out"]},
        r"got shape \(\) in place of \(7, 3\) at preconditioner\['out'\]": ones | {"out": 1.0},
        r"not negative, got -1.0 in preconditioner\['out'\]": ones | {"out": -ones["out"]},
        r"finite and not negative, got inf": ones | {"out": jnp.inf * ones["out"]},
        r"finite and not negative, got nan": ones | {"out": jnp.nan * ones["out"]},
        r"to be real, got complex64": ones | {"out": 1j * ones["out"]},
    }
    for message, preconditioner in cases.items():
        with pytest.raises(ValueError, match=message):
            run(params, batch, preconditioner=preconditioner)
    fsdp = value_grad_and_stats(mlp_loss, measure.fsdp("data", P()))
    with pytest.raises(ValueError, match="Expected preconditioner=None with adaoptax"):
        fsdp(params, batch, preconditioner=ones)


def test_a_negative_traced_one_is_undefined_and_spares_the_gradient() -> None:
    params, batch = mlp(ROWS)
    bad = jax.tree.map(np.ones_like, params) | {"out": -np.ones_like(params["out"])}
    _, grads, stats = jax.jit(value_grad_and_stats(mlp_loss, groups(4)))(
        params, batch, preconditioner=bad
    )
    assert np.isnan(stats.variance)
    assert np.isnan(stats.sq_norm)
    assert np.isfinite(flat(grads)).all()


# Adam


@pytest.mark.parametrize("eps_root", [0.0, 1e-3])
def test_it_is_what_adam_multiplies_by(eps_root: float) -> None:
    tx = optax.adam(1.0, b1=0.0, b2=0.9, eps=1e-2, eps_root=eps_root)
    params, _ = mlp(ROWS)
    state, rng = tx.init(params), np.random.default_rng(0)
    for _ in range(4):
        grads = jax.tree.map(lambda p: np.float32(rng.normal(size=p.shape)), params)
        updates, state = tx.update(grads, state)
        factors = adam_preconditioner(state, b2=0.9, eps=1e-2, eps_root=eps_root)
        np.testing.assert_allclose(flat(factors) * flat(grads), -flat(updates), rtol=1e-4)


def test_it_is_what_adam_with_batch_multiplies_by() -> None:
    tx = adaoptax.scale_by_adam_with_batch(4, b1=0.0, b2=0.9, eps=0.0)
    params, _ = mlp(ROWS)
    state, rng = tx.init(params), np.random.default_rng(0)
    for size in (4, 4, 16, 8):  # its decays follow the batch, and b2 is not asked for
        grads = jax.tree.map(lambda p: np.float32(rng.normal(size=p.shape)), params)
        numbers = {"num_examples": size, "num_groups": 2, "sq_norm": 1, "variance": 1}
        stats = adaoptax.GradientStats(**{name: jnp.float32(x) for name, x in numbers.items()})
        updates, state = tx.update(grads, state, stats=stats)
        factors = adam_preconditioner(state, eps=0.0)
        np.testing.assert_allclose(flat(factors) * flat(grads), flat(updates), rtol=1e-4)


def test_it_is_found_anywhere_once() -> None:
    params = {"w": jnp.ones(2), "b": jnp.ones(1)}
    inject = optax.inject_hyperparams(optax.adamw)(learning_rate=0.1)
    for tx in (optax.chain(adaoptax.norm_test(0.5), optax.adam(0.1)), inject, optax.nadam(0.1)):
        factors: Any = adam_preconditioner(tx.init(params))
        assert jax.tree.map(jnp.shape, factors) == jax.tree.map(jnp.shape, params)
    mixed = optax.partition({"a": optax.adam(0.1), "s": optax.sgd(0.1)}, {"w": "a", "b": "s"})
    for state, what in (
        (optax.sgd(0.1).init(params), "got 0"),
        ((optax.adam(1.0).init(params),) * 2, "got 2"),
        (mixed.init(params), "part of the parameters"),
    ):
        with pytest.raises(ValueError, match=f"Expected one state of Adam .*{what}"):
            adam_preconditioner(state)
    for option in ({"b2": 1.0}, {"eps": -1.0}, {"eps_root": -1.0}):
        with pytest.raises(ValueError, match="Expected"):
            adam_preconditioner(optax.adam(0.1).init(params), **option)


def test_before_the_first_step_of_adam_tests_keep_their_size(rows: np.ndarray) -> None:
    tx = optax.chain(
        adaoptax.norm_test(eta=0.5, decay=0.9), adaoptax.scale_by_adascale(2), optax.adam(0.1)
    )
    w = jnp.ones(2)
    state = tx.init(w)
    fn = value_grad_and_stats(lambda w, x: (x @ w).mean(), per_example())
    _, grads, stats = fn(w, rows, preconditioner=adam_preconditioner(state))
    _, state = tx.update(grads, state, w, stats=stats)
    assert bool(state[0].undefined)
    assert float(adaoptax.required_batch_size(state)) == 4
    assert bool(state[1].gain_undefined)
    np.testing.assert_array_equal(grads, [2, 0])
    # The second coordinate has no mean gradient, hence still no second moment: it is left out.
    _, grads, stats = fn(w, rows, preconditioner=adam_preconditioner(state))
    _, state = tx.update(grads, state, w, stats=stats)
    signal = 2 - 1 / 3 / 4  # P = (1/2, 0)
    expected = 1 / 3 / signal / 0.25
    assert float(adaoptax.required_batch_size(state)) == pytest.approx(expected, rel=1e-4)
