"""Weights that one product consumes, in every layout that a product can have."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zoo.entry import ROWS, Draw, Entry, cross_entropy, entry, fit, fitted, with_loss


@entry
def mlp(draw: Draw) -> Entry:
    layer = lambda fan_in, fan_out: {"w": draw.weight(fan_in, fan_out), "b": draw(fan_out)}
    params = [layer(4, 6), layer(6, 5), layer(5, 3)]

    def loss_fn(params, batch):
        h = batch["x"]
        for p in params[:-1]:
            h = jax.nn.relu(h @ p["w"] + p["b"])
        return cross_entropy(h @ params[-1]["w"] + params[-1]["b"], batch["y"])

    return Entry(loss_fn, params, {"x": draw(ROWS, 4), "y": draw.ids(3, ROWS)})


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Linear:
    """A layer that is a pytree itself, as in Equinox: weight [out, in], one example a call."""

    weight: Any
    bias: Any
    activation: Callable = dataclasses.field(default=jnp.tanh, metadata={"static": True})

    def __call__(self, x):
        out = self.weight @ x
        return self.activation(out if self.bias is None else out + self.bias)


@entry
def dataclass_modules(draw: Draw) -> Entry:
    """Equinox-like: the model is the pytree, it maps one example, the loss maps it over rows."""
    model = (
        Linear(draw.weight(6, 4), draw(6)),
        Linear(draw.weight(5, 6), None),
        Linear(draw.weight(2, 5), draw(2), jnp.negative),
    )

    def one(model, x):
        for layer in model:
            x = layer(x)
        return x

    return fit(draw, jax.vmap(one, in_axes=(None, 0)), model, draw(ROWS, 4))


@fitted(lambda draw: {"w": draw(4), "b": draw()}, lambda draw: draw(ROWS, 4))
def linear_regression(p, x):
    """A weight without an output axis, and a scalar bias."""
    return x @ p["w"] + p["b"]


@fitted(
    lambda draw: {"in": draw.weight(12, 10), "out": draw.weight(10, 9), "b": draw(10)},
    lambda draw: draw(ROWS, 3, 12),
)
def short_sequence(p, x):
    """Few positions, wide layers: the Gram matrices are the small objects."""
    return jnp.tanh(x @ p["in"] + p["b"]) @ p["out"]


@fitted(
    lambda draw: {"in": draw.weight(2, 3), "out": draw.weight(3, 2), "b": draw(3)},
    lambda draw: draw(ROWS, 100, 2),
)
def long_sequence(p, x):
    """Many positions, narrow layers: the per-example gradient is the small object."""
    return jnp.tanh(x @ p["in"] + p["b"]) @ p["out"]


@fitted(lambda draw: {"in": draw.weight(2, 3), "b": draw(3)}, lambda draw: draw(ROWS, 300, 2))
def longer_sequence(p, x):
    return jnp.sin(x @ p["in"] + p["b"])


@fitted(lambda draw: draw.weight(4, 3), lambda draw: draw(ROWS, 3, 2, 4))
def two_sequence_axes(p, x):
    return jnp.tanh(jnp.einsum("bijd,dk->bkji", x, p))


@fitted(
    lambda draw: {"in": draw.weight(4, 5), "out": draw.weight(5, 2)}, lambda draw: draw(ROWS, 3, 4)
)
def rows_and_positions_merged(p, x):
    """[B, T, D] reshaped to [B·T, D] before the layer, and back after it."""
    h = jnp.tanh(x.reshape(-1, x.shape[-1]) @ p["in"]) @ p["out"]
    return h.reshape(*x.shape[:2], -1)


@fitted(lambda draw: draw(2, 5, 3), lambda draw: draw(ROWS, 3, 4, 2))
def two_contracted_axes(p, x):
    return jnp.tensordot(jnp.tanh(x), p, axes=((1, 3), (2, 0)))


@fitted(
    lambda draw: {"in": draw.weight(5, 4), "out": draw.weight(2, 5)}, lambda draw: draw(ROWS, 4)
)
def weight_on_the_left(p, x):
    return jnp.sin(p["out"] @ jnp.tanh(p["in"] @ x.T)).T


@fitted(
    lambda draw: {
        "transposed": draw.weight(6, 4),
        "flat": draw(30),
        "padded_axes": draw(1, 5, 1, 3),
        "split": draw(2, 2, 3, 1),
    },
    lambda draw: draw(ROWS, 4),
)
def stored_in_another_shape(p, x):
    """Weights that reach their product transposed, reshaped, squeezed and sliced whole."""
    h = jnp.tanh(x @ p["transposed"].T)
    h = jnp.tanh(h @ p["flat"].reshape(6, 5))
    h = jnp.tanh(h @ jnp.squeeze(p["padded_axes"]))
    return h @ jnp.swapaxes(p["split"].reshape(4, 3), 0, 1)


@fitted(lambda draw: draw.weight(4, 3), lambda draw: {"x": draw(ROWS, 4), "z": draw(ROWS, 3)})
def bilinear(p, x):
    """xᵀ W z: one weight between two kinds of data."""
    return jnp.einsum("bi,ij,bj->b", jnp.tanh(x["x"]), p, x["z"])


@fitted(lambda draw: draw(2, 4, 3), lambda draw: {"x": draw(ROWS, 4), "z": draw(ROWS, 3)})
def bilinear_with_outputs(p, x):
    return jnp.einsum("bi,kij,bj->bk", x["x"], p, x["z"])


@fitted(lambda draw: {"in": draw(2, 3, 4), "out": draw(2, 4, 3)}, lambda draw: draw(ROWS, 4, 2, 3))
def weight_with_a_batch_axis(p, x):
    """A layer of its own for every head: the head axis is shared by data and weight."""
    h = jnp.tanh(jnp.einsum("bthd,hdk->bthk", x, p["in"]))
    return jnp.einsum("bthk,hkd->bthd", h, p["out"])


@fitted(lambda draw: draw(3, 4, 2), lambda draw: draw(ROWS, 3, 4))
def weight_with_a_batch_axis_no_sequence(p, x):
    return jnp.tanh(jnp.einsum("bhd,hdk->bhk", x, p))


@fitted(lambda draw: draw(4, 3, 2), lambda draw: draw(ROWS, 4, 3))
def layer_for_every_position(p, x):
    """Locally connected: the sequence axis is a batch axis of the weight."""
    return jnp.tanh(jnp.einsum("btd,tdk->bkt", x, p))


@fitted(
    lambda draw: {"tokens": draw.weight(4, 5), "channels": draw.weight(3, 2)},
    lambda draw: draw(ROWS, 4, 3),
)
def weight_over_positions(p, x):
    """An MLP-Mixer: one weight mixes positions, the other channels."""
    h = jnp.tanh(jnp.einsum("btd,ts->bsd", x, p["tokens"]))
    return h @ p["channels"]


@entry
def vmap_over_heads(draw: Draw) -> Entry:
    """Heads by vmap over stacked weights, rows by vmap over the batch."""
    params = {"w": draw(2, 4, 3), "b": draw(2, 3)}
    head = lambda p, x: jnp.tanh(x @ p["w"] + p["b"])
    heads = jax.vmap(head, in_axes=(0, None))
    return fit(draw, jax.vmap(heads, in_axes=(None, 0)), params, draw(ROWS, 4))


@entry
def mean_of_vmapped_rows(draw: Draw) -> Entry:
    """mean(vmap(one)(batch)): as many people write their loss."""
    params = {"w": draw.weight(4, 3), "b": draw(3), "v": draw(3)}

    def one(params, x, y):
        return (jnp.tanh(x @ params["w"] + params["b"]) @ params["v"] - y) ** 2

    def loss_fn(params, batch):
        return jnp.mean(jax.vmap(one, in_axes=(None, 0, 0))(params, batch["x"], batch["y"]))

    return Entry(loss_fn, params, {"x": draw(ROWS, 4), "y": draw(ROWS)})


@fitted(
    lambda draw: {"hyper": draw.weight(4, 6), "b": draw(6)},
    lambda draw: {"task": draw(ROWS, 4), "x": draw(ROWS, 3)},
)
def data_dependent_weight(p, x):
    """A hypernetwork: the weight of the second layer is the output of the first."""
    w = (jnp.tanh(x["task"]) @ p["hyper"] + p["b"]).reshape(-1, 3, 2)
    return jnp.tanh(jnp.einsum("bd,bdk->bk", x["x"], w))


@entry
def rows_without_gradient(draw: Draw) -> Entry:
    """A hinge that some examples satisfy: their gradients are exactly zero."""

    def loss_fn(params, batch):
        margin = batch["y"] * (batch["x"] @ params)
        return jnp.mean(jnp.maximum(1 - margin, 0))

    x, w = draw(ROWS, 4), draw(4)
    y = (x @ w > 0) * 2.0 - 1.0
    x[:2] *= (4 / abs(x[:2] @ w))[:, None]
    return Entry(loss_fn, w, {"x": x, "y": y.astype(x.dtype)})


@fitted(
    lambda draw: {"a": draw(1, 4), "b": draw(4, 1), "c": draw(1, 1)}, lambda draw: draw(ROWS, 1)
)
def product_of_narrow_width(p, x):
    """Axes of length one on every side."""
    return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]


@fitted(
    lambda draw: {"in": draw.weight(4, 5), "out": draw.weight(5, 2)}, lambda draw: draw(ROWS, 4)
)
def products_in_low_precision_on_request(p, x):
    """`precision` and `preferred_element_type` are attributes that a rewrite must keep."""
    h = jnp.tanh(jnp.dot(x, p["in"], precision="highest"))
    dims = (((1,), (0,)), ((), ()))
    return jax.lax.dot_general(h, p["out"], dims, preferred_element_type=h.dtype)


@fitted(
    lambda draw: {"in": draw.weight(20, 18), "out": draw.weight(18, 24)},
    lambda draw: draw(ROWS, 20),
)
def wide_layer(p, x):
    """Gram matrices over the batch are smaller than the weight."""
    return jnp.tanh(x @ p["in"]) @ p["out"]


@entry
def graph_network(draw: Draw) -> Entry:
    """Messages along the edges of each example's own graph, summed at the nodes."""
    params = {"message": draw.weight(6, 4), "update": draw.weight(7, 3)}

    def one(p, x, edges):
        for _ in range(2):
            pairs = jnp.concatenate([x[edges[0]], x[edges[1]]], axis=-1)
            messages = jnp.tanh(pairs @ p["message"])
            received = jax.ops.segment_sum(messages, edges[1], num_segments=len(x))
            x = jnp.tanh(jnp.concatenate([x, received], axis=-1) @ p["update"])
        return x

    forward = lambda p, x: jax.vmap(one, in_axes=(None, 0, 0))(p, x["nodes"], x["edges"])
    return fit(draw, forward, params, {"nodes": draw(ROWS, 4, 3), "edges": draw.ids(4, ROWS, 2, 6)})


@with_loss(lambda draw: draw.weight(4, 3), lambda draw: {"x": draw(ROWS, 4), "y": draw(ROWS, 3)})
def sum_over_rows_divided_by_their_number(params, batch):
    """The mean by hand, from the shape of the batch."""
    error = jnp.tanh(batch["x"] @ params) - batch["y"]
    return jnp.sum(error**2) / batch["x"].shape[0]
