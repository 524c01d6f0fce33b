"""Weights shared over time."""

import jax
import jax.numpy as jnp

from zoo.entry import ROWS, Draw, Entry, cross_entropy, entry, fit, fitted, with_loss

TIME, WIDTH = 4, 3


def over_time(step, start, x, **options):
    """Scans ``step(carry, x_t)`` over axis 1 of `x` [B, T, ...]."""
    carry, outs = jax.lax.scan(step, start, jnp.moveaxis(x, 1, 0), **options)
    return carry, jnp.moveaxis(outs, 0, 1)


@fitted(
    lambda draw: {
        "in": draw.weight(2, WIDTH),
        "hidden": draw.weight(WIDTH, WIDTH),
        "b": draw(WIDTH),
    },
    lambda draw: draw(ROWS, TIME, 2),
)
def rnn(p, x):
    def step(h, x):
        h = jnp.tanh(x @ p["in"] + h @ p["hidden"] + p["b"])
        return h, h

    return over_time(step, jnp.zeros((x.shape[0], WIDTH), x.dtype), x)[1]


@with_loss(
    lambda draw: {
        "w": draw.weight(2 + WIDTH, 4 * WIDTH),
        "b": draw(4 * WIDTH),
        "h": draw(WIDTH),
        "out": draw.weight(WIDTH, 3),
    },
    lambda draw: {"x": draw(ROWS, TIME, 2), "y": draw.ids(3, ROWS)},
)
def lstm(params, batch):
    """The learned initial state is a parameter as well."""

    def step(carry, x):
        h, c = carry
        gates = jnp.concatenate([x, h], axis=-1) @ params["w"] + params["b"]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    h = jnp.broadcast_to(params["h"], (batch["x"].shape[0], WIDTH))
    (h, _), _ = over_time(step, (h, jnp.zeros_like(h)), batch["x"])
    return cross_entropy(h @ params["out"], batch["y"])


@fitted(
    lambda draw: {
        "x": draw.weight(2, 3 * WIDTH),
        "h": draw.weight(WIDTH, 3 * WIDTH),
        "b": draw(3 * WIDTH),
    },
    lambda draw: draw(ROWS, TIME, 2),
)
def gru(p, x):
    def step(h, x):
        from_x, from_h = x @ p["x"] + p["b"], h @ p["h"]
        r, z = jax.nn.sigmoid(from_x[..., : 2 * WIDTH] + from_h[..., : 2 * WIDTH]).reshape(
            -1, 2, WIDTH
        ).swapaxes(0, 1)  # fmt: skip
        n = jnp.tanh(from_x[..., 2 * WIDTH :] + r * from_h[..., 2 * WIDTH :])
        h = (1 - z) * n + z * h
        return h, h

    return over_time(step, jnp.zeros((x.shape[0], WIDTH), x.dtype), x)[1]


@entry
def bidirectional_rematerialised_rnn(draw: Draw) -> Entry:
    """Words in, one scan forward and one in reverse, each step under remat."""
    cell = lambda: {"in": draw.weight(2, WIDTH), "hidden": draw.weight(WIDTH, WIDTH)}
    params = {"table": draw(5, 2), "forward": cell(), "backward": cell()}

    def forward(p, ids):
        x = p["table"][ids]
        run = lambda cell, **options: over_time(
            jax.checkpoint(lambda h, x: (jnp.tanh(x @ cell["in"] + h @ cell["hidden"]),) * 2),
            jnp.zeros((x.shape[0], WIDTH), x.dtype),
            x,
            **options,
        )[1]
        return run(p["forward"]) + run(p["backward"], reverse=True)

    return fit(draw, forward, params, draw.ids(5, ROWS, TIME))


@fitted(
    lambda draw: {"in": draw(2, WIDTH, WIDTH) / 2, "hidden": draw(2, WIDTH, WIDTH) / 2},
    lambda draw: draw(ROWS, TIME, WIDTH),
)
def stacked_rnn_scanned_over_depth_and_time(p, x):
    """Layers are scanned over, and each layer scans over time with its own shared weights."""

    def layer(x, p):
        step = lambda h, x: (jnp.tanh(x @ p["in"] + h @ p["hidden"]),) * 2
        return over_time(step, jnp.zeros((x.shape[0], WIDTH), x.dtype), x)[1], None

    return jax.lax.scan(layer, x, p)[0]


@fitted(
    lambda draw: {"in": draw.weight(2, WIDTH), "hidden": draw.weight(WIDTH, WIDTH)},
    lambda draw: draw(ROWS, TIME, 2),
)
def unrolled_rnn(p, x):
    """A Python loop over time."""
    h = jnp.zeros((x.shape[0], WIDTH), x.dtype)
    for t in range(TIME):
        h = jnp.tanh(x[:, t] @ p["in"] + h @ p["hidden"])
    return h


@fitted(
    lambda draw: {
        "in": draw.weight(2, WIDTH),
        "hidden": draw.weight(WIDTH, WIDTH),
        "b": draw(WIDTH),
    },
    lambda draw: draw(ROWS, TIME, 2),
)
def input_projection_outside_the_scan(p, x):
    """One weight sees all of time at once, the other step by step."""
    step = lambda h, x: (jnp.tanh(x + h @ p["hidden"]),) * 2
    return over_time(step, jnp.zeros((x.shape[0], WIDTH), x.dtype), x @ p["in"] + p["b"])[1]


@fitted(
    lambda draw: {
        "log_decay": draw(WIDTH),
        "in": draw.weight(2, WIDTH),
        "out": draw.weight(WIDTH, 2),
    },
    lambda draw: draw(ROWS, TIME, 2),
)
def state_space_model(p, x):
    """A diagonal linear recurrence by `associative_scan`, with its decay from parameters."""
    u = x @ p["in"]
    decay = jnp.broadcast_to(jax.nn.sigmoid(p["log_decay"]), u.shape)
    compose = lambda first, then: (first[0] * then[0], first[1] * then[0] + then[1])
    return jnp.tanh(jax.lax.associative_scan(compose, (decay, u), axis=1)[1] @ p["out"])


@fitted(
    lambda draw: {"in": draw.weight(3, 4), "time": draw(4), "out": draw.weight(4, 3)},
    lambda draw: draw(ROWS, 3),
)
def neural_ode(p, x):
    """Euler steps of one vector field, with the time of the step as an input."""

    def step(i, h):
        return h + 0.25 * jnp.tanh(h @ p["in"] + i * p["time"]) @ p["out"]

    return jax.lax.fori_loop(0, 4, step, x)


@fitted(lambda draw: draw.weight(3, 2), lambda draw: draw(ROWS, TIME, 3), each=True)
def parameters_in_the_carry(w, xs):
    """Fast weights: each step of the scan uses the weight in its carry, and changes it."""

    def step(w, x):
        y = jnp.tanh(x @ w)
        return w + 0.1 * jnp.outer(x, y), y

    return jax.lax.scan(step, w, xs)[1]


@fitted(lambda draw: {"w": draw.weight(3, 3), "b": draw(3)}, lambda draw: draw(ROWS, 3))
def parameters_carried_unchanged(p, x):
    """Parameters that travel through a loop beside the activations."""
    step = lambda _, carry: (carry[0], jnp.tanh(carry[1] @ carry[0]["w"] + carry[0]["b"]))
    return jax.lax.fori_loop(0, 3, step, (p, x))[1]
