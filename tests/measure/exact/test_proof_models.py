"""Flax models: BatchNorm in training mode is refused, all else is proved to be a mean."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from proving import check, check_separable

pytestmark = [pytest.mark.sampled, pytest.mark.topic("mixing losses")]

ROWS, CLASSES = 4, 5
KEY = jax.random.key(0)
IMAGES = jnp.ones((ROWS, 8, 8, 3))
VECTORS = jnp.ones((ROWS, 8))
SEQUENCES = jnp.ones((ROWS, 6, 8))
TOKENS = jnp.zeros((ROWS, 6), jnp.int32)
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.gelu(nn.WeightNorm(nn.Dense(8))(x)))
        return nn.Dense(CLASSES)(nn.Dropout(0.5, deterministic=False)(x))


class CNN(nn.Module):
    norm: nn.Module

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(self.norm(nn.Conv(4, (3, 3))(x))), (2, 2), (2, 2))
        x = nn.avg_pool(nn.Conv(4, (3, 3), strides=2, feature_group_count=4)(x), (1, 1))
        x = nn.ConvTranspose(3, (3, 3), strides=(2, 2))(x)
        return nn.Dense(CLASSES)(x.reshape(x.shape[0], -1))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        h, mask = nn.LayerNorm()(x), nn.make_causal_mask(jnp.ones(x.shape[:2]))
        attention = nn.MultiHeadDotProductAttention(2, dropout_rate=0.1, deterministic=False)
        x = x + attention(h, h, mask=mask)
        return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x)))), None


class Transformer(nn.Module):
    scanned: bool = False

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(CLASSES, 8)
        x = embed(tokens) + self.param("positions", nn.initializers.ones, (1, 6, 8))
        block = Block
        if self.scanned:
            splits: Any = {"params": True, "dropout": True}
            block = nn.scan(
                nn.remat(Block), variable_axes={"params": 0}, split_rngs=splits, length=2
            )
        x, _ = block()(x)
        return embed.attend(nn.LayerNorm()(x)).mean(axis=1)


class Patches(nn.Module):
    """A vision transformer with a class token, and windows shifted and cut as in Swin."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (2, 2), (2, 2))(x)
        rows, height, width, depth = x.shape
        x = jnp.roll(x, (-1, -1), axis=(1, 2)).reshape(rows, 2, 2, 2, 2, depth)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, depth)
        x = Block()(x)[0].reshape(rows, height * width, depth)
        token = jnp.broadcast_to(self.param("class", nn.initializers.ones, (1, 1, 8)), (rows, 1, 8))
        return nn.Dense(CLASSES)(Block()(jnp.concatenate([token, x], axis=1))[0][:, 0])


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        lengths = jnp.sum(x[..., 0] > 0, axis=1)
        forward: Any = nn.RNN(nn.LSTMCell(4))(x, seq_lengths=lengths)
        backward: Any = nn.RNN(nn.GRUCell(4), reverse=True, keep_order=True)(x)
        last = jnp.take_along_axis(forward, lengths[:, None, None] - 1, axis=1)[:, 0]
        return nn.Dense(CLASSES)(jnp.concatenate([last, backward[:, 0]], axis=1))


class Experts(nn.Module):
    """Top-k routing of tokens that were flattened over the batch: each keeps to itself."""

    @nn.compact
    def __call__(self, x):
        tokens = x.reshape(-1, x.shape[-1])
        gates, chosen = jax.lax.top_k(jax.nn.softmax(nn.Dense(3)(tokens)), 2)
        weights = jnp.sum(jax.nn.one_hot(chosen, 3) * gates[..., None], axis=1)
        kernel = self.param("kernel", nn.initializers.ones, (3, 8, CLASSES))
        out = jnp.einsum("nd,edf,ne->nf", tokens, kernel, weights)
        return out.reshape(*x.shape[:2], CLASSES).mean(axis=1)


def linen(model, inputs):
    """``(loss_fn, params, batch, args)``."""
    shapes = jax.eval_shape(model.init, {"params": KEY, "dropout": KEY}, inputs)
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    rest = {name: value for name, value in variables.items() if name != "params"}

    def loss_fn(params, batch, key):
        variables = {"params": params, **rest}
        logits, _ = model.apply(variables, batch["x"], rngs={"dropout": key}, mutable=list(rest))
        return cross_entropy(logits, batch["y"]).mean()

    batch = {"x": inputs, "y": jnp.zeros(ROWS, jnp.int32)}
    return loss_fn, variables["params"], batch, (KEY,)


class NNXModel(nnx.Module):
    def __init__(self, rngs, norm):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = norm
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.linear = nnx.Linear(4, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).reshape(x.shape[0], -1, 4)
        return self.linear(self.dropout(self.attention(x)).mean(axis=1))


def nnx_split(norm, training=True):
    """As `linen`; the statistics and random state of the model are an extra argument."""
    model = NNXModel(nnx.Rngs(0), norm)
    if not training:
        model.eval()
    parts: Any = nnx.split(model, nnx.Param, ...)
    graph, params, rest = parts

    def loss_fn(params, batch, rest):
        logits = nnx.merge(graph, params, rest)(batch["x"])
        return cross_entropy(logits, batch["y"]).mean()

    return loss_fn, params, {"x": IMAGES, "y": jnp.zeros(ROWS, jnp.int32)}, (rest,)


# A model that keeps its random state draws the same for every part of a batch.
KEPT_KEYS = ["nnx with GroupNorm"]
SEPARATE = {
    "MLP": lambda: linen(MLP(), VECTORS),
    "CNN with GroupNorm": lambda: linen(CNN(nn.GroupNorm(2)), IMAGES),
    "CNN with InstanceNorm": lambda: linen(CNN(nn.InstanceNorm()), IMAGES),
    "CNN with BatchNorm in use": lambda: linen(CNN(nn.BatchNorm(use_running_average=True)), IMAGES),
    "transformer": lambda: linen(Transformer(), TOKENS),
    "transformer scanned, remat": lambda: linen(Transformer(scanned=True), TOKENS),
    "vision transformer": lambda: linen(Patches(), IMAGES),
    "LSTM and GRU": lambda: linen(Recurrent(), SEQUENCES),
    "mixture of experts": lambda: linen(Experts(), SEQUENCES),
    "nnx with GroupNorm": lambda: nnx_split(nnx.GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))),
    "nnx with BatchNorm in use": lambda: nnx_split(
        nnx.BatchNorm(4, rngs=nnx.Rngs(0)), training=False
    ),
}


@pytest.mark.parametrize("name", SEPARATE)
def test_models_without_batchnorm_are_means(name):
    loss_fn, params, batch, args = SEPARATE[name]()
    check_separable(loss_fn, params, batch, args)
    if name in KEPT_KEYS:
        with pytest.raises(ValueError, match=r"Dropout.* numbers drawn from a random key"):
            check(loss_fn, params, batch, args)
    else:
        check(loss_fn, params, batch, args, key_argnums=2 if len(args) and args[0] is KEY else ())


@pytest.mark.parametrize(
    ("problem", "where"),
    [
        pytest.param(
            lambda: linen(CNN(nn.BatchNorm(use_running_average=False)), IMAGES),
            r" in CNN/norm.* at \S*flax/linen/normalization\.py",
            id="linen",
        ),
        pytest.param(
            lambda: nnx_split(nnx.BatchNorm(4, rngs=nnx.Rngs(0))),
            r" at \S*flax/nnx/nn/normalization\.py",
            id="nnx",
        ),
    ],
)
def test_batchnorm_in_training_mode_is_named(problem, where):
    for prove in (check_separable, check):
        with pytest.raises(ValueError, match=rf"sub\(float32\[4,8,8,4\], .*{where}.*BatchNorm"):
            prove(*problem())


def test_a_module_among_the_arguments_is_not_changed():
    """Its dropout counts the keys it has drawn, in a trace that ends."""
    loss_fn, params, batch, (rest,) = SEPARATE["nnx with GroupNorm"]()
    before = jax.tree.leaves(rest)
    check_separable(loss_fn, params, batch, (rest,))
    with pytest.raises(ValueError, match="drawn from a random key"):
        check(loss_fn, params, batch, (rest,))
    assert all(a is b for a, b in zip(before, jax.tree.leaves(rest), strict=True))


def test_a_module_as_parameters():
    model = nnx.Linear(8, CLASSES, rngs=nnx.Rngs(0))
    loss_fn = lambda model, batch: cross_entropy(model(batch["x"]), batch["y"]).mean()
    check(loss_fn, model, {"x": VECTORS, "y": jnp.zeros(ROWS, jnp.int32)}, ())
