"""Parameters that reach the body of a scan in more than one way, or that leave it again."""

import jax
import jax.numpy as jnp

from zoo.entry import ROWS, Draw, Entry, entry, fit, fitted, with_loss
from zoo.recurrent import over_time

TIME, WIDTH = 4, 3


def square(draw: Draw, *stack: int):
    return draw(*stack, WIDTH, WIDTH) / 2


def rnn(step, x):
    """All states of ``h' = step(h, x_t)`` from zero."""
    turn = lambda h, x: (step(h, x),) * 2
    return over_time(turn, jnp.zeros((x.shape[0], WIDTH), x.dtype), x)[1]


@fitted(lambda draw: square(draw), lambda draw: draw(ROWS, TIME, WIDTH))
def scan_weight_twice_in_a_step(p, x):
    return rnn(lambda h, x: jnp.tanh(jnp.tanh(h @ p) @ p + x), x)


@fitted(lambda draw: square(draw), lambda draw: draw(ROWS, TIME, WIDTH))
def scan_weight_inside_and_outside(p, x):
    """Before, in and after the loop, once transposed."""
    return rnn(lambda h, x: jnp.tanh(h @ p + x), x @ p) @ p.T


@fitted(lambda draw: {"w": square(draw), "b": draw(WIDTH)}, lambda draw: draw(ROWS, 2, WIDTH))
def scan_weight_of_two_loops(p, x):
    """A weight that is the same in every turn of a loop in a loop, and in the outer loop."""

    def outer(h, _):
        h, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h @ p["w"] + p["b"]), None), h, None, 2)
        return jnp.sin(h @ p["w"]), None

    return jax.lax.scan(outer, x, None, 2)[0]


@fitted(
    lambda draw: {"table": draw(5, WIDTH) / 2, "w": square(draw)},
    lambda draw: draw.ids(5, ROWS, TIME),
)
def scan_embeddings_step_by_step(p, ids):
    """A decoder: each step embeds a word and scores all words with the same table."""

    def step(h, ids):
        h = jnp.tanh(p["table"][ids] + h @ p["w"])
        return h, h @ p["table"].T

    return over_time(step, jnp.zeros((ids.shape[0], WIDTH), p["w"].dtype), ids)[1]


@entry
def scan_convolutions_over_time(draw: Draw) -> Entry:
    """A convolutional recurrence with a shared kernel."""
    layout = ("NWC", "WIO", "NWC")

    def forward(p, x):
        def step(h, x):
            h = jax.lax.conv_general_dilated(h, p, (1,), "SAME", dimension_numbers=layout)
            return (jnp.tanh(h + x),) * 2

        return over_time(step, jnp.zeros_like(x[:, 0]), x)[1]

    return fit(draw, forward, draw.weight(3, 2, 2), draw(ROWS, 3, 4, 2))


@fitted(
    lambda draw: {
        "kernel": draw(3, 3, 3, 2, 2) / 4,
        "scale": draw.weight(3, 2),
        "bias": draw(3, 2),
    },
    lambda draw: draw(ROWS, 4, 3, 2),
)
def scan_over_stacked_kernels(p, x):
    """Residual blocks of convolutions, every block with kernels, a scale and a bias of its own."""

    def block(x, p):
        h = jax.lax.conv_general_dilated(
            x, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return x + jnp.tanh(h * p["scale"] + p["bias"]), None

    return jax.lax.scan(jax.checkpoint(block), x, p)[0]


@fitted(lambda draw: {"w": square(draw, 3), "b": draw(5, WIDTH)}, lambda draw: draw(ROWS, WIDTH))
def scan_over_normalised_weights(p, x):
    """The stack that is scanned over is computed from parameters: W/‖W‖, and a slice of a stack."""
    w = p["w"] / jnp.linalg.norm(p["w"], axis=1, keepdims=True)
    layer = lambda h, p: (jnp.tanh(h @ p[0] + p[1]), None)
    return jax.lax.scan(layer, x, (w, p["b"][1:4]), reverse=True)[0]


@fitted(lambda draw: jnp.moveaxis(square(draw, 4), 0, -1), lambda draw: draw(ROWS, 2, WIDTH))
def scan_over_transposed_weights(p, x):
    """The layers stand on the last axis; half of them are scanned over, the rest unused."""
    stack = jnp.moveaxis(p, -1, 0)[:2]
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, stack)[0]


@fitted(lambda draw: [square(draw) for _ in range(3)], lambda draw: draw(ROWS, WIDTH))
def scan_over_joined_layers(p, x):
    """Layers stored one by one, stacked before the scan."""
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, jnp.stack(p))[0]


@fitted(lambda draw: square(draw, 2), lambda draw: {"a": draw(ROWS, WIDTH), "b": draw(ROWS, WIDTH)})
def scan_twice_over_the_same_layers(p, x):
    """Two towers with shared layers, and once in reverse with transposed weights."""
    run = lambda x: jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p)[0]
    back = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w.T), None), run(x["a"]), p, reverse=True)[0]
    return back * run(x["b"])


@fitted(lambda draw: square(draw, 3), lambda draw: draw(ROWS, WIDTH))
def scan_over_layers_that_read_the_first(p, x):
    """The stack is scanned over, and each turn also reads its first entry."""
    layer = lambda h, w: (jnp.tanh(h @ w) + h @ p[0], None)
    return jax.lax.scan(layer, x, p)[0]


@fitted(lambda draw: square(draw, 2), lambda draw: draw(ROWS, 2, WIDTH))
def scan_weight_twice_in_a_layer(p, x):
    """Each layer uses its weight and the transpose of it."""
    layer = lambda h, w: (h + jnp.tanh(h @ w) @ w.T, None)
    return jax.lax.scan(layer, x, p)[0]


@fitted(
    lambda draw: {"w": draw(TIME, 2, WIDTH), "b": draw(TIME, WIDTH), "hidden": square(draw)},
    lambda draw: draw(ROWS, TIME, 2),
)
def scan_over_words_and_weights(p, x):
    """Every time step has a weight of its own: data and parameters are scanned side by side."""

    def step(h, turn):
        x, w, b = turn
        h = jnp.tanh(x @ w + h @ p["hidden"] + b)
        return h, jnp.sum(h, axis=-1)

    start = jnp.zeros((x.shape[0], WIDTH), x.dtype)
    _, sums = jax.lax.scan(step, start, (jnp.moveaxis(x, 1, 0), p["w"], p["b"]))
    return sums.T


@with_loss(lambda draw: square(draw, 2), lambda draw: {"x": draw(ROWS, WIDTH), "y": draw(ROWS, 2)})
def scan_that_returns_parameters(params, batch):
    """The penalty and the weights themselves leave the loop beside the activations."""

    def layer(h, w):
        return jnp.tanh(h @ w), (jnp.sum(w**2), w[0])

    h, (penalties, firsts) = jax.lax.scan(layer, batch["x"], params)
    error = jnp.mean((h @ firsts.T - batch["y"]) ** 2)
    return error + 0.1 * jnp.sum(penalties)


@with_loss(
    lambda draw: square(draw, 3), lambda draw: {"x": draw(ROWS, WIDTH), "y": draw(ROWS, WIDTH)}
)
def scan_that_adds_up_a_penalty(params, batch):
    """The carry holds a number that is computed from parameters alone."""

    def layer(carry, w):
        h, penalty = carry
        return (jnp.tanh(h @ w), penalty + jnp.sum(jnp.abs(w))), None

    (h, penalty), _ = jax.lax.scan(layer, (batch["x"], 0.0), params)
    return jnp.mean((h - batch["y"]) ** 2) + 0.1 * penalty


@fitted(lambda draw: square(draw, 3), lambda draw: draw(ROWS, WIDTH))
def scan_of_parameters_alone(p, x):
    """A product of matrices by a scan, applied to the data afterwards."""
    product, _ = jax.lax.scan(lambda m, w: (m @ w, None), jnp.eye(WIDTH, dtype=x.dtype), p)
    return jnp.tanh(x @ product)


@fitted(
    lambda draw: {"w": square(draw), "s": draw.weight(WIDTH)},
    lambda draw: draw(ROWS, WIDTH),
    each=True,
)
def scan_behind_stop_gradient(p, x):
    """A loop whose number of turns depends on the data, over parameters that it does not train."""
    frozen = jax.lax.stop_gradient(p["w"])
    small = lambda h: jnp.max(jnp.abs(h)) < 4
    start = jax.lax.stop_gradient(x)
    h = jax.lax.while_loop(small, lambda h: 2 * h + 0.1 * jnp.tanh(h @ frozen), start)
    return jnp.tanh(h @ p["w"] / 4) * p["s"]


@entry
def scan_under_cond_under_scan(draw: Draw) -> Entry:
    """Rows one by one, a branch for each, a loop over layers in one of the branches."""

    def one(p, x):
        deep = lambda x: jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p)[0]
        return jax.lax.cond(x[0] > 0, deep, lambda x: jnp.sin(x @ p[0]), x)

    forward = lambda p, x: jax.lax.map(lambda x: one(p, x), x)
    return fit(draw, forward, square(draw, 2), draw(ROWS, WIDTH))
