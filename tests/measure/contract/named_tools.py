"""How named losses are written down: a table of them, and the inputs that they share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

B, T, D, K, V = 8, 4, 5, 3, 7

# What has to happen: (with `exact`, with methods that call the loss in parts).
MEAN = ("accept", "accept")  # the plain mean of a loss of each row
MIXES = ("refuse", "refuse")  # rows meet through parameters
DATA = ("accept", "refuse")  # a sum over rows, with normalisers of this batch
SCALED = ("accept", "either")  # a sum over rows of another known scale
PLACE = ("either", "refuse")  # a sum over rows that counts them by their position
LOOP = ("either", "either")  # a mean, written as few write it: proved or refused


class Named(NamedTuple):
    """A loss that people train, or a near relative.

    Attributes:
        fn: ``fn(params, batch)``.
        exact: ``"accept"``, ``"refuse"`` or ``"either"``: what `measure.exact` has to do.
        parts: The same for methods that call the loss in parts, such as `measure.groups`.
        why: In a few words.
        given: Leaves of the batch that reach other rows through data alone.
        float32: Whether a part is float32 whatever its inputs are.
    """

    fn: Callable[..., Any]
    exact: str
    parts: str
    why: str
    given: tuple[str, ...] = ()
    float32: bool = False


Table = dict[str, Named]


def adders(table: Table) -> tuple[Callable[..., Any], Callable[..., None]]:
    """``@loss(kind, why)`` writes a function into `table`, ``add(name, ...)`` a lambda."""

    def add(
        name: str, kind: tuple[str, str], why: str, fn: Any, given: tuple[str, ...] = ()
    ) -> None:
        assert name not in table, name
        table[name] = Named(fn, *kind, why, given)

    def loss(kind: tuple[str, str], why: str, given: tuple[str, ...] = ()) -> Any:
        def write(fn: Any) -> Any:
            add(fn.__name__.replace("_", " "), kind, why, fn, given)
            return fn

        return write

    return loss, add


def make_params() -> dict[str, Any]:
    rng = np.random.default_rng(5)
    shapes = {
        "w": (D, D),
        "v": (D, D),
        "h": (D, K),
        "out": (D, V),
        "e": (V, D),
        "q": (D,),
        "b": (D,),
        "s": (D,),
        "experts": (3, D, D),
        "t": (),
    }
    draw = lambda shape: rng.normal(size=shape) / np.sqrt(max(shape[0], 1) if shape else 2)
    params = {name: np.float32(draw(shape)) for name, shape in shapes.items()}
    return {**params, "s": 1 + 0.3 * params["s"]}


def make_batch(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng([11, seed])
    normal = lambda *shape: np.float32(rng.normal(size=shape))
    label = lambda high, *shape: np.int32(rng.integers(0, high, shape))
    return {
        "x": normal(B, D),
        "x2": normal(B, D),
        "x3": normal(B, D),
        "eps": normal(B, D),
        "seq": normal(B, T, D),
        "y": normal(B),
        "c": label(K, B),
        "tok": label(V, B, T),
        "tok2": label(V, B, T),
        "m": np.arange(T) < rng.integers(1, T + 1, B)[:, None],
        "r": normal(B),
        "w": rng.uniform(0.2, 2, B).astype(np.float32),
        "bit": label(2, B),
        "edges": label(T, B, 6, 2),
        "seg": np.sort(label(2, B, T), axis=1),
        "old": 0.3 * normal(B),
        "index": np.arange(B, dtype=np.int32) + 100 * seed,
    }


def ce(logits: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def bce(logit: Any, bit: Any) -> Any:
    return optax.sigmoid_binary_cross_entropy(logit, bit)


def hidden(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["w"] + p["b"])


def logits(p: Any, x: Any) -> Any:
    return hidden(p, x) @ p["h"]


def score(p: Any, x: Any) -> Any:
    return hidden(p, x) @ p["q"]


def rows_ce(p: Any, b: Any) -> Any:
    return ce(logits(p, b["x"]), b["c"])


def words(p: Any, tok: Any) -> Any:
    """Logits of the next words, by a small causal network."""
    h = p["e"][tok]
    a = jnp.where(jnp.tri(h.shape[-2], dtype=bool), (h @ p["v"]) @ jnp.swapaxes(h, -1, -2), -1e9)
    return hidden(p, h + jax.nn.softmax(a) @ h) @ p["out"]


def token_ce(p: Any, b: Any) -> Any:
    return ce(words(p, b["tok"]), b["tok2"])


def log_prob(p: Any, b: Any, name: str) -> Any:
    """Log-probability of each row's sequence."""
    return -jnp.sum(ce(words(p, b["tok"]), b[name]), 1)


def unit(z: Any) -> Any:
    return z / jnp.sqrt(jnp.sum(z**2, -1, keepdims=True) + 1e-6)


def white(r: Any, axis: int = 0) -> Any:
    return (r - jnp.mean(r, axis)) / jnp.sqrt(jnp.var(r, axis) + 1e-5)


def sg(x: Any) -> Any:
    return jax.lax.stop_gradient(x)
