"""Models of Flax: linen, and nnx by split and merge."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from zoo.entry import ROWS, Draw, Entry, cross_entropy, entry, fit

TOKENS, WIDTH, WORDS = 4, 4, 5


def applied(module: nn.Module) -> Callable[..., Any]:
    """``f(variables, inputs)`` → outputs, without mutable collections."""
    return lambda variables, x: module.apply(variables, x)


def linen(draw: Draw, module: nn.Module, inputs, **options) -> Entry:
    """An entry whose parameters have the shapes of ``module.init``."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs)
    return fit(draw, applied(module), draw.like(shapes), inputs, **options)


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm()(x)
        mask = nn.make_causal_mask(h[..., 0])
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(h, h, mask=mask)
        h = nn.LayerNorm()(x)
        return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(6)(h)))


class LinenTransformer(nn.Module):
    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(WORDS, WIDTH)
        positions = self.param("positions", nn.initializers.normal(), (TOKENS, WIDTH))
        x = embed(ids) + positions
        for _ in range(2):
            x = LinenBlock()(x)
        return embed.attend(nn.RMSNorm()(x))


@entry
def linen_transformer(draw: Draw) -> Entry:
    """Pre-LN, with tied embeddings."""
    module = LinenTransformer()
    ids, following = draw.ids(WORDS, ROWS, TOKENS), draw.ids(WORDS, ROWS, TOKENS)
    params = draw.like(jax.eval_shape(module.init, jax.random.key(0), ids))

    def loss_fn(params, batch):
        return cross_entropy(applied(module)(params, batch["ids"]), batch["next"])

    return Entry(loss_fn, params, {"ids": ids, "next": following})


class LinenCarryBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + jnp.tanh(nn.Dense(WIDTH)(nn.LayerNorm()(x))), None


class LinenScan(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            nn.remat(LinenCarryBlock, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        return layers()(x, None)[0]


@entry
def linen_scan_over_layers(draw: Draw) -> Entry:
    return linen(draw, LinenScan(), draw(ROWS, 2, WIDTH))


class LinenCNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.GroupNorm(num_groups=2)(nn.Conv(4, (3, 3), strides=2)(x)))
        x = nn.silu(nn.Conv(4, (3, 3), feature_group_count=4)(x))
        x = nn.avg_pool(nn.ConvTranspose(3, (2, 2), strides=(2, 2))(x), (2, 2), (2, 2))
        return nn.DenseGeneral(3, axis=(-3, -2, -1))(x)


@entry
def linen_cnn(draw: Draw) -> Entry:
    """Strided, depthwise and transposed convolutions, GroupNorm, a dense head on all axes."""
    return linen(draw, LinenCNN(), draw(ROWS, 6, 4, 2))


class LinenRecurrent(nn.Module):
    cell: str

    @nn.compact
    def __call__(self, x):
        cell = getattr(nn, self.cell)(3, dtype=x.dtype, param_dtype=x.dtype)
        return nn.RNN(cell)(x)


@entry
def linen_lstm(draw: Draw) -> Entry:
    return linen(draw, LinenRecurrent("OptimizedLSTMCell"), draw(ROWS, 4, 2))


@entry
def linen_gru(draw: Draw) -> Entry:
    return linen(draw, LinenRecurrent("GRUCell"), draw(ROWS, 4, 2))


class LinenWeightNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.WeightNorm(nn.Dense(3))(jnp.tanh(nn.WeightNorm(nn.Dense(5))(x)))


@entry
def linen_weight_norm(draw: Draw) -> Entry:
    return linen(draw, LinenWeightNorm(), draw(ROWS, 4))


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)])
        self.attention = nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs)
        self.wide = nnx.Linear(WIDTH, 6, rngs=rngs)
        self.narrow = nnx.Linear(6, WIDTH, rngs=rngs)

    def __call__(self, x):
        h = self.norms[0](x)
        x = x + self.attention(h, mask=nnx.make_causal_mask(h[..., 0]))
        return x + self.narrow(nnx.gelu(self.wide(self.norms[1](x))))


class NnxTransformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(WORDS, WIDTH, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((TOKENS, WIDTH)))
        self.blocks = nnx.List([NnxBlock(rngs), NnxBlock(rngs)])
        self.head = nnx.Linear(WIDTH, WORDS, rngs=rngs)

    def __call__(self, ids):
        x = self.embed(ids) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def nnx_parts(draw: Draw, make):
    """Graph and drawn parameters of an abstract nnx model."""
    graph, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param)
    return graph, draw.like(state)


@entry
def nnx_transformer(draw: Draw) -> Entry:
    """The parameters are an `nnx.State`; the loss merges them into the module."""
    graph, state = nnx_parts(draw, NnxTransformer)

    def loss_fn(state, batch):
        return cross_entropy(nnx.merge(graph, state)(batch["ids"]), batch["next"])

    ids = lambda: draw.ids(WORDS, ROWS, TOKENS)
    return Entry(loss_fn, state, {"ids": ids(), "next": ids()})


class NnxCNN(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.GroupNorm(4, num_groups=2, rngs=rngs)
        self.dilated = nnx.Conv(4, 4, (3, 3), kernel_dilation=2, feature_group_count=2, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.head(jnp.mean(jnp.tanh(self.dilated(x)), axis=(1, 2)))


@entry
def nnx_cnn(draw: Draw) -> Entry:
    graph, state = nnx_parts(draw, NnxCNN)
    return fit(draw, lambda p, x: nnx.merge(graph, p)(x), state, draw(ROWS, 6, 6, 2))
