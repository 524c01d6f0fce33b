"""Convolutions of every kind: strides, dilations, groups, layouts, dimensions."""

from typing import Any

import jax
import jax.numpy as jnp

from zoo.entry import ROWS, Draw, Entry, cross_entropy, entry, fit

IMAGES = ("NHWC", "HWIO", "NHWC")
SIGNALS = ("NWC", "WIO", "NWC")


def conv(x, kernel, strides=(1, 1), padding: Any = "SAME", layout=IMAGES, **options):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=layout, **options
    )


def one_conv(draw: Draw, kernel: tuple, image: tuple, *args: Any, **options: Any) -> Entry:
    """tanh of one convolution."""
    forward = lambda p, x: jnp.tanh(conv(x, p, *args, **options))
    return fit(draw, forward, draw.weight(*kernel), draw(ROWS, *image))


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


@entry
def conv_valid_stride_with_rest(draw: Draw) -> Entry:
    """The last rows and columns of the image meet no window."""
    return one_conv(draw, (3, 2, 2, 3), (6, 8, 2), (2, 3), "VALID")


@entry
def conv_asymmetric_padding(draw: Draw) -> Entry:
    return one_conv(draw, (3, 2, 2, 3), (4, 5, 2), (1, 2), ((2, 0), (1, 3)))


@entry
def conv_cropped(draw: Draw) -> Entry:
    """Negative padding."""
    return one_conv(draw, (2, 2, 2, 3), (6, 6, 2), (1, 1), ((-1, 0), (1, -2)))


@entry
def conv_dilated(draw: Draw) -> Entry:
    return one_conv(draw, (3, 3, 2, 3), (6, 7, 2), (1, 2), "SAME", rhs_dilation=(2, 1))


@entry
def conv_grouped(draw: Draw) -> Entry:
    return one_conv(draw, (3, 3, 2, 6), (5, 4, 4), (2, 1), feature_group_count=2)


@entry
def conv_depthwise(draw: Draw) -> Entry:
    return one_conv(draw, (3, 3, 1, 3), (5, 4, 3), feature_group_count=3)


@entry
def conv_depthwise_multiplier(draw: Draw) -> Entry:
    options = {"feature_group_count": 3, "rhs_dilation": (1, 2)}
    return one_conv(draw, (2, 3, 1, 6), (5, 6, 3), (2, 1), "VALID", **options)


@entry
def conv_separable(draw: Draw) -> Entry:
    """Depthwise, then pointwise."""
    params = {"depth": draw.weight(3, 3, 1, 3), "point": draw.weight(1, 1, 3, 4), "b": draw(4)}

    def forward(p, x):
        h = jax.nn.silu(conv(x, p["depth"], feature_group_count=3))
        return jnp.tanh(conv(h, p["point"]) + p["b"])

    return fit(draw, forward, params, draw(ROWS, 4, 4, 3))


@entry
def conv_transposed(draw: Draw) -> Entry:
    forward = lambda p, x: jnp.tanh(
        jax.lax.conv_transpose(x, p, (2, 2), "SAME", dimension_numbers=IMAGES)
    )
    return fit(draw, forward, draw.weight(3, 3, 2, 3), draw(ROWS, 3, 4, 2))


@entry
def conv_transposed_flipped_kernel(draw: Draw) -> Entry:
    """``transpose_kernel=True``: the kernel reaches the convolution flipped and swapped."""
    forward = lambda p, x: jnp.tanh(
        jax.lax.conv_transpose(
            x, p, (2, 1), "VALID", dimension_numbers=IMAGES, transpose_kernel=True
        )
    )
    return fit(draw, forward, draw.weight(3, 2, 3, 2), draw(ROWS, 3, 4, 2))


@entry
def conv_input_dilated(draw: Draw) -> Entry:
    options = {"lhs_dilation": (3, 2), "rhs_dilation": (1, 2)}
    return one_conv(draw, (3, 2, 2, 3), (3, 4, 2), (1, 2), ((2, 1), (0, 2)), **options)


@entry
def conv_1d_causal(draw: Draw) -> Entry:
    """WaveNet: dilated, padded on the left only."""
    params = [draw.weight(2, 3, 3), draw.weight(2, 3, 3)]

    def forward(p, x):
        for level, kernel in enumerate(p):
            left = ((2**level, 0),)
            h = conv(x, kernel, (1,), left, SIGNALS, rhs_dilation=(2**level,))
            x = x + jnp.tanh(h)
        return x

    return fit(draw, forward, params, draw(ROWS, 6, 3))


@entry
def conv_1d_long(draw: Draw) -> Entry:
    """More output positions than a Gram matrix should have."""
    return one_conv(draw, (3, 1, 2), (150, 1), (1,), layout=SIGNALS)


@entry
def conv_3d(draw: Draw) -> Entry:
    layout = ("NDHWC", "DHWIO", "NDHWC")
    return one_conv(draw, (2, 3, 2, 2, 3), (3, 4, 3, 2), (1, 2, 1), layout=layout)


@entry
def conv_channels_first(draw: Draw) -> Entry:
    layout = ("NCHW", "OIHW", "NCHW")
    return one_conv(draw, (3, 2, 3, 3), (2, 5, 4), (1, 2), layout=layout)


@entry
def conv_odd_layouts(draw: Draw) -> Entry:
    """Input, kernel and output each order their axes differently."""

    def forward(p, x):
        h = conv(jnp.moveaxis(x, 0, 2), p, (1, 1), "SAME", ("HWNC", "IHOW", "CWNH"))
        return jnp.tanh(jnp.moveaxis(h, 2, 0))

    return fit(draw, forward, draw.weight(2, 3, 4, 2), draw(ROWS, 5, 4, 2))


@entry
def conv_kernel_stored_in_another_shape(draw: Draw) -> Entry:
    """A kernel through transpose and reshape, and one that a dense layer would store."""
    params = {"torch": draw.weight(3, 2, 3, 3), "flat": draw.weight(12, 2)}

    def forward(p, x):
        h = jnp.tanh(conv(x, jnp.transpose(p["torch"], (2, 3, 1, 0))))
        return jnp.tanh(conv(h, p["flat"].reshape(2, 2, 3, 2), (2, 2), "VALID"))

    return fit(draw, forward, params, draw(ROWS, 4, 5, 2))


@entry
def conv_scaled_kernel(draw: Draw) -> Entry:
    """A scale for every output channel, and a fixed blur that wraps around."""
    params = {"kernel": draw.weight(3, 3, 2, 3), "gain": draw.weight(3)}

    def forward(p, x):
        around = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
        return jnp.tanh(conv(around, p["kernel"] * p["gain"], padding="VALID"))

    return fit(draw, forward, params, draw(ROWS, 4, 3, 2))


@entry
def conv_of_every_frame(draw: Draw) -> Entry:
    """Video: the frames of an example stand on the batch axis of the convolution."""
    params = {"kernel": draw.weight(3, 3, 1, 2), "b": draw(2)}

    def forward(p, x):
        frames = x.reshape(-1, *x.shape[2:])
        h = jnp.tanh(conv(frames, p["kernel"]) + p["b"])
        return jnp.mean(h.reshape(*x.shape[:2], *h.shape[1:]), axis=1)

    return fit(draw, forward, params, draw(ROWS, 3, 4, 4, 1))


@entry
def conv_of_every_frame_grouped(draw: Draw) -> Entry:
    def forward(p, x):
        frames = x.reshape(-1, *x.shape[2:])
        h = jnp.tanh(conv(frames, p, (2, 1), feature_group_count=2))
        return h.reshape(*x.shape[:2], *h.shape[1:])

    return fit(draw, forward, draw.weight(3, 2, 1, 4), draw(ROWS, 3, 4, 3, 2))


@entry
def conv_of_one_image_by_vmap(draw: Draw) -> Entry:
    """Equinox and Haiku style: the model takes one image without a batch axis."""
    params = {"kernel": draw.weight(3, 3, 2, 3), "out": draw.weight(3, 2)}

    def one(p, image):
        h = jnp.tanh(conv(image[None], p["kernel"], (2, 2)))[0]
        return jnp.mean(h, axis=(0, 1)) @ p["out"]

    return fit(draw, jax.vmap(one, in_axes=(None, 0)), params, draw(ROWS, 4, 5, 2))


@entry
def conv_over_members(draw: Draw) -> Entry:
    """An ensemble: vmap over kernels turns the convolution into a grouped one."""
    member = lambda kernel, x: jnp.tanh(conv(x, kernel))
    forward = lambda p, x: jnp.moveaxis(jax.vmap(member, in_axes=(0, None))(p, x), 0, 1)
    return fit(draw, forward, draw(2, 3, 3, 2, 2) / 4, draw(ROWS, 4, 3, 2))


@entry
def conv_by_numpy(draw: Draw) -> Entry:
    """`jnp.convolve` flips its filter."""
    one = lambda p, x: jnp.tanh(jnp.convolve(x, p["filter"], mode="same")) @ p["out"]
    params = {"filter": draw(3), "out": draw(7)}
    return fit(draw, jax.vmap(one, in_axes=(None, 0)), params, draw(ROWS, 7))


@entry
def conv_kernel_from_data(draw: Draw) -> Entry:
    """Dynamic filters: every example makes its own kernel, the data is the right operand."""
    params = {"hyper": draw.weight(3, 6), "out": draw.weight(1, 1, 2, 2)}

    def one(p, x):
        kernel = jnp.tanh(x["code"] @ p["hyper"]).reshape(3, 1, 2)
        h = conv(x["signal"][None], kernel, (1,), "SAME", SIGNALS)
        return conv(h[:, None], p["out"])[0, 0]

    inputs = {"code": draw(ROWS, 3), "signal": draw(ROWS, 5, 1)}
    return fit(draw, jax.vmap(one, in_axes=(None, 0)), params, inputs)


@entry
def conv_by_patches(draw: Draw) -> Entry:
    """A vision transformer's patch embedding, by patches and a product."""

    def forward(p, x):
        patches = jax.lax.conv_general_dilated_patches(
            x, (2, 2), (2, 2), "VALID", dimension_numbers=IMAGES
        )
        return jnp.tanh(patches @ p["w"] + p["b"])

    return fit(draw, forward, {"w": draw.weight(8, 3), "b": draw(3)}, draw(ROWS, 4, 4, 2))


@entry
def conv_input_gradient_penalty(draw: Draw) -> Entry:
    """A critic with a penalty on its input gradient: the kernel also acts transposed."""
    params = {"kernel": draw.weight(3, 3, 2, 3), "out": draw(3)}

    def loss_fn(params, batch):
        def score(image):
            h = jnp.tanh(conv(image[None], params["kernel"], (2, 1)))
            return jnp.mean(h, axis=(0, 1, 2)) @ params["out"]

        values, slopes = jax.vmap(jax.value_and_grad(score))(batch)
        return jnp.mean(values + jnp.sum(slopes**2, axis=(1, 2, 3)))

    return Entry(loss_fn, params, draw(ROWS, 4, 3, 2))


@entry
def conv_of_a_learned_image(draw: Draw) -> Entry:
    """The parameter is the image, the kernels are data."""

    def one(p, kernel):
        return jnp.tanh(conv(p[None], kernel)[0])

    forward = lambda p, x: jax.lax.map(lambda kernel: one(p, kernel), x)
    return fit(draw, forward, draw(4, 3, 2), draw(ROWS, 2, 2, 2, 2))


@entry
def conv_by_fourier_transform(draw: Draw) -> Entry:
    """A filter as long as the signal, multiplied in the frequency domain."""

    def forward(p, x):
        spectrum = jnp.fft.rfft(x, n=12, axis=1) * jnp.fft.rfft(p["filter"], n=12, axis=0)
        return jnp.tanh(jnp.fft.irfft(spectrum, n=12, axis=1)[:, :6]) + x * p["skip"]

    return fit(draw, forward, {"filter": draw(6, 2), "skip": draw(2)}, draw(ROWS, 6, 2))


@entry
def conv_same_kernel_grouped_and_not(draw: Draw) -> Entry:
    """One kernel in two convolutions that see its axes differently."""

    def forward(p, x):
        depthwise = conv(x, p.reshape(3, 3, 1, 4), feature_group_count=2)
        return jnp.tanh(depthwise[..., 1:3]) + jnp.tanh(conv(x, p))

    return fit(draw, forward, draw(3, 3, 2, 2) / 4, draw(ROWS, 3, 4, 2))
