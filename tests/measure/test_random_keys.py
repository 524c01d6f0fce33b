"""Extra arguments: passed on as they are; random keys differ between examples and groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_reference import assert_measured, flat, reference, regression, regression_rows

from adaoptax import value_grad_and_stats
from adaoptax.measure import groups, per_example

pytestmark = pytest.mark.sampled

ROWS = 8
METHODS = [per_example(), per_example(3), per_example(1), groups(2), groups(4), groups(ROWS)]
make_typed = lambda: jax.random.key(0)
make_raw = lambda: jax.random.PRNGKey(0)


def noisy_loss(w, x, key):
    """Linear, with independent uniform factors; returns them as aux."""
    factors = jax.random.uniform(key, x.shape)
    return jnp.mean((x * factors) @ w), factors


@pytest.mark.parametrize("make_key", [make_typed, make_raw])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_every_row_has_factors_of_its_own(method, make_key):
    """The gradient and all statistics are those of the factors that the rows report."""
    x = np.random.default_rng(0).normal(1, 1, (ROWS, 3)).astype(np.float32)
    measure = jax.jit(value_grad_and_stats(noisy_loss, method, has_aux=True, key_argnums=2))
    (loss, factors), grads, stats = measure(jnp.ones(3), x, make_key())
    assert factors.shape == (ROWS, 3)
    assert len(np.unique(factors)) == factors.size
    row_grads = np.asarray(factors, np.float64) * x
    n = getattr(method, "n", ROWS)
    assert_measured((loss, grads, stats), reference((row_grads.sum(axis=1), row_grads), n))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_padding_and_keys(method):
    x = np.random.default_rng(0).normal(1, 1, (ROWS, 3)).astype(np.float32)
    mask = np.array([1, 1, 1, 0, 0, 1, 1, 0], bool)
    measure = jax.jit(value_grad_and_stats(noisy_loss, method, has_aux=True, key_argnums=2))
    spoiled = np.where(mask[:, None], x, np.nan)
    (loss, factors), grads, stats = measure(jnp.ones(3), spoiled, make_typed(), mask=mask)
    real = np.asarray(factors)[mask]
    assert len(np.unique(real)) == real.size
    row_grads = np.asarray(factors, np.float64) * x
    n = getattr(method, "n", ROWS)
    expected = reference((row_grads.sum(axis=1), row_grads), n, weight=mask)
    assert_measured((loss, grads, stats), expected)


def test_chunks_draw_the_same_numbers():
    x = np.ones((ROWS, 3), np.float32)
    draws = []
    for chunk_size in (None, 1, 3):
        measure = value_grad_and_stats(
            noisy_loss, per_example(chunk_size), has_aux=True, key_argnums=2
        )
        draws.append(jax.jit(measure)(jnp.ones(3), x, make_typed())[0][1])
    for other in draws[1:]:
        np.testing.assert_array_equal(other, draws[0])


@pytest.mark.parametrize("method", [per_example(), per_example(3), groups(4)], ids=str)
def test_one_mask_for_all_would_hide_noise(method):
    """Equal rows: without `key_argnums` all see the same factors, and no noise is left."""
    x = np.ones((ROWS, 64), np.float32)
    fn = lambda w, x, key: noisy_loss(w, x[:1], key)[0]  # one draw a call
    measure = lambda **options: jax.jit(
        value_grad_and_stats(fn, method, loss_kind="assumed", **options)
    )(jnp.ones(64), x, make_typed())[2]
    np.testing.assert_allclose(measure().variance, 0, atol=1e-9)
    rows_of_a_group = 2 if method == groups(4) else 1
    np.testing.assert_allclose(  # a uniform factor has variance 1/12
        measure(key_argnums=2).variance, rows_of_a_group * 64 / 12, rtol=0.35
    )


def test_keys_change_from_step_to_step():
    measure = jax.jit(value_grad_and_stats(noisy_loss, groups(4), has_aux=True, key_argnums=2))
    x = np.ones((ROWS, 3), np.float32)
    first, again, other = (
        measure(jnp.ones(3), x, jax.random.key(seed))[0][1] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.any(np.asarray(first) == np.asarray(other))


@pytest.mark.parametrize("key_argnums", [(2, 4), [4, 2]])
@pytest.mark.parametrize("method", [per_example(3), groups(4)], ids=str)
def test_pytrees_of_keys_at_several_positions(method, key_argnums):
    def fn(w, x, keys, scale, key):
        draws = {name: jax.random.uniform(k, x.shape[:1]) for name, k in keys["of"].items()}
        draws["raw"] = jax.random.uniform(key, x.shape[:1])
        return scale * jnp.mean(x @ w), draws

    keys = {"of": {"dropout": jax.random.key(1), "noise": jax.random.key(2)}, "none": None}
    measure = value_grad_and_stats(fn, method, has_aux=True, key_argnums=key_argnums)
    for mask in (None, np.array([1, 1, 1, 0, 1, 1, 1, 1], bool)):
        (_, draws), grads, _ = jax.jit(measure)(
            jnp.ones(2), np.ones((ROWS, 2)), keys, 3.0, jax.random.PRNGKey(3), mask=mask
        )
        np.testing.assert_allclose(grads, [3, 3], rtol=1e-6)
        real = np.concatenate([np.asarray(d)[slice(None) if mask is None else mask]
                               for d in draws.values()])  # fmt: skip
        assert len(np.unique(real)) == real.size


@pytest.mark.parametrize("method", [per_example(), per_example(3), groups(4)], ids=str)
def test_keys_inside_the_batch(method):
    """One key a row is data like any other."""

    def fn(w, batch):
        draw = jax.vmap(lambda key: jax.random.uniform(key, (2,)))
        return jnp.mean((batch["x"] * draw(batch["key"])) @ w)

    x = np.random.default_rng(0).normal(1, 1, (ROWS, 2)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), ROWS)
    factors = np.stack([jax.random.uniform(key, (2,)) for key in keys]).astype(np.float64)
    mask = np.array([1, 1, 1, 0, 1, 1, 1, 1], bool)
    measured = jax.jit(value_grad_and_stats(fn, method))(
        jnp.ones(2), {"x": x, "key": keys}, mask=mask
    )
    rows = (factors * x).sum(axis=1), factors * x
    assert_measured(measured, reference(rows, 4 if method == groups(4) else ROWS, weight=mask))


@pytest.mark.parametrize(
    ("key_argnums", "error", "message"),
    [
        pytest.param(0, ValueError, "key_argnums=0", id="params"),
        pytest.param((2, 1), ValueError, r"key_argnums=\(2, 1\)", id="batch"),
        pytest.param(-1, ValueError, "key_argnums=-1", id="negative"),
    ],
)
def test_positions_of_params_and_batch_are_refused(key_argnums, error, message):
    with pytest.raises(error, match=message):
        value_grad_and_stats(noisy_loss, key_argnums=key_argnums)


def test_missing_keys():
    measure = value_grad_and_stats(noisy_loss, groups(2), has_aux=True, key_argnums=(2, 3))
    with pytest.raises(TypeError, match=r"positions \[3\].*params and 2 more"):
        measure(jnp.ones(3), np.ones((4, 3)), make_typed())


# Other extra arguments.


@pytest.mark.parametrize("method", [per_example(), per_example(3), groups(4)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_extra_arguments_arrive_unchanged(method, masked):
    def fn(params, batch, kind, nothing, shift, activation, options):
        assert kind == "half"
        assert nothing is None
        assert activation is jnp.tanh
        assert options == {"power": 2, "names": ("a", "b")}
        assert shift.shape == (3, 5)  # no batch axis: never cut
        error = batch["x"] @ params["w"] + params["b"] - batch["y"] + 0 * shift.sum()
        return 0.5 * jnp.mean(error ** options["power"])

    params, batch = regression(ROWS)
    extra = ("half", None, np.ones((3, 5), np.float32), jnp.tanh)
    options = {"power": 2, "names": ("a", "b")}
    mask = np.array([1, 0, 1, 1, 1, 1, 0, 1], bool) if masked else None
    measured = value_grad_and_stats(fn, method)(params, batch, *extra, options, mask=mask)
    n = 4 if method == groups(4) else ROWS
    assert_measured(measured, reference(regression_rows(params, batch), n, weight=mask))


def test_static_arguments_under_jit():
    def fn(params, batch, kind):
        error = batch["x"] @ params["w"] + params["b"] - batch["y"]
        return {"half": 0.5, "full": 1.0}[kind] * jnp.mean(error**2)

    params, batch = regression(ROWS)
    measure = jax.jit(value_grad_and_stats(fn, groups(4)), static_argnums=2)
    half, full = (measure(params, batch, kind) for kind in ("half", "full"))
    assert_measured(half, reference(regression_rows(params, batch), 4))
    np.testing.assert_allclose(flat(full[1]), 2 * flat(half[1]), rtol=1e-6)
    np.testing.assert_allclose(full[2].variance, 4 * half[2].variance, rtol=1e-6)
