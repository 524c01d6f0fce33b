"""Measuring at every n-th step, for methods that cost something."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaoptax import _validate
from adaoptax.measure.gradient_only import GradientOnly
from adaoptax.measure.loss import Loss, Measured, Method, check_method
from adaoptax.measure.programs.convolutions import channels_last
from adaoptax.measure.varying import vary_like
from adaoptax.stats import GradientStats

WITHOUT_DUE = """\
Expected due=True or due=False for adaoptax.measure.every({n}, ...), got due=None: it says whether
this step is one of those that are measured. Pass due=method.due(step), as in
    @functools.partial(jax.jit, static_argnames="due")
    def train_step(params, opt_state, batch, due):
        loss, grads, stats = grad_fn(params, batch, due=due)
    train_step(params, opt_state, batch, due=method.due(step))
which compiles two programs, one that measures and one that costs what a plain step does."""


@dataclasses.dataclass(frozen=True)
class Every:
    """The method of `every`."""

    n: int
    method: Method
    between: Method | None

    def due(self, step: Any) -> Any:
        """Whether `step`, counted from 0, is measured.

        Args:
            step: A Python or NumPy integer, or a traced one.

        Returns:
            A Python bool, which may be a static argument of `jax.jit`; a traced one for a traced
            step.
        """
        due = step % self.n == 0
        return bool(due) if isinstance(step, int | np.integer) else due

    def __call__(self, loss: Loss) -> Callable[..., Measured]:
        """Returns the function that measures `loss` where ``loss.due`` says so."""

        def measure(*inputs: Any) -> Measured:
            now = functools.partial(self.method(loss), *inputs)
            if loss.due is None:
                raise TypeError(WITHOUT_DUE.format(n=self.n))
            if isinstance(loss.due, bool | np.bool_):
                return now() if loss.due else self._rest(loss, now, inputs)
            rest = lambda: self._rest(loss, now, inputs)
            return jax.lax.cond(loss.due, channels_last(now), channels_last(rest))

        return measure

    def _rest(self, loss: Loss, now: Callable[[], Measured], inputs: tuple) -> Measured:
        """A step between, in the form of what `now` returns."""
        like = jax.eval_shape(now)
        plain = getattr(self.method, "gradient_only", GradientOnly)()
        out, grads, stats = (self.between or plain)(loss)(*inputs)
        if self.between is None:
            stats = _unmeasured(stats, like[2])
        else:
            stats = _same_fields(stats, like[2], self.between, self.method)
        return vary_like((out, grads, stats), like)


def _unmeasured(stats: GradientStats, like: GradientStats) -> GradientStats:
    """`stats` without noise, with the fields of `like`."""
    nothing = lambda tree: jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), tree)
    return like._replace(
        num_examples=stats.num_examples,
        num_groups=jnp.zeros_like(stats.num_groups),
        sq_norm=stats.sq_norm,
        variance=nothing(like.variance),
        inner_product_variance=nothing(like.inner_product_variance),
        coordinate_variance=nothing(like.coordinate_variance),
        leave_one_out_variance=nothing(like.leave_one_out_variance),
    )


def _same_fields(
    stats: GradientStats, like: GradientStats, between: Method, method: Method
) -> GradientStats:
    """`stats` of `between` with the fields of `like`, those of `method`."""
    wanted = [name for name in GradientStats._fields if getattr(like, name) is not None]
    missing = [name for name in wanted if getattr(stats, name) is None]
    if missing:
        raise ValueError(
            f"Expected between to measure all that method={method} does, got between={between}"
            f" without {', '.join(missing)}: what a test needs may not come and go. Ask method"
            " for less, or leave between out: tests then hold their state between."
        )
    return GradientStats(**{name: getattr(stats, name) for name in wanted})


def every(
    n: int,
    method: Method,
    *,
    between: Method | None = None,
) -> Every:
    r"""Measures with `method` at every `n`-th step, and takes the plain gradient between.

    The statistics of a step between are not `measured`: `num_groups` is 0, the variances are NaN,
    ``num_examples`` and ``sq_norm`` are there as always. Every test then holds its state as it was
    and counts nothing; AdaScale keeps its averages, and goes on with the gain that they give at
    the size of the batch; a NaN gradient is skipped as ever. A run is exactly that in which only
    the measured steps had statistics. (What averages over steps averages over measured ones; so
    does `interval` of a test count them.) A growth policy takes ``None`` for a step between.

    **Two programs or one.** `value_grad_and_stats` returns a function that asks at each step for
    ``due``, whether it is to be measured:

    - ``due=method.due(step)`` of a Python step is a Python bool. As a static argument of `jax.jit`
      it makes two programs, and the one between costs what a plain step does, on every backend
      and for every model. Make `due` static and not `step`, which would compile at each step.
    - Of a traced step it is a traced bool, for loops of many steps in one program
      (`jax.lax.scan`). It becomes a `jax.lax.cond`, in which a step between costs about what it
      does outside, convolutions on the CPU included (they are rewritten for it).

    Args:
        n: Steps from one measurement to the next; step 0 is measured.
        method: How to measure, from `adaoptax.measure`: ``per_example()``, ``groups(8)``, ...
        between: A cheaper method for the steps between, which has to measure the same statistics;
            None for none.

    Returns:
        A method for `value_grad_and_stats`, with ``due(step)``. Steps between differentiate the
        loss of the whole batch, which sees all of it (BatchNorm) and random keys as they are; with
        a mask, the weighted mean of the losses of single rows. It raises TypeError without `due`.

    Raises:
        ValueError: If `n` is not a whole number ≥ 1.
        TypeError: If `method` or `between` is not a method of `adaoptax.measure`.

    Examples:
        >>> import adaoptax, functools, jax, jax.numpy as jnp, optax
        >>> method = adaoptax.measure.every(4, adaoptax.measure.per_example())
        >>> grad_fn = adaoptax.value_grad_and_stats(lambda w, x: jnp.mean((x @ w - 1) ** 2), method)
        >>> tx = optax.chain(adaoptax.norm_test(eta=0.5), optax.sgd(0.1))
        >>> @functools.partial(jax.jit, static_argnames="due")  # two programs
        ... def train_step(w, opt_state, x, due):
        ...     loss, grads, stats = grad_fn(w, x, due=due)
        ...     updates, opt_state = tx.update(grads, opt_state, w, stats=stats)
        ...     return optax.apply_updates(w, updates), opt_state
        >>> w = jnp.zeros(2)
        >>> opt_state, policy = tx.init(w), adaoptax.GrowthPolicy(8, 64)
        >>> for step in range(8):
        ...     x, due = jax.random.normal(jax.random.key(step), (8, 2)), method.due(step)
        ...     w, opt_state = train_step(w, opt_state, x, due=due)
        ...     size = policy.update(adaoptax.required_batch_size(opt_state) if due else None)
        >>> int(opt_state[0].tests_run), policy.num_updates
        (2, 2)
    """
    _validate.count("n", n, 1, "it counts the steps from one measurement to the next.")
    check_method("method", method)
    if between is not None:
        check_method("between", between)
    return Every(int(n), method, between)
