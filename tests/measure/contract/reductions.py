"""Reductions of random losses: ``fn(losses, rows, given)`` → a scalar, by family.

An entry is ``(family, ranks, mixes, needs, fn)``. `needs` says what is computed from data alone:
``"of all ..."`` is one value for the batch, everything else has an entry for each row.
"""

from typing import Any

import jax
import jax.numpy as jnp
from blocks import standardise
from jax import lax

ANY, ROWS, TOKENS = (1, 2), (1,), (2,)


def _r(losses: Any) -> Any:
    """A loss for each row."""
    return losses if losses.ndim == 1 else losses.mean(1)


def _at(losses: Any) -> Any:
    return jnp.arange(len(losses))


def _weight(batch: Any) -> Any:
    return jnp.abs(batch["r"]) + 0.1


def _by_class(batch: Any) -> Any:
    return 1 / jnp.bincount(batch["c"], length=3)[batch["c"]]


def _rank_of_data(batch: Any) -> Any:
    return jnp.argsort(jnp.argsort(batch["r"])).astype(batch["r"].dtype)


def _quantile(v: Any) -> Any:
    limit = lax.stop_gradient(jnp.quantile(_r(v), 0.6))
    return jnp.mean(jnp.where(_r(v) > limit, _r(v), 0.1 * _r(v)))


def _halves(v: Any) -> Any:
    first, second = jnp.split(_r(v), 2)
    return -jnp.mean(jax.nn.log_sigmoid(first - second))


def _determinant(v: Any) -> Any:
    z = jnp.stack([_r(v), _r(v) ** 2], 1)
    return jnp.linalg.slogdet(z @ z.T + jnp.eye(len(z)))[1]


def _eigenvalues(v: Any) -> Any:
    z = jnp.stack([_r(v), jnp.sin(_r(v))], 1)
    return jnp.sum(jnp.sqrt(1 + jnp.linalg.eigvalsh(z @ z.T + jnp.diag(1.0 * _at(v))) ** 2))


def _cholesky(v: Any) -> Any:
    z = jnp.stack([_r(v), _r(v) ** 2], 1)
    return jnp.mean(jnp.linalg.cholesky(z @ z.T + jnp.eye(len(z))))


def _nce(v: Any) -> Any:
    logits = jnp.outer(_r(v), jnp.cos(_r(v)))
    return -jnp.mean(jnp.diag(jax.nn.log_softmax(logits)))


def _token_mean(v: Any, rows: Any, given: Any) -> Any:
    return jnp.sum(v * rows["m"]) / given["of all tokens"]


_TOKENS = {"of all tokens": lambda batch: jnp.sum(batch["m"])}
_WEIGHTS = {"weight": _weight, "of all weights": lambda batch: jnp.sum(_weight(batch))}
_CLASSES = {"class weight": _by_class, "of all cw": lambda batch: jnp.sum(_by_class(batch))}
_WHITE = {"advantage": lambda batch: standardise(batch["r"], 0)}
_SHARE = {"share": lambda batch: jax.nn.softmax(batch["r"])}
_ROLLED = {"rolled": lambda batch: jnp.roll(batch["r"], 1)}
_RANKS = {"rank": _rank_of_data}
_LARGEST = {"of all r": lambda batch: jnp.max(jnp.abs(batch["r"]))}

REDUCTIONS: dict[str, Any] = {
    # Means of a loss of each row.
    "mean": ("mean", ANY, False, {}, lambda v, r, o: jnp.mean(v)),
    "mean of means": ("mean", TOKENS, False, {}, lambda v, r, o: v.mean(0).mean()),
    "flat mean": ("mean", TOKENS, False, {}, lambda v, r, o: v.reshape(-1).mean()),
    "time-major mean": ("mean", TOKENS, False, {}, lambda v, r, o: v.T.reshape(-1).mean()),
    "sum / B": ("mean", ANY, False, {}, lambda v, r, o: _r(v).sum() / len(v)),
    "dot of ones": (
        "mean",
        ANY,
        False,
        {},
        lambda v, r, o: jnp.dot(_r(v), jnp.ones(len(v))) / len(v),
    ),
    "average": ("mean", ANY, False, {}, lambda v, r, o: jnp.average(_r(v))),
    "einsum": ("mean", ANY, False, {}, lambda v, r, o: jnp.einsum("b...->", v) / v.size),
    "mean of real tokens": (
        "mean",
        TOKENS,
        False,
        {},
        lambda v, r, o: jnp.mean(jnp.sum(v * r["m"], 1) / jnp.sum(r["m"], 1)),
    ),
    "norm² / B": ("mean", ANY, False, {}, lambda v, r, o: jnp.linalg.norm(_r(v)) ** 2 / len(v)),
    "vdot / B": ("mean", ANY, False, {}, lambda v, r, o: jnp.vdot(_r(v), jnp.tanh(_r(v))) / len(v)),
    "sum of w·l / B": (
        "mean",
        ANY,
        False,
        {"weight": _weight},
        lambda v, r, o: jnp.sum(_r(v) * r["weight"]) / len(v),
    ),
    "trace / B": (
        "linear algebra",
        ANY,
        False,
        {},
        lambda v, r, o: jnp.trace(jnp.outer(_r(v), r["r"])) / len(v),
    ),
    "guarded rows": (
        "guard",
        ANY,
        False,
        {},
        lambda v, r, o: jnp.mean(jnp.where(jnp.isfinite(v), v, 0.0)),
    ),
    # Of another known scale.
    "sum": ("scaled", ANY, False, {}, lambda v, r, o: jnp.sum(v)),
    "sum / 32": ("scaled", ANY, False, {}, lambda v, r, o: jnp.sum(_r(v)) / 32),
    "1000 / B · sum": ("scaled", ANY, False, {}, lambda v, r, o: 1000 / len(v) * jnp.sum(_r(v))),
    "sum / (B - 1)": ("scaled", ANY, False, {}, lambda v, r, o: jnp.sum(_r(v)) / (len(v) - 1)),
    # Normalised by data.
    "token mean": ("weighted", TOKENS, False, _TOKENS, _token_mean),
    "token mean, at least one": (
        "weighted",
        TOKENS,
        False,
        _TOKENS,
        lambda v, r, o: jnp.sum(jnp.where(r["m"], v, 0)) / jnp.maximum(o["of all tokens"], 1),
    ),
    "sum of w·l / sum of w": (
        "weighted",
        ANY,
        False,
        _WEIGHTS,
        lambda v, r, o: jnp.sum(_r(v) * r["weight"]) / o["of all weights"],
    ),
    "class weights": (
        "weighted",
        ANY,
        False,
        _CLASSES,
        lambda v, r, o: jnp.sum(_r(v) * r["class weight"]) / o["of all cw"],
    ),
    "whitened advantage": (
        "data",
        ANY,
        False,
        _WHITE,
        lambda v, r, o: jnp.mean(_r(v) * r["advantage"]),
    ),
    "shares of data": ("data", ANY, False, _SHARE, lambda v, r, o: jnp.sum(_r(v) * r["share"])),
    "ranks of data": ("data", ANY, False, _RANKS, lambda v, r, o: jnp.mean(_r(v) * r["rank"])),
    "over the largest of data": (
        "data",
        ANY,
        False,
        _LARGEST,
        lambda v, r, o: jnp.mean(_r(v) * r["r"] / o["of all r"]),
    ),
    # Rows by their position.
    "linspace": (
        "position",
        ANY,
        False,
        {},
        lambda v, r, o: jnp.mean(_r(v) * jnp.linspace(0, 1, len(v))),
    ),
    "arange mask": (
        "position",
        ANY,
        False,
        {},
        lambda v, r, o: jnp.mean(_r(v), where=_at(v) < 3),
    ),
    "where arange": (
        "position",
        ANY,
        False,
        {},
        lambda v, r, o: jnp.mean(jnp.where(_at(v) < 2, _r(v), 0.1 * _r(v) ** 2)),
    ),
    "tri": ("position", ANY, False, {}, lambda v, r, o: jnp.mean(jnp.tri(len(v)) @ _r(v))),
    "first set to 0": ("position", ANY, False, {}, lambda v, r, o: _r(v).at[0].set(0).mean()),
    "rolled data": ("position", ANY, False, _ROLLED, lambda v, r, o: jnp.mean(_r(v) * r["rolled"])),
    "flipped and back": ("position", ANY, False, {}, lambda v, r, o: jnp.mean(_r(v)[::-1] ** 2)),
    "every other row": ("selecting", ANY, False, {}, lambda v, r, o: _r(v)[::2].mean()),
    "first rows": ("selecting", ANY, False, {}, lambda v, r, o: _r(v)[:3].mean()),
    "last row": ("selecting", ANY, False, {}, lambda v, r, o: _r(v)[-1]),
    "halves apart": (
        "selecting",
        ANY,
        False,
        {},
        lambda v, r, o: _r(v)[: len(v) // 2].mean() - _r(v)[len(v) // 2 :].mean(),
    ),
    # Rows against each other.
    "halves in pairs": ("selecting", ANY, True, {}, lambda v, r, o: _halves(v)),
    "top-k": ("ranking", ANY, True, {}, lambda v, r, o: lax.top_k(_r(v), 2)[0].mean()),
    "largest": ("ranking", ANY, True, {}, lambda v, r, o: jnp.max(_r(v))),
    "median": ("ranking", ANY, True, {}, lambda v, r, o: jnp.median(_r(v))),
    "sorted weights": (
        "ranking",
        ANY,
        True,
        {},
        lambda v, r, o: jnp.mean(jnp.sort(_r(v)) * jnp.linspace(0, 1, len(v))),
    ),
    "weights by rank": (
        "ranking",
        ANY,
        True,
        {},
        lambda v, r, o: jnp.mean(_r(v) * jnp.argsort(jnp.argsort(_r(v)))),
    ),
    "above the quantile": ("ranking", ANY, True, {}, lambda v, r, o: _quantile(v)),
    "variance": ("mixing", ANY, True, {}, lambda v, r, o: jnp.var(_r(v))),
    "baseline of losses": (
        "mixing",
        ANY,
        True,
        {},
        lambda v, r, o: jnp.mean(lax.stop_gradient(v - v.mean()) * jnp.tanh(v)),
    ),
    "over its own mean": (
        "mixing",
        ANY,
        True,
        {},
        lambda v, r, o: jnp.mean(v) / lax.stop_gradient(1 + jnp.mean(v) ** 2),
    ),
    "softmax of losses": (
        "mixing",
        ANY,
        True,
        {},
        lambda v, r, o: jnp.sum(_r(v) * lax.stop_gradient(jax.nn.softmax(_r(v)))),
    ),
    "log-mean-exp": ("mixing", ANY, True, {}, lambda v, r, o: jax.nn.logsumexp(_r(v) / 3)),
    "pairwise hinge": (
        "mixing",
        ANY,
        True,
        {},
        lambda v, r, o: jnp.mean(jax.nn.relu(1 + _r(v)[:, None] - _r(v))),
    ),
    "product": ("mixing", ANY, True, {}, lambda v, r, o: jnp.prod(jnp.tanh(_r(v)) + 1.1)),
    "norm": ("mixing", ANY, True, {}, lambda v, r, o: jnp.linalg.norm(_r(v))),
    "contrast": ("mixing", ANY, True, {}, lambda v, r, o: _nce(v)),
    "log-determinant": ("linear algebra", ANY, True, {}, lambda v, r, o: _determinant(v)),
    "eigenvalues": ("linear algebra", ANY, True, {}, lambda v, r, o: _eigenvalues(v)),
    "Cholesky factor": ("linear algebra", ANY, True, {}, lambda v, r, o: _cholesky(v)),
}
