"""Parameters that are read by index: tables, tied tables, stacks of layers, experts."""

import jax
import jax.numpy as jnp
import numpy as np

from zoo.entry import ROWS, Draw, Entry, cross_entropy, entry, fit

TOKENS = 6  # positions; with 5 words, every row repeats some
WORDS = 5


def words(draw: Draw, num: int = WORDS):
    return draw.ids(num, ROWS, TOKENS)


@entry
def embedding(draw: Draw) -> Entry:
    """Repeated tokens: their cotangents add up before they are squared."""
    params = {"table": draw(WORDS, 4), "w": draw.weight(4, 3)}
    forward = lambda p, ids: jnp.tanh(p["table"][ids]) @ p["w"]
    return fit(draw, forward, params, words(draw))


@entry
def embedding_all_tokens_equal(draw: Draw) -> Entry:
    forward = lambda p, ids: jnp.tanh(jnp.take(p, ids, axis=0))
    return fit(draw, forward, draw(WORDS, 4), words(draw) * 0 + 2)


@entry
def embedding_of_one_token(draw: Draw) -> Entry:
    """Categories: one index an example."""
    return fit(draw, lambda p, ids: jnp.tanh(p[ids]), draw(WORDS, 4), draw.ids(WORDS, ROWS))


@entry
def embedding_of_a_bag(draw: Draw) -> Entry:
    forward = lambda p, ids: jnp.tanh(jnp.mean(p[ids], axis=1))
    return fit(draw, forward, draw(WORDS, 3), words(draw))


@entry
def embedding_one_hot(draw: Draw) -> Entry:
    def forward(p, ids):
        return jnp.tanh(jax.nn.one_hot(ids, WORDS, dtype=p.dtype) @ p)

    return fit(draw, forward, draw(WORDS, 4), words(draw))


@entry
def embedding_clipped(draw: Draw) -> Entry:
    """Indices beyond the table read its last row, negative ones its first."""
    ids = draw.ids(WORDS + 4, ROWS, TOKENS) - 2
    forward = lambda p, ids: jnp.tanh(jnp.take(p, ids, axis=0, mode="clip"))
    return fit(draw, forward, draw(WORDS, 3), ids)


@entry
def embedding_filled(draw: Draw) -> Entry:
    """Indices beyond the table read a constant, and give no gradient."""
    forward = lambda p, ids: jnp.tanh(jnp.take(p, ids, axis=0, mode="fill", fill_value=0.5))
    return fit(draw, forward, draw(WORDS, 3), draw.ids(WORDS + 3, ROWS, TOKENS))


@entry
def embedding_wrapped(draw: Draw) -> Entry:
    """Negative indices count from the end."""
    forward = lambda p, ids: jnp.tanh(p[ids])
    return fit(draw, forward, draw(WORDS, 3), words(draw) - 3)


@entry
def embedding_promised_in_bounds(draw: Draw) -> Entry:
    forward = lambda p, ids: jnp.tanh(p.at[ids].get(mode="promise_in_bounds"))
    return fit(draw, forward, draw(WORDS, 3), words(draw))


@entry
def embedding_with_padding_row(draw: Draw) -> Entry:
    """Word 0 is padding: its row is never trained, and its positions do not count."""

    def loss_fn(params, batch):
        real = (batch["ids"] > 0).astype(params["w"].dtype)
        table = params["table"].at[0].set(0)
        h = jnp.tanh(table[batch["ids"]]) * real[..., None]
        mean = jnp.sum(h, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)[:, None]
        return cross_entropy(mean @ params["w"], batch["y"])

    params = {"table": draw(WORDS, 4), "w": draw.weight(4, 3)}
    return Entry(loss_fn, params, {"ids": words(draw), "y": draw.ids(3, ROWS)})


@entry
def embedding_columns(draw: Draw) -> Entry:
    """The words stand on the second axis."""
    forward = lambda p, ids: jnp.moveaxis(jnp.tanh(jnp.take(p, ids, axis=1)), 0, -1)
    return fit(draw, forward, draw(3, WORDS), words(draw))


@entry
def embedding_two_indices(draw: Draw) -> Entry:
    """A table with two axes of words, read at pairs; and single numbers read at pairs."""
    params = {"vectors": draw(3, WORDS, 2), "numbers": draw(3, WORDS)}

    def forward(p, x):
        scale = p["numbers"][x["user"], x["item"]]
        return jnp.tanh(p["vectors"][x["user"], x["item"]] * scale[..., None])

    return fit(draw, forward, params, {"user": draw.ids(3, ROWS, TOKENS), "item": words(draw)})


@entry
def matrix_factorisation(draw: Draw) -> Entry:
    params = {"user": draw(4, 3), "item": draw(5, 3), "user_bias": draw(4), "item_bias": draw(5)}

    def forward(p, x):
        u, i = x["user"], x["item"]
        return jnp.sum(p["user"][u] * p["item"][i], -1) + p["user_bias"][u] + p["item_bias"][i]

    return fit(draw, forward, params, {"user": draw.ids(4, ROWS), "item": draw.ids(5, ROWS)})


@entry
def embedding_of_windows(draw: Draw) -> Entry:
    """A slice of a parameter that starts where the data says."""

    def one(p, start):
        return jnp.tanh(jax.lax.dynamic_slice_in_dim(p, start, 3))

    return fit(draw, jax.vmap(one, in_axes=(None, 0)), draw(7, 2), draw.ids(5, ROWS))


@entry
def tied_embedding(draw: Draw) -> Entry:
    """One table embeds the words (with repeats) and scores them: cross terms between both."""

    def loss_fn(params, batch):
        h = jnp.tanh(params["table"][batch["ids"]] @ params["w"])
        return cross_entropy(h @ params["table"].T, batch["next"])

    params = {"table": draw.weight(WORDS, 4), "w": draw.weight(4, 4)}
    return Entry(loss_fn, params, {"ids": words(draw), "next": words(draw)})


@entry
def tied_embedding_by_einsum(draw: Draw) -> Entry:
    """Scaled as in Gemma, scored through an einsum, with a bias for every word."""

    def loss_fn(params, batch):
        h = jnp.take(params["table"], batch["ids"], axis=0) * 2.0
        logits = jnp.einsum("btd,vd->btv", jax.nn.silu(h), params["table"]) + params["b"]
        return cross_entropy(logits, batch["next"])

    params = {"table": draw.weight(WORDS, 4), "b": draw(WORDS)}
    return Entry(loss_fn, params, {"ids": words(draw), "next": words(draw)})


@entry
def table_read_twice(draw: Draw) -> Entry:
    """Skip-gram with one table: both words of a pair are gathered from it."""

    def forward(p, x):
        return jnp.sum(p[x["word"]] * p[x["context"]], axis=-1)

    return fit(draw, forward, draw(WORDS, 3), {"word": words(draw), "context": words(draw)})


@entry
def positions_and_class_token(draw: Draw) -> Entry:
    """p[:T], and a learned token concatenated before the data."""
    params = {"positions": draw(9, 3), "token": draw(1, 1, 3), "w": draw.weight(3, 3)}

    def forward(p, x):
        token = jnp.broadcast_to(p["token"], (x.shape[0], 1, 3))
        h = jnp.concatenate([token, x], axis=1) + p["positions"][: x.shape[1] + 1]
        return jnp.tanh(h @ p["w"])[:, 0]

    return fit(draw, forward, params, draw(ROWS, 4, 3))


@entry
def layers_indexed_statically(draw: Draw) -> Entry:
    """Stacked layers, read as w[0], w[1], w[-1]."""
    params = {"w": draw(3, 4, 4) / 2, "b": draw(3, 4)}

    def forward(p, x):
        for i in (0, 1, -1):
            x = jnp.tanh(x @ p["w"][i] + p["b"][i])
        return x

    return fit(draw, forward, params, draw(ROWS, 2, 4))


@entry
def layers_indexed_by_a_loop(draw: Draw) -> Entry:
    """Stacked layers, read as w[i] with a traced counter."""
    params = {"w": draw(3, 4, 4) / 2, "b": draw(3, 4)}

    def forward(p, x):
        layer = lambda i, h: jnp.tanh(h @ p["w"][i] + p["b"][i])
        return jax.lax.fori_loop(0, 3, layer, x)

    return fit(draw, forward, params, draw(ROWS, 4))


@entry
def layers_unstacked(draw: Draw) -> Entry:
    """Stacked layers, taken apart in a Python loop over them."""

    def forward(p, x):
        for w in p:
            x = jnp.tanh(x @ w)
        return x

    return fit(draw, forward, draw(3, 4, 4) / 2, draw(ROWS, 4))


@entry
def experts_by_one_hot(draw: Draw) -> Entry:
    """Two of four experts for every token, dispatched and combined by einsum."""
    params = {"router": draw(3, 4), "in": draw(4, 3, 5) / 2, "out": draw(4, 5, 3) / 2}

    def forward(p, x):
        gates, chosen = jax.lax.top_k(x @ p["router"], 2)
        one_hot = jax.nn.one_hot(chosen, 4, dtype=x.dtype)
        combine = jnp.einsum("btk,btke->bte", jax.nn.softmax(gates), one_hot)
        dispatched = jnp.einsum("bte,btd->betd", jnp.sum(one_hot, axis=2), x)
        h = jax.nn.gelu(jnp.einsum("betd,edf->betf", dispatched, p["in"]))
        return jnp.einsum("betf,efd,bte->btd", h, p["out"], combine)

    return fit(draw, forward, params, draw(ROWS, 4, 3))


@entry
def experts_by_index(draw: Draw) -> Entry:
    """The weights of the chosen expert are gathered for every token."""
    params = {"router": draw(3, 4), "w": draw(4, 3, 2), "b": draw(4, 2)}

    def forward(p, x):
        gates, chosen = jax.lax.top_k(jax.nn.softmax(x @ p["router"]), 2)
        h = jnp.einsum("btd,btkdf->btkf", x, p["w"][chosen]) + p["b"][chosen]
        return jnp.sum(gates[..., None] * jnp.tanh(h), axis=2)

    return fit(draw, forward, params, draw(ROWS, 4, 3))


@entry
def expert_of_the_example(draw: Draw) -> Entry:
    """One expert for the whole example, named by the data."""
    one = lambda p, x: jnp.tanh(x["x"] @ p[x["expert"]])
    inputs = {"x": draw(ROWS, 4, 3), "expert": draw.ids(3, ROWS)}
    return fit(draw, jax.vmap(one, in_axes=(None, 0)), draw(3, 3, 2), inputs)


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


@entry
def table_read_by_rows_and_by_columns(draw: Draw) -> Entry:
    def forward(p, x):
        return jnp.tanh(p[x["row"]]).sum(-1) * jnp.tanh(p.T[x["column"]]).sum(-1)

    inputs = {"row": draw.ids(WORDS, ROWS, TOKENS), "column": draw.ids(3, ROWS, TOKENS)}
    return fit(draw, forward, draw(WORDS, 3), inputs)
