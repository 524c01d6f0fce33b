"""What `accumulate` compiles: a whole step, or its parts for a host that drives them."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import NamedSharding

from adaoptax._metric import as_metric
from adaoptax._tree import ArrayTree
from adaoptax.loop.rows import Batch
from adaoptax.measure.loss import Loss
from adaoptax.measure.micro_steps import MicroSteps, MicroStepsState


class Accumulation(NamedTuple):
    """The micro-batches of a step so far.

    Attributes:
        parts: What they leave behind, see `MicroStepsState`.
        number: How many, int32; it makes the random keys of the next one.
        preconditioner: The metric that all of them are measured in, or None.
    """

    parts: MicroStepsState
    number: jax.Array
    preconditioner: ArrayTree | None = None


@dataclasses.dataclass(frozen=True)
class StepPrograms:
    """Pure functions on one engine, `micro_steps`: `whole` does what the other three do in turn.

    Attributes:
        steps: The engine.
        loss: Knows which arguments are random keys.
        update: The user's ``update(state, value, grads, stats)`` → ``(state, output)``.
        params_of: Finds the parameters in a state.
        preconditioner_of: Makes the metric of a step from the state before it; None for none.
        places: Shardings of the state, pytree like it; the new state keeps them.
        everywhere: Sharding of what lies on all devices; None without a mesh.
    """

    steps: MicroSteps
    loss: Loss
    update: Callable[..., Any]
    params_of: Callable[[Any], Any]
    preconditioner_of: Callable[[Any], Any] | None
    places: Any
    everywhere: NamedSharding | None

    def start(self, state: Any, micro_batch: ArrayTree, *args: Any) -> Accumulation:
        """The sums before the first micro-batch; only shapes of `micro_batch` are read."""
        params, metric = self.params_of(state), None
        if self.preconditioner_of is not None:
            # New arrays, also of one that the state holds: sums are given away, the state is not.
            metric = as_metric(self.preconditioner_of(state), params)
        parts = self.steps.init(params, *self.loss.join(micro_batch, args))
        return self._in_place(Accumulation(parts, jnp.zeros([], jnp.int32), metric))

    def add(
        self, so_far: Accumulation, params: ArrayTree, batch: Batch, *args: Any
    ) -> tuple[Accumulation, jax.Array]:
        """One more micro-batch, whose mask may be None; and a number that says when it is done."""
        fold = lambda key: jax.random.fold_in(key, so_far.number)
        inputs = self.loss.join(batch.data, self.loss.map_keys(fold, args))
        metric, number = so_far.preconditioner, so_far.number + 1
        parts = self.steps.add(
            so_far.parts, params, *inputs, mask=batch.mask, preconditioner=metric
        )
        return self._in_place(Accumulation(parts, number, metric)), number

    def finish(self, so_far: Accumulation, state: Any) -> tuple[Any, Any]:
        """The user's update, from the statistics of all micro-batches together."""
        measured = self.steps.finish(so_far.parts, self.params_of(state), so_far.preconditioner)
        new, output = checked_update(state, self.update(state, *measured))
        output = jax.tree.map(self._scalars_everywhere, output)
        return jax.tree.map(_keep_place, new, self.places), output

    def whole(self, state: Any, batch: Batch, *args: Any) -> tuple[Any, Any]:
        """A step on leaves [micro-batches, rows, ...]; the loop ends after the last real row."""
        params = self.params_of(state)

        def at(i: Any) -> Batch:
            pick = lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
            return jax.tree.map(pick, batch)

        real = jnp.any(batch.mask, axis=1)
        bound = jnp.max(jnp.where(real, jnp.arange(1, real.shape[0] + 1), 0))
        add = lambda i, so_far: self.add(so_far, params, at(i), *args)[0]
        so_far = jax.lax.fori_loop(0, bound, add, self.start(state, at(0).data, *args))
        return self.finish(so_far, state)

    def _in_place(self, so_far: Accumulation) -> Accumulation:
        """Running gradients lie where their parameters lie: also in the carry of the loop."""
        if self.everywhere is None:
            return so_far
        where, moments = self.params_of(self.places), so_far.parts.moments
        like_params = lambda tree: None if tree is None else jax.tree.map(_keep_place, tree, where)
        moments = moments._replace(
            mean=like_params(moments.mean),
            coordinate_scatter=like_params(moments.coordinate_scatter),
        )
        return so_far._replace(
            parts=so_far.parts._replace(moments=moments),
            preconditioner=like_params(so_far.preconditioner),
        )

    def _scalars_everywhere(self, x: Any) -> Any:
        """Scalars are replicated, because the hosts decide by them."""
        if self.everywhere is None or jnp.ndim(x):
            return x
        return jax.lax.with_sharding_constraint(x, self.everywhere)


def _keep_place(x: Any, sharding: Any) -> jax.Array:
    """`x`, strongly typed, where it lay before; a weak type would cost a compilation."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jax.dtypes.extended):
        x = jax.lax.convert_element_type(x, x.dtype)
    if not isinstance(sharding, NamedSharding):
        return x
    return jax.lax.with_sharding_constraint(x, sharding)


def checked_update(old: Any, returned: Any) -> tuple[Any, Any]:
    """``(state, output)`` as `update` returned it; ValueError where the state is another one."""
    if not (isinstance(returned, tuple | list) and len(returned) == 2):
        raise ValueError(
            f"Expected update to return a pair (state, output), got {type(returned).__name__}:"
            " return what the next step takes and what the host reads, as in `return (params,"
            " opt_state), loss`."
        )
    new, output = returned
    before: Any = jax.tree.structure(old)
    after: Any = jax.tree.structure(new)
    if before != after:
        raise ValueError(
            f"Expected update to return a state of the structure that it got, {before}, got"
            f" {after}: every step would compile anew; return the same fields, and (state, output)"
            " in this order."
        )
    kind = lambda x: (jnp.result_type(x), jnp.shape(x))
    leaves = zip(jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True)
    for (path, x), y in leaves:
        if kind(x) != kind(y):
            written = [f"{dtype}{list(shape)}" for dtype, shape in (kind(x), kind(y))]
            raise ValueError(
                f"Expected update to return state{jax.tree_util.keystr(path)} as the {written[0]}"
                f" that it got, got {written[1]}: every step would compile anew; this usually means"
                " an update in another dtype, which optax.apply_updates casts."
            )
    return new, output
