"""A byte-level transformer in Flax nnx, and where its parameters lie on a mesh (data, model)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import NamedSharding, P


class Block(nnx.Module):
    """Attention and MLP, each behind a layer norm (pre-LN)."""

    def __init__(self, width: int, heads: int, dtype: Any, rngs: nnx.Rngs) -> None:
        shared: dict[str, Any] = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        size = width // heads
        self.norm1 = nnx.LayerNorm(width, **shared)
        self.qkv = nnx.LinearGeneral(width, (3, heads, size), **shared)
        self.out = nnx.LinearGeneral((heads, size), width, axis=(-2, -1), **shared)
        self.norm2 = nnx.LayerNorm(width, **shared)
        self.up = nnx.Linear(width, 4 * width, **shared)
        self.down = nnx.Linear(4 * width, width, **shared)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[rows, length, width] → the same."""
        x = on_data_axis(x)
        query, key, value = jnp.moveaxis(self.qkv(self.norm1(x)), -3, 0)
        x = x + self.out(jax.nn.dot_product_attention(query, key, value, is_causal=True))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
    """Scores of the next byte; parameters are float32, arithmetic is in `dtype`."""

    def __init__(
        self, layers: int, width: int, heads: int, length: int, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        self.bytes = nnx.Embed(256, width, dtype=dtype, rngs=rngs)
        self.places = nnx.Embed(length, width, dtype=dtype, rngs=rngs)

        @nnx.split_rngs(splits=layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked(rngs: nnx.Rngs) -> Block:
            return Block(width, heads, dtype, rngs)

        self.blocks = stacked(rngs)  # one module whose parameters have a leading axis of layers
        self.norm = nnx.LayerNorm(width, use_bias=False, dtype=dtype, rngs=rngs)
        self.scores = nnx.Linear(width, 256, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        """Bytes [rows, length] → float32 scores [rows, length, 256]."""
        x = on_data_axis(self.bytes(text) + self.places(jnp.arange(text.shape[1])))

        # One layer is compiled once and run for all; its activations are computed again in the
        # backward pass instead of being kept.
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        @nnx.remat
        def run(x: jax.Array, block: Block) -> jax.Array:
            return block(x)

        x = on_data_axis(run(x, self.blocks))
        return self.scores(self.norm(x)).astype(jnp.float32)


def on_data_axis(x: jax.Array) -> jax.Array:
    """Keeps rows cut over `data` of the mesh that is set (`jax.set_mesh`).

    Where parameters are cut over `data` as well, XLA then gathers the parameters of one layer
    instead of the rows of all devices.
    """
    return jax.lax.with_sharding_constraint(x, P("data"))


def shardings(params: Any, mesh: jax.sharding.Mesh, fsdp: bool) -> Any:
    """Where each parameter lies on the mesh: cut over `model` by heads and hidden units.

    Args:
        params: The parameters, or their shapes.
        mesh: A mesh with the axes ``data`` and ``model``.
        fsdp: Whether they are cut over `data` as well (fully sharded), rather than replicated.
    """
    rest = "data" if fsdp else None
    specs = {
        "qkv": P(None, rest, None, "model", None),  # layers, width, q/k/v, heads, size
        "out": P(None, "model", None, rest),
        "up": P(None, rest, "model"),
        "down": P(None, "model", rest),
        "scores": P(rest, "model"),
    }

    def place(path: Any, leaf: Any) -> NamedSharding:
        names = [entry.key for entry in path if hasattr(entry, "key")]
        spec = next((specs[name] for name in names if name in specs), P())
        return NamedSharding(mesh, spec)  # embeddings and layer norms lie everywhere

    return jax.tree_util.tree_map_with_path(place, params)
