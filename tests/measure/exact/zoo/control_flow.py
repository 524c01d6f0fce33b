"""Branches and loops on data, nested jit, remat, derivatives of the user's own."""

import functools

import jax
import jax.numpy as jnp

from zoo.entry import ROWS, Draw, Entry, entry, fit, fitted


def by_vmap(one):
    return jax.vmap(one, in_axes=(None, 0))


def by_map(one):
    """Rows one after another: branches stay branches."""
    return lambda p, x: jax.lax.map(functools.partial(one, p), x)


def same_params_in_branches(p, x):
    return jax.lax.cond(
        x[0] > 0, lambda x: jnp.tanh(x @ p["w"]), lambda x: jnp.sin(x @ p["w"]) + p["b"], x
    )


def other_params_in_branches(p, x):
    branches = [lambda x: jnp.tanh(x @ p["w"]), lambda x: x[:2] * p["b"], lambda x: x[1:3] ** 2]
    kind = (x[0] > 0).astype(jnp.int32) + (x[1] > 0)
    return jax.lax.switch(kind, branches, x)


def branch_params(draw: Draw):
    return {"w": draw.weight(4, 2), "b": draw(2)}


@entry
def cond_by_vmap(draw: Draw) -> Entry:
    """Becomes a select."""
    return fit(draw, by_vmap(same_params_in_branches), branch_params(draw), draw(ROWS, 4))


@entry
def cond_by_map(draw: Draw) -> Entry:
    """A branch that reads the parameters, inside a scan over rows."""
    return fit(draw, by_map(same_params_in_branches), branch_params(draw), draw(ROWS, 4))


@entry
def switch_by_vmap(draw: Draw) -> Entry:
    return fit(draw, by_vmap(other_params_in_branches), branch_params(draw), draw(ROWS, 4))


@entry
def switch_by_map(draw: Draw) -> Entry:
    """Branches that read other parameters, or none."""
    return fit(draw, by_map(other_params_in_branches), branch_params(draw), draw(ROWS, 4))


@entry
def cond_on_params_and_on_arguments(draw: Draw) -> Entry:
    """Branches that all examples take alike."""
    params = {"w": draw.weight(4, 3), "b": draw(3)}

    def loss_fn(params, batch, step):
        h = jax.lax.cond(step > 3, lambda x: x @ params["w"], lambda x: x[:, :3], batch["x"])
        shift = lambda sign: lambda h: h + sign * params["b"]
        h = jax.lax.cond(jnp.sum(params["b"]) > 0, shift(1), shift(-1), h)
        return jnp.mean((jnp.tanh(h) - batch["y"]) ** 2)

    batch = {"x": draw(ROWS, 4), "y": draw(ROWS, 3)}
    return Entry(loss_fn, params, batch, args=(jnp.int32(5),))


@fitted(
    lambda draw: {"w": draw.weight(4, 3), "scale": draw(12)},
    lambda draw: 4 * draw(ROWS, 4),
    each=True,
)
def while_on_data(p, x):
    """Every example is halved until it is small; no parameter inside the loop."""

    def halve(carry):
        x, count = carry
        return x / 2, count + 1

    x, count = jax.lax.while_loop(lambda c: jnp.max(jnp.abs(c[0])) > 0.5, halve, (x, 0))
    return jnp.tanh(x @ p["w"]) * p["scale"][count]


@fitted(
    lambda draw: {"w": draw.weight(3, 3), "b": draw(3)},
    lambda draw: {"x": draw(ROWS, 3), "depth": draw.ids(4, ROWS)},
    each=True,
)
def loop_of_data_dependent_depth(p, x):
    """Adaptive computation: a fixed number of turns, of which an example keeps some."""

    def turn(i, h):
        return jnp.where(i < x["depth"], jnp.tanh(h @ p["w"] + p["b"]), h)

    return jax.lax.fori_loop(0, 3, turn, x["x"])


@entry
def nested_jit(draw: Draw) -> Entry:
    """One jitted layer, called with different weights, with the same weight, and inside another."""
    layer = jax.jit(lambda h, w, b: jnp.tanh(h @ w + b))

    @jax.jit
    def two(h, p):
        return layer(layer(h, p["shared"], p["b"]), p["shared"], 2 * p["b"])

    params = {"in": draw.weight(3, 4), "shared": draw.weight(4, 4), "b": draw(4)}
    return fit(draw, lambda p, x: two(layer(x, p["in"], p["b"]), p), params, draw(ROWS, 3))


@entry
def checkpointed_blocks(draw: Draw) -> Entry:
    """Remat around single blocks, around all, and around a jitted one."""
    block = lambda p, h: h + jnp.tanh(h @ p["w"] + p["b"])
    params = [{"w": draw.weight(3, 3), "b": draw(3)} for _ in range(3)]

    def forward(p, x):
        tail = lambda p, h: jax.checkpoint(block)(p[2], jax.jit(block)(p[1], h))
        return jax.checkpoint(tail)(p, jax.checkpoint(jax.jit(block))(p[0], x))

    return fit(draw, forward, params, draw(ROWS, 2, 3))


@jax.custom_vjp
def softened(x):
    """A step whose derivative is said to be that of a sigmoid."""
    return (x > 0).astype(x.dtype)


softened.defvjp(
    lambda x: (softened(x), x),
    lambda x, out: (out * jax.nn.sigmoid(x) * (1 - jax.nn.sigmoid(x)),),
)


@fitted(
    lambda draw: {"in": draw.weight(4, 5), "out": draw.weight(5, 2)}, lambda draw: draw(ROWS, 3, 4)
)
def custom_vjp_of_activations(p, x):
    return softened(x @ p["in"]) @ p["out"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def own_dense(x, w, power):
    return jnp.tanh(x @ w) ** power


def _own_dense_forward(x, w, power):
    return own_dense(x, w, power), (x, w, jnp.tanh(x @ w))


def _own_dense_backward(power, saved, out):
    x, w, h = saved
    before = out * power * h ** (power - 1) * (1 - h**2)
    return before @ w.T, 1.5 * x.T @ before  # not the true derivative: it must be taken as it is


own_dense.defvjp(_own_dense_forward, _own_dense_backward)


@fitted(
    lambda draw: {"own": draw.weight(4, 5), "out": draw.weight(5, 2)}, lambda draw: draw(ROWS, 4)
)
def custom_vjp_of_parameters(p, x):
    """The parameter enters the function whose backward pass is the user's own."""
    return own_dense(x, p["own"], 3) @ p["out"]


@entry
def custom_vjp_with_a_closed_over_parameter(draw: Draw) -> Entry:
    """A reversed gradient between two layers (domain adaptation), and before a bias."""

    @jax.custom_vjp
    def reverse(x):
        return x

    reverse.defvjp(lambda x: (x, None), lambda _, out: (-0.5 * out,))
    params = {"in": draw.weight(4, 5), "out": draw.weight(5, 2), "b": draw(2)}

    def forward(p, x):
        return reverse(jnp.tanh(x @ p["in"])) @ p["out"] + reverse(p["b"])

    return fit(draw, forward, params, draw(ROWS, 4))


@jax.custom_jvp
def swish(x, beta):
    return x * jax.nn.sigmoid(beta * x)


@swish.defjvp
def _swish_jvp(primals, tangents):
    x, beta = primals
    s = jax.nn.sigmoid(beta * x)
    by_x = s + beta * x * s * (1 - s)
    return x * s, by_x * tangents[0] + x**2 * s * (1 - s) * tangents[1]


@fitted(
    lambda draw: {"w": draw.weight(4, 5), "beta": draw.weight(5), "out": draw.weight(5, 2)},
    lambda draw: draw(ROWS, 4),
)
def custom_jvp_of_activations_and_parameters(p, x):
    return swish(swish(x @ p["w"], p["beta"]) @ p["out"], 1.0)


@fitted(
    lambda draw: {"a": draw(3, 3) / 3, "c": draw(3)},
    lambda draw: {"u": draw(ROWS, 3), "b": draw(ROWS, 3)},
    each=True,
)
def implicit_layer(p, x):
    """A linear system for every example, its matrix built from a parameter."""
    eye = jnp.eye(3, dtype=x["b"].dtype)
    return jnp.linalg.solve(4 * eye + p["a"] * jnp.outer(x["u"], x["u"]), x["b"] + p["c"])


@fitted(
    lambda draw: {"in": draw.weight(3, 4), "out": draw.weight(4, 4), "b": draw(4)},
    lambda draw: draw(ROWS, 3, 3),
)
def reductions_and_selections(p, x):
    """max, sort, cumulative sums and where between layers."""
    h = x @ p["in"]
    h = jnp.where(h > 0, h, p["b"] * h)
    h = jnp.cumsum(jnp.sort(h, axis=1), axis=1) @ p["out"]
    return jnp.max(h, axis=1) + jax.nn.logsumexp(h, axis=1) + jnp.prod(jnp.tanh(h), axis=1)
