"""Parameters that are read by index: tables, tied tables, stacks of layers, experts."""

import jax
import jax.numpy as jnp
import numpy as np

from zoo.entry import ROWS, Draw, Entry, cross_entropy, entry, fit, fitted, with_loss

TOKENS = 6  # positions; with 5 words, every row repeats some
WORDS = 5


def words(draw: Draw, num: int = WORDS):
    return draw.ids(num, ROWS, TOKENS)


@fitted(lambda draw: {"table": draw(WORDS, 4), "w": draw.weight(4, 3)}, words)
def embedding(p, ids):
    """Repeated tokens: their cotangents add up before they are squared."""
    return jnp.tanh(p["table"][ids]) @ p["w"]


@fitted(lambda draw: draw(WORDS, 4), lambda draw: words(draw) * 0 + 2)
def embedding_all_tokens_equal(p, ids):
    return jnp.tanh(jnp.take(p, ids, axis=0))


@fitted(lambda draw: draw(WORDS, 4), lambda draw: draw.ids(WORDS, ROWS))
def embedding_of_one_token(p, ids):
    """Categories: one index an example."""
    return jnp.tanh(p[ids])


@fitted(lambda draw: draw(WORDS, 3), words)
def embedding_of_a_bag(p, ids):
    return jnp.tanh(jnp.mean(p[ids], axis=1))


@fitted(lambda draw: draw(WORDS, 4), words)
def embedding_one_hot(p, ids):
    return jnp.tanh(jax.nn.one_hot(ids, WORDS, dtype=p.dtype) @ p)


@entry
def embedding_clipped(draw: Draw) -> Entry:
    """Indices beyond the table read its last row, negative ones its first."""
    ids = draw.ids(WORDS + 4, ROWS, TOKENS) - 2
    forward = lambda p, ids: jnp.tanh(jnp.take(p, ids, axis=0, mode="clip"))
    return fit(draw, forward, draw(WORDS, 3), ids)


@fitted(lambda draw: draw(WORDS, 3), lambda draw: draw.ids(WORDS + 3, ROWS, TOKENS))
def embedding_filled(p, ids):
    """Indices beyond the table read a constant, and give no gradient."""
    return jnp.tanh(jnp.take(p, ids, axis=0, mode="fill", fill_value=0.5))


@fitted(lambda draw: draw(WORDS, 3), lambda draw: words(draw) - 3)
def embedding_wrapped(p, ids):
    """Negative indices count from the end."""
    return jnp.tanh(p[ids])


@fitted(lambda draw: draw(WORDS, 3), words)
def embedding_promised_in_bounds(p, ids):
    return jnp.tanh(p.at[ids].get(mode="promise_in_bounds"))


@with_loss(
    lambda draw: {"table": draw(WORDS, 4), "w": draw.weight(4, 3)},
    lambda draw: {"ids": words(draw), "y": draw.ids(3, ROWS)},
)
def embedding_with_padding_row(params, batch):
    """Word 0 is padding: its row is never trained, and its positions do not count."""
    real = (batch["ids"] > 0).astype(params["w"].dtype)
    table = params["table"].at[0].set(0)
    h = jnp.tanh(table[batch["ids"]]) * real[..., None]
    mean = jnp.sum(h, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)[:, None]
    return cross_entropy(mean @ params["w"], batch["y"])


@fitted(lambda draw: draw(3, WORDS), words)
def embedding_columns(p, ids):
    """The words stand on the second axis."""
    return jnp.moveaxis(jnp.tanh(jnp.take(p, ids, axis=1)), 0, -1)


@fitted(
    lambda draw: {"vectors": draw(3, WORDS, 2), "numbers": draw(3, WORDS)},
    lambda draw: {"user": draw.ids(3, ROWS, TOKENS), "item": words(draw)},
)
def embedding_two_indices(p, x):
    """A table with two axes of words, read at pairs; and single numbers read at pairs."""
    scale = p["numbers"][x["user"], x["item"]]
    return jnp.tanh(p["vectors"][x["user"], x["item"]] * scale[..., None])


@fitted(
    lambda draw: {
        "user": draw(4, 3),
        "item": draw(5, 3),
        "user_bias": draw(4),
        "item_bias": draw(5),
    },
    lambda draw: {"user": draw.ids(4, ROWS), "item": draw.ids(5, ROWS)},
)
def matrix_factorisation(p, x):
    u, i = x["user"], x["item"]
    return jnp.sum(p["user"][u] * p["item"][i], -1) + p["user_bias"][u] + p["item_bias"][i]


@fitted(lambda draw: draw(7, 2), lambda draw: draw.ids(5, ROWS), each=True)
def embedding_of_windows(p, start):
    """A slice of a parameter that starts where the data says."""
    return jnp.tanh(jax.lax.dynamic_slice_in_dim(p, start, 3))


@with_loss(
    lambda draw: {"table": draw.weight(WORDS, 4), "w": draw.weight(4, 4)},
    lambda draw: {"ids": words(draw), "next": words(draw)},
)
def tied_embedding(params, batch):
    """One table embeds the words (with repeats) and scores them: cross terms between both."""
    h = jnp.tanh(params["table"][batch["ids"]] @ params["w"])
    return cross_entropy(h @ params["table"].T, batch["next"])


@with_loss(
    lambda draw: {"table": draw.weight(WORDS, 4), "b": draw(WORDS)},
    lambda draw: {"ids": words(draw), "next": words(draw)},
)
def tied_embedding_by_einsum(params, batch):
    """Scaled as in Gemma, scored through an einsum, with a bias for every word."""
    h = jnp.take(params["table"], batch["ids"], axis=0) * 2.0
    logits = jnp.einsum("btd,vd->btv", jax.nn.silu(h), params["table"]) + params["b"]
    return cross_entropy(logits, batch["next"])


@fitted(lambda draw: draw(WORDS, 3), lambda draw: {"word": words(draw), "context": words(draw)})
def table_read_twice(p, x):
    """Skip-gram with one table: both words of a pair are gathered from it."""
    return jnp.sum(p[x["word"]] * p[x["context"]], axis=-1)


@fitted(
    lambda draw: {"positions": draw(9, 3), "token": draw(1, 1, 3), "w": draw.weight(3, 3)},
    lambda draw: draw(ROWS, 4, 3),
)
def positions_and_class_token(p, x):
    """p[:T], and a learned token concatenated before the data."""
    token = jnp.broadcast_to(p["token"], (x.shape[0], 1, 3))
    h = jnp.concatenate([token, x], axis=1) + p["positions"][: x.shape[1] + 1]
    return jnp.tanh(h @ p["w"])[:, 0]


@fitted(lambda draw: {"w": draw(3, 4, 4) / 2, "b": draw(3, 4)}, lambda draw: draw(ROWS, 2, 4))
def layers_indexed_statically(p, x):
    """Stacked layers, read as w[0], w[1], w[-1]."""
    for i in (0, 1, -1):
        x = jnp.tanh(x @ p["w"][i] + p["b"][i])
    return x


@fitted(lambda draw: {"w": draw(3, 4, 4) / 2, "b": draw(3, 4)}, lambda draw: draw(ROWS, 4))
def layers_indexed_by_a_loop(p, x):
    """Stacked layers, read as w[i] with a traced counter."""
    layer = lambda i, h: jnp.tanh(h @ p["w"][i] + p["b"][i])
    return jax.lax.fori_loop(0, 3, layer, x)


@fitted(lambda draw: draw(3, 4, 4) / 2, lambda draw: draw(ROWS, 4))
def layers_unstacked(p, x):
    """Stacked layers, taken apart in a Python loop over them."""
    for w in p:
        x = jnp.tanh(x @ w)
    return x


@fitted(
    lambda draw: {"router": draw(3, 4), "in": draw(4, 3, 5) / 2, "out": draw(4, 5, 3) / 2},
    lambda draw: draw(ROWS, 4, 3),
)
def experts_by_one_hot(p, x):
    """Two of four experts for every token, dispatched and combined by einsum."""
    gates, chosen = jax.lax.top_k(x @ p["router"], 2)
    one_hot = jax.nn.one_hot(chosen, 4, dtype=x.dtype)
    combine = jnp.einsum("btk,btke->bte", jax.nn.softmax(gates), one_hot)
    dispatched = jnp.einsum("bte,btd->betd", jnp.sum(one_hot, axis=2), x)
    h = jax.nn.gelu(jnp.einsum("betd,edf->betf", dispatched, p["in"]))
    return jnp.einsum("betf,efd,bte->btd", h, p["out"], combine)


@fitted(
    lambda draw: {"router": draw(3, 4), "w": draw(4, 3, 2), "b": draw(4, 2)},
    lambda draw: draw(ROWS, 4, 3),
)
def experts_by_index(p, x):
    """The weights of the chosen expert are gathered for every token."""
    gates, chosen = jax.lax.top_k(jax.nn.softmax(x @ p["router"]), 2)
    h = jnp.einsum("btd,btkdf->btkf", x, p["w"][chosen]) + p["b"][chosen]
    return jnp.sum(gates[..., None] * jnp.tanh(h), axis=2)


@fitted(
    lambda draw: draw(3, 3, 2),
    lambda draw: {"x": draw(ROWS, 4, 3), "expert": draw.ids(3, ROWS)},
    each=True,
)
def expert_of_the_example(p, x):
    """One expert for the whole example, named by the data."""
    return jnp.tanh(x["x"] @ p[x["expert"]])


@entry
def layer_named_by_an_argument(draw: Draw) -> Entry:
    """The same layer for all examples, its number an extra argument; the stack is read twice."""
    params = {"w": draw(3, 4, 4) / 2, "b": draw(3, 4)}

    def loss_fn(params, batch, layer):
        h = jnp.tanh(batch["x"] @ params["w"][layer] + params["b"][layer])
        return jnp.mean((h @ params["w"][0] - batch["y"]) ** 2)

    batch = {"x": draw(ROWS, 4), "y": draw(ROWS, 4)}
    return Entry(loss_fn, params, batch, args=(np.int32(1),))


@entry
def part_that_starts_at_an_argument(draw: Draw) -> Entry:
    """A slice whose start is computed, of a weight that nothing else reads."""

    def loss_fn(params, batch, start):
        part = jax.lax.dynamic_slice(params, (2 * start, start - 1), (4, 3))
        return jnp.mean((jnp.tanh(batch["x"] @ part) - batch["y"]) ** 2)

    batch = {"x": draw(ROWS, 4), "y": draw(ROWS, 3)}
    return Entry(loss_fn, draw(7, 4), batch, args=(np.int32(1),))


@entry
def rows_of_a_table_named_by_an_argument(draw: Draw) -> Entry:
    """A gather by indices that all examples share: a part of the table, some rows twice."""

    def loss_fn(params, batch, chosen):
        h = jnp.tanh(batch["x"] @ params["table"][chosen].T)
        return jnp.mean((h + params["b"][chosen] - batch["y"]) ** 2)

    params = {"table": draw(WORDS, 3), "b": draw(WORDS)}
    args = (np.array([3, 1, 1, 4], np.int32),)
    return Entry(loss_fn, params, {"x": draw(ROWS, 3), "y": draw(ROWS, 4)}, args=args)


@entry
def halves_of_a_table(draw: Draw) -> Entry:
    """Two embeddings and a product read parts of one parameter, two of which overlap."""
    table = draw(7, 4)

    def forward(p, ids):
        words, others = p[:4], p[2:]
        return jnp.tanh(words[ids] + others[ids])[..., 1:] @ p[3:6, :3]

    return fit(draw, forward, table, draw.ids(4, ROWS, TOKENS))


@fitted(
    lambda draw: draw(WORDS, 3),
    lambda draw: {"row": draw.ids(WORDS, ROWS, TOKENS), "column": draw.ids(3, ROWS, TOKENS)},
)
def table_read_by_rows_and_by_columns(p, x):
    return jnp.tanh(p[x["row"]]).sum(-1) * jnp.tanh(p.T[x["column"]]).sum(-1)
