"""`check_loss`: losses that are right pass, others are told by their numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaoptax import measure
from adaoptax.measure import LossCheck, check_loss, groups

RNG = np.random.default_rng(0)
ROWS = 16
X = RNG.normal(size=(ROWS, 6)).astype(np.float32)
Y = RNG.normal(size=ROWS).astype(np.float32)
REAL = (RNG.random((ROWS, 5)) < 0.6) | (np.arange(5) == 0)  # tokens of rows, one at least
PARAMS = {"w": RNG.normal(size=(6, 5)).astype(np.float32), "v": np.ones(5, np.float32)}
BATCH = {"x": X, "y": Y, "real": REAL}


def per_row(p, b):
    return (jnp.tanh(b["x"] @ p["w"]) @ p["v"] - b["y"]) ** 2


def mean(p, b, *args):
    return jnp.mean(per_row(p, b))


def token_mean(p, b):
    return jnp.sum(b["real"] * (b["x"] @ p["w"]) ** 2) / jnp.sum(b["real"])


def pairs(p, b):
    better, worse = jnp.split(per_row(p, b), 2)
    return jnp.mean(jax.nn.softplus(worse - better))


def normalised(p, b):
    h = b["x"] @ p["w"]
    return jnp.mean(jnp.tanh(h - h.mean(axis=0)) @ p["v"] * b["y"])


def undeclared(p, b):
    return mean(p, b | {"x": b["x"] * jax.random.bernoulli(jax.random.key(0), 0.5, b["x"].shape)})


def dropout(p, b, key, of_rows: Any = jnp.mean):
    keep = jax.random.bernoulli(key, 0.5, b["x"].shape)
    return of_rows(per_row(p, b | {"x": b["x"] * keep}))


METHODS = [
    None,
    groups(4),
    measure.exact(("norm", "inner")),
    measure.per_example(3),
    measure.every(3, groups(2)),
    measure.inner_products(None),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("mask", [None, np.arange(ROWS) < 10], ids=["full", "masked"])
def test_a_mean_of_rows_passes(method, mask):
    found = check_loss(mean, PARAMS, BATCH, method=method, mask=mask)
    assert isinstance(found, LossCheck)
    assert 0 <= found.loss < 1e-5
    assert 0 <= found.gradient < 1e-5


@pytest.mark.parametrize(
    "loss_fn",
    [lambda p, b: jnp.sum(per_row(p, b)), token_mean, pairs, normalised, undeclared],
    ids=["sum", "token mean", "pairs", "BatchNorm", "undeclared key"],
)
@pytest.mark.parametrize("method", [groups(2), groups(8)], ids=str)
def test_another_loss_is_told_by_both_losses_and_the_difference(loss_fn, method):
    plain, plain_gradient = jax.value_and_grad(loss_fn)(PARAMS, BATCH)
    parts = [jax.tree.map(lambda x, i=i: np.split(x, method.n)[i], BATCH) for i in range(method.n)]
    each = [jax.value_and_grad(loss_fn)(PARAMS, part) for part in parts]
    average = lambda *xs: np.mean(xs, axis=0)
    loss, gradient = jax.tree.map(average, *each)
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    wanted, off = flat(plain_gradient), flat(gradient) - flat(plain_gradient)
    with pytest.raises(ValueError, match="Expected loss and gradient of jax") as error:
        # Told by numbers alone, also once the method refuses such a loss by itself.
        check_loss(loss_fn, PARAMS, BATCH, method=method, loss_kind="assumed")
    message = str(error.value)
    numbers = message.partition("got a loss of ")[2].split()
    assert float(numbers[0]) == pytest.approx(float(loss), rel=1e-4)
    assert float(numbers[2]) == pytest.approx(float(plain), rel=1e-4)
    told = float(message.partition("differs by ")[2].split()[0])
    assert told == pytest.approx(np.linalg.norm(off) / np.linalg.norm(wanted), rel=0.05)
    assert f"method={method}" in message
    for cause in ("jnp.mean", "tokens", "pairs", "batch_argnums", "key_argnums", '"ghost"'):
        assert cause in message


def test_only_the_gradient_differs():
    """The same value, and the gradient of a sum; on the word of the user it is measured."""

    @jax.custom_vjp
    def as_sum(losses):
        return jnp.mean(losses)

    as_sum.defvjp(lambda x: (as_sum(x), x), lambda x, g: (g * jnp.ones_like(x),))
    check = lambda kind: check_loss(
        lambda p, b: as_sum(per_row(p, b)), PARAMS, BATCH, method=groups(2), loss_kind=kind
    )
    with pytest.raises(ValueError, match=r"gradient that differs by 0\.5 of its norm"):
        check("assumed")
    with pytest.raises(ValueError, match="custom_vjp_call"):
        check("separable")


def test_a_batch_in_two_arguments_aux_and_what_is_no_array():
    def loss_fn(p, x, scale, flag, y):
        assert flag == "flag"
        return scale * mean(p, {"x": x, "y": y}), {"count": 1}

    options: Any = {"batch_argnums": (1, 4), "has_aux": True, "method": groups(2)}
    found = check_loss(loss_fn, PARAMS, X, 2.0, "flag", Y, **options)
    assert found.gradient < 1e-5


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", [groups(4), measure.per_example()], ids=str)
def test_means_of_draws_are_compared_where_there_are_keys(seed, method):
    key = jax.random.key(seed)
    found = check_loss(dropout, PARAMS, BATCH, key, method=method, key_argnums=2)
    assert found.gradient > 1e-3  # other draws, indeed
    total = lambda p, b, key: dropout(p, b, key, jnp.sum)
    with pytest.raises(ValueError, match="Expected loss and gradient of"):
        check_loss(total, PARAMS, BATCH, key, method=method, key_argnums=2, loss_kind="assumed")


def test_a_tolerance_for_the_precision_of_the_loss():
    low = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)

    def coarse(p, b, scale=1.0):
        return mean(low(p), low({"x": b["x"], "y": b["y"]})).astype(jnp.float32) * scale

    found = check_loss(coarse, PARAMS, BATCH, method=groups(4))
    assert found.gradient > 1e-5
    with pytest.raises(ValueError, match="Expected loss and gradient"):
        check_loss(coarse, PARAMS, BATCH, method=groups(4), tolerance=found.gradient / 10)
    # 2 % off: more than float32 may be, less than bfloat16 may be.
    for fn, wrong in ((coarse, False), (mean, True)):
        off = lambda p, b, fn=fn: fn(p, b) * (1.02 if b["x"].shape[0] < ROWS else 1.0)
        if wrong:
            with pytest.raises(ValueError, match=r"differs by 0\.02"):
                check_loss(off, PARAMS, BATCH, method=groups(4), loss_kind="assumed")
        else:
            found = check_loss(off, PARAMS, BATCH, method=groups(4), loss_kind="assumed")
            assert found.gradient > 0.01


def test_where_loss_and_gradient_vanish_rounding_is_no_difference():
    nothing = lambda p, b: jnp.mean(per_row(p, b | {"y": jax.lax.stop_gradient(0 * b["y"])}) * 0)
    assert check_loss(nothing, PARAMS, BATCH, method=groups(4)) == (0, 0)
    # The least squares of X: each row has a gradient, and their mean is rounding.
    w = np.linalg.lstsq(X.astype(np.float64), Y.astype(np.float64))[0].astype(np.float32)
    squares = lambda w, b: jnp.mean((b["x"] @ w - b["y"]) ** 2)
    found = check_loss(squares, w, BATCH, method=groups(4))
    assert found.gradient > 1e-3  # of a norm that is rounding itself
    # A loss that is a small difference of large terms.
    shift = float(squares(0 * w + 1, BATCH))
    check_loss(lambda w, b: squares(w, b) - shift, 0 * w + 1, BATCH, method=groups(4))


def test_what_cannot_be_compared_says_so():
    with pytest.raises(ValueError, match=r"Expected a finite loss.*got a loss of nan"):
        check_loss(lambda p, b: jnp.nan * mean(p, b), PARAMS, BATCH, method=groups(2))
    with pytest.raises(ValueError, match='check_loss, got "ghost"'):
        check_loss(normalised, PARAMS, BATCH, method=groups(2), loss_kind="ghost")
    with pytest.raises(TypeError, match=r"got traced values.*jax\.jit"):
        jax.jit(lambda p: check_loss(mean, p, BATCH, method=groups(2)).loss)(PARAMS)
    with pytest.raises(TypeError, match=r"made by adaoptax\.measure"):
        check_loss(mean, PARAMS, BATCH, method=groups)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tolerance=0"):
        check_loss(mean, PARAMS, BATCH, tolerance=0)
    with pytest.raises(ValueError, match="mask of bools"):
        check_loss(mean, PARAMS, BATCH, method=groups(2), mask=np.ones(ROWS))


def test_a_wrong_method_is_told_from_a_right_one():
    """Whatever the method, also one of the user's own."""

    class Halved:
        def __call__(self, loss):
            def measured(*inputs):
                (value, aux), grads, stats = groups(2)(loss)(*inputs)
                return (value, aux), jax.tree.map(lambda g: g / 2, grads), stats

            return measured

    with pytest.raises(ValueError, match=r"differs by 0\.5 of its norm"):
        check_loss(mean, PARAMS, BATCH, method=Halved())
