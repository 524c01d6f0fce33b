"""``has_aux``: means, counts, one entry a row; as one call on the whole batch returns them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_reference import (
    assert_measured,
    reference,
    regression,
    regression_loss,
    regression_rows,
    same_structure,
)

from adaoptax import value_grad_and_stats
from adaoptax.measure import groups, per_example

pytestmark = pytest.mark.sampled

ROWS = 12
METHODS = [per_example(), per_example(5), per_example(1), groups(4), groups(ROWS)]
NUM_GROUPS = {per_example(): ROWS, per_example(5): ROWS, per_example(1): ROWS}


def loss_fn(params, batch):
    errors = batch["x"] @ params["w"] + params["b"] - batch["y"]
    classes = (batch["x"] > 0).astype(jnp.int32)
    aux = {
        "error": jnp.mean(jnp.abs(errors)),
        "running": {"mean": batch["x"].mean(axis=0), "sq": (batch["x"] ** 2).mean(axis=0)},
        "positive": jnp.sum(errors > 0),
        "confusion": classes.T @ classes,  # [3, 3] counts
        "rows": (errors, batch["x"] * 2, jnp.sign(errors).astype(jnp.int8)),
        "none": None,
    }
    return 0.5 * jnp.mean(errors**2), aux


def numpy_aux(params, batch):
    x, y = batch["x"].astype(np.float64), batch["y"].astype(np.float64)
    errors = x @ params["w"].astype(np.float64) + float(params["b"]) - y
    classes = (x > 0).astype(np.int32)
    return {
        "error": np.abs(errors).mean(),
        "running": {"mean": x.mean(axis=0), "sq": (x**2).mean(axis=0)},
        "positive": (errors > 0).sum(),
        "confusion": classes.T @ classes,
        "rows": (errors, x * 2, np.sign(errors)),
        "none": None,
    }


def assert_close(aux, expected):
    assert same_structure(aux, expected)
    for a, b in zip(jax.tree.leaves(aux), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_as_one_call_on_the_whole_batch(method):
    params, batch = regression(ROWS)
    measure = jax.jit(value_grad_and_stats(loss_fn, method, has_aux=True))
    (loss, aux), grads, stats = measure(params, batch)
    assert_close(aux, numpy_aux(params, batch))
    plain = jax.eval_shape(loss_fn, params, batch)[1]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), aux) == jax.tree.map(
        lambda x: (x.shape, x.dtype), plain
    )
    n = NUM_GROUPS.get(method) or int(stats.num_groups)
    assert_measured((loss, grads, stats), reference(regression_rows(params, batch), n))


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("garbage", [np.nan, 1e30])
def test_padding_does_not_count(method, garbage):
    params, batch = regression(ROWS)
    measure = jax.jit(value_grad_and_stats(loss_fn, method, has_aux=True))
    for real in ([0, 1, 2, 3, 4], [2, 3, 4, 9, 10], list(range(6)), list(range(ROWS)), [3, 11]):
        mask = np.isin(np.arange(ROWS), real)
        spoiled = jax.tree.map(
            lambda x, mask=mask: np.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, garbage), batch
        )
        (loss, aux), _, _ = measure(params, jax.tree.map(np.float32, spoiled), mask=mask)
        alone = jax.tree.map(lambda x, real=real: x[real], batch)
        expected = numpy_aux(params, alone)
        rows, aux["rows"] = aux["rows"], tuple(x[np.array(real)] for x in aux["rows"])
        assert_close(aux, expected)
        np.testing.assert_allclose(loss, regression_rows(params, alone)[0].mean(), rtol=1e-5)
        assert [x.shape for x in rows] == [(ROWS,), (ROWS, 3), (ROWS,)]


@pytest.mark.parametrize("method", [per_example(), per_example(5), groups(4)], ids=str)
def test_padding_only(method):
    params, batch = regression(ROWS)
    measure = jax.jit(value_grad_and_stats(loss_fn, method, has_aux=True))
    nothing = jax.tree.map(lambda x: np.full_like(x, np.nan), batch)
    (loss, aux), _, _ = measure(params, nothing, mask=np.zeros(ROWS, bool))
    assert np.isnan(loss)
    assert int(aux["positive"]) == 0
    assert not np.asarray(aux["confusion"]).any()


def test_groups_of_unequal_real_size_weigh_the_mean_of_aux():
    params, batch = regression(ROWS)
    mask = np.array([1, 1, 0, 1, 0, 0, 1, 0, 1, 1, 1, 0], bool)
    x = batch["x"].astype(np.float64)
    for method in (per_example(), per_example(5), groups(4)):
        measure = jax.jit(value_grad_and_stats(loss_fn, method, has_aux=True))
        (_, aux), _, _ = measure(params, batch, mask=mask)
        expected = x[mask].mean(axis=0)
        np.testing.assert_allclose(aux["running"]["mean"], expected, rtol=1e-5, atol=1e-6)
        assert int(aux["confusion"][0, 0]) == ((x[:, 0] > 0) & mask).sum()


@pytest.mark.parametrize("method", [per_example(5), groups(4)], ids=str)
def test_dtypes_are_kept(method):
    def with_dtypes(params, batch):
        value = regression_loss(params, batch)
        aux = [value.astype(d) for d in (jnp.bfloat16, jnp.float16, jnp.complex64)]
        counts = [jnp.sum(batch["y"] > 0, dtype=d) for d in (jnp.int16, jnp.uint32)]
        return value, (aux, counts, batch["y"] > 0)

    params, batch = regression(ROWS)
    measure = jax.jit(value_grad_and_stats(with_dtypes, method, has_aux=True))
    (loss, (aux, counts, rows)), _, _ = measure(params, batch, mask=np.arange(ROWS) < 7)
    assert [x.dtype for x in aux] == [jnp.bfloat16, jnp.float16, jnp.complex64]
    assert [x.dtype for x in counts] == [jnp.int16, jnp.uint32]
    assert [int(x) for x in counts] == [(batch["y"][:7] > 0).sum()] * 2
    np.testing.assert_array_equal(rows[:7], batch["y"][:7] > 0)
    for x in aux:
        np.testing.assert_allclose(complex(x).real, float(loss), rtol=float(jnp.finfo(x.dtype).eps))


def test_no_aux_at_all():
    params, batch = regression(ROWS)
    empty: list[Any] = [None, (), {}]
    for nothing in empty:
        fn = lambda p, b, nothing=nothing: (regression_loss(p, b), nothing)
        (_, aux), _, _ = jax.jit(value_grad_and_stats(fn, groups(3), has_aux=True))(params, batch)
        assert aux == nothing


@pytest.mark.parametrize(
    ("make", "form"),
    [
        pytest.param(lambda x: jnp.any(x > 0), r"bool\[\]", id="bool"),
        pytest.param(lambda x: x.T @ jnp.ones((len(x), len(x))), r"float32\[3, ", id="columns"),
        pytest.param(lambda x: x[1:] - x[:-1], r"float32\[\d, 3\]", id="differences"),
        pytest.param(lambda x: x[:-1] if len(x) > 1 else x, r"float32\[\d, 3\]", id="one short"),
    ],
)
@pytest.mark.parametrize("method", [per_example(), groups(4)], ids=str)
def test_other_forms_are_refused_by_name(method, make, form):
    params, batch = regression(ROWS)
    fn = lambda p, b: (regression_loss(p, b), {"good": jnp.sum(b["y"]), "bad": make(b["x"])})
    with pytest.raises(ValueError, match=rf"aux\['bad'\].*{form}.*whole batch"):
        value_grad_and_stats(fn, method, has_aux=True)(params, batch)


@pytest.mark.parametrize("method", [groups(3), per_example(), per_example(2)])
@pytest.mark.parametrize("masked", [False, True])
def test_python_numbers_in_aux(method, masked):
    loss_fn = lambda w, x: (jnp.mean(x @ w), {"rate": 0.5})
    measure = value_grad_and_stats(loss_fn, method, has_aux=True)
    mask = np.ones(6, bool) if masked else None
    (_, aux), _, _ = measure(jnp.ones(2), np.ones((6, 2), np.float32), mask=mask)
    assert float(aux["rate"]) == 0.5
