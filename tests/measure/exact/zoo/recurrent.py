"""Weights shared over time."""

import jax
import jax.numpy as jnp

from zoo.entry import ROWS, Draw, Entry, cross_entropy, entry, fit

TIME, WIDTH = 4, 3


def over_time(step, start, x, **options):
    """Scans ``step(carry, x_t)`` over axis 1 of `x` [B, T, ...]."""
    carry, outs = jax.lax.scan(step, start, jnp.moveaxis(x, 1, 0), **options)
    return carry, jnp.moveaxis(outs, 0, 1)


@entry
def rnn(draw: Draw) -> Entry:
    params = {"in": draw.weight(2, WIDTH), "hidden": draw.weight(WIDTH, WIDTH), "b": draw(WIDTH)}

    def forward(p, x):
        def step(h, x):
            h = jnp.tanh(x @ p["in"] + h @ p["hidden"] + p["b"])
            return h, h

        return over_time(step, jnp.zeros((x.shape[0], WIDTH), x.dtype), x)[1]

    return fit(draw, forward, params, draw(ROWS, TIME, 2))


@entry
def lstm(draw: Draw) -> Entry:
    """The learned initial state is a parameter as well."""
    params = {
        "w": draw.weight(2 + WIDTH, 4 * WIDTH),
        "b": draw(4 * WIDTH),
        "h": draw(WIDTH),
        "out": draw.weight(WIDTH, 3),
    }

    def loss_fn(params, batch):
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

    return Entry(loss_fn, params, {"x": draw(ROWS, TIME, 2), "y": draw.ids(3, ROWS)})


@entry
def gru(draw: Draw) -> Entry:
    params = {
        "x": draw.weight(2, 3 * WIDTH),
        "h": draw.weight(WIDTH, 3 * WIDTH),
        "b": draw(3 * WIDTH),
    }

    def forward(p, x):
        def step(h, x):
            from_x, from_h = x @ p["x"] + p["b"], h @ p["h"]
            r, z = jax.nn.sigmoid(from_x[..., : 2 * WIDTH] + from_h[..., : 2 * WIDTH]).reshape(
                -1, 2, WIDTH
            ).swapaxes(0, 1)  # fmt: skip
            n = jnp.tanh(from_x[..., 2 * WIDTH :] + r * from_h[..., 2 * WIDTH :])
            h = (1 - z) * n + z * h
            return h, h

        return over_time(step, jnp.zeros((x.shape[0], WIDTH), x.dtype), x)[1]

    return fit(draw, forward, params, draw(ROWS, TIME, 2))


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


@entry
def stacked_rnn_scanned_over_depth_and_time(draw: Draw) -> Entry:
    """Layers are scanned over, and each layer scans over time with its own shared weights."""
    params = {"in": draw(2, WIDTH, WIDTH) / 2, "hidden": draw(2, WIDTH, WIDTH) / 2}

    def forward(p, x):
        def layer(x, p):
            step = lambda h, x: (jnp.tanh(x @ p["in"] + h @ p["hidden"]),) * 2
            return over_time(step, jnp.zeros((x.shape[0], WIDTH), x.dtype), x)[1], None

        return jax.lax.scan(layer, x, p)[0]

    return fit(draw, forward, params, draw(ROWS, TIME, WIDTH))


@entry
def unrolled_rnn(draw: Draw) -> Entry:
    """A Python loop over time."""
    params = {"in": draw.weight(2, WIDTH), "hidden": draw.weight(WIDTH, WIDTH)}

    def forward(p, x):
        h = jnp.zeros((x.shape[0], WIDTH), x.dtype)
        for t in range(TIME):
            h = jnp.tanh(x[:, t] @ p["in"] + h @ p["hidden"])
        return h

    return fit(draw, forward, params, draw(ROWS, TIME, 2))


@entry
def input_projection_outside_the_scan(draw: Draw) -> Entry:
    """One weight sees all of time at once, the other step by step."""
    params = {"in": draw.weight(2, WIDTH), "hidden": draw.weight(WIDTH, WIDTH), "b": draw(WIDTH)}

    def forward(p, x):
        step = lambda h, x: (jnp.tanh(x + h @ p["hidden"]),) * 2
        return over_time(step, jnp.zeros((x.shape[0], WIDTH), x.dtype), x @ p["in"] + p["b"])[1]

    return fit(draw, forward, params, draw(ROWS, TIME, 2))


@entry
def state_space_model(draw: Draw) -> Entry:
    """A diagonal linear recurrence by `associative_scan`, with its decay from parameters."""
    params = {"log_decay": draw(WIDTH), "in": draw.weight(2, WIDTH), "out": draw.weight(WIDTH, 2)}

    def forward(p, x):
        u = x @ p["in"]
        decay = jnp.broadcast_to(jax.nn.sigmoid(p["log_decay"]), u.shape)
        compose = lambda first, then: (first[0] * then[0], first[1] * then[0] + then[1])
        return jnp.tanh(jax.lax.associative_scan(compose, (decay, u), axis=1)[1] @ p["out"])

    return fit(draw, forward, params, draw(ROWS, TIME, 2))


@entry
def neural_ode(draw: Draw) -> Entry:
    """Euler steps of one vector field, with the time of the step as an input."""
    params = {"in": draw.weight(3, 4), "time": draw(4), "out": draw.weight(4, 3)}

    def forward(p, x):
        def step(i, h):
            return h + 0.25 * jnp.tanh(h @ p["in"] + i * p["time"]) @ p["out"]

        return jax.lax.fori_loop(0, 4, step, x)

    return fit(draw, forward, params, draw(ROWS, 3))


@entry
def parameters_in_the_carry(draw: Draw) -> Entry:
    """Fast weights: each step of the scan uses the weight in its carry, and changes it."""

    def one(w, xs):
        def step(w, x):
            y = jnp.tanh(x @ w)
            return w + 0.1 * jnp.outer(x, y), y

        return jax.lax.scan(step, w, xs)[1]

    return fit(draw, jax.vmap(one, in_axes=(None, 0)), draw.weight(3, 2), draw(ROWS, TIME, 3))


@entry
def parameters_carried_unchanged(draw: Draw) -> Entry:
    """Parameters that travel through a loop beside the activations."""

    def forward(p, x):
        step = lambda _, carry: (carry[0], jnp.tanh(carry[1] @ carry[0]["w"] + carry[0]["b"]))
        return jax.lax.fori_loop(0, 3, step, (p, x))[1]

    return fit(draw, forward, {"w": draw.weight(3, 3), "b": draw(3)}, draw(ROWS, 3))
