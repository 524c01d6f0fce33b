"""Entries that are about the call: dtypes, masks, random keys, aux, odd trees of parameters."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.entry import ROWS, Draw, Entry, cross_entropy, entry, fit, fitted, with_loss


def small(draw: Draw) -> tuple[Any, Any]:
    """``(params, batch)`` of `small_losses`."""
    params = {"in": draw.weight(4, 5), "b": draw(5), "out": draw.weight(5, 3)}
    return params, {"x": draw(ROWS, 2, 4), "y": draw.ids(3, ROWS, 2)}


def small_logits(params, x):
    return jnp.tanh(x @ params["in"] + params["b"]) @ params["out"]


def small_loss(params, batch):
    return cross_entropy(small_logits(params, batch["x"]), batch["y"])


@entry
def in_float64(draw: Draw) -> Entry:
    wide = lambda x: x.astype(np.float64) if x.dtype == np.float32 else x
    params, batch = jax.tree.map(wide, small(draw))
    return Entry(small_loss, params, batch, float64=True, rtol=1e-13, grad_rtol=1e-14)


@entry
def bfloat16_compute(draw: Draw) -> Entry:
    """Float32 masters, layers in bfloat16, the loss in float32.

    The reference rounds at the same places: with four rows of two tokens, 1/8 scales without
    rounding. What is left is one rounding of each gradient, 2⁻⁹ relative, twice that in squares.
    """

    def loss_fn(params, batch):
        half = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
        logits = small_logits(half(params), half(batch["x"]))
        return cross_entropy(logits.astype(params["b"].dtype), batch["y"])

    params, batch = small(draw)
    batch = jax.tree.map(lambda x: x[:4], batch)
    return Entry(loss_fn, params, batch, rtol=2**-8, grad_rtol=2**-8)


@entry
def complex_weights(draw: Draw) -> Entry:
    """A Fourier layer: complex weights between a transform and its inverse."""
    draw_complex = lambda *shape: (draw(*shape) + 1j * draw(*shape)).astype(np.complex64) / 2
    params = {"w": draw_complex(3, 2, 2), "scale": draw_complex(2), "real": draw.weight(2, 2)}

    def forward(p, x):
        spectrum = jnp.fft.rfft(x, axis=1)
        spectrum = jnp.einsum("bkd,kde->bke", spectrum, p["w"]) * p["scale"]
        return jnp.tanh(jnp.fft.irfft(spectrum, n=4, axis=1)) @ p["real"]

    return fit(draw, forward, params, draw(ROWS, 4, 2))


@entry
def complex_dense(draw: Draw) -> Entry:
    """Complex data, weights and biases; the loss reads the modulus and both parts."""
    draw_complex = lambda *shape: (draw(*shape) + 1j * draw(*shape)).astype(np.complex64)
    params = {"in": draw_complex(3, 4) / 4, "b": draw_complex(4) / 4, "out": draw_complex(4, 2)}

    def loss_fn(params, batch):
        h = jnp.tanh(batch["x"] @ params["in"] + params["b"]) @ params["out"].conj()
        error = h - batch["y"]
        return jnp.mean(jnp.abs(error) ** 2 + jnp.real(h) * jnp.imag(h))

    batch = {"x": draw_complex(ROWS, 2, 3) / 2, "y": draw_complex(ROWS, 2, 2)}
    return Entry(loss_fn, params, batch)


@entry
def parameters_nobody_uses(draw: Draw) -> Entry:
    """Some are never read, one is read behind stop_gradient, one is multiplied by zero."""
    params, batch = small(draw)
    params |= {"unread": draw(3, 2), "stopped": draw(), "times_zero": draw(3), "empty": draw(0, 2)}

    def loss_fn(params, batch):
        nothing = jax.lax.stop_gradient(params["stopped"]) + 0 * jnp.sum(params["times_zero"])
        return small_loss(params, batch) + nothing

    return Entry(loss_fn, params, batch)


@fitted(
    lambda draw: {"table": draw(7, 3), "layers": draw(3, 3, 3)}, lambda draw: draw.ids(2, ROWS, 3)
)
def words_nobody_uses(p, ids):
    """Rows of a table, experts and stacked layers that the batch does not reach."""
    return jnp.tanh(p["table"][ids]) @ p["layers"][1]


class Layer(NamedTuple):
    """A node of a tree of parameters."""

    w: Any
    b: Any


@fitted(
    lambda draw: (None, [Layer(draw.weight(4, 1), draw(1)), {}], {"s": draw(), "v": draw(1)}),
    lambda draw: draw(ROWS, 4),
)
def tree_of_odd_nodes(p, x):
    """Tuples, None, NamedTuples, a scalar, an axis of length one."""
    _, (layer, _), rest = p
    return jnp.tanh(x @ layer.w + layer.b) * rest["s"] + rest["v"]


@with_loss(lambda draw: draw.weight(4, 3), lambda draw: draw(ROWS, 4))
def bare_array(w, x):
    """The parameters are one array, and so is the batch."""
    return jnp.mean(jnp.tanh(x @ w) ** 2)


@entry
def aux_of_every_form(draw: Draw) -> Entry:
    """One entry a row, a mean, a count."""
    params, batch = small(draw)

    def loss_fn(params, batch):
        logits = small_logits(params, batch["x"])
        hits = jnp.all(jnp.argmax(logits, axis=-1) == batch["y"], axis=-1)
        aux = {"logits": logits, "size": jnp.mean(jnp.abs(logits)), "hits": jnp.sum(hits)}
        return cross_entropy(logits, batch["y"]), aux

    return Entry(loss_fn, params, batch, has_aux=True)


def dropout(key, x, rate=0.4):
    """Draws in float32 whatever `x` is, so that a float64 reference drops the same units."""
    keep = jax.random.uniform(key, x.shape, jnp.float32) >= rate
    return jnp.where(keep, x / (1 - rate), 0)


def with_draws(losses, params, batch, args, **options: Any) -> Entry:
    """An entry whose rows share the draws of one key."""
    loss_fn = lambda *inputs: jnp.mean(losses(*inputs))
    return Entry(loss_fn, params, batch, args=args, losses=losses, **options)


def row_cross_entropy(logits, labels):
    """[ROWS], the mean over the other axes."""
    scores = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]
    return -jnp.mean(scores.reshape(len(scores), -1), axis=1)


@entry
def dropout_of_every_example(draw: Draw) -> Entry:
    """Two masks from one key."""

    def losses(params, batch, key):
        first, second = jax.random.split(key)
        h = jnp.tanh(dropout(first, batch["x"]) @ params["in"] + params["b"])
        return row_cross_entropy(dropout(second, h) @ params["out"], batch["y"])

    return with_draws(losses, *small(draw), (jax.random.key(1),))


@entry
def dropped_weights(draw: Draw) -> Entry:
    """DropConnect: one mask on the weight itself, for all examples."""

    def losses(params, batch, scale, keys):
        dropped = params | {"in": dropout(keys["w"], params["in"]) * scale}
        return row_cross_entropy(small_logits(dropped, batch["x"]), batch["y"])

    return with_draws(losses, *small(draw), (np.float32(0.7), {"w": jax.random.PRNGKey(3)}))


class LinenDropout(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dropout(0.5, deterministic=False)(nn.tanh(nn.Dense(5, param_dtype=x.dtype)(x)))
        return nn.Dense(3, param_dtype=x.dtype)(x)


@entry
def linen_dropout(draw: Draw) -> Entry:
    """In float64, where measurement and reference draw the same bits."""
    module = LinenDropout()
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    params = draw.like(jax.eval_shape(module.init, rngs, draw(ROWS, 4)))
    params = jax.tree.map(lambda p: p.astype(np.float64), params)

    def losses(params, batch, key):
        logits: Any = module.apply(params, batch["x"], rngs={"dropout": key})
        return row_cross_entropy(logits, batch["y"])

    return with_draws(
        losses,
        params,
        {"x": draw(ROWS, 4).astype(np.float64), "y": draw.ids(3, ROWS)},
        (jax.random.key(2),),
        float64=True,
        rtol=1e-13,
        grad_rtol=1e-14,
    )


@fitted(
    lambda draw: {"in": draw.weight(4, 5), "out": draw.weight(5, 2)},
    lambda draw: {"x": draw(ROWS, 4), "key": jax.random.split(jax.random.key(0), ROWS)},
)
def keys_in_the_batch(p, x):
    """One typed key a row, among the data."""
    return jax.vmap(dropout)(x["key"], jnp.tanh(x["x"] @ p["in"])) @ p["out"]


@entry
def padding_with_garbage(draw: Draw) -> Entry:
    """Rows of NaN and of labels beyond the classes, with weight zero."""
    params, batch = small(draw)
    mask = np.array([True, False, True, True, False])
    batch["x"][~mask] = np.nan
    batch["y"][~mask] = 99
    return Entry(small_loss, params, batch, mask=mask)


@entry
def large_and_small_rows(draw: Draw) -> Entry:
    """Gradients of very different size: nothing of the small ones may come from rounding."""

    def loss_fn(params, batch):
        return jnp.mean(batch["weight"] * jnp.sum(jnp.tanh(batch["x"] @ params), axis=-1))

    weight = np.array([1.0, 100.0, 0.01, 3.0, 10.0], np.float32)
    return Entry(loss_fn, draw.weight(4, 3), {"x": draw(ROWS, 4), "weight": weight})


@with_loss(
    lambda draw: {"w": draw.weight(4, 3), "b": draw(3)},
    lambda draw: {
        "x": draw(ROWS, 4),
        "flag": np.arange(ROWS) % 2 == 0,
        "count": draw.ids(9, ROWS),
        "byte": draw.ids(20, ROWS).astype(np.uint8),
        "unread": draw(ROWS, 2),
    },
)
def integers_and_flags_in_the_batch(params, batch):
    """Leaves of every dtype, one of them read by the loss only through a comparison."""
    h = jnp.where(batch["flag"][:, None], batch["x"] @ params["w"], params["b"])
    h = h + batch["count"][:, None] + (batch["byte"][:, None] > 7)
    return jnp.mean(jnp.sin(h))


@entry
def complex_convolution_and_embedding(draw: Draw) -> Entry:
    """Complex tables, read and scored with; complex kernels; a scan over complex layers."""
    draw_complex = lambda *shape: (draw(*shape) + 1j * draw(*shape)).astype(np.complex64) / 2
    params = {
        "table": draw_complex(5, 2),
        "kernel": draw_complex(2, 2, 2),
        "w": draw_complex(2, 2, 2),
    }

    def loss_fn(params, batch):
        h = params["table"][batch["ids"]]
        h = jax.lax.conv_general_dilated(
            h, params["kernel"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        h, _ = jax.lax.scan(lambda h, w: (h @ w / (1 + jnp.abs(h)), None), h, params["w"])
        return jnp.mean(jnp.abs(h @ params["table"].T - batch["y"]) ** 2)

    return Entry(loss_fn, params, {"ids": draw.ids(5, ROWS, 4), "y": draw(ROWS, 4, 5)})


@entry
def bfloat16_tied_embedding(draw: Draw) -> Entry:
    """Products of bfloat16 that sum in float32, with the table on both sides.

    The reference rounds the table's gradient three times: embedding, product and their sum.
    """
    params = {"table": draw(5, 4), "w": draw.weight(4, 4)}

    def loss_fn(params, batch):
        wide = params["w"].dtype
        p = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        h = jnp.einsum("btd,dk->btk", p["table"][batch["ids"]], p["w"], preferred_element_type=wide)
        h = jnp.tanh(h).astype(jnp.bfloat16)
        logits = jnp.einsum("btd,vd->btv", h, p["table"], preferred_element_type=wide)
        return cross_entropy(logits, batch["next"])

    batch = {"ids": draw.ids(5, 4, 4), "next": draw.ids(5, 4, 4)}
    return Entry(loss_fn, params, batch, rtol=3 * 2**-8, grad_rtol=2**-8)


@entry
def bfloat16_convolution_and_scan(draw: Draw) -> Entry:
    params = {"kernel": draw.weight(3, 4, 4), "layers": draw(2, 4, 4) / 2}

    def loss_fn(params, batch):
        p, x = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, batch["x"]))
        layout = ("NWC", "WIO", "NWC")
        h = jax.lax.conv_general_dilated(x, p["kernel"], (1,), "SAME", dimension_numbers=layout)
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), jnp.tanh(h), p["layers"])
        return jnp.mean((h.astype(batch["y"].dtype) - batch["y"]) ** 2)

    batch = {"x": draw(4, 4, 4), "y": draw(4, 4, 4)}
    return Entry(loss_fn, params, batch, rtol=2**-8, grad_rtol=2**-8)


@fitted(lambda draw: {"slope": 1.5, "shift": -0.25}, lambda draw: draw(ROWS))
def python_numbers(p, x):
    """Parameters that are floats of Python."""
    return p["slope"] * x + jnp.sin(p["shift"])


@entry
def aux_of_parameters(draw: Draw) -> Entry:
    """What the loss reports does not depend on the data, or is not an array at all."""
    params, batch = small(draw)

    def loss_fn(params, batch):
        norms = jax.tree.map(jnp.linalg.norm, params)
        return small_loss(params, batch), {"norms": norms, "b": params["b"], "none": None}

    return Entry(loss_fn, params, batch, has_aux=True)
