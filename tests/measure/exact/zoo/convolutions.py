"""Convolutions of every kind: strides, dilations, groups, layouts, dimensions."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from zoo.entry import ROWS, Draw, Entry, cross_entropy, entry, fit, fitted, with_loss

IMAGES = ("NHWC", "HWIO", "NHWC")
SIGNALS = ("NWC", "WIO", "NWC")


def conv(x, kernel, strides=(1, 1), padding: Any = "SAME", layout=IMAGES, **options):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=layout, **options
    )


# One convolution each: shapes of the kernel and of the image, and its options.
CONVOLUTIONS: dict[str, tuple[tuple, tuple, dict[str, Any]]] = {
    # The last rows and columns of the image meet no window.
    "conv_valid_stride_with_rest": (
        (3, 2, 2, 3),
        (6, 8, 2),
        {"strides": (2, 3), "padding": "VALID"},
    ),
    "conv_asymmetric_padding": (
        (3, 2, 2, 3),
        (4, 5, 2),
        {"strides": (1, 2), "padding": ((2, 0), (1, 3))},
    ),
    # Negative padding.
    "conv_cropped": ((2, 2, 2, 3), (6, 6, 2), {"strides": (1, 1), "padding": ((-1, 0), (1, -2))}),
    "conv_dilated": (
        (3, 3, 2, 3),
        (6, 7, 2),
        {"strides": (1, 2), "padding": "SAME", "rhs_dilation": (2, 1)},
    ),
    "conv_grouped": ((3, 3, 2, 6), (5, 4, 4), {"strides": (2, 1), "feature_group_count": 2}),
    "conv_depthwise": ((3, 3, 1, 3), (5, 4, 3), {"feature_group_count": 3}),
    "conv_depthwise_multiplier": (
        (2, 3, 1, 6),
        (5, 6, 3),
        {"strides": (2, 1), "padding": "VALID", "feature_group_count": 3, "rhs_dilation": (1, 2)},
    ),
    "conv_input_dilated": (
        (3, 2, 2, 3),
        (3, 4, 2),
        {
            "strides": (1, 2),
            "padding": ((2, 1), (0, 2)),
            "lhs_dilation": (3, 2),
            "rhs_dilation": (1, 2),
        },
    ),
    # More output positions than a Gram matrix should have.
    "conv_1d_long": ((3, 1, 2), (150, 1), {"strides": (1,), "layout": SIGNALS}),
    "conv_3d": (
        (2, 3, 2, 2, 3),
        (3, 4, 3, 2),
        {"strides": (1, 2, 1), "layout": ("NDHWC", "DHWIO", "NDHWC")},
    ),
    "conv_channels_first": (
        (3, 2, 3, 3),
        (2, 5, 4),
        {"strides": (1, 2), "layout": ("NCHW", "OIHW", "NCHW")},
    ),
}


def one_convolution(draw: Draw, name: str) -> Entry:
    """tanh of one convolution."""
    kernel, image, options = CONVOLUTIONS[name]
    forward = lambda p, x: jnp.tanh(conv(x, p, **options))
    return fit(draw, forward, draw.weight(*kernel), draw(ROWS, *image))


for name in CONVOLUTIONS:
    entry(functools.partial(one_convolution, name=name), name)


@entry
def cnn(draw: Draw) -> Entry:
    """Strides, biases, max and average pooling, a dense head."""
    params = {
        "conv": [draw.weight(3, 3, 2, 4), draw.weight(3, 3, 4, 3)],
        "b": [draw(4), draw(3)],
        "dense": draw.weight(12, 3),
    }

    def pool(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID")

    def loss_fn(params, batch):
        h = jax.nn.relu(conv(batch["x"], params["conv"][0], (2, 2)) + params["b"][0])
        h = pool(jax.nn.gelu(conv(h, params["conv"][1]) + params["b"][1]))
        return cross_entropy(h.reshape(h.shape[0], -1) @ params["dense"], batch["y"])

    return Entry(loss_fn, params, {"x": draw(ROWS, 6, 5, 2), "y": draw.ids(3, ROWS)})


@fitted(
    lambda draw: {"depth": draw.weight(3, 3, 1, 3), "point": draw.weight(1, 1, 3, 4), "b": draw(4)},
    lambda draw: draw(ROWS, 4, 4, 3),
)
def conv_separable(p, x):
    """Depthwise, then pointwise."""
    h = jax.nn.silu(conv(x, p["depth"], feature_group_count=3))
    return jnp.tanh(conv(h, p["point"]) + p["b"])


@fitted(lambda draw: draw.weight(3, 3, 2, 3), lambda draw: draw(ROWS, 3, 4, 2))
def conv_transposed(p, x):
    return jnp.tanh(jax.lax.conv_transpose(x, p, (2, 2), "SAME", dimension_numbers=IMAGES))


@fitted(lambda draw: draw.weight(3, 2, 3, 2), lambda draw: draw(ROWS, 3, 4, 2))
def conv_transposed_flipped_kernel(p, x):
    """``transpose_kernel=True``: the kernel reaches the convolution flipped and swapped."""
    return jnp.tanh(
        jax.lax.conv_transpose(
            x, p, (2, 1), "VALID", dimension_numbers=IMAGES, transpose_kernel=True
        )
    )


@fitted(lambda draw: [draw.weight(2, 3, 3), draw.weight(2, 3, 3)], lambda draw: draw(ROWS, 6, 3))
def conv_1d_causal(p, x):
    """WaveNet: dilated, padded on the left only."""
    for level, kernel in enumerate(p):
        left = ((2**level, 0),)
        h = conv(x, kernel, (1,), left, SIGNALS, rhs_dilation=(2**level,))
        x = x + jnp.tanh(h)
    return x


@fitted(lambda draw: draw.weight(2, 3, 4, 2), lambda draw: draw(ROWS, 5, 4, 2))
def conv_odd_layouts(p, x):
    """Input, kernel and output each order their axes differently."""
    h = conv(jnp.moveaxis(x, 0, 2), p, (1, 1), "SAME", ("HWNC", "IHOW", "CWNH"))
    return jnp.tanh(jnp.moveaxis(h, 2, 0))


@fitted(
    lambda draw: {"torch": draw.weight(3, 2, 3, 3), "flat": draw.weight(12, 2)},
    lambda draw: draw(ROWS, 4, 5, 2),
)
def conv_kernel_stored_in_another_shape(p, x):
    """A kernel through transpose and reshape, and one that a dense layer would store."""
    h = jnp.tanh(conv(x, jnp.transpose(p["torch"], (2, 3, 1, 0))))
    return jnp.tanh(conv(h, p["flat"].reshape(2, 2, 3, 2), (2, 2), "VALID"))


@fitted(
    lambda draw: {"kernel": draw.weight(3, 3, 2, 3), "gain": draw.weight(3)},
    lambda draw: draw(ROWS, 4, 3, 2),
)
def conv_scaled_kernel(p, x):
    """A scale for every output channel, and a fixed blur that wraps around."""
    around = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
    return jnp.tanh(conv(around, p["kernel"] * p["gain"], padding="VALID"))


@fitted(
    lambda draw: {"kernel": draw.weight(3, 3, 1, 2), "b": draw(2)},
    lambda draw: draw(ROWS, 3, 4, 4, 1),
)
def conv_of_every_frame(p, x):
    """Video: the frames of an example stand on the batch axis of the convolution."""
    frames = x.reshape(-1, *x.shape[2:])
    h = jnp.tanh(conv(frames, p["kernel"]) + p["b"])
    return jnp.mean(h.reshape(*x.shape[:2], *h.shape[1:]), axis=1)


@fitted(lambda draw: draw.weight(3, 2, 1, 4), lambda draw: draw(ROWS, 3, 4, 3, 2))
def conv_of_every_frame_grouped(p, x):
    frames = x.reshape(-1, *x.shape[2:])
    h = jnp.tanh(conv(frames, p, (2, 1), feature_group_count=2))
    return h.reshape(*x.shape[:2], *h.shape[1:])


@fitted(
    lambda draw: {"kernel": draw.weight(3, 3, 2, 3), "out": draw.weight(3, 2)},
    lambda draw: draw(ROWS, 4, 5, 2),
    each=True,
)
def conv_of_one_image_by_vmap(p, image):
    """Equinox and Haiku style: the model takes one image without a batch axis."""
    h = jnp.tanh(conv(image[None], p["kernel"], (2, 2)))[0]
    return jnp.mean(h, axis=(0, 1)) @ p["out"]


@entry
def conv_over_members(draw: Draw) -> Entry:
    """An ensemble: vmap over kernels turns the convolution into a grouped one."""
    member = lambda kernel, x: jnp.tanh(conv(x, kernel))
    forward = lambda p, x: jnp.moveaxis(jax.vmap(member, in_axes=(0, None))(p, x), 0, 1)
    return fit(draw, forward, draw(2, 3, 3, 2, 2) / 4, draw(ROWS, 4, 3, 2))


@fitted(lambda draw: {"filter": draw(3), "out": draw(7)}, lambda draw: draw(ROWS, 7), each=True)
def conv_by_numpy(p, x):
    """`jnp.convolve` flips its filter."""
    return jnp.tanh(jnp.convolve(x, p["filter"], mode="same")) @ p["out"]


@fitted(
    lambda draw: {"hyper": draw.weight(3, 6), "out": draw.weight(1, 1, 2, 2)},
    lambda draw: {"code": draw(ROWS, 3), "signal": draw(ROWS, 5, 1)},
    each=True,
)
def conv_kernel_from_data(p, x):
    """Dynamic filters: every example makes its own kernel, the data is the right operand."""
    kernel = jnp.tanh(x["code"] @ p["hyper"]).reshape(3, 1, 2)
    h = conv(x["signal"][None], kernel, (1,), "SAME", SIGNALS)
    return conv(h[:, None], p["out"])[0, 0]


@fitted(lambda draw: {"w": draw.weight(8, 3), "b": draw(3)}, lambda draw: draw(ROWS, 4, 4, 2))
def conv_by_patches(p, x):
    """A vision transformer's patch embedding, by patches and a product."""
    patches = jax.lax.conv_general_dilated_patches(
        x, (2, 2), (2, 2), "VALID", dimension_numbers=IMAGES
    )
    return jnp.tanh(patches @ p["w"] + p["b"])


@with_loss(
    lambda draw: {"kernel": draw.weight(3, 3, 2, 3), "out": draw(3)},
    lambda draw: draw(ROWS, 4, 3, 2),
)
def conv_input_gradient_penalty(params, batch):
    """A critic with a penalty on its input gradient: the kernel also acts transposed."""

    def score(image):
        h = jnp.tanh(conv(image[None], params["kernel"], (2, 1)))
        return jnp.mean(h, axis=(0, 1, 2)) @ params["out"]

    values, slopes = jax.vmap(jax.value_and_grad(score))(batch)
    return jnp.mean(values + jnp.sum(slopes**2, axis=(1, 2, 3)))


@entry
def conv_of_a_learned_image(draw: Draw) -> Entry:
    """The parameter is the image, the kernels are data."""

    def one(p, kernel):
        return jnp.tanh(conv(p[None], kernel)[0])

    forward = lambda p, x: jax.lax.map(lambda kernel: one(p, kernel), x)
    return fit(draw, forward, draw(4, 3, 2), draw(ROWS, 2, 2, 2, 2))


@fitted(lambda draw: {"filter": draw(6, 2), "skip": draw(2)}, lambda draw: draw(ROWS, 6, 2))
def conv_by_fourier_transform(p, x):
    """A filter as long as the signal, multiplied in the frequency domain."""
    spectrum = jnp.fft.rfft(x, n=12, axis=1) * jnp.fft.rfft(p["filter"], n=12, axis=0)
    return jnp.tanh(jnp.fft.irfft(spectrum, n=12, axis=1)[:, :6]) + x * p["skip"]


@fitted(lambda draw: draw(3, 3, 2, 2) / 4, lambda draw: draw(ROWS, 3, 4, 2))
def conv_same_kernel_grouped_and_not(p, x):
    """One kernel in two convolutions that see its axes differently."""
    depthwise = conv(x, p.reshape(3, 3, 1, 4), feature_group_count=2)
    return jnp.tanh(depthwise[..., 1:3]) + jnp.tanh(conv(x, p))
