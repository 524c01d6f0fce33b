"""Parameters that the loss reads more than once."""

import jax
import jax.numpy as jnp

from zoo.entry import ROWS, Draw, Entry, cross_entropy, entry, fit, fitted, with_loss


@fitted(lambda draw: draw.weight(4, 4), lambda draw: draw(ROWS, 4))
def weight_twice(p, x):
    """x W W."""
    return jnp.tanh(x @ p) @ p


@fitted(lambda draw: draw.weight(4, 4), lambda draw: draw(ROWS, 3, 4))
def weight_twice_without_nonlinearity(p, x):
    return x @ p @ p


@fitted(lambda draw: {"w": draw.weight(4, 6), "b": draw(6)}, lambda draw: draw(ROWS, 4))
def weight_and_its_transpose(p, x):
    """An autoencoder with tied weights."""
    return jnp.tanh(x @ p["w"] + p["b"]) @ p["w"].T


@fitted(
    lambda draw: {"w": draw.weight(4, 5), "b": draw(5)},
    lambda draw: {"left": draw(ROWS, 4), "right": draw(ROWS, 4)},
)
def siamese(p, x):
    """One tower for both sides of a pair."""
    tower = lambda side: jnp.tanh(side @ p["w"] + p["b"])
    return jnp.sum(tower(x["left"]) * tower(x["right"]), axis=-1)


@fitted(lambda draw: draw.weight(4, 3), lambda draw: draw(ROWS, 4))
def weight_in_product_and_sum(p, x):
    """A dense weight that is also read elementwise."""
    return jnp.tanh(x @ p) + jnp.sum(p**2) + p[0]


@fitted(lambda draw: {"w": draw.weight(4, 5), "v": draw.weight(5, 2)}, lambda draw: draw(ROWS, 4))
def weight_used_and_stopped(p, x):
    """Two readings, one of them behind stop_gradient: a straight-through estimator."""
    h = x @ p["w"]
    hard = h + jax.lax.stop_gradient(jnp.sign(h) - h)
    return hard @ p["v"] + jax.lax.stop_gradient(x @ p["w"]) @ p["v"]


@fitted(
    lambda draw: {"w": [draw.weight(4, 4) for _ in range(3)], "b": draw(4)},
    lambda draw: draw(ROWS, 2, 4),
)
def bias_at_several_layers(p, x):
    for w in p["w"]:
        x = jnp.tanh(x @ w + p["b"])
    return x


@with_loss(
    lambda draw: {"in": draw.weight(4, 5), "b": draw(5), "out": draw.weight(5, 3)},
    lambda draw: {"x": draw(ROWS, 4), "y": draw.ids(3, ROWS)},
)
def l2_regularised_mlp(params, batch):
    """½ λ Σ w² inside the loss: every example's gradient holds λ w."""
    logits = jnp.tanh(batch["x"] @ params["in"] + params["b"]) @ params["out"]
    penalty = sum(jnp.sum(w**2) for w in jax.tree.leaves(params))
    return cross_entropy(logits, batch["y"]) + 0.5 * 0.1 * penalty


@with_loss(
    lambda draw: {"layers": {"w": draw(3, 4, 4) / 2, "b": draw(3, 4)}, "out": draw.weight(4, 3)},
    lambda draw: {"x": draw(ROWS, 4), "y": draw.ids(3, ROWS)},
)
def l2_regularised_scan_over_layers(params, batch):
    layer = lambda h, p: (jnp.tanh(h @ p["w"] + p["b"]), None)
    h, _ = jax.lax.scan(layer, batch["x"], params["layers"])
    penalty = sum(jnp.vdot(w, w) for w in jax.tree.leaves(params))
    return cross_entropy(h @ params["out"], batch["y"]) + 0.5 * 0.1 * penalty


@with_loss(lambda draw: draw.weight(4, 3), lambda draw: {"x": draw(ROWS, 4), "y": draw(ROWS, 3)})
def l1_regularised_weight(params, batch):
    """A penalty that needs no data, beside a product that does."""
    error = batch["x"] @ params - batch["y"]
    return jnp.mean(error**2) + 0.1 * jnp.sum(jnp.abs(params))


@fitted(lambda draw: draw.weight(3, 3, 2, 3), lambda draw: draw(ROWS, 6, 6, 2))
def convolution_at_two_scales(p, x):
    """One kernel on the image and on its half."""
    conv = lambda image: jax.lax.conv_general_dilated(
        image, p, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    large, small = conv(x), conv(x[:, ::2, ::2])
    return jnp.mean(jnp.tanh(large), (1, 2)) + jnp.mean(jnp.tanh(small), (1, 2))


@entry
def inner_gradient_step(draw: Draw) -> Entry:
    """MAML: every example adapts the weights by a gradient step of its own before its loss."""

    def one(w, x, y):
        task_loss = lambda w: jnp.sum((jnp.tanh(x @ w) - y) ** 2)
        adapted = w - 0.1 * jax.grad(task_loss)(w)
        return jnp.tanh(x @ adapted)

    forward = lambda p, x: jax.vmap(one, in_axes=(None, 0, 0))(p, x["x"], x["y"])
    return fit(draw, forward, draw.weight(4, 2), {"x": draw(ROWS, 4), "y": draw(ROWS, 2)})


@with_loss(
    lambda draw: {"in": draw.weight(4, 5), "out": draw(5)}, lambda draw: {"x": draw(ROWS, 4)}
)
def input_gradient_penalty(params, batch):
    """A loss that holds the gradient with respect to its input: every weight acts twice."""
    score = lambda x: jnp.tanh(x @ params["in"]) @ params["out"]
    values, slopes = jax.vmap(jax.value_and_grad(score))(batch["x"])
    return jnp.mean(values + (jnp.sum(slopes**2, axis=-1) - 1) ** 2)
