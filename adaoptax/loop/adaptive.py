"""The loop around any train step: reads its numbers one step late, decides sizes, keeps records."""

import contextlib
import copy
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Self

import jax

from adaoptax.loop.loader import BatchLoader
from adaoptax.loop.outputs import finish_reading, start_reading
from adaoptax.loop.policy import GrowthPolicy
from adaoptax.loop.rows import Batch
from adaoptax.loop.saved_state import (
    damaged,
    require_keys,
    require_layout,
    saved_count,
    saved_number,
    to_strict,
)

_VERSION = 1

Record = dict[str, Any]


class _Unread(NamedTuple):
    """A step whose numbers may still be on their way from the device."""

    step: int
    examples: int
    batch_size: int
    output: dict[str, Any]


class AdaptiveLoop:
    """Iterates over batches of a loader whose size follows what the train step measured.

    Each turn: take a batch, run your step, hand its scalars to `observe`. The numbers of a step
    are read while the next one already runs, so that the device never waits for the host: the
    requirement of step t decides the size of batch t + 2. Reading is late by one step however
    fast the device is, hence runs repeat bit for bit, and so do resumed ones: the numbers that
    were not read yet are a part of the state.

    For every update callbacks get one record, a dict of plain numbers and text:

    ====================  =====================================================================
    ``step``              number of the update, from 1
    ``examples``          examples seen after it, over all processes; ``epoch`` in epochs, or None
    ``batch_size``        real examples of its batch, over all processes
    ``required``          batch size that it required (a real number, inf, or NaN for undefined);
                          None if it was not measured
    ``decision``          what followed, see the table of `GrowthPolicy`
    ``next_batch_size``   the size in force from then on; with ``act=False`` the size that would be
    ``examples_per_s``    real examples over the time between two readings; None for the first
                          and the last, which were not between two
    all other names       the scalars of the output: ``loss``, ``noise_scale``, ``gain``, ...
    ====================  =====================================================================

    Where several processes train together, each has a loop of its own. Outputs have to be
    replicated (the same on all processes); process 0 alone calls the callbacks.

    Args:
        loader: Where batches come from.
        policy: Turns requirements into sizes. A function from examples seen to a size (a
            `BatchSizeSchedule`) makes the size follow it and only records requirements. None keeps
            the size that the loader has now. The policy decides from the first batch on, whatever
            size the loader was made with.
        callbacks: Called with each record. What has a method ``resume(record)`` is told of a
            restore, with the ``step`` and ``examples`` of the last record that still holds; what
            has ``close()`` is closed with the loop.
        act: Whether sizes are changed. False measures and records what would have been decided,
            and leaves the batches as they are.

    Raises:
        TypeError: If `policy` is neither.
        ValueError: If sizes of the policy do not fit the loader.

    Examples:
        >>> import adaoptax, jax, jax.numpy as jnp, numpy as np, optax
        >>> tx = optax.chain(adaoptax.norm_test(eta=0.5), optax.sgd(0.1))
        >>> measure = adaoptax.value_grad_and_stats(
        ...     lambda w, x: jnp.mean((x @ w - 1) ** 2), adaoptax.measure.per_example())
        >>> @jax.jit
        ... def step(w, opt_state, batch):
        ...     loss, grads, stats = measure(w, batch.data, mask=batch.mask)
        ...     updates, opt_state = tx.update(grads, opt_state, w, stats=stats)
        ...     return optax.apply_updates(w, updates), opt_state, adaoptax.observables(
        ...         loss, stats, opt_state)
        >>> x = np.random.default_rng(0).normal(size=(512, 3)).astype(np.float32)
        >>> loader = adaoptax.BatchLoader(x, 8, max_batch_size=64, pad_to="max", num_epochs=2)
        >>> policy = adaoptax.GrowthPolicy(8, 64, multiple_of=8)
        >>> w, records = jnp.zeros(3), []
        >>> opt_state = tx.init(w)
        >>> with adaoptax.AdaptiveLoop(loader, policy, callbacks=[records.append]) as loop:
        ...     for batch in loop:
        ...         w, opt_state, output = step(w, opt_state, batch)
        ...         loop.observe(output)
        >>> records[0]["step"], records[0]["batch_size"], records[-1]["examples"]
        (1, 8, 1024)
    """

    def __init__(
        self,
        loader: BatchLoader,
        policy: GrowthPolicy | Callable[[int], int] | None = None,
        *,
        callbacks: Iterable[Callable[[Record], Any]] = (),
        act: bool = True,
    ) -> None:
        self.loader = loader
        self.policy = _as_policy(policy, loader)
        self._callbacks = tuple(callbacks)
        self._act = bool(act)
        self._delivered: Batch | None = None  # until `observe`
        self._unread: _Unread | None = None
        self._read_at: float | None = None
        self._end_state: dict[str, Any] | None = None
        if self._act:
            _require_fit(loader, self.policy.max_batch_size)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._delivered is not None:
            raise RuntimeError(
                "Expected loop.observe(output) after every batch, got another next() first: call "
                "it right after the train step, with {} where there is nothing to tell."
            )
        size = self.policy.size_at(self.loader.examples_seen)
        if self._act:
            _require_fit(self.loader, size)
            self.loader.resize(size)
        try:
            self._delivered = next(self.loader)
        except StopIteration:
            self._finish()
            raise
        return self._delivered

    def observe(self, output: Any) -> None:
        """Takes the scalars of the step just started, and reads those of the step before.

        Args:
            output: A dict (or NamedTuple) of scalars, on the device or not, as `observables`
                returns it. ``required`` is what the policy goes by; without it, or where
                ``measured`` is false, the step is not taken for evidence.

        Raises:
            RuntimeError: If there was no new batch since the last call.
            TypeError: If `output` is no dict.
            ValueError: If an entry is not one number.
        """
        if self._delivered is None:
            raise RuntimeError(
                "Expected one batch for every loop.observe(output), got none since the last call: "
                "iterate over the loop, not over the loader."
            )
        output = start_reading(output)
        self._read()
        self._unread = _Unread(
            self.loader.step, self.loader.examples_seen, self.loader.num_examples, output
        )
        self._delivered = self._end_state = None

    @property
    def step(self) -> int:
        """Number of batches delivered so far."""
        return self.loader.step

    @property
    def examples_seen(self) -> int:
        """Number of examples delivered so far, over all processes."""
        return self.loader.examples_seen

    def _read(self) -> None:
        """Reads the step before, lets the policy decide, and calls the callbacks."""
        if self._unread is None:
            return
        unread, self._unread = self._unread, None
        numbers = finish_reading(unread.output)
        now, before = time.perf_counter(), self._read_at
        self._read_at = now
        required = numbers.pop("required", None)
        if not numbers.get("measured", True):
            required = None
        self.policy.update(required, num_examples=unread.batch_size)
        length = self.loader.examples_per_epoch
        record: Record = {
            "step": unread.step,
            "examples": unread.examples,
            "epoch": None if length is None else unread.examples / length,
            "batch_size": unread.batch_size,
            "required": required,
            "decision": self.policy.decision,
            "next_batch_size": self.policy.batch_size,
            "examples_per_s": None if before is None else unread.batch_size / (now - before),
        }
        for callback in self._callbacks_here():
            callback({**numbers, **record})

    def _callbacks_here(self) -> tuple[Callable[[Record], Any], ...]:
        """The callbacks on process 0, none on the others."""
        return self._callbacks if self._callbacks and jax.process_index() == 0 else ()

    def _finish(self) -> None:
        """Reads the last step; the state stays the one before, so that a longer run may go on."""
        if self._unread is None:
            return
        if self._delivered is None:  # else the loop was left in mid-step, which has no state
            self._end_state = self.get_state()
        self._read_at = None  # it is not read beside a step, so its time would tell nothing
        self._read()

    def get_state(self) -> dict[str, Any]:
        """Returns all that a resume needs besides your parameters; waits for the last step.

        Call it between `observe` and the next batch.

        Returns:
            A new dict of plain numbers and text that strict JSON can hold, the same on every
            process.

        Raises:
            RuntimeError: If a batch was delivered and not observed.
        """
        if self._end_state is not None:
            return copy.deepcopy(self._end_state)
        if self._delivered is not None:
            raise RuntimeError(
                "Expected loop.get_state() after loop.observe(output), got it in the middle of a "
                "step: the parameters may or may not hold this batch; save after observe."
            )
        unread = None
        if self._unread is not None:
            numbers = finish_reading(self._unread.output)
            self._unread = self._unread._replace(output=dict(numbers))
            unread = {**self._unread._asdict(), "output": to_strict(numbers)}
        return {
            "version": _VERSION,
            "loader": self.loader.get_state(),
            "policy": self.policy.get_state(),
            "unread": unread,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a saved place; callbacks are told which records still hold.

        Everything is checked first: after an error the loop is as it was before.

        Args:
            state: What `get_state` returned, also after a round trip through JSON.

        Raises:
            ValueError: If the state is damaged, or was saved with another loader or policy.
        """
        require_layout(state, _VERSION, ["loader", "policy", "unread"])
        unread = None if state["unread"] is None else _saved_unread(state["unread"])
        here, loader_here = self.policy.get_state(), self.loader.get_state()
        self.policy.set_state(state["policy"])
        try:
            self.loader.set_state(state["loader"])
        except BaseException:
            self.policy.set_state(here)
            raise
        place = self.loader.step, self.loader.examples_seen
        if unread is not None and (unread.step, unread.examples) != place:
            self.policy.set_state(here)
            self.loader.set_state(loader_here)
            raise ValueError(
                f"Expected the unread step to be the last of the loader, (step, examples)={place}, "
                f"got {(unread.step, unread.examples)} saved: the saved state is damaged, or its "
                "parts are of different moments."
            )
        self._unread, self._delivered = unread, None
        self._read_at = self._end_state = None
        told = {"step": self.loader.step, "examples": self.loader.examples_seen}
        if unread is not None:
            told = {"step": unread.step - 1, "examples": unread.examples - unread.batch_size}
        for callback in self._callbacks_here():
            if hasattr(callback, "resume"):
                callback.resume(told)

    def close(self) -> None:
        """Reads the last step, gives callbacks its record, and closes them."""
        try:
            self._finish()
        finally:
            self._close_callbacks()

    def _close_callbacks(self) -> None:
        with contextlib.ExitStack() as closing:  # closes all of them, also where one raises
            for callback in reversed(self._callbacks):
                if hasattr(callback, "close"):
                    closing.callback(callback.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.close()
        else:  # the last step may be what failed: do not wait for it
            self._close_callbacks()


def _as_policy(policy: Any, loader: BatchLoader) -> GrowthPolicy:
    micro = loader.micro_batch_size
    if policy is None:
        return GrowthPolicy(loader.batch_size, loader.batch_size, multiple_of=micro)
    if isinstance(policy, GrowthPolicy):
        return policy
    if callable(policy):
        return GrowthPolicy(policy, policy, multiple_of=micro)
    raise TypeError(
        f"Expected policy to be a GrowthPolicy, a function from examples seen to a size, or None, "
        f"got policy={policy!r}: for a fixed size pass None."
    )


def _require_fit(loader: BatchLoader, size: int) -> None:
    """Raises ValueError where the loader would not deliver `size` examples."""
    largest = loader.max_batch_size
    if size % loader.micro_batch_size or (largest is not None and size > largest):
        raise ValueError(
            f"Expected sizes of policy to be multiples of micro_batch_size="
            f"{loader.micro_batch_size} up to max_batch_size={largest} of the loader, got {size}: "
            "pass multiple_of=micro_batch_size to GrowthPolicy, and the same max_batch_size."
        )


def _saved_unread(saved: Any) -> _Unread:
    require_keys("state['unread']", saved, _Unread._fields)
    output = saved["output"]
    if not isinstance(output, Mapping):
        raise damaged("output", output, "to be a dict of numbers")
    numbers = {name: saved_number(name, number) for name, number in output.items()}
    step, examples, size = (saved_count(saved, key) for key in ("step", "examples", "batch_size"))
    if size > examples:
        raise damaged("batch_size", size, f"<= examples={examples}")
    return _Unread(step, examples, size, numbers)
