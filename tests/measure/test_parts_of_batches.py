"""Losses that do not take a part of their batch, and inputs that have no gradient: named, cured."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from adaoptax import measure, value_grad_and_stats
from adaoptax.measure import groups, inner_products, micro_steps, per_example, per_example_moments

RNG = np.random.default_rng(6)
X = RNG.normal(size=(8, 4)).astype(np.float32)
BATCH = {"x": X, "y": X.sum(axis=1) ** 2, "image": X.reshape(8, 2, 2, 1)}
W = jnp.arange(4.0)
ROWS = np.arange(8) < 7


def with_micro_steps(fn, w, *inputs, mask=None):
    steps = micro_steps(fn)
    return steps.finish(steps.add(steps.init(w, *inputs), w, *inputs, mask=mask), w)


def by(method):
    return lambda fn, *inputs, **kw: value_grad_and_stats(fn, method)(*inputs, **kw)


EVERYWHERE: dict[str, Any] = {
    "None": by(None),
    "exact": by(measure.exact()),
    "groups": by(groups(4)),
    "per_example": by(per_example()),
    "inner_products": by(inner_products(None)),
    "micro_steps": with_micro_steps,
    "moments": lambda fn, *inputs: per_example_moments(fn)(*inputs),
}
OF_ONE_ROW: dict[str, Any] = {
    "per_example": EVERYWHERE["per_example"],
    "in chunks": by(per_example(3)),
    "inner_products": EVERYWHERE["inner_products"],
    "groups of one": by(groups(8)),
    "masked groups": lambda *inputs: by(groups(4))(*inputs, mask=ROWS),
    "masked micro_steps": lambda *inputs: with_micro_steps(*inputs, mask=ROWS),
}


def of_images(w, b):
    """Pixels of one image would be rows: a loss of its own, silently."""
    pixels = b["image"].squeeze()
    return jnp.mean(pixels.reshape(pixels.shape[0], -1).sum(axis=1) * w[0] - b["y"])


def mean_of_columns(w, b):
    return jnp.sum(jnp.mean((b["x"][:, None] * w).squeeze(), axis=0))


def of_labels(w, b):
    scores = jax.nn.log_softmax((b["x"][:, None] * w).squeeze())
    return -jnp.mean(scores[jnp.arange(len(scores)), 0 * b["y"].astype(int)])


@pytest.mark.parametrize("way", OF_ONE_ROW.values(), ids=OF_ONE_ROW)
@pytest.mark.parametrize("loss_fn", [of_images, mean_of_columns])
def test_a_squeeze_that_removes_the_axis_of_rows(loss_fn, way):
    with pytest.raises(ValueError, match=r"squeeze at .*test_parts_of_.*squeeze\(axis=-1\)"):
        way(loss_fn, W, BATCH)


@pytest.mark.parametrize("way", OF_ONE_ROW.values(), ids=OF_ONE_ROW)
def test_a_squeeze_after_which_nothing_fits(way):
    with pytest.raises(ValueError, match=r"got \w+ \(.*with 1 of its 8 rows.*squeeze\(axis=-1\)"):
        way(of_labels, W, BATCH)


def test_a_squeeze_is_welcome_where_no_row_stands_alone():
    value, gradient = jax.value_and_grad(mean_of_columns)(W, BATCH)
    for way in (by(groups(4)), with_micro_steps):
        loss, grads, _ = way(mean_of_columns, W, BATCH)
        np.testing.assert_allclose((loss, *grads), (value, *gradient), rtol=1e-5)


@pytest.mark.parametrize("name", OF_ONE_ROW | EVERYWHERE)
def test_squeezes_that_change_nothing_pass(name):
    """Of a named axis; and one that leaves a number for a row, which has no axis to mistake."""

    def loss_fn(w, b):
        one = b["image"].squeeze(axis=-1).reshape(len(b["y"]), 4) @ w
        return jnp.mean((one + (b["x"] @ w[:, None]).squeeze() - b["y"]) ** 2)

    measured = (OF_ONE_ROW | EVERYWHERE)[name](loss_fn, W, BATCH)
    rows = ROWS if name.startswith("masked") else ...
    value, gradient = jax.value_and_grad(loss_fn)(W, {k: x[rows] for k, x in BATCH.items()})
    np.testing.assert_allclose(measured[0], value, rtol=1e-5)
    np.testing.assert_allclose(measured[1], gradient, rtol=1e-4)


CLOSED_OVER = np.arange(8) < 6


@pytest.mark.parametrize(
    "way",
    [way for name, way in (OF_ONE_ROW | EVERYWHERE).items()
     if name not in ("None", "exact", "moments", "micro_steps")],
)  # fmt: skip
@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda w, b: jnp.mean((b["x"] @ w).reshape(2, 4) ** 2),
        lambda w, b: jnp.mean(b["x"] @ w * CLOSED_OVER),
    ],
    ids=["reshape", "closed over"],
)
def test_a_loss_of_one_length(loss_fn, way):
    with pytest.raises(
        ValueError, match=r"to take a batch of any length, got|cuts the batch|by its place"
    ):
        way(loss_fn, W, BATCH)


@pytest.mark.parametrize("way", EVERYWHERE.values(), ids=EVERYWHERE)
def test_a_broken_loss_is_not_blamed_on_its_rows(way):
    with pytest.raises(TypeError, match="dot_general"):
        way(lambda w, b: jnp.mean(b["x"].T @ w), W, BATCH)


@pytest.mark.parametrize("way", EVERYWHERE.values(), ids=EVERYWHERE)
def test_a_whole_equinox_model(way):
    model = eqx.nn.MLP(4, 1, 8, 1, key=jax.random.key(0))
    loss_fn = lambda model, b: jnp.mean((jax.vmap(model)(b["x"])[:, 0] - b["y"]) ** 2)
    with pytest.raises(ValueError, match=r"got \w+ at params\.activation.*eqx\.partition\(model"):
        way(loss_fn, model, BATCH)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    way(lambda params, b: loss_fn(eqx.combine(params, static), b), params, BATCH)


@pytest.mark.parametrize("way", EVERYWHERE.values(), ids=EVERYWHERE)
def test_a_leaf_without_a_gradient(way):
    loss_fn = lambda p, b: jnp.mean(b["x"] @ p["w"]) * p["n"]
    with pytest.raises(ValueError, match=r"got dtype int32 at params\['n'\].*nnx\.split"):
        way(loss_fn, {"w": W, "n": 3}, BATCH)
    with pytest.raises(ValueError, match=r"got 'relu' at params\['n'\]"):
        way(loss_fn, {"w": W, "n": "relu"}, BATCH)


@pytest.mark.parametrize("way", EVERYWHERE.values(), ids=EVERYWHERE)
def test_nnx_state_that_the_loss_captures(way):
    rngs, drop, norm = nnx.Rngs(0), nnx.Dropout(0.5), nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    for inside in (lambda x: drop(x, rngs=rngs), norm):
        loss_fn = lambda w, b, inside=inside: jnp.mean(inside(b["x"]) @ w)
        with pytest.raises(
            ValueError, match=r"Cannot mutate .*key_argnums.*nnx\.merge\(\.\.\., copy"
        ):
            way(loss_fn, W, BATCH)


@pytest.mark.parametrize("way", EVERYWHERE.values(), ids=EVERYWHERE)
def test_an_axis_of_rows_that_is_not_the_first(way):
    loss_fn = lambda w, b: jnp.mean((jnp.einsum("tbd,d->tb", b["x"], w) - b["y"]) ** 2)
    with pytest.raises(ValueError, match=r"lengths \['x'\]: 5, \['y'\]: 8.*jnp\.moveaxis"):
        way(loss_fn, W, {"x": jnp.ones((5, 8, 4)), "y": jnp.ones(8)})
