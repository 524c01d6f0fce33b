"""The step that `accumulate` makes: one program over padded rows, or two that the host drives."""

import abc
import bisect
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from adaoptax._tree import ArrayTree
from adaoptax.loop.compile_ahead import (
    Compiled,
    Progress,
    compile_ahead,
    memory_limit,
    required_bytes,
    speaker,
)
from adaoptax.loop.micro_batches import MicroBatches, check_batch, is_placed, nbytes_on_a_device
from adaoptax.loop.rows import Batch
from adaoptax.loop.sizes import capacities
from adaoptax.loop.step_programs import StepPrograms
from adaoptax.loop.train_state import committed_args, committed_state
from adaoptax.measure.check_loss import compare
from adaoptax.measure.groups import groups
from adaoptax.measure.loss import Loss

MakePrograms = Callable[[Any], StepPrograms]

HALVES = """ This was told from {rows} rows of example, whole and in halves: micro-batches of \
such a loss do not add up to their batch. If each may be a batch of its own, pass \
loss_kind="ghost" to accumulate; loss_kind="assumed", or check_loss=False here, leaves the check \
out."""


class AccumulatedStep(abc.ABC):
    """``step(state, batch, *args)`` → ``(state, output)``; made by `accumulate`."""

    def __init__(
        self,
        make_programs: MakePrograms,
        loss: Loss,
        micro_batches: MicroBatches,
        max_batch_size: int | None,
        params_of: Callable[[Any], Any],
        everywhere: jax.NamedSharding | None,
        donate: bool,
    ) -> None:
        self._make_programs = make_programs
        self._loss = loss
        self._micro_batches = micro_batches
        self._max = max_batch_size
        self._params_of = params_of
        self._everywhere = everywhere
        self._donate = donate
        self._jitted: dict[str, Any] = {}
        self._compiled: dict[Any, Compiled] = {}

    @property
    def capacities(self) -> tuple[int, ...] | None:
        """Row counts for ``BatchLoader(pad_to=...)``: one program each; None for any number."""
        return self._micro_batches.capacities

    def __call__(
        self, state: ArrayTree, batch: Batch | Sequence[Batch], *args: Any
    ) -> tuple[Any, Any]:
        """Takes one step.

        Args:
            state: What `update` returns; it is given away, unless ``donate=False``. Leaves that
                are no arrays, of weak type, or not committed to a device are made so first.
            batch: What the loader gives, or `place` of it.
            *args: What else the loss takes; arrays of the host are put on the devices.

        Returns:
            ``(state, output)`` of `update`.

        Raises:
            TypeError: If `batch` is no `Batch`.
            ValueError: If its rows are no whole micro-batches, or of no capacity.
        """
        state, args = self._ready(state, args)
        return self._step(state, batch, args)

    def place(self, batch: Batch) -> Any:
        """Puts a batch on the devices ahead of its step, while another one runs.

        Args:
            batch: What the loader gives.

        Returns:
            What the step takes in its place.
        """
        check_batch(batch)
        return self._place(batch)

    def compile(
        self,
        state: ArrayTree,
        example: ArrayTree,
        *args: Any,
        progress: Progress = True,
        check_loss: bool = True,
    ) -> None:
        """Compiles all programs now, so that no later step does, and checks the loss.

        The mean of the losses of two halves of a micro-batch has to be the loss of the whole, or
        micro-batches do not add up to their batch, see `measure.check_loss`. One example, twice,
        can only tell a sum; a `Batch` of some rows tells a mean over tokens, too.

        Args:
            state: As for the step; it is not given away.
            example: A `Batch` of any size, or one example, as ``dataset[0]`` gives it.
            *args: As for the step; shapes and dtypes count.
            progress: Whether to print one line for each program to standard error, or a function
                that takes the line.
            check_loss: Whether to check the loss, which compiles and runs a program of one
                micro-batch. Without effect for a `loss_kind` that is not ``"separable"``, and where
                numbers are not at hand: of shapes, and of several processes.

        Raises:
            ValueError: If the loss of a micro-batch is not the mean of those of its halves.
        """
        state, args = self._ready(state, args)
        if check_loss:
            params, size = self._params_of(state), self._micro_batches.size
            check_halves(self._loss, params, example, args, size)
        self._compile(state, example, args, progress)

    def fit(
        self, state: ArrayTree, example: ArrayTree, *args: Any, memory_bytes: int | None = None
    ) -> int | None:
        """The largest batch whose program fits in memory, by what the compiler says of it.

        Nothing is run. Counted are the bytes of state, batch and temporaries on one device; what
        the host puts there ahead (`place`) comes on top.

        Args:
            state: As for `compile`.
            example: As for `compile`.
            *args: As for `compile`.
            memory_bytes: Memory of one device; None asks the device. Where several processes
                train, pass the same number to all, so that they decide alike.

        Returns:
            A row count of `capacities(micro_batch_size, max_batch_size)`. For ``how="host"``,
            where memory does not depend on the size, `max_batch_size`.

        Raises:
            ValueError: If not even one micro-batch fits, or nothing tells the memory.
        """
        state, args = self._ready(state, args)
        device = min(jax.tree.leaves(state)[0].sharding.addressable_devices, key=lambda d: d.id)
        return self._fit(state, example, args, memory_limit(memory_bytes, device))

    @abc.abstractmethod
    def _step(self, state: Any, batch: Any, args: tuple) -> tuple[Any, Any]: ...

    @abc.abstractmethod
    def _place(self, batch: Batch) -> Any: ...

    @abc.abstractmethod
    def _compile(self, state: Any, example: Any, args: tuple, progress: Progress) -> None: ...

    @abc.abstractmethod
    def _fit(self, state: Any, example: Any, args: tuple, limit: int) -> int | None: ...

    @abc.abstractmethod
    def _jit(self, programs: StepPrograms) -> dict[str, Any]: ...

    def _ready(self, state: Any, args: tuple) -> tuple[Any, tuple]:
        state = committed_state(state, self._everywhere)
        if not self._jitted:
            places = jax.tree.map(lambda x: x.sharding, state)
            self._jitted = self._jit(self._make_programs(places))
        return state, committed_args(args, self._everywhere)


class WholeStep(AccumulatedStep):
    """One program for each capacity: micro-batches follow each other on the device."""

    def _jit(self, programs: StepPrograms) -> dict[str, Any]:
        return {"whole": jax.jit(programs.whole, donate_argnums=0 if self._donate else ())}

    def _step(self, state: Any, batch: Any, args: tuple) -> tuple[Any, Any]:
        check_batch(batch)
        if not is_placed(batch):
            batch = self._place(batch)
        program = self._compiled.get(batch.mask.shape[0], self._jitted["whole"])
        return program(state, batch, *args)

    def _place(self, batch: Batch) -> Batch:
        return self._micro_batches.place(batch)

    def _compile(self, state: Any, example: Any, args: tuple, progress: Progress) -> None:
        rows = self.capacities or ()
        say = speaker(progress, len(rows))
        for capacity in rows:
            program = self._program(state, example, args, capacity, say)
            self._compiled[capacity // self._micro_batches.size] = program

    def _program(
        self, state: Any, example: Any, args: tuple, rows: int, say: Callable[[str], None]
    ) -> Compiled:
        shapes = self._micro_batches.shapes(example, rows // self._micro_batches.size)
        what = f"up to {rows} examples"
        return compile_ahead(self._jitted["whole"], what, (state, shapes, *args), say)

    def _fit(self, state: Any, example: Any, args: tuple, limit: int) -> int:
        assert self._max is not None
        micro, quiet = self._micro_batches.size, speaker(False, 0)
        ladder = capacities(micro, self._max)

        @functools.cache
        def size_of(rows: int) -> int:
            program = self._compiled.get(rows // micro)
            if program is None:
                program = self._program(state, example, args, rows, quiet)
                if rows in (self.capacities or ()):
                    self._compiled[rows // micro] = program
            return required_bytes(program)

        if size_of(ladder[-1]) <= limit:
            return ladder[-1]
        check_fits(size_of(ladder[0]), limit, micro)
        return ladder[bisect.bisect_right(ladder, limit, key=size_of) - 1]


class HostDrivenStep(AccumulatedStep):
    """Programs for one micro-batch, which the host calls in turn; any number runs the same."""

    def _jit(self, programs: StepPrograms) -> dict[str, Any]:
        # Bound to their device, as what `add` returns: else the second micro-batch would compile.
        place = jax.tree.leaves(programs.places)[0]
        bound = None if isinstance(place, jax.NamedSharding) else place
        return {
            "start": jax.jit(programs.start, out_shardings=bound),
            "add": jax.jit(programs.add, donate_argnums=0),
            "finish": jax.jit(programs.finish, donate_argnums=1 if self._donate else ()),
        }

    def _step(self, state: Any, batch: Any, args: tuple) -> tuple[Any, Any]:
        call = lambda name: self._compiled.get(name, self._jitted[name.split()[0]])
        params = self._params_of(state)
        micro_batches = self._in_turn(batch)
        part: Batch | None = next(micro_batches)
        assert part is not None
        so_far = call("start")(state, part.data, *args)
        done: jax.Array | None = None
        while part is not None:
            add = call("add") if part.mask is None else call("add masked")
            so_far, following = add(so_far, params, part, *args)
            if done is not None:  # no more than two micro-batches are on the device at a time
                done.block_until_ready()
            done, part = following, next(micro_batches, None)
        return call("finish")(so_far, state)

    def _in_turn(self, batch: Any) -> Iterator[Batch]:
        """Micro-batches on the device, each put there when it is asked for; at least one."""
        if isinstance(batch, list):
            yield from batch
            return
        check_batch(batch)
        is_placed(batch)
        for i in range(max(self._micro_batches.num_real(batch), 1)):
            yield self._micro_batches.place_one(batch, i)

    def _place(self, batch: Batch) -> list[Batch]:
        return list(self._in_turn(batch))

    def _compile(self, state: Any, example: Any, args: tuple, progress: Progress) -> None:
        params, full = self._params_of(state), self._micro_batches.processes == 1
        say = speaker(progress, 4 if full else 3)
        shapes = self._micro_batches.shapes
        masked = shapes(example, None)
        start = (state, masked.data, *args)
        self._compiled["start"] = compile_ahead(self._jitted["start"], "the start", start, say)
        so_far = self._shapes_of_sums(start)
        rows = f"{self._micro_batches.size} examples"
        kinds = {"add masked": (masked, f"{rows} with padding")}
        if full:
            kinds = {"add": (shapes(example, None, masked=False), rows)} | kinds
        for name, (part, what) in kinds.items():
            add = (so_far, params, part, *args)
            self._compiled[name] = compile_ahead(self._jitted["add"], what, add, say)
        finish = (so_far, state)
        self._compiled["finish"] = compile_ahead(self._jitted["finish"], "the update", finish, say)

    def _shapes_of_sums(self, start: tuple) -> Any:
        """What `start` returns, with its places on the devices."""
        shapes = jax.eval_shape(self._jitted["start"], *start)
        if self._everywhere is None:
            return shapes
        put = lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
        return jax.tree.map(put, shapes, self._compiled["start"].output_shardings)

    def _fit(self, state: Any, example: Any, args: tuple, limit: int) -> int | None:
        if not self._compiled:
            self._compile(state, example, args, False)
        params = self._params_of(state)
        rest = nbytes_on_a_device(state) - nbytes_on_a_device(params)  # lies there meanwhile
        adds = [
            required_bytes(program) + rest
            for name, program in self._compiled.items()
            if name.startswith("add")
        ]
        size = max(*adds, required_bytes(self._compiled["finish"]))
        check_fits(size, limit, self._micro_batches.size)
        return self._max


def check_halves(loss: Loss, params: ArrayTree, example: Any, args: tuple, size: int) -> None:
    """Raises ValueError where the loss of a micro-batch is not the mean of those of its halves."""
    at_hand = lambda x: (
        not isinstance(x, jax.ShapeDtypeStruct)
        and (not isinstance(x, jax.Array) or x.is_fully_addressable)
    )
    if loss.kind != "separable" or not all(map(at_hand, jax.tree.leaves((params, example, args)))):
        return
    data, num_rows = jax.tree.map(lambda x: np.asarray(x)[None], example), 1
    if isinstance(example, Batch):
        axes = np.ndim(example.mask)
        data = jax.tree.map(lambda x: x.reshape(-1, *x.shape[axes:]), example.data)
        num_rows = int(np.count_nonzero(example.mask))
    rows = min(size + size % 2, num_rows) // 2 * 2
    taken = np.arange(rows) if rows else np.zeros(2, int)
    inputs = tuple(loss.join(jax.tree.map(lambda x: x[taken], data), args))
    compare(loss, groups(2), params, inputs, what_to_do=HALVES.format(rows=len(taken)))


def check_fits(size: int, limit: int, micro_batch_size: int) -> None:
    """Raises ValueError where one micro-batch is too large."""
    if size > limit:
        raise ValueError(
            f"Expected one micro-batch to fit in memory_bytes={limit}, got {size} bytes for"
            f" micro_batch_size={micro_batch_size}: pass a smaller micro_batch_size, or cut the"
            " state over more devices."
        )
