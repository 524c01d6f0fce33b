"""Expressions of parameters alone between the parameter and the data."""

import jax
import jax.numpy as jnp
import numpy as np

from zoo.entry import ROWS, Draw, Entry, entry, fit


@entry
def weight_norm(draw: Draw) -> Entry:
    """W = g V/‖V‖, a norm for every output."""
    params = {"v": draw(4, 5), "g": draw(5), "out": draw.weight(5, 2)}

    def forward(p, x):
        w = p["g"] * p["v"] / jnp.linalg.norm(p["v"], axis=0)
        return jnp.tanh(x @ w) @ p["out"]

    return fit(draw, forward, params, draw(ROWS, 3, 4))


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


@entry
def scaled_weights_of_every_kind(draw: Draw) -> Entry:
    """A table, its transpose as the last layer, a kernel, and the layers of a scan."""
    params = {"table": draw(7, 3), "kernel": draw(2, 3, 3), "layers": draw(2, 3, 3)}

    def loss_fn(p, batch):
        h = (p["table"] * 3.0)[batch["ids"]]
        h = jax.lax.conv_general_dilated(
            h, p["kernel"] / 2, (1,), "SAME", dimension_numbers=("NTC", "TIO", "NTC")
        )
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ (0.5 * w)), None), h, p["layers"])
        scores = h @ (p["table"].T / -2)
        return jnp.mean((scores - batch["y"]) ** 2)

    batch = {"ids": draw.ids(7, ROWS, 4), "y": draw(ROWS, 4, 7)}
    return Entry(loss_fn, params, batch)


@entry
def lora_frozen_argument(draw: Draw) -> Entry:
    """x W + x A B with W an extra argument."""
    params = {"a": draw.weight(5, 2), "b": draw.weight(2, 4)}

    def loss_fn(params, batch, frozen):
        h = batch["x"] @ frozen + (batch["x"] @ params["a"]) @ params["b"]
        return jnp.mean((jnp.tanh(h) - batch["y"]) ** 2)

    batch = {"x": draw(ROWS, 3, 5), "y": draw(ROWS, 3, 4)}
    return Entry(loss_fn, params, batch, args=(draw.weight(5, 4),))


@entry
def lora_stopped_and_merged(draw: Draw) -> Entry:
    """x (W + s A B) with W among the parameters, behind stop_gradient."""
    params = {"w": draw.weight(5, 4), "a": draw.weight(5, 2), "b": draw.weight(2, 4)}

    def forward(p, x):
        return jnp.tanh(x @ (jax.lax.stop_gradient(p["w"]) + 0.5 * p["a"] @ p["b"]))

    return fit(draw, forward, params, draw(ROWS, 3, 5))


@entry
def lora_trained_together(draw: Draw) -> Entry:
    """x W + x A B with all three trained, and W + A B merged in a second layer."""
    layer = lambda: {"w": draw.weight(4, 4), "a": draw.weight(4, 2), "b": draw.weight(2, 4)}

    def forward(p, x):
        h = jnp.tanh(x @ p[0]["w"] + x @ p[0]["a"] @ p[0]["b"])
        return jnp.tanh(h @ (p[1]["w"] + p[1]["a"] @ p[1]["b"]))

    return fit(draw, forward, [layer(), layer()], draw(ROWS, 4))


@entry
def product_of_three_factors(draw: Draw) -> Entry:
    """Factors multiply each other first and meet the data last."""
    params = {"a": draw.weight(4, 3), "b": draw.weight(3, 3), "c": draw.weight(3, 2)}
    forward = lambda p, x: jnp.tanh(x @ (p["a"] @ p["b"] @ p["c"]))
    return fit(draw, forward, params, draw(ROWS, 4))


@entry
def positive_and_normalised_weights(draw: Draw) -> Entry:
    """exp(log scale), softmax over a weight, softplus of a weight, |W|."""
    params = {
        "log_scale": draw(3) / 2,
        "mixing": draw(4, 3),
        "positive": draw(3, 3),
        "magnitude": draw(3, 2),
    }

    def forward(p, x):
        h = x @ jax.nn.softmax(p["mixing"], axis=0) * jnp.exp(p["log_scale"])
        h = jnp.tanh(h @ jax.nn.softplus(p["positive"]))
        return h @ jnp.abs(p["magnitude"])

    return fit(draw, forward, params, draw(ROWS, 4))


@entry
def temperature(draw: Draw) -> Entry:
    """A scalar that divides all logits, stored as its logarithm."""
    params = {"w": draw.weight(4, 3), "log_t": draw()}
    forward = lambda p, x: jax.nn.log_softmax(x @ p["w"] / jnp.exp(p["log_t"]))
    return fit(draw, forward, params, draw(ROWS, 4))


@entry
def scalars_only(draw: Draw) -> Entry:
    params = {"slope": draw(), "curve": draw(), "shift": draw()}
    forward = lambda p, x: p["slope"] * x + p["curve"] * x**2 + jnp.sin(p["shift"])
    return fit(draw, forward, params, draw(ROWS))


@entry
def joined_weights(draw: Draw) -> Entry:
    """Two weights concatenated, two stacked, one padded, one tiled."""
    params = {
        "left": draw.weight(4, 2),
        "right": draw.weight(4, 3),
        "stacked": [draw.weight(5, 3), draw.weight(5, 3)],
        "padded": draw.weight(2, 2),
        "tiled": draw.weight(3, 2),
    }

    def forward(p, x):
        h = jnp.tanh(x @ jnp.concatenate([p["left"], p["right"]], axis=1))
        h = jnp.tanh(jnp.einsum("bd,ndk->bk", h, jnp.stack(p["stacked"])))
        h = jnp.tanh(h @ jnp.pad(p["padded"], ((0, 1), (1, 0))))
        return h @ jnp.tile(p["tiled"], (1, 2))

    return fit(draw, forward, params, draw(ROWS, 4))


@entry
def masked_weight(draw: Draw) -> Entry:
    """Autoregressive masks (MADE): the weight times a constant, a triangle of a weight."""
    params = {"masked": draw.weight(4, 4), "lower": draw.weight(4, 4)}
    checkerboard = np.indices((4, 4)).sum(axis=0) % 2

    def forward(p, x):
        return jnp.tanh(x @ (p["masked"] * checkerboard)) @ jnp.tril(p["lower"])

    return fit(draw, forward, params, draw(ROWS, 4))


@entry
def symmetric_and_orthogonal_weights(draw: Draw) -> Entry:
    """W + Wᵀ, and the Cayley transform (a linear solve) of a skew-symmetric matrix."""
    params = {"symmetric": draw(3, 3), "skew": draw(3, 3) / 2}

    def forward(p, x):
        skew = p["skew"] - p["skew"].T
        eye = jnp.eye(3, dtype=skew.dtype)
        orthogonal = jnp.linalg.solve(eye + skew, eye - skew)
        return jnp.tanh(x @ (p["symmetric"] + p["symmetric"].T)) @ orthogonal

    return fit(draw, forward, params, draw(ROWS, 3))


@entry
def spectral_norm(draw: Draw) -> Entry:
    """A weight divided by its largest singular value, by power iteration in a loop."""

    def forward(p, x):
        def iterate(_, v):
            v = p.T @ (p @ v)
            return v / jnp.linalg.norm(v)

        v = jax.lax.fori_loop(0, 3, iterate, jnp.ones_like(p[0]) / 2)
        return jnp.tanh(x @ (p / jnp.linalg.norm(p @ v)))

    return fit(draw, forward, draw(5, 4), draw(ROWS, 5))


@entry
def network_without_data(draw: Draw) -> Entry:
    """A coordinate network on a fixed grid makes the filter that meets the data."""
    params = {"in": draw(1, 5), "b": draw(5), "out": draw.weight(5, 4)}

    def forward(p, x):
        grid = jnp.linspace(-1, 1, 6, dtype=x.dtype)[:, None]
        return x @ (jnp.sin(grid @ p["in"] + p["b"]) @ p["out"])

    return fit(draw, forward, params, draw(ROWS, 6))


@entry
def ordered_parameters(draw: Draw) -> Entry:
    """Cumulative sums, sorting, and a monotone spline read by searchsorted."""
    params = {"steps": draw(5), "heights": draw(6)}

    def forward(p, x):
        knots = jnp.cumsum(jax.nn.softplus(p["steps"])) - 2
        bin_of = jnp.searchsorted(knots, x)
        return x * jnp.sort(p["heights"])[bin_of] + knots[jnp.clip(bin_of, 0, 4)]

    return fit(draw, forward, params, draw(ROWS, 3))


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


@entry
def mixture_of_weights(draw: Draw) -> Entry:
    """Per-example convex combinations of weights (conditional convolution, soft experts)."""
    params = {"router": draw.weight(4, 3), "experts": draw(3, 4, 2)}

    def forward(p, x):
        share = jax.nn.softmax(x @ p["router"])
        w = jnp.einsum("be,edk->bdk", share, p["experts"])
        return jnp.tanh(jnp.einsum("bd,bdk->bk", x, w))

    return fit(draw, forward, params, draw(ROWS, 4))


@entry
def weight_norm_of_a_large_layer(draw: Draw) -> Entry:
    """Gradients of all examples together are larger than should be formed at once."""
    forward = lambda p, x: jnp.tanh(x @ (p / jnp.linalg.norm(p, axis=0)))[:, :50]
    return fit(draw, forward, draw.weight(2100, 1700), draw(ROWS, 2100))


@entry
def decisions_by_parameters(draw: Draw) -> Entry:
    """Integers and truth values that are computed from parameters, and meet the data."""
    params = {"choice": draw(8), "gate": draw(9), "mask": draw(4), "w": draw.weight(4, 3)}

    def forward(p, x):
        column = x[:, jnp.argmax(p["choice"])] * jnp.max(p["choice"])
        h = jnp.where(p["mask"] > 0, x[:, :4], p["mask"])
        h = jax.lax.cond(jnp.sum(p["gate"]) > 0, jnp.sin, jnp.cos, h @ p["w"])
        pruned = p["w"] * (jnp.abs(p["w"]) > 0.3)
        return jnp.tanh(h + x[:, 4:] @ pruned) + column[:, None] + p["gate"][2]

    return fit(draw, forward, params, draw(ROWS, 8))


@entry
def quantised_weight(draw: Draw) -> Entry:
    """Rounded in the forward pass, straight through in the backward pass; the scale is learned."""
    params = {"w": draw(4, 5), "step": draw.weight()}

    def forward(p, x):
        scaled = p["w"] / p["step"]
        rounded = scaled + jax.lax.stop_gradient(jnp.round(scaled) - scaled)
        return jnp.tanh(x @ (rounded * p["step"]))

    return fit(draw, forward, params, draw(ROWS, 4))
