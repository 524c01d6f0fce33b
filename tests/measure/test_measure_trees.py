"""Parameters and batches of every shape and dtype."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_reference import (
    assert_measured,
    flat,
    flat_rows,
    reference,
    regression,
    regression_loss,
    regression_rows,
    same_structure,
)

from adaoptax import value_grad_and_stats
from adaoptax.measure import groups, per_example

pytestmark = pytest.mark.sampled

ALL = ("norm", "inner", "coordinate")
ROWS = 8
METHODS = [
    pytest.param(per_example(statistics=ALL), ROWS, id="per_example"),
    pytest.param(per_example(3, statistics=ALL), ROWS, id="chunked"),
    pytest.param(groups(4, statistics=("norm", "coordinate")), 4, id="groups"),
]
MASK = np.array([1, 1, 0, 1, 1, 1, 0, 1], bool)


def low_precision_groups(params, batch, n, mask):
    """Gradients of the groups' real rows, differentiated in the parameters' own precision."""
    rows = ROWS // n
    stacks, sizes = [], []
    for j in range(n):
        real = np.arange(j * rows, (j + 1) * rows)[mask[j * rows : (j + 1) * rows]]
        if len(real):
            part = jax.tree.map(lambda x, real=real: x[real], batch)
            stacks.append(jax.grad(regression_loss)(params, part))
            sizes.append(len(real))
    return flat_rows(jax.tree.map(lambda *x: np.stack(x), *stacks)), np.array(sizes)


@pytest.mark.parametrize(("method", "n"), METHODS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_parameters(method, n, dtype):
    """Statistics are those of the same rounded gradients, summed and squared in float64."""
    params, batch = jax.tree.map(lambda x: jnp.asarray(x, dtype), regression(ROWS))
    measure = jax.jit(value_grad_and_stats(regression_loss, method))
    _, grads, stats = measure(params, batch)
    h, sizes = low_precision_groups(params, batch, n, np.ones(ROWS, bool))
    g = h.mean(axis=0)
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype(dtype)}
    assert {x.dtype for x in jax.tree.leaves(stats)} == {jnp.dtype(jnp.float32)}
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(flat(grads), g, rtol=eps, atol=eps * np.abs(g).max())
    # XLA may keep more bits between operations inside one group than op-by-op gradients do.
    variance = sizes @ ((h - g) ** 2).sum(axis=1) / (n - 1)
    np.testing.assert_allclose(stats.variance, variance, rtol=2 * eps)
    np.testing.assert_allclose(stats.sq_norm, g @ g, rtol=2 * eps)


@pytest.mark.parametrize(("method", "n"), METHODS)
def test_large_low_precision_gradients_do_not_overflow(method, n):
    """Gradients of 4000 square to 1.6e7, beyond float16; linear, so rows are exact."""
    x = np.random.default_rng(0).normal(4000, 100, (ROWS, 3)).astype(np.float16)
    loss_fn = lambda w, x: jnp.mean(x.astype(jnp.float32) @ w.astype(jnp.float32))
    measured = jax.jit(value_grad_and_stats(loss_fn, method))(jnp.ones(3, jnp.float16), x)
    wide = x.astype(np.float64)
    expected = reference((wide.sum(axis=1), wide), n)
    np.testing.assert_allclose(measured[2].sq_norm, expected.sq_norm, rtol=1e-3)
    rounding = 2 * 4000 * 2**-11 / 100  # of a group mean to float16, against its noise
    np.testing.assert_allclose(measured[2].variance, expected.variance, rtol=rounding)
    assert measured[1].dtype == jnp.float16


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize(("method", "n"), METHODS)
@pytest.mark.usefixtures("float64")
def test_float64(method, n, mask):
    params, batch = regression(ROWS)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, batch))
    wide[1]["x"] += 1e4
    measured = jax.jit(value_grad_and_stats(regression_loss, method))(*wide, mask=mask)
    assert {x.dtype for x in jax.tree.leaves(measured)} == {jnp.dtype(jnp.float64)}
    expected = reference(regression_rows(*wide), n, weight=mask)
    assert_measured(measured, expected, rtol=1e-11)


@pytest.mark.parametrize(("method", "n"), METHODS)
@pytest.mark.parametrize("narrow", [jnp.float32, jnp.bfloat16])
@pytest.mark.usefixtures("float64")
def test_leaves_of_float32_and_float64(method, n, narrow):
    x = np.random.default_rng(0).integers(-8, 8, (ROWS, 3)).astype(np.float64)
    params = {"a": jnp.ones(3, narrow), "b": jnp.ones(3)}
    loss_fn = lambda p, x: jnp.mean(x @ p["a"].astype(jnp.float64) + x @ p["b"])
    measured = jax.jit(value_grad_and_stats(loss_fn, method))(params, x)
    assert {k: v.dtype for k, v in measured[1].items()} == {"a": narrow, "b": jnp.float64}
    row_grads = np.concatenate([x, x], axis=1)
    eps = float(jnp.finfo(narrow).eps)
    assert_measured(measured, reference((2 * x.sum(axis=1), row_grads), n), rtol=4 * eps)
    assert measured[2].variance.dtype == jnp.float64


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize(("method", "n"), METHODS)
def test_complex_parameters(method, n, mask):
    """loss = mean Re(x·z) + r·y: jax's gradient with respect to z is x, for each row."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(ROWS, 3)) + 1j * rng.normal(size=(ROWS, 3))).astype(np.complex64)
    y = rng.normal(1, 1, ROWS).astype(np.float32)
    params = {"r": jnp.float32(2), "z": jnp.ones(3, jnp.complex64)}
    loss_fn = lambda p, b: jnp.mean(jnp.real(b["x"] @ p["z"]) + p["r"] * b["y"])
    measure = jax.jit(value_grad_and_stats(loss_fn, method))
    loss, grads, stats = measure(params, {"x": x, "y": y}, mask=mask)
    plain = jax.grad(loss_fn)(params, {"x": x[:1], "y": y[:1]})["z"]
    sign = np.sign(np.asarray(plain).imag * x[0].imag)  # whichever convention jax follows
    assert np.all(sign == sign[0])
    as_real = np.concatenate([y[:, None], x.real, sign * x.imag], axis=1)
    expected = reference((x.real.sum(axis=1) + 2 * y, as_real), n, weight=mask)
    real_grads = np.concatenate([flat(grads["r"]), grads["z"].real, grads["z"].imag])
    c = expected.coordinate_variance
    by_modulus = expected._replace(
        coordinate_variance=np.concatenate([c[:1], c[1:4] + c[4:]]),
    )
    assert grads["z"].dtype == jnp.complex64
    assert {x.dtype for x in jax.tree.leaves(stats)} == {jnp.dtype(jnp.float32)}
    assert_measured((loss, real_grads, stats), by_modulus)


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize(("method", "n"), METHODS)
def test_batches_of_many_leaves(method, n, mask):
    """Leaves of rank 1, 2 and 4, integers, booleans, None and empty containers, nested."""
    rng = np.random.default_rng(0)
    batch: Any = {
        "images": rng.normal(size=(ROWS, 2, 3, 1)).astype(np.float32),
        "tokens": rng.integers(0, 4, (ROWS, 5)).astype(np.int32),
        "nested": ({"keep": rng.random(ROWS) > 0.5}, None, {}, [rng.integers(0, 9, ROWS)]),
    }
    params = {
        "embedding": np.arange(4, dtype=np.float32),
        "empty": ({}, None, []),
        "scalar": np.float32(3),
        "unused": np.ones((2, 2), np.float32),
        "w": np.ones((3, 2), np.float32),
    }

    def loss_fn(p, b):
        (keep, _, _, [label]) = b["nested"]
        tokens = p["embedding"][b["tokens"]].sum(axis=1)
        pixels = jnp.einsum("rijk,ji->r", b["images"], p["w"])
        return jnp.mean(keep["keep"] * tokens + pixels + p["scalar"] * label)

    keep, _, _, [label] = batch["nested"]
    counts = (batch["tokens"][:, :, None] == np.arange(4)).sum(axis=1) * keep["keep"][:, None]
    pixels = batch["images"][..., 0].transpose(0, 2, 1).reshape(ROWS, -1).astype(np.float64)
    row_grads = np.concatenate([counts, label[:, None], np.zeros((ROWS, 4)), pixels], axis=1)
    row_losses = counts @ params["embedding"] + pixels.sum(axis=1) + 3 * label
    measure = jax.jit(value_grad_and_stats(loss_fn, method))
    measured = measure(params, batch, mask=mask)
    assert_measured(measured, reference((row_losses, row_grads), n, weight=mask))
    assert same_structure(measured[1], params)
    np.testing.assert_array_equal(measured[1]["unused"], np.zeros((2, 2)))
    coordinate = measured[2].coordinate_variance
    assert same_structure(coordinate, params)
    np.testing.assert_array_equal(coordinate["unused"], np.zeros((2, 2)))


@pytest.mark.parametrize(("method", "n"), METHODS)
@pytest.mark.parametrize(
    "scalar", [2.0, np.float32(2), jnp.float32(2)], ids=["python", "np", "jax"]
)
def test_one_scalar_parameter(method, n, scalar):
    x = np.random.default_rng(0).normal(1, 1, ROWS).astype(np.float32)
    measured = value_grad_and_stats(lambda w, x: jnp.mean(w * x), method)(scalar, x)
    assert measured[1].shape == ()
    assert_measured(measured, reference((2 * x, x[:, None]), n))


@pytest.mark.parametrize(("method", "n"), METHODS)
def test_dtypes_and_strong_types(method, n):
    """float32 statistics, and no weak type to cost a second compilation."""
    del n
    params, batch = regression(ROWS)
    for mask in (None, MASK):
        measured = value_grad_and_stats(regression_loss, method)(params, batch, mask=mask)
        for leaf in jax.tree.leaves(measured):
            assert leaf.dtype == jnp.float32
            assert not leaf.weak_type
