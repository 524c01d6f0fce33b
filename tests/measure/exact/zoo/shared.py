"""Parameters that the loss reads more than once."""

import jax
import jax.numpy as jnp

from zoo.entry import ROWS, Draw, Entry, cross_entropy, entry, fit


@entry
def weight_twice(draw: Draw) -> Entry:
    """x W W."""
    return fit(draw, lambda p, x: jnp.tanh(x @ p) @ p, draw.weight(4, 4), draw(ROWS, 4))


@entry
def weight_twice_without_nonlinearity(draw: Draw) -> Entry:
    return fit(draw, lambda p, x: x @ p @ p, draw.weight(4, 4), draw(ROWS, 3, 4))


@entry
def weight_and_its_transpose(draw: Draw) -> Entry:
    """An autoencoder with tied weights."""
    forward = lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) @ p["w"].T
    return fit(draw, forward, {"w": draw.weight(4, 6), "b": draw(6)}, draw(ROWS, 4))


@entry
def siamese(draw: Draw) -> Entry:
    """One tower for both sides of a pair."""
    params = {"w": draw.weight(4, 5), "b": draw(5)}

    def forward(p, x):
        tower = lambda side: jnp.tanh(side @ p["w"] + p["b"])
        return jnp.sum(tower(x["left"]) * tower(x["right"]), axis=-1)

    return fit(draw, forward, params, {"left": draw(ROWS, 4), "right": draw(ROWS, 4)})


@entry
def weight_in_product_and_sum(draw: Draw) -> Entry:
    """A dense weight that is also read elementwise."""
    forward = lambda p, x: jnp.tanh(x @ p) + jnp.sum(p**2) + p[0]
    return fit(draw, forward, draw.weight(4, 3), draw(ROWS, 4))


@entry
def weight_used_and_stopped(draw: Draw) -> Entry:
    """Two readings, one of them behind stop_gradient: a straight-through estimator."""

    def forward(p, x):
        h = x @ p["w"]
        hard = h + jax.lax.stop_gradient(jnp.sign(h) - h)
        return hard @ p["v"] + jax.lax.stop_gradient(x @ p["w"]) @ p["v"]

    return fit(draw, forward, {"w": draw.weight(4, 5), "v": draw.weight(5, 2)}, draw(ROWS, 4))


@entry
def bias_at_several_layers(draw: Draw) -> Entry:
    params = {"w": [draw.weight(4, 4) for _ in range(3)], "b": draw(4)}

    def forward(p, x):
        for w in p["w"]:
            x = jnp.tanh(x @ w + p["b"])
        return x

    return fit(draw, forward, params, draw(ROWS, 2, 4))


@entry
def l2_regularised_mlp(draw: Draw) -> Entry:
    """½ λ Σ w² inside the loss: every example's gradient holds λ w."""
    params = {"in": draw.weight(4, 5), "b": draw(5), "out": draw.weight(5, 3)}

    def loss_fn(params, batch):
        logits = jnp.tanh(batch["x"] @ params["in"] + params["b"]) @ params["out"]
        penalty = sum(jnp.sum(w**2) for w in jax.tree.leaves(params))
        return cross_entropy(logits, batch["y"]) + 0.5 * 0.1 * penalty

    return Entry(loss_fn, params, {"x": draw(ROWS, 4), "y": draw.ids(3, ROWS)})


@entry
def l2_regularised_scan_over_layers(draw: Draw) -> Entry:
    params = {"layers": {"w": draw(3, 4, 4) / 2, "b": draw(3, 4)}, "out": draw.weight(4, 3)}

    def loss_fn(params, batch):
        layer = lambda h, p: (jnp.tanh(h @ p["w"] + p["b"]), None)
        h, _ = jax.lax.scan(layer, batch["x"], params["layers"])
        penalty = sum(jnp.vdot(w, w) for w in jax.tree.leaves(params))
        return cross_entropy(h @ params["out"], batch["y"]) + 0.5 * 0.1 * penalty

    return Entry(loss_fn, params, {"x": draw(ROWS, 4), "y": draw.ids(3, ROWS)})


@entry
def l1_regularised_weight(draw: Draw) -> Entry:
    """A penalty that needs no data, beside a product that does."""

    def loss_fn(params, batch):
        error = batch["x"] @ params - batch["y"]
        return jnp.mean(error**2) + 0.1 * jnp.sum(jnp.abs(params))

    return Entry(loss_fn, draw.weight(4, 3), {"x": draw(ROWS, 4), "y": draw(ROWS, 3)})


@entry
def convolution_at_two_scales(draw: Draw) -> Entry:
    """One kernel on the image and on its half."""

    def forward(p, x):
        conv = lambda image: jax.lax.conv_general_dilated(
            image, p, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        large, small = conv(x), conv(x[:, ::2, ::2])
        return jnp.mean(jnp.tanh(large), (1, 2)) + jnp.mean(jnp.tanh(small), (1, 2))

    return fit(draw, forward, draw.weight(3, 3, 2, 3), draw(ROWS, 6, 6, 2))


@entry
def inner_gradient_step(draw: Draw) -> Entry:
    """MAML: every example adapts the weights by a gradient step of its own before its loss."""

    def one(w, x, y):
        task_loss = lambda w: jnp.sum((jnp.tanh(x @ w) - y) ** 2)
        adapted = w - 0.1 * jax.grad(task_loss)(w)
        return jnp.tanh(x @ adapted)

    forward = lambda p, x: jax.vmap(one, in_axes=(None, 0, 0))(p, x["x"], x["y"])
    return fit(draw, forward, draw.weight(4, 2), {"x": draw(ROWS, 4), "y": draw(ROWS, 2)})


@entry
def input_gradient_penalty(draw: Draw) -> Entry:
    """A loss that holds the gradient with respect to its input: every weight acts twice."""
    params = {"in": draw.weight(4, 5), "out": draw(5)}

    def loss_fn(params, batch):
        score = lambda x: jnp.tanh(x @ params["in"]) @ params["out"]
        values, slopes = jax.vmap(jax.value_and_grad(score))(batch["x"])
        return jnp.mean(values + (jnp.sum(slopes**2, axis=-1) - 1) ** 2)

    return Entry(loss_fn, params, {"x": draw(ROWS, 4)})
