"""`measure.exact` on random programs: parameters in every order of layers, some of them reused.

All in float64, where no random program is so badly conditioned that rounding looks like an error.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from reference import assert_moments, row_gradients

from adaoptax import measure

pytestmark = pytest.mark.topic("random programs")

ALL = ("norm", "inner", "coordinate")
B, T, D, WORDS = 5, 3, 4, 6


class Op:
    """A layer [B, T, D] → [B, T, D] and the shapes of the parameters that it reads."""

    def __init__(self, apply: Callable[..., jax.Array], shapes: tuple[tuple[int, ...], ...]):
        self.apply = apply
        self.shapes = shapes


OPS: dict[str, Op] = {}


def op(*shapes: tuple[int, ...]) -> Callable[[Callable], Callable]:
    def add(apply: Callable) -> Callable:
        OPS[apply.__name__] = Op(apply, shapes)
        return apply

    return add


@op()
def nonlinearity(h, batch):
    return jax.nn.gelu(h)


@op((D, D))
def dense(h, batch, w):
    return h @ w


@op((D, D))
def dense_transposed(h, batch, w):
    return h @ w.T


@op((D,))
def bias(h, batch, b):
    return h + b


@op((D,))
def scale(h, batch, s):
    return h * jnp.exp(s)


@op((T, D))
def positions(h, batch, p):
    return h + p[: h.shape[1]]


@op((3, D, D))
def convolution(h, batch, kernel):
    return jax.lax.conv_general_dilated(
        h, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )


@op((2, 1, D))
def depthwise(h, batch, kernel):
    return jax.lax.conv_general_dilated(
        h,
        kernel,
        (1,),
        ((2, 0),),
        rhs_dilation=(2,),
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=D,
    )


@op((WORDS, D))
def embedding(h, batch, table):
    return h + table[batch["ids"]]


@op((WORDS, D))
def lookup(h, batch, table):
    """Soft attention over the rows of a table: its second use when it is tied."""
    return jax.nn.softmax(h @ table.T) @ table


@op((T, T))
def mixer(h, batch, w):
    return jnp.swapaxes(jnp.swapaxes(h, 1, 2) @ w, 1, 2)


@op((T * D, T * D))
def flattened(h, batch, w):
    return (h.reshape(h.shape[0], -1) @ w).reshape(h.shape)


@op((2, 2, 2))
def heads(h, batch, w):
    split = h.reshape(*h.shape[:2], 2, 2)
    return jnp.einsum("bthd,hdk->bthk", split, w).reshape(h.shape)


@op((D, 2, 3), (2, 3, D))
def in_and_out_of_heads(h, batch, into, out):
    return jnp.einsum("bthk,hkd->btd", jnp.tanh(jnp.einsum("btd,dhk->bthk", h, into)), out)


@op((D, 2 * D))
def split_gate(h, batch, w):
    gate, up = jnp.split(w, 2, axis=1)
    return jax.nn.sigmoid(h @ gate) * (h @ up)


@op((2, D, D), (2, D))
def scanned_layers(h, batch, w, b):
    layer = lambda h, p: (jnp.tanh(h @ p[0] + p[1]), None)
    return jax.lax.scan(jax.checkpoint(layer), h, (w, b))[0]


@op((2, D, D))
def counted_layers(h, batch, w):
    return jax.lax.fori_loop(0, 2, lambda i, h: jnp.tanh(h @ w[i]), h)


@op((2, D, D))
def indexed_layers(h, batch, w):
    return jnp.tanh(h @ w[1]) @ w[0].T


@op((D, D), (D,))
def recurrence(h, batch, w, b):
    def step(state, x):
        state = jnp.tanh(x + state @ w + b)
        return state, state

    return jnp.moveaxis(jax.lax.scan(step, h[:, 0], jnp.moveaxis(h, 1, 0))[1], 0, 1)


@op((D, D), (D,))
def rematerialised(h, batch, w, b):
    return jax.checkpoint(lambda h, w, b: jnp.sin(h @ w + b))(h, w, b)


@op((D, D), (D,))
def jitted(h, batch, w, b):
    return jax.jit(lambda w, h, b: jax.nn.silu(h @ w) + b)(w, h, b)


@op((D, D), (D,))
def selected(h, batch, w, b):
    one = lambda h, flag: jax.lax.cond(flag, lambda h: h @ w, lambda h: h * b, h)
    return jax.vmap(one)(h, batch["flag"])


@op((D, D))
def branched(h, batch, w):
    one = lambda row: jax.lax.cond(row[1], lambda h: jnp.tanh(h @ w), lambda h: h - w[0], row[0])
    return jax.lax.map(one, (h, batch["flag"]))


@op((D, D))
def normalised_weight(h, batch, w):
    return h @ (w / jnp.linalg.norm(w, axis=0))


@op((D, D))
def softmax_weight(h, batch, w):
    return h @ jax.nn.softmax(w, axis=0)


@op((D, 2), (2, D))
def low_rank(h, batch, a, b):
    return h + (h @ a) @ b - h @ (a @ b) / 2


@op((D, D))
def attention(h, batch, w):
    return jax.nn.softmax(jnp.einsum("btd,de,bse->bts", h, w, h) / 2) @ h


@op((3, D, D))
def experts(h, batch, w):
    return jnp.einsum("btd,bdk->btk", h, w[batch["expert"]])


@op((D,))
def layer_norm(h, batch, s):
    h = h - jnp.mean(h, axis=-1, keepdims=True)
    return h / jnp.sqrt(jnp.mean(h**2, axis=-1, keepdims=True) + 0.1) * s


steps = st.lists(
    st.tuples(st.sampled_from(sorted(OPS)), st.booleans(), st.booleans()), min_size=2, max_size=6
)


def program(steps: Any, penalty: bool) -> tuple[Callable, list[tuple[int, ...]]]:
    """``(loss_fn, shapes of the parameters)`` of steps (operation, reuse, residual).

    A step that reuses reads the first parameter of its shape that is there already.
    """
    shapes: list[tuple[int, ...]] = []
    read: list[list[int]] = []
    for name, reuse, _ in steps:
        read.append([])
        for shape in OPS[name].shapes:
            if not (reuse and shape in shapes):
                shapes.append(shape)
                read[-1].append(len(shapes) - 1)
            else:
                read[-1].append(shapes.index(shape))

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        h = batch["x"]
        for (name, _, residual), indices in zip(steps, read, strict=True):
            out = OPS[name].apply(h, batch, *(params[i] for i in indices))
            h = jnp.tanh(h + out if residual else out)
        loss = jnp.mean((h - batch["y"]) ** 2)
        return loss + 0.05 * sum(jnp.sum(p**2) for p in params) if penalty else loss

    return loss_fn, shapes


def numbers(shapes: list[tuple[int, ...]], seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: np.asarray(rng.normal(size=shape))
    params = [draw(*shape) * (0.5 if len(shape) > 1 else 1) for shape in shapes]
    batch = {
        "x": draw(B, T, D),
        "y": draw(B, T, D),
        "ids": rng.integers(0, WORDS, (B, T)).astype(np.int32),
        "expert": rng.integers(0, 3, B).astype(np.int32),
        "flag": rng.integers(0, 2, B).astype(bool),
    }
    return params, batch


@given(
    steps=steps,
    penalty=st.booleans(),
    statistics=st.sampled_from([ALL, ("norm",), ("norm", "inner"), ("coordinate",)]),
    seed=st.integers(0, 99),
)
def judge(steps, penalty, statistics, seed):
    loss_fn, shapes = program(steps, penalty)
    assume(shapes)
    params, batch = numbers(shapes, seed)
    rows = row_gradients(loss_fn, params, batch)
    with jax.enable_x64(True):
        step = measure.per_example_moments(loss_fn, statistics=statistics)
        found = jax.jit(step)(params, batch)
    assert_moments(found, rows, rtol=1e-10, grad_rtol=1e-11)


@pytest.mark.parametrize("programs", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_random_programs(programs, tried):
    settings(max_examples=programs, suppress_health_check=[HealthCheck.too_slow])(judge)()
    tried("examples drawn", programs)
