"""Expressions of parameters alone between the parameter and the data."""

import jax
import jax.numpy as jnp
import numpy as np

from zoo.entry import ROWS, Draw, Entry, entry, fit, fitted, with_loss


@fitted(
    lambda draw: {"v": draw(4, 5), "g": draw(5), "out": draw.weight(5, 2)},
    lambda draw: draw(ROWS, 3, 4),
)
def weight_norm(p, x):
    """W = g V/‖V‖, a norm for every output."""
    w = p["g"] * p["v"] / jnp.linalg.norm(p["v"], axis=0)
    return jnp.tanh(x @ w) @ p["out"]


@entry
def scaled_weights(draw: Draw) -> Entry:
    """Equalised learning rates: every weight is divided by the root of its fan-in before use."""
    params = {"in": draw(4, 5), "square": draw(5, 5), "out": draw(5, 2), "bias": draw(2)}

    def loss_fn(p, batch, rate):
        h = jnp.tanh(batch["x"] @ (p["in"] / jnp.sqrt(4)))
        h = jnp.tanh(h @ (rate * p["square"].T) + h @ -p["square"])
        h = jnp.tanh(h @ (p["square"] / jax.lax.stop_gradient(jnp.linalg.norm(p["square"]))))
        y = h @ (0.5 * p["out"]) + 0.1 * p["bias"]
        return jnp.mean((y - batch["y"]) ** 2) + 0.1 * jnp.sum((0.3 * p["out"]) ** 2)

    batch = {"x": draw(ROWS, 3, 4), "y": draw(ROWS, 3, 2)}
    return Entry(loss_fn, params, batch, args=(jnp.float32(0.7),))


@with_loss(
    lambda draw: {"table": draw(7, 3), "kernel": draw(2, 3, 3), "layers": draw(2, 3, 3)},
    lambda draw: {"ids": draw.ids(7, ROWS, 4), "y": draw(ROWS, 4, 7)},
)
def scaled_weights_of_every_kind(p, batch):
    """A table, its transpose as the last layer, a kernel, and the layers of a scan."""
    h = (p["table"] * 3.0)[batch["ids"]]
    h = jax.lax.conv_general_dilated(
        h, p["kernel"] / 2, (1,), "SAME", dimension_numbers=("NTC", "TIO", "NTC")
    )
    h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ (0.5 * w)), None), h, p["layers"])
    scores = h @ (p["table"].T / -2)
    return jnp.mean((scores - batch["y"]) ** 2)


@entry
def lora_frozen_argument(draw: Draw) -> Entry:
    """x W + x A B with W an extra argument."""
    params = {"a": draw.weight(5, 2), "b": draw.weight(2, 4)}

    def loss_fn(params, batch, frozen):
        h = batch["x"] @ frozen + (batch["x"] @ params["a"]) @ params["b"]
        return jnp.mean((jnp.tanh(h) - batch["y"]) ** 2)

    batch = {"x": draw(ROWS, 3, 5), "y": draw(ROWS, 3, 4)}
    return Entry(loss_fn, params, batch, args=(draw.weight(5, 4),))


@fitted(
    lambda draw: {"w": draw.weight(5, 4), "a": draw.weight(5, 2), "b": draw.weight(2, 4)},
    lambda draw: draw(ROWS, 3, 5),
)
def lora_stopped_and_merged(p, x):
    """x (W + s A B) with W among the parameters, behind stop_gradient."""
    return jnp.tanh(x @ (jax.lax.stop_gradient(p["w"]) + 0.5 * p["a"] @ p["b"]))


@entry
def lora_trained_together(draw: Draw) -> Entry:
    """x W + x A B with all three trained, and W + A B merged in a second layer."""
    layer = lambda: {"w": draw.weight(4, 4), "a": draw.weight(4, 2), "b": draw.weight(2, 4)}

    def forward(p, x):
        h = jnp.tanh(x @ p[0]["w"] + x @ p[0]["a"] @ p[0]["b"])
        return jnp.tanh(h @ (p[1]["w"] + p[1]["a"] @ p[1]["b"]))

    return fit(draw, forward, [layer(), layer()], draw(ROWS, 4))


@fitted(
    lambda draw: {"a": draw.weight(4, 3), "b": draw.weight(3, 3), "c": draw.weight(3, 2)},
    lambda draw: draw(ROWS, 4),
)
def product_of_three_factors(p, x):
    """Factors multiply each other first and meet the data last."""
    return jnp.tanh(x @ (p["a"] @ p["b"] @ p["c"]))


@fitted(
    lambda draw: {
        "log_scale": draw(3) / 2,
        "mixing": draw(4, 3),
        "positive": draw(3, 3),
        "magnitude": draw(3, 2),
    },
    lambda draw: draw(ROWS, 4),
)
def positive_and_normalised_weights(p, x):
    """exp(log scale), softmax over a weight, softplus of a weight, |W|."""
    h = x @ jax.nn.softmax(p["mixing"], axis=0) * jnp.exp(p["log_scale"])
    h = jnp.tanh(h @ jax.nn.softplus(p["positive"]))
    return h @ jnp.abs(p["magnitude"])


@fitted(lambda draw: {"w": draw.weight(4, 3), "log_t": draw()}, lambda draw: draw(ROWS, 4))
def temperature(p, x):
    """A scalar that divides all logits, stored as its logarithm."""
    return jax.nn.log_softmax(x @ p["w"] / jnp.exp(p["log_t"]))


@fitted(lambda draw: {"slope": draw(), "curve": draw(), "shift": draw()}, lambda draw: draw(ROWS))
def scalars_only(p, x):
    return p["slope"] * x + p["curve"] * x**2 + jnp.sin(p["shift"])


@fitted(
    lambda draw: {
        "left": draw.weight(4, 2),
        "right": draw.weight(4, 3),
        "stacked": [draw.weight(5, 3), draw.weight(5, 3)],
        "padded": draw.weight(2, 2),
        "tiled": draw.weight(3, 2),
    },
    lambda draw: draw(ROWS, 4),
)
def joined_weights(p, x):
    """Two weights concatenated, two stacked, one padded, one tiled."""
    h = jnp.tanh(x @ jnp.concatenate([p["left"], p["right"]], axis=1))
    h = jnp.tanh(jnp.einsum("bd,ndk->bk", h, jnp.stack(p["stacked"])))
    h = jnp.tanh(h @ jnp.pad(p["padded"], ((0, 1), (1, 0))))
    return h @ jnp.tile(p["tiled"], (1, 2))


@entry
def masked_weight(draw: Draw) -> Entry:
    """Autoregressive masks (MADE): the weight times a constant, a triangle of a weight."""
    params = {"masked": draw.weight(4, 4), "lower": draw.weight(4, 4)}
    checkerboard = np.indices((4, 4)).sum(axis=0) % 2

    def forward(p, x):
        return jnp.tanh(x @ (p["masked"] * checkerboard)) @ jnp.tril(p["lower"])

    return fit(draw, forward, params, draw(ROWS, 4))


@fitted(lambda draw: {"symmetric": draw(3, 3), "skew": draw(3, 3) / 2}, lambda draw: draw(ROWS, 3))
def symmetric_and_orthogonal_weights(p, x):
    """W + Wᵀ, and the Cayley transform (a linear solve) of a skew-symmetric matrix."""
    skew = p["skew"] - p["skew"].T
    eye = jnp.eye(3, dtype=skew.dtype)
    orthogonal = jnp.linalg.solve(eye + skew, eye - skew)
    return jnp.tanh(x @ (p["symmetric"] + p["symmetric"].T)) @ orthogonal


@fitted(lambda draw: draw(5, 4), lambda draw: draw(ROWS, 5))
def spectral_norm(p, x):
    """A weight divided by its largest singular value, by power iteration in a loop."""

    def iterate(_, v):
        v = p.T @ (p @ v)
        return v / jnp.linalg.norm(v)

    v = jax.lax.fori_loop(0, 3, iterate, jnp.ones_like(p[0]) / 2)
    return jnp.tanh(x @ (p / jnp.linalg.norm(p @ v)))


@fitted(
    lambda draw: {"in": draw(1, 5), "b": draw(5), "out": draw.weight(5, 4)},
    lambda draw: draw(ROWS, 6),
)
def network_without_data(p, x):
    """A coordinate network on a fixed grid makes the filter that meets the data."""
    grid = jnp.linspace(-1, 1, 6, dtype=x.dtype)[:, None]
    return x @ (jnp.sin(grid @ p["in"] + p["b"]) @ p["out"])


@fitted(lambda draw: {"steps": draw(5), "heights": draw(6)}, lambda draw: draw(ROWS, 3))
def ordered_parameters(p, x):
    """Cumulative sums, sorting, and a monotone spline read by searchsorted."""
    knots = jnp.cumsum(jax.nn.softplus(p["steps"])) - 2
    bin_of = jnp.searchsorted(knots, x)
    return x * jnp.sort(p["heights"])[bin_of] + knots[jnp.clip(bin_of, 0, 4)]


@entry
def toeplitz_weight(draw: Draw) -> Entry:
    """A matrix gathered from a vector by constant indices."""
    rows = np.arange(4, dtype=np.int32)
    index = rows[:, None] - rows + 3
    return fit(draw, lambda p, x: jnp.tanh(x @ p[index]), draw(7), draw(ROWS, 4))


@entry
def scattered_weight(draw: Draw) -> Entry:
    """A matrix filled by scatter, and one updated in place by another parameter."""
    params = {"upper": draw(6), "base": draw.weight(3, 3), "column": draw(3)}
    row, column = np.triu_indices(3)

    def forward(p, x):
        triangle = jnp.zeros((3, 3), x.dtype).at[np.int32(row), np.int32(column)].set(p["upper"])
        return jnp.tanh(x @ triangle) @ p["base"].at[:, 1].add(p["column"])

    return fit(draw, forward, params, draw(ROWS, 3))


@fitted(
    lambda draw: {"router": draw.weight(4, 3), "experts": draw(3, 4, 2)}, lambda draw: draw(ROWS, 4)
)
def mixture_of_weights(p, x):
    """Per-example convex combinations of weights (conditional convolution, soft experts)."""
    share = jax.nn.softmax(x @ p["router"])
    w = jnp.einsum("be,edk->bdk", share, p["experts"])
    return jnp.tanh(jnp.einsum("bd,bdk->bk", x, w))


@fitted(lambda draw: draw.weight(2100, 1700), lambda draw: draw(ROWS, 2100))
def weight_norm_of_a_large_layer(p, x):
    """Gradients of all examples together are larger than should be formed at once."""
    return jnp.tanh(x @ (p / jnp.linalg.norm(p, axis=0)))[:, :50]


@fitted(
    lambda draw: {"choice": draw(8), "gate": draw(9), "mask": draw(4), "w": draw.weight(4, 3)},
    lambda draw: draw(ROWS, 8),
)
def decisions_by_parameters(p, x):
    """Integers and truth values that are computed from parameters, and meet the data."""
    column = x[:, jnp.argmax(p["choice"])] * jnp.max(p["choice"])
    h = jnp.where(p["mask"] > 0, x[:, :4], p["mask"])
    h = jax.lax.cond(jnp.sum(p["gate"]) > 0, jnp.sin, jnp.cos, h @ p["w"])
    pruned = p["w"] * (jnp.abs(p["w"]) > 0.3)
    return jnp.tanh(h + x[:, 4:] @ pruned) + column[:, None] + p["gate"][2]


@fitted(lambda draw: {"w": draw(4, 5), "step": draw.weight()}, lambda draw: draw(ROWS, 4))
def quantised_weight(p, x):
    """Rounded in the forward pass, straight through in the backward pass; the scale is learned."""
    scaled = p["w"] / p["step"]
    rounded = scaled + jax.lax.stop_gradient(jnp.round(scaled) - scaled)
    return jnp.tanh(x @ (rounded * p["step"]))
