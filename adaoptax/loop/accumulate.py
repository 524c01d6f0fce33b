"""Training steps whose batch grows without recompiling, by accumulation over micro-batches."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from jax import NamedSharding, P

from adaoptax import _validate
from adaoptax._validate import whole_number
from adaoptax.loop.accumulated_step import AccumulatedStep, HostDrivenStep, WholeStep
from adaoptax.loop.micro_batches import MicroBatches
from adaoptax.loop.sizes import capacities, checked_max
from adaoptax.loop.step_programs import StepPrograms
from adaoptax.measure.loss import Method, describe_loss
from adaoptax.measure.micro_steps import micro_steps_of


def accumulate(
    loss_fn: Callable[..., Any],
    update: Callable[..., tuple[Any, Any]],
    *,
    micro_batch_size: int,
    max_batch_size: int | None = None,
    how: Literal["padded", "ladder", "host"] = "padded",
    method: Method | None = None,
    statistics: tuple[str, ...] = ("norm",),
    loss_kind: str = "separable",
    batch_argnums: int | Sequence[int] = 1,
    weights_of: Callable[..., Any] | None = None,
    has_aux: bool = False,
    key_argnums: int | Sequence[int] = (),
    params_of: Callable[[Any], Any] | None = None,
    preconditioner_of: Callable[[Any], Any] | None = None,
    sharding: NamedSharding | None = None,
    donate: bool = True,
) -> AccumulatedStep:
    """A jitted train step over any number of micro-batches, which never compiles again.

    Loss, gradient, aux and statistics are those of the whole batch, padding left out; memory holds
    the activations of one micro-batch and one running gradient. Three ways to run the same
    micro-batches, with the same numbers:

    ============ ======================= =====================================================
    ``how``      programs                what it costs
    ============ ======================= =====================================================
    ``"padded"`` 1                       every batch travels as `max_batch_size` rows; padding
                                         is not computed
    ``"ladder"`` ``log2(max/micro) + 1`` as many compilations; at most half of the rows padding
    ``"host"``   2, and a start          one dispatch a micro-batch; no largest batch, and only
                                         two micro-batches are on the device at a time
    ============ ======================= =====================================================

    Args:
        loss_fn: ``loss_fn(params, batch, *args)`` → the mean loss over the rows of `batch`.
        update: ``update(state, value, grads, stats)`` → ``(state, output)``; `value` is the loss,
            or ``(loss, aux)``. It is traced: a state of other structure, shapes or dtypes than it
            got is an error.
        micro_batch_size: Rows of a micro-batch, over all processes and devices.
        max_batch_size: Largest batch, a multiple of it. ``"host"`` needs none.
        how: See above. Host batches must be padded to ``step.capacities``.
        method: How each micro-batch is measured, see `measure.micro_steps`. None takes it as one
            group, so that noise is measured from two micro-batches on; ``measure.exact()`` has a
            variance from two examples on.
        statistics: What to measure where `method` is None, see `measure.micro_steps`.
        loss_kind: As for `value_grad_and_stats`.
        batch_argnums: As for `value_grad_and_stats`. With several, the batches of the loader are
            tuples of as many parts, in this order.
        weights_of: As for `value_grad_and_stats`.
        has_aux: As for `value_grad_and_stats`.
        key_argnums: As for `value_grad_and_stats`. Micro-batch i gets ``fold_in(key, i)``; hand the
            step a new key every time.
        params_of: Finds the parameters in a state; by default its first element.
        preconditioner_of: Makes from a state the `preconditioner` that noise and signal of the next
            step are measured in, as ``lambda state: measure.adam_preconditioner(state[1])`` does;
            None measures the gradient as it is.
        sharding: Where rows lie, such as ``NamedSharding(mesh, P("data"))``: rows of each
            micro-batch are on all devices of the data axis, and micro-batches follow each other.
            The state keeps the places that it has; what has none is replicated.
        donate: Whether the memory of the old state is reused for the new one. The state that goes
            in is gone then: train with what comes out.

    Returns:
        `AccumulatedStep`: ``step(state, batch, *args)`` → ``(state, output)``, where `batch` is the
        host `Batch` of the loader. Its ``compile`` prepares all programs and checks that the loss
        is a mean over rows, its ``fit`` tells the largest batch that memory allows.

    Raises:
        TypeError: If `method` or `sharding` is of another kind.
        ValueError: If a size, `how`, `statistics` or `key_argnums` is out of range, the devices do
            not divide a micro-batch, or `method` measures what cannot be merged.

    Examples:
        >>> import adaoptax, jax.numpy as jnp, numpy as np, optax
        >>> from adaoptax.loop import accumulate
        >>> loss_fn = lambda w, x: jnp.mean((x @ w - 1) ** 2)
        >>> tx = optax.chain(adaoptax.norm_test(eta=0.5), optax.sgd(0.1))
        >>> def update(state, loss, grads, stats):
        ...     w, opt_state = state
        ...     updates, opt_state = tx.update(grads, opt_state, w, stats=stats)
        ...     return (optax.apply_updates(w, updates), opt_state), stats.num_examples
        >>> step = accumulate(loss_fn, update, micro_batch_size=4, max_batch_size=32)
        >>> data = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
        >>> loader = adaoptax.BatchLoader(data, 4, max_batch_size=32, pad_to=step.capacities)
        >>> state = (jnp.zeros(3), tx.init(jnp.zeros(3)))
        >>> for size in (4, 12, 32):  # one compilation
        ...     size = loader.resize(size)
        ...     state, num_examples = step(state, next(loader))
        ...     print(float(num_examples))
        4.0
        12.0
        32.0
    """
    _validate.one_of("how", how, ("padded", "ladder", "host"))
    micro = whole_number("micro_batch_size", micro_batch_size, 1, "it counts examples.")
    largest = None if max_batch_size is None else checked_max(max_batch_size, micro)
    rows = None
    if how != "host":
        if largest is None:
            raise ValueError(
                f"Expected max_batch_size with {how=}, got max_batch_size=None: batches are padded"
                ' to it; pass it, or how="host", which has no largest batch.'
            )
        rows = (largest,) if how == "padded" else capacities(micro, largest)
    micro_batches = MicroBatches(micro, rows, sharding)
    loss = describe_loss(
        loss_fn,
        loss_kind=loss_kind,
        batch_argnums=batch_argnums,
        weights_of=weights_of,
        has_aux=has_aux,
        key_argnums=key_argnums,
    )
    steps = micro_steps_of(loss, method, statistics)
    everywhere = None if sharding is None else NamedSharding(sharding.mesh, P())
    find = params_of or _first

    def make_programs(places: Any) -> StepPrograms:
        return StepPrograms(steps, loss, update, find, preconditioner_of, places, everywhere)

    kind = HostDrivenStep if how == "host" else WholeStep
    return kind(make_programs, loss, micro_batches, largest, find, everywhere, donate)


def _first(state: Any) -> Any:
    if not isinstance(state, tuple | list) or not state:
        raise TypeError(
            f"Expected a state that is a tuple whose first element is the parameters, got"
            f" {type(state).__name__}: pass params_of, as in params_of=lambda state: state.params."
        )
    return state[0]
