"""Accumulation driven by the host: what one call on all micro-batches returns, by two programs."""

import itertools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_reference import (
    assert_measured,
    flat,
    mlp,
    mlp_loss,
    reference,
    regression,
    regression_loss,
    regression_rows,
    rows_by_jax,
)

import adaoptax
from adaoptax.measure import every, exact, groups, inner_products, micro_steps, per_example

pytestmark = pytest.mark.sampled

BOTH = ("norm", "coordinate")
ROWS, SIZE = 12, 3


def accumulate(steps, params, batch, size=SIZE, mask=None, args=()):
    """Host loop over micro-batches of `size` rows; `args` has one entry a micro-batch."""
    add, finish = jax.jit(steps.add, donate_argnums=0), jax.jit(steps.finish)
    rows = len(jax.tree.leaves(batch)[0])
    parts = [slice(start, start + size) for start in range(0, rows, size)]
    first = jax.tree.map(lambda x: x[parts[0]], batch)
    state = jax.jit(steps.init)(params, first, *args[:1])
    for j, part in enumerate(parts):
        each = jax.tree.map(lambda x, part=part: x[part], batch)
        state = add(
            state, params, each, *args[j : j + 1], mask=None if mask is None else mask[part]
        )
    return finish(state, params)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_plain_accumulation(size):
    params, batch = regression(ROWS)
    measured = accumulate(micro_steps(regression_loss, statistics=BOTH), params, batch, size)
    assert_measured(measured, reference(regression_rows(params, batch), ROWS // size))
    assert measured[2].coordinate_variance is not None
    assert measured[2].inner_product_variance is None


def test_a_network():
    params, batch = mlp(ROWS)
    measured = accumulate(micro_steps(mlp_loss), params, batch)
    assert_measured(measured, reference(rows_by_jax(mlp_loss, params, batch), ROWS // SIZE))
    assert measured[2].coordinate_variance is None


MASKS = {
    "tail": [1] * 7 + [0] * 5,
    "head": [0] * 4 + [1] * 8,
    "hole": [1, 1, 1] + [0] * 6 + [1, 1, 1],
    "scattered": [0, 1, 1, 0, 0, 1, 0, 0, 0, 1, 1, 0],
}


@pytest.mark.parametrize("size", [1, SIZE])
@pytest.mark.parametrize("name", MASKS)
def test_padding_never_counts(name, size):
    params, batch = regression(ROWS)
    expected = reference(regression_rows(params, batch), ROWS // size, weight=MASKS[name])
    mask = np.array(MASKS[name], bool)
    batch = {key: x.copy() for key, x in batch.items()}
    for x in batch.values():
        x[~mask] = np.nan
    steps = micro_steps(regression_loss, statistics=BOTH)
    assert_measured(accumulate(steps, params, batch, size, mask), expected)


def test_micro_batches_of_unequal_size_by_hand(rows):
    """Groups (1,0) and mean of (2,2), (2,−2): g = (5/3, 0), S² = 2/3, as under a mask."""
    steps = micro_steps(lambda w, x: (x @ w).mean())
    w = jnp.ones(2)
    state = steps.init(w, rows[:1])
    for part in (rows[:1], rows[2:]):
        state = steps.add(state, w, part)
    loss, grads, stats = steps.finish(state, w)
    np.testing.assert_allclose(loss, (1 + 4 + 0) / 3, rtol=1e-6)
    np.testing.assert_allclose(grads, [5 / 3, 0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(stats.variance, 2 / 3, rtol=1e-6)
    assert (float(stats.num_examples), float(stats.num_groups)) == (3, 2)


@pytest.mark.parametrize("real", [0, 2])
def test_nothing_and_one_micro_batch_have_no_noise(real):
    params, batch = regression(4)
    mask = np.arange(4) < real
    loss, grads, stats = accumulate(micro_steps(regression_loss), params, batch, 2, mask)
    losses, rows = regression_rows(params, batch)
    expected = rows[:2].mean(axis=0) if real else np.zeros(4)
    np.testing.assert_allclose(flat(grads), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loss, losses[:2].mean() if real else np.nan, rtol=1e-5)
    assert np.isnan(stats.variance)
    assert (float(stats.num_examples), float(stats.num_groups)) == (real, real / 2)


def test_any_number_of_micro_batches_runs_the_same_two_programs(compilations):
    params, batch = regression(2)
    batch = jax.tree.map(jnp.asarray, batch)
    steps = micro_steps(
        lambda p, b: (regression_loss(p, b), {"mean": jnp.mean(b["y"]), "count": 2}),
        has_aux=True,
        statistics=BOTH,
    )
    add, finish = jax.jit(steps.add, donate_argnums=0), jax.jit(steps.finish)
    init = jax.jit(steps.init)
    finish(add(add(init(params, batch), params, batch), params, batch), params)
    assert compilations.count >= 3
    compilations.reset()
    for count in (1, 3, 20):
        state = init(params, batch)
        for _ in range(count):
            state = add(state, params, batch)
        stats = finish(state, params)[2]
        assert float(stats.num_groups) == count
    assert compilations.count == 0


def loss_with_aux(params, batch):
    right = jnp.sign(batch["x"] @ params["w"]) == jnp.sign(batch["y"])
    moment = jnp.mean(batch["x"], axis=0).astype(jnp.bfloat16)
    return regression_loss(params, batch), {
        "right": jnp.sum(right, dtype=jnp.int32),
        "x": (moment,),
    }


@pytest.mark.parametrize("real", [ROWS, 7])
def test_aux_averages_and_counts(real):
    params, batch = regression(ROWS)
    steps = micro_steps(loss_with_aux, has_aux=True)
    mask = np.arange(ROWS) < real
    (loss, aux), _, _ = accumulate(steps, params, batch, mask=mask)
    x, y = batch["x"][:real].astype(np.float64), batch["y"][:real]
    np.testing.assert_allclose(loss, regression_rows(params, batch)[0][:real].mean(), rtol=1e-5)
    assert aux["right"].dtype == jnp.int32
    assert int(aux["right"]) == np.sum(np.sign(x @ params["w"]) == np.sign(y))
    # Each of the micro-batches rounds its mean to bfloat16; the sum is in float32.
    assert aux["x"][0].dtype == jnp.float32
    np.testing.assert_allclose(aux["x"][0], x.mean(axis=0), atol=2.0**-8)


def test_losses_that_mix_rows_see_real_micro_batches():
    def loss_fn(w, x):
        return jnp.mean(jax.nn.softplus((x - x.mean(0)) / x.std(0) @ w))

    rng = np.random.default_rng(0)
    w, x = rng.normal(size=3), rng.normal(size=(8, 3))
    loss, grads, stats = accumulate(
        micro_steps(loss_fn, loss_kind="ghost"), w.astype(np.float32), x.astype(np.float32), 4
    )
    with jax.enable_x64(True):
        each = [jax.value_and_grad(loss_fn)(jnp.asarray(w), part) for part in (x[:4], x[4:])]
        losses, h = (np.array(out, np.float64) for out in zip(*each, strict=True))
    np.testing.assert_allclose(loss, losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(grads, h.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats.variance, 4 * ((h - h.mean(axis=0)) ** 2).sum(), rtol=1e-4)


def test_every_micro_batch_has_its_own_key():
    """The gradient is a number drawn from the key; rows of a part that is padded draw their own."""
    keys = jax.random.split(jax.random.key(0), 4)
    loss_fn = lambda w, x, key: jnp.mean(w * jax.random.normal(key, x.shape[:1]) * x)
    steps = micro_steps(loss_fn, key_argnums=2)
    w, x = jnp.float32(1), np.ones(8, np.float32)
    drawn = np.array([np.mean(jax.random.normal(key, (2,))) for key in keys], np.float64)
    _, grads, stats = accumulate(steps, w, x, 2, args=list(keys))
    np.testing.assert_allclose(grads, drawn.mean(), rtol=1e-5)
    np.testing.assert_allclose(stats.variance, 2 * drawn.var(ddof=1), rtol=1e-5)
    row = float(jax.random.normal(jax.random.split(keys[3])[0], (1,))[0])
    grads = accumulate(steps, w, x, 2, np.arange(8) < 7, args=list(keys))[1]
    np.testing.assert_allclose(grads, (2 * drawn[:3].sum() + row) / 7, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtypes(dtype):
    """Gradients as the parameters, all else in float32, whose sum does not stop growing."""
    rows = 512
    w = jnp.ones(2, dtype)
    x = np.tile(np.array([[1.0, 3.0]], np.float32), (rows, 1))
    steps = micro_steps(lambda w, x: jnp.mean(x.astype(w.dtype) @ w))
    loss, grads, stats = accumulate(steps, w, x, 1)
    assert grads.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves((loss, stats))} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(grads.astype(np.float32), [1, 3])
    np.testing.assert_allclose(loss, 4)
    assert float(stats.num_examples) == rows


@pytest.mark.usefixtures("float64")
def test_float64():
    params, batch = regression(ROWS)
    wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (params, batch))
    measured = accumulate(micro_steps(regression_loss, statistics=BOTH), *wide)
    assert {leaf.dtype for leaf in jax.tree.leaves(measured)} == {jnp.dtype(jnp.float64)}
    expected = reference(regression_rows(params, batch), ROWS // SIZE)
    np.testing.assert_allclose(measured[2].variance, expected.variance, rtol=1e-12)


# --- Methods within micro-batches -----------------------------------------------------------------

WITHIN: dict[str, tuple[Any, int]] = {
    "exact": (exact(BOTH), 1),
    "exact pairs": (exact(BOTH, group_size=2), 2),
    "per_example": (per_example(chunk_size=2, statistics=BOTH), 1),
    "groups": (groups(2, statistics=BOTH), 2),
}


@pytest.mark.parametrize("real", [ROWS, 10, 7, 4, 2])
@pytest.mark.parametrize("name", WITHIN)
def test_the_groups_of_all_micro_batches_are_merged(name, real):
    """As if the method had seen all rows at once, whatever of them is padding."""
    params, batch = regression(ROWS)
    method, group = WITHIN[name]
    mask = np.arange(ROWS) < real
    losses, rows = regression_rows(params, batch)
    expected = reference((losses, rows), ROWS // group, weight=mask)
    steps = micro_steps(regression_loss, method)
    measured = accumulate(steps, params, batch, 4, mask)
    assert_measured(measured, expected)
    assert measured[2].coordinate_variance is not None
    if real == ROWS:
        assert_measured(accumulate(steps, params, batch, 4), expected)


def test_one_micro_batch_alone_has_a_variance():
    params, batch = regression(4)
    measured = accumulate(micro_steps(regression_loss, exact()), params, batch, 4)
    assert_measured(measured, reference(regression_rows(params, batch), 4))
    assert np.isfinite(measured[2].variance)
    assert measured[2].coordinate_variance is None


def test_one_example_and_none_are_undefined_for_a_method_too():
    params, batch = regression(4)
    for real in (0, 1):
        mask = np.arange(4) < real
        loss, grads, stats = accumulate(
            micro_steps(regression_loss, exact()), params, batch, 2, mask
        )
        assert np.isnan(stats.variance)
        assert (float(stats.num_examples), float(stats.num_groups)) == (real, real)
        assert np.isnan(loss) == (real == 0)
        assert np.all(np.isfinite(flat(grads)))


def test_a_probe_of_every_micro_batch_is_unbiased():
    """E of the merged variance over all orders of the rows is that of the rows."""
    rows = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    w = jnp.zeros(2)
    steps = micro_steps(lambda w, x: (x @ w).mean(), exact(probe_size=2))

    @jax.jit
    def variance(x):
        state = steps.init(w, x[:3])
        for part in (x[:3], x[3:]):
            state = steps.add(state, w, part)
        return steps.finish(state, w)[2].variance

    orders = np.array(list(itertools.permutations(range(6))))
    found = jax.vmap(variance)(jnp.asarray(rows[orders]))
    np.testing.assert_allclose(np.mean(found), rows.var(axis=0, ddof=1).sum(), rtol=1e-4)


def test_convolutions_of_a_method_run_in_loops():
    """`exact` in a `fori_loop`, which is how `accumulate` runs it."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 2, 4)).astype(np.float32)
    images = rng.normal(size=(8, 5, 5, 2)).astype(np.float32)

    loss_fn = lambda kernel, x: jnp.mean(
        jnp.tanh(
            jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        )
    )
    steps = micro_steps(loss_fn, exact())

    @jax.jit
    def loop(kernel, parts):
        add = lambda i, state: steps.add(state, kernel, parts[i])
        state = jax.lax.fori_loop(0, 2, add, steps.init(kernel, parts[0]))
        return steps.finish(state, kernel)

    measured = loop(kernel, images.reshape(2, 4, 5, 5, 2))
    expected = adaoptax.value_grad_and_stats(loss_fn, per_example())(kernel, images)
    np.testing.assert_allclose(measured[1], expected[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(measured[2].variance, expected[2].variance, rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (per_example(), r'without inner products, got method=_PerExample.*leave "inner" out'),
        (exact(("norm", "inner")), "without inner products"),
        (every(2, exact()), "measures every micro-batch, got method=Every"),
    ],
)
def test_methods_whose_parts_cannot_be_merged(method, message):
    with pytest.raises(ValueError, match=message):
        micro_steps(regression_loss, method)


def test_inner_products_that_show_only_when_traced():
    params, batch = regression(4)
    with pytest.raises(ValueError, match="without inner products, got method=_InnerProducts"):
        micro_steps(regression_loss, inner_products(groups(2))).init(params, batch)


def test_a_method_has_its_own_statistics():
    with pytest.raises(ValueError, match=r"statistics to be given to the method"):
        micro_steps(regression_loss, exact(), statistics=BOTH)
    with pytest.raises(TypeError, match=r"made by adaoptax\.measure"):
        micro_steps(regression_loss, cast(Any, exact))


@pytest.mark.parametrize("leaf", [lambda x: x, lambda x: x[0] > 0], ids=["one a row", "bool"])
def test_aux_that_has_no_fixed_size(leaf):
    steps = micro_steps(lambda w, x: (jnp.mean(x @ w), {"out": leaf(x @ w)}), has_aux=True)
    with pytest.raises(ValueError, match=r"aux\['out'\] to be a mean \(float\) or a count"):
        steps.init(jnp.ones(2), np.ones((4, 2), np.float32))


def test_arguments():
    with pytest.raises(ValueError, match="micro_steps measures these only"):
        micro_steps(regression_loss, statistics=("norm", "inner"))
    with pytest.raises(ValueError, match="key_argnums to be positions"):
        micro_steps(regression_loss, key_argnums=1)
    params, batch = regression(4)
    with pytest.raises(TypeError, match=r"inputs at positions \[2\]"):
        micro_steps(regression_loss, key_argnums=2).init(params, batch)
    steps = micro_steps(regression_loss)
    with pytest.raises(ValueError, match=r"mask of shape \(4,\)"):
        steps.add(steps.init(params, batch), params, batch, mask=np.ones(3, bool))
