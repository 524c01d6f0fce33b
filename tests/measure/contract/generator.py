"""A seeded generator of random losses: compositions of blocks whose properties are known.

``make_loss(seed)`` returns a `Case`. Its loss is ``inner(params, *prepare(batch))``: `prepare` is
all that other rows do through data alone (a sum of weights, whitened targets), `inner` is what the
parameters take part in. The judge in `oracle` replaces rows of what `prepare` returns, so that its
verdict on `inner` does not depend on the labels that are written beside the blocks.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import ends
import layers
import numpy as np
from blocks import Build, Rows


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A loss with inputs, and what its blocks say about it.

    Attributes:
        loss_fn: ``loss_fn(params, batch)``.
        params: Nested dict of float32 arrays.
        batch: Dict of arrays with a leading axis of rows.
        description: The blocks in their order.
        families: What kinds of blocks there are, sorted.
        mixes: Whether a block mixes rows through parameters.
        prepare: ``prepare(batch)`` → ``(rows, given)``: rows that hold what was computed from data
            alone, and normalisers of the batch.
        inner: ``inner(params, rows, given)`` → the loss.
        redraw: Another batch of the same shapes, to replace rows by; equal to `batch` in what
            the loss itself adds up to a normaliser.
        seed: Where it comes from.
    """

    loss_fn: Callable[..., Any]
    params: Any
    batch: Any
    description: str
    families: tuple[str, ...]
    mixes: bool
    prepare: Callable[[Any], tuple[Any, Any]]
    inner: Callable[..., Any]
    redraw: Any
    seed: int


def make_loss(seed: int) -> Case:
    """The case of this seed: the same one in every process."""
    rng = np.random.default_rng([7, seed])
    g = Build(rng)
    terms = [_term(g)]
    if rng.random() < 0.2:
        terms.append(_term(g))
    post = ends.draw_post(g)

    def inner(params: Any, rows: Rows, given: Any) -> Any:
        total = 0.0
        for i, term in enumerate(terms):
            total = total + (1.0, 0.3)[i] * term(params, rows, given)
        return post(params, total)

    prepare = g.prepare

    def loss_fn(params: Any, batch: Any) -> Any:
        return inner(params, *prepare(batch))

    batch, redraw = g.draw_batch(rng), g.draw_batch(rng)
    return Case(
        loss_fn=ends.draw_shell(g)(loss_fn),
        params=g.params,
        batch=batch,
        description=" > ".join(g.names),
        families=tuple(sorted(g.families)),
        mixes=g.mixes,
        prepare=prepare,
        inner=inner,
        redraw={**redraw, **{name: batch[name] for name in g.held}},
        seed=seed,
    )


def _term(g: Build) -> Callable[..., Any]:
    """One term of the loss: a source, layers, a loss of rows or tokens, its reduction."""
    draft = layers.draw_source(g)
    mixing = g.rng.random() < 0.12
    count = int(g.rng.integers(1, 4))
    place = int(g.rng.integers(0, count)) if mixing else -1
    for i in range(count):
        draft = layers.draw_layer(g, draft)
        if i == place:
            draft = layers.draw_mixing_layer(g, draft)
    losses = ends.draw_head(g, draft)
    if not mixing and g.rng.random() < 0.25:
        looped = ends.draw_loop(g, losses)
        if looped is not None:
            return looped
    return ends.draw_reduction(g, losses)
