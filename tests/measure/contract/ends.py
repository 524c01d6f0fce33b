"""How random losses end: a loss of rows or tokens, its reduction, what is done to the result."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from blocks import Build, Draft, pick
from jax import lax
from reductions import REDUCTIONS


def _cross_entropy(logits: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _sized_like(y: Any, prediction: Any) -> Any:
    return y.reshape(y.shape + (1,) * (prediction.ndim - 1))


def _regression(fn: Callable[[Any], Any]) -> Callable[[Build, Draft], Draft]:
    def make(g: Build, h: Draft) -> Draft:
        w = g.new(h.width)

        def loss(p: Any, r: Any) -> Any:
            prediction = h.fn(p, r) @ w(p)
            return fn(prediction - _sized_like(r["y"], prediction))

        return Draft(loss, h.rank - 1, 0)

    return make


def _classes(g: Build, h: Draft) -> Draft:
    w, flat = g.new(h.width, g.classes), (lambda v: v) if h.rank == 2 else (lambda v: v.mean(1))
    return Draft(lambda p, r: _cross_entropy(flat(h.fn(p, r)) @ w(p), r["c"]), 1, 0)


def _tokens(g: Build, h: Draft) -> Draft:
    w, b = g.new(h.width, g.words), g.new(g.words)
    return Draft(lambda p, r: _cross_entropy(h.fn(p, r) @ w(p) + b(p), r["tok"]), 2, 0)


def _size(g: Build, h: Draft) -> Draft:
    return Draft(lambda p, r: jnp.sqrt(0.1 + jnp.sum((h.fn(p, r) - 0.3) ** 2, -1)), h.rank - 1, 0)


HEADS: dict[str, Any] = {
    "squared error": ((2, 3), _regression(jnp.square)),
    "huber": ((2, 3), _regression(lambda e: jnp.sqrt(1 + e**2) - 1)),
    "quantile": ((2, 3), _regression(lambda e: jnp.maximum(0.3 * e, -0.7 * e))),
    "cross-entropy of labels": ((2, 3), _classes),
    "cross-entropy of tokens": ((3,), _tokens),
    "cross-entropy of tokens, again": ((3,), _tokens),
    "distance": ((2, 3), _size),
}


def draw_head(g: Build, h: Draft) -> Draft:
    """Losses of rows [B], or of tokens [B, T]."""
    name = pick(g, HEADS, lambda entry: h.rank in entry[0])
    g.note(name, "row-wise")
    return HEADS[name][1](g, h)


def draw_reduction(g: Build, losses: Draft) -> Callable[..., Any]:
    """``fn(params, rows, given)`` → a scalar."""
    family = pick(g, dict.fromkeys(f for f, *_ in REDUCTIONS.values()))
    if g.rng.random() < 0.3:
        family = "mean"
    fits = lambda entry: entry[0] == family and losses.rank in entry[1]
    name = pick(g, REDUCTIONS, fits)
    _, _, mixes, needs, fn = REDUCTIONS[name]
    for key, compute in needs.items():
        (g.given if key.startswith("of all") else g.prepared)[key] = compute
    g.note(name, family, mixes)
    return lambda p, rows, given: fn(losses.fn(p, rows), rows, given)


def _row(losses: Draft, p: Any) -> Callable[[Any], Any]:
    """The loss of one row without its leading axis."""
    return lambda row: jnp.mean(losses.fn(p, jax.tree.map(lambda leaf: leaf[None], row)))


def _carry(losses: Draft, p: Any, rows: Any, n: int) -> Any:
    """Sums of weighted losses and of nothing else."""
    step = lambda c, row: (c + _row(losses, p)(row), None)
    return lax.scan(step, 0.0, rows)[0] / n


def _two_carries(losses: Draft, p: Any, rows: Any, n: int) -> Any:
    def step(carry: Any, row: Any) -> Any:
        total, count = carry
        weight = jnp.sum(row["m"])
        return (total + weight * _row(losses, p)(row), count + weight), None

    total, count = lax.scan(step, (0.0, 0), rows)[0]
    return total / lax.stop_gradient(count)


def _by_index(losses: Draft, p: Any, rows: Any, n: int) -> Any:
    def step(i: Any, total: Any) -> Any:
        take = lambda leaf: lax.dynamic_index_in_dim(leaf, i, keepdims=False)
        return total + _row(losses, p)(jax.tree.map(take, rows))

    return lax.fori_loop(0, n, step, 0.0) / n


def _parts(rows: Any, k: int) -> Any:
    return jax.tree.map(lambda leaf: leaf.reshape(k, -1, *leaf.shape[1:]), rows)


def _micro_batches(losses: Draft, p: Any, rows: Any, n: int) -> Any:
    step = lambda c, part: (c + jnp.mean(losses.fn(p, part)), None)
    return lax.scan(step, 0.0, _parts(rows, 2))[0] / 2


def _vmapped_parts(losses: Draft, p: Any, rows: Any, n: int) -> Any:
    return jax.vmap(lambda part: losses.fn(p, part))(_parts(rows, 2)).mean()


LOOPS: dict[str, Any] = {
    "vmap of the row's loss": ("vmap", lambda f, p, r, n: jax.vmap(_row(f, p))(r).mean()),
    "lax.map over rows": ("row loop", lambda f, p, r, n: lax.map(_row(f, p), r).mean()),
    "scan with a sum": ("row loop", _carry),
    "scan with two sums": ("row loop", _two_carries),
    "fori_loop over rows": ("row loop", _by_index),
    "scan over micro-batches": ("row loop", _micro_batches),
    "remat of each micro-batch": (
        "row loop",
        lambda f, p, r, n: lax.map(
            jax.checkpoint(lambda part: jnp.mean(f.fn(p, part))), _parts(r, 2)
        ).mean(),
    ),
    "vmap over micro-batches": ("vmap", _vmapped_parts),
    "rows one by one in Python": (
        "row loop",
        lambda f, p, r, n: (
            sum(_row(f, p)(jax.tree.map(lambda leaf, i=i: leaf[i], r)) for i in range(n)) / n
        ),
    ),
}


def draw_loop(g: Build, losses: Draft) -> Callable[..., Any] | None:
    """All of a row's loss in a loop over rows: ``fn(params, rows, given)`` → a scalar."""
    name = pick(g, LOOPS)
    family, fn = LOOPS[name]
    g.note(name, family)
    if name == "scan with two sums":
        g.held.add("m")
    return lambda p, rows, given: fn(losses, p, rows, len(rows["x"]))


def _penalty(p: Any, loss: Any) -> Any:
    return loss + 0.01 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p))


POSTS: dict[str, Any] = {
    "penalty": ("penalty", False, _penalty),
    "scaled by a number": ("weighted", False, lambda p, loss: loss * 1.5 - 0.2),
    "guard": ("guard", False, lambda p, loss: jnp.where(jnp.isfinite(loss), loss, 0.0)),
    "clipped": ("guard", False, lambda p, loss: jnp.clip(loss, -1e4, 1e4)),
    "bounded below": ("guard", False, lambda p, loss: jnp.maximum(loss, -1e4)),
    "nan_to_num": ("guard", False, lambda p, loss: jnp.nan_to_num(loss)),
    "root": ("function of the mean", True, lambda p, loss: jnp.sqrt(1 + loss**2)),
    "exp": ("function of the mean", True, lambda p, loss: jnp.exp(jnp.tanh(0.2 * loss))),
    "log": ("function of the mean", True, lambda p, loss: jnp.log(1 + loss**2)),
    "square": ("function of the mean", True, lambda p, loss: loss + 0.1 * loss**2),
}


def draw_post(g: Build) -> Callable[[Any, Any], Any]:
    """What is done to the loss of the batch, ``fn(params, loss)``; mostly nothing."""
    if g.rng.random() < 0.7:
        return lambda p, loss: loss
    name = pick(g, POSTS)
    family, mixes, fn = POSTS[name]
    g.note(name, family, mixes)
    return fn


def draw_shell(g: Build) -> Callable[[Any], Any]:
    """What the whole loss is wrapped in; mostly nothing."""
    shells: dict[str, Any] = {"all in jit": jax.jit, "all in remat": jax.checkpoint}
    if g.rng.random() < 0.8:
        return lambda fn: fn
    name = pick(g, shells)
    g.note(name, "shell")
    return shells[name]
