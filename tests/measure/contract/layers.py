"""Layers of random losses: where rows stay apart, and where they meet through parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from blocks import Build, Draft, Rows, pick, standardise
from jax import lax

Fn = Callable[[Any, Any, Rows], Any]  # (params, h, rows) -> h


def draw_source(g: Build) -> Draft:
    """What the first layer reads: features, a sequence, embedded tokens or labels."""
    name = pick(g, SOURCES)
    family, make = SOURCES[name]
    draft = make(g)
    g.note(name, family)
    return draft


def _embedded_tokens(g: Build) -> Draft:
    table, width = g.new(g.words, 3, scale=0.7), 3
    return Draft(lambda p, r: table(p)[r["tok"]], 3, width)


def _labels_beside(g: Build) -> Draft:
    table = g.new(g.classes, 2, scale=0.7)
    return Draft(lambda p, r: jnp.concatenate([r["x"], table(p)[r["c"]]], 1), 2, g.features + 2)


def _one_hot(g: Build) -> Draft:
    table = g.new(g.words, 4, scale=0.7)
    return Draft(lambda p, r: jax.nn.one_hot(r["tok"], 7) @ table(p), 3, 4)


def _from_data(name: str, leaf: str, fn: Callable[[Any], Any]) -> Callable[[Build], Draft]:
    def make(g: Build) -> Draft:
        g.prepared[name] = lambda batch: fn(batch[leaf])
        return Draft(lambda p, r: r[name], 2 if leaf == "x" else 3, g.features)

    return make


SOURCES: dict[str, tuple[str, Callable[[Build], Draft]]] = {
    "x": ("row-wise", lambda g: Draft(lambda p, r: r["x"], 2, g.features)),
    "labels beside x": ("row-wise", _labels_beside),
    "sequence": ("row-wise", lambda g: Draft(lambda p, r: r["seq"], 3, g.features)),
    "sequence, again": ("row-wise", lambda g: Draft(lambda p, r: r["seq"] * 1.5, 3, g.features)),
    "embedded tokens": ("row-wise", _embedded_tokens),
    "one-hot tokens": ("row-wise", _one_hot),
    "whitened x": ("data", _from_data("white", "x", lambda x: standardise(x, 0))),
    "x over its largest": ("data", _from_data("over", "x", lambda x: x / jnp.max(jnp.abs(x)))),
}


def draw_layer(g: Build, h: Draft) -> Draft:
    """One more layer that keeps rows apart."""
    return _draw(g, h, LAYERS, "row-wise", False)


def draw_mixing_layer(g: Build, h: Draft) -> Draft:
    """One more layer, in which rows meet."""
    return _draw(g, h, MIXING, "mixing", True)


def _draw(g: Build, h: Draft, table: dict[str, Any], family: str, mixes: bool) -> Draft:
    name = pick(g, table, lambda entry: h.rank in entry[0])
    _, kind, make = table[name]
    fn, width, rank = make(g, h)
    g.note(name, kind or family, mixes)
    return Draft(lambda p, r: fn(p, h.fn(p, r), r), rank, width)


def _map(fn: Callable[..., Any], *shapes: str, around: float = 0.0) -> Callable:
    """A layer ``fn(h, *params)``; shapes in letters: i, o for the widths, s for one in all."""

    def make(g: Build, h: Draft) -> tuple[Fn, int, int]:
        out = g.width() if any("o" in shape for shape in shapes) else h.width
        sizes = {"i": h.width, "o": out, "3": 3}
        get = [g.new(*(sizes[c] for c in shape), around=around) for shape in shapes]
        return (lambda p, v, r: fn(v, *(w(p) for w in get))), out, h.rank

    return make


def _dense(h: Any, w: Any) -> Any:
    return jnp.tanh(h @ w)


def _attention(h: Any, w: Any) -> Any:
    scores = jnp.einsum("btd,bsd->bts", h @ w, h)
    causal = jnp.tril(jnp.ones(scores.shape[1:], bool))
    return h + jax.nn.softmax(jnp.where(causal, scores, -1e9)) @ h


def _scan_time(h: Any, w: Any, start: Any) -> Any:
    first = jnp.broadcast_to(start, (h.shape[0], h.shape[2]))
    step = lambda c, x: (jnp.tanh(c @ w + x),) * 2
    return jnp.moveaxis(lax.scan(step, first, jnp.moveaxis(h, 1, 0))[1], 0, 1)


def _conv(h: Any, w: Any) -> Any:
    return lax.conv_general_dilated(h, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))


def _cond(h: Any, w: Any) -> Any:
    return lax.cond(w[0, 0] > 0, lambda v: jnp.tanh(v @ w), lambda v: v @ w, h)


@jax.custom_vjp
def _times(h: Any, w: Any) -> Any:
    return h @ w


def _times_bwd(saved: Any, d: Any) -> Any:
    h, w = saved
    return d @ w.T, 1.5 * jnp.einsum("...i,...o->io", h, d)


_times.defvjp(lambda h, w: (h @ w, (h, w)), _times_bwd)


@jax.custom_jvp
def _scaled(h: Any, s: Any) -> Any:
    return h * s


@_scaled.defjvp
def _scaled_jvp(primals: Any, tangents: Any) -> Any:
    (h, s), (dh, ds) = primals, tangents
    return h * s, dh * s + 0.7 * h * ds


def _while(h: Any, w: Any) -> Any:
    grow = lambda v: lax.while_loop(lambda u: jnp.sum(jnp.abs(u)) < 9, lambda u: 2 * u + 0.1, v)
    return jnp.tanh(h @ w) * 0.1 + 0.2 * jax.vmap(grow)(lax.stop_gradient(h))


def _merge_minor(h: Any, w: Any) -> Any:
    rows, time, width = h.shape
    flat = jnp.swapaxes(h, 0, 1).reshape(time * rows, width)
    return jnp.swapaxes((flat @ w).reshape(time, rows, -1), 0, 1)


def _batch_last(h: Any, w: Any) -> Any:
    turned = jnp.moveaxis(h, 0, -1)
    out = jnp.einsum("i...,io->o...", jnp.moveaxis(turned, -2, 0), w)
    return jnp.moveaxis(jnp.moveaxis(out, -1, 0), 1, -1)


def _with_token(h: Any, token: Any) -> Any:
    first = jnp.broadcast_to(token, (h.shape[0], 1, h.shape[2]))
    return jnp.concatenate([first, h[:, 1:]], 1)


def _film(g: Build, h: Draft) -> tuple[Fn, int, int]:
    table = g.new(g.classes, h.width, scale=0.4, around=1.0)
    one = (slice(None),) + (None,) * (h.rank - 2)
    return (lambda p, v, r: v * table(p)[r["c"]][one]), h.width, h.rank


def _pool(fn: Callable[[Any, Rows], Any]) -> Callable:
    return lambda g, h: ((lambda p, v, r: fn(v, r)), h.width, 2)


def _masked(v: Any, r: Rows) -> Any:
    return jnp.sum(v * r["m"][..., None], 1) / jnp.sum(r["m"], 1)[:, None]


BOTH, FLAT, DEEP = (2, 3), (2,), (3,)
LAYERS: dict[str, Any] = {
    "dense": (BOTH, None, _map(_dense, "io")),
    "dense and bias": (BOTH, None, _map(lambda h, w, b: jax.nn.gelu(h @ w + b), "io", "o")),
    "einsum": (BOTH, None, _map(lambda h, w: jnp.einsum("...i,oi->...o", h, w), "oi")),
    "scale and bias": (BOTH, None, _map(lambda h, s, b: jnp.tanh(h * s + b), "i", "i", around=0.5)),
    "layer norm": (BOTH, None, _map(lambda h, s, b: standardise(h, -1) * s + b, "i", "i")),
    "attention": (DEEP, None, _map(_attention, "ii")),
    "scan over time": (DEEP, None, _map(_scan_time, "ii", "i")),
    "convolution": (DEEP, None, _map(_conv, "3io")),
    "cond": (BOTH, None, _map(_cond, "io")),
    "remat": (BOTH, None, _map(jax.checkpoint(_dense), "io")),
    "jit": (BOTH, None, _map(jax.jit(_dense), "io")),
    "custom_vjp": (BOTH, None, _map(lambda h, w: jnp.tanh(_times(h, w)), "io")),
    "custom_jvp": (BOTH, None, _map(lambda h, s: jnp.tanh(_scaled(h, s)), "i", around=0.5)),
    "while without gradient": (BOTH, None, _map(_while, "ii")),
    "prelu": (BOTH, None, _map(lambda h, s: jnp.where(h > 0, h, s * h), "i")),
    "gate": (BOTH, None, _map(lambda h, w, v: (h @ w) * jax.nn.sigmoid(h @ v), "io", "io")),
    "residual": (BOTH, None, _map(lambda h, w: h + 0.5 * _dense(h, w), "ii")),
    "solve": (BOTH, None, _map(lambda h, w: h @ jnp.linalg.inv(w @ w.T + jnp.eye(len(w))), "ii")),
    "sorted features": (BOTH, None, _map(lambda h, s: jnp.sort(h, -1) * s, "i")),
    "label embedding": (BOTH, None, _film),
    "vmap over rows": (BOTH, "vmap", _map(lambda h, w: jax.vmap(lambda v: _dense(v, w))(h), "io")),
    "lax.map over rows": (
        BOTH,
        "row loop",
        _map(lambda h, w: lax.map(lambda v: _dense(v, w), h), "io"),
    ),
    "merged, rows first": (
        DEEP,
        "reshape",
        _map(lambda h, w: _dense(h.reshape(-1, h.shape[2]), w).reshape(*h.shape[:2], -1), "io"),
    ),
    "merged, time first": (DEEP, "reshape", _map(_merge_minor, "io")),
    "batch last": (BOTH, "reshape", _map(_batch_last, "io")),
    "learned token": (DEEP, None, _map(_with_token, "i")),
    "sum along time": (DEEP, None, _map(lambda h, s: jnp.cumsum(h, 1) * s, "i")),
    "last step": (DEEP, None, _pool(lambda v, r: v[:, -1])),
    "mean over time": (DEEP, None, _pool(lambda v, r: v.mean(1))),
    "max over time": (DEEP, None, _pool(lambda v, r: v.max(1))),
    "masked mean over time": (DEEP, None, _pool(_masked)),
}


def _over_rows(h: Any, w: Any) -> Any:
    """Attention over the batch."""
    flat = (h @ w).reshape(len(h), -1)
    return h + jnp.einsum("bc,c...->b...", jax.nn.softmax(flat @ flat.T), h)


def _wrong_reshape(h: Any, w: Any) -> Any:
    v = h @ w
    swapped = jnp.swapaxes(v, 0, 1).reshape(v.shape)
    return jnp.cumsum(h, 1) + jnp.tanh(swapped) * v


def _flipped(h: Any, w: Any) -> Any:
    v = _dense(h, w)  # before that, partners may be data, which is no mixing
    return v + v[::-1] ** 2


def _gram(h: Any, w: Any) -> Any:
    flat = (h @ w).reshape(len(h), -1)
    kernel = flat @ flat.T + jnp.eye(len(h))
    return jnp.einsum("bc,c...->b...", jnp.linalg.inv(kernel), h)


def _cholesky(h: Any, w: Any) -> Any:
    flat = (h @ w).reshape(len(h), -1)
    factor = jnp.linalg.cholesky(flat @ flat.T + jnp.eye(len(h)))
    return h + jnp.einsum("bc,c...->b...", factor, h)


def _permuted(h: Any, w: Any) -> Any:
    return h @ w + 0.5 * (h @ w)[np.random.default_rng(0).permutation(len(h))] ** 2


MIXING: dict[str, Any] = {
    "batch norm": (BOTH, None, _map(lambda h, w: standardise(h @ w, 0), "io")),
    "batch norm of all": (BOTH, None, _map(lambda h, w: standardise(h @ w, (0, -1)), "io")),
    "less the batch mean": (BOTH, None, _map(lambda h, w: h @ w - jnp.mean(h @ w, 0), "io")),
    "softmax over the batch": (BOTH, None, _map(lambda h, w: jax.nn.softmax(h @ w, 0) * 2, "io")),
    "over its largest": (BOTH, None, _map(lambda h, w: h / (1 + jnp.max((h @ w) ** 2)), "ii")),
    "attention over rows": (BOTH, None, _map(_over_rows, "ii")),
    "gram inverse": (BOTH, "linear algebra", _map(_gram, "ii")),
    "cholesky": (BOTH, "linear algebra", _map(_cholesky, "ii")),
    "times the next row": (
        BOTH,
        "position",
        _map(lambda h, w: (h @ w) * (1 + jnp.roll(h @ w, 1, 0)), "io"),
    ),
    "with the flipped batch": (BOTH, "position", _map(_flipped, "io")),
    "sum along rows": (BOTH, "position", _map(lambda h, w: jnp.tanh(jnp.cumsum(h @ w, 0)), "io")),
    "permuted rows": (BOTH, "position", _map(_permuted, "io")),
    "wrong reshape": (DEEP, "reshape", _map(_wrong_reshape, "ii")),
    "scan along rows": (
        FLAT,
        "row loop",
        _map(
            lambda h, w: lax.scan(lambda c, v: (jnp.tanh(c @ w + v),) * 2, 0 * h[0], h)[1],
            "ii",
        ),
    ),
}
