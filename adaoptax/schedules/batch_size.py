"""Batch sizes on the clock of examples: ``"0:768 250B:1536"``."""

import bisect
import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, TypeAlias

import jax

from adaoptax._validate import round_up, whole_number
from adaoptax.typing import Scalar

Stage: TypeAlias = tuple[int, int]

_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
# Of bounded length, so that a slip of the finger is no endless computation.
_NUMBER = re.compile(r"(\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})((?:E\+?\d{1,2})?)([KMBT]?)", re.ASCII)

_SIZE = "a batch holds examples."
_FORM = (
    "pass pairs (examples, batch size) such as [(0, 768), (1000, 1536)], a function of examples, "
    'or a string such as "0:768 1K:1536" to batch_size_schedule.'
)


class BatchSizeSchedule:
    """The batch size as a function of the examples seen so far. Immutable.

    Either **stages**, pairs of a threshold in examples and the size from there on, or any function
    of the examples. A batch has the size that holds at its start; a threshold inside of a batch
    counts from the next one. The clock of examples is that of the loader, so that a resume, another
    micro-batch size or another number of devices never moves a stage.

    Args:
        sizes: Pairs ``(examples, batch_size)``, thresholds from 0 upward; or a function of the
            examples seen (a plain int) that returns a whole number; or another schedule.
        tokens_per_example: Where this is given, thresholds (or the argument of the function) are
            in tokens. A threshold of t tokens is ``ceil(t / tokens_per_example)`` examples: the
            stage begins with the first example that starts at or after token t.
        min_batch_size: Lower bound; smaller sizes are raised to it.
        max_batch_size: Upper bound; larger sizes are lowered to it.

    Raises:
        TypeError: If `sizes` is neither pairs nor a function.
        ValueError: If the first threshold is not 0, thresholds do not increase, a size is below 1
            or not whole, or the bounds exclude each other.

    Examples:
        >>> from adaoptax.schedules import BatchSizeSchedule
        >>> schedule = BatchSizeSchedule([(0, 768), (1_500_000, 1536)])
        >>> schedule(0), schedule(1_499_999), schedule(1_500_000)
        (768, 768, 1536)
        >>> str(schedule)
        '0:768 1.5M:1536'
        >>> grow = BatchSizeSchedule(lambda examples: 32 + examples // 1000, max_batch_size=256)
        >>> grow(50_000), grow(10**9)
        (82, 256)
    """

    __slots__ = ("_function", "_max", "_min", "_stages", "_thresholds", "_tokens")

    def __init__(
        self,
        sizes: Iterable[tuple[Any, Any]] | Callable[[int], int],
        *,
        tokens_per_example: int = 1,
        min_batch_size: int | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        self._tokens = whole_number(
            "tokens_per_example", tokens_per_example, 1, "it is the length of an example in tokens."
        )
        low, high = 1 if min_batch_size is None else min_batch_size, max_batch_size
        self._min = whole_number("min_batch_size", low, 1, _SIZE)
        self._max = None if high is None else whole_number("max_batch_size", high, 1, _SIZE)
        if self._max is not None and self._max < self._min:
            raise ValueError(
                f"Expected max_batch_size >= min_batch_size={self._min}, got "
                f"max_batch_size={self._max}: there is no size between them; swap them."
            )
        self._function: Callable[[int], int] | None = None
        self._stages: tuple[Stage, ...] | None = None
        if isinstance(sizes, BatchSizeSchedule):
            if self._tokens != 1:
                raise ValueError(
                    f"Expected {tokens_per_example=} together with numbers, got a"
                    " BatchSizeSchedule: its thresholds are in examples already; leave"
                    " tokens_per_example out."
                )
            sizes = sizes if sizes.stages is None else sizes.stages
        if callable(sizes):
            self._function = sizes
            return
        self._stages = tuple(
            (threshold, self._bounded(size))
            for threshold, size in _checked_stages(sizes, self._tokens)
        )
        self._thresholds = [threshold for threshold, _ in self._stages]

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        tokens_per_example: int = 1,
        min_batch_size: int | None = None,
        max_batch_size: int | None = None,
    ) -> "BatchSizeSchedule":
        """Reads the form of Megatron's ``--step-batch-size-schedule``.

        Entries ``THRESHOLD:SIZE`` separated by blanks or commas. Numbers may have decimals and the
        suffixes K, M, B and T (10^3, 10^6, 10^9, 10^12; in either case), as long as they are whole.
        Two things differ from Megatron: thresholds must be written in increasing order (it sorts
        them), and tokens are rounded up to whole examples (it rounds down, so that the stage may
        begin one example before its token).

        Args:
            text: The entries; the first threshold is 0.
            tokens_per_example: Where this is given, thresholds are in tokens; see the class.
            min_batch_size: Lower bound of the sizes.
            max_batch_size: Upper bound of the sizes.

        Returns:
            The schedule; its `str` gives the entries back, with thresholds in examples.

        Raises:
            TypeError: If `text` is not a string.
            ValueError: If an entry cannot be read, or for what the class refuses.

        Examples:
            >>> from adaoptax.schedules import BatchSizeSchedule
            >>> BatchSizeSchedule.parse("0:768, 250B:1536")
            BatchSizeSchedule.parse('0:768 250B:1536')
            >>> BatchSizeSchedule.parse("0:8 10K:16", tokens_per_example=2048).stages
            ((0, 8), (5, 16))
        """
        return cls(
            _parsed(text),
            tokens_per_example=tokens_per_example,
            min_batch_size=min_batch_size,
            max_batch_size=max_batch_size,
        )

    @classmethod
    def from_increments(
        cls, start: int, increment: int, samples: int, final: int
    ) -> "BatchSizeSchedule":
        """Reads ``rampup_batch_size=[start, increment, samples]`` of Megatron and NeMo.

        The size grows by `increment` in n = (final - start) / increment equal parts of `samples`:
        it is ``start + k * increment`` from the first example at or after ``k * samples / n`` on.
        Both systems divide by a rounded float, which may move a threshold by one example.

        Args:
            start: First size.
            increment: How much one step adds.
            samples: Examples until the final size; 0 for the final size at once.
            final: Last size (``global_batch_size`` there).

        Returns:
            The schedule, with n + 1 stages or fewer, where `samples` is smaller than n.

        Raises:
            ValueError: If `final` is below `start`, or not a whole number of increments above it.

        Examples:
            >>> from adaoptax.schedules import BatchSizeSchedule
            >>> str(BatchSizeSchedule.from_increments(256, 256, 50_000_000, final=1024))
            '0:256 16666667:512 33333334:768 50M:1024'
        """
        start = whole_number("start", start, 1, _SIZE)
        increment = whole_number("increment", increment, 1, "it is added to the size.")
        samples = whole_number("samples", samples, 0, "it counts the examples of the ramp.")
        final = whole_number("final", final, 1, _SIZE)
        if final < start or (final - start) % increment:
            raise ValueError(
                f"Expected final = start + a whole number of increments, got {start=}, "
                f"{increment=}, {final=}: the ramp would jump over the final size; change one."
            )
        count = (final - start) // increment
        # Where several steps fall on one example, the last one holds.
        sizes = {-(-k * samples // count): start + k * increment for k in range(1, count + 1)}
        return cls(list(({0: start} | sizes).items()))

    @classmethod
    def from_steps(
        cls, stages: Iterable[tuple[int, int]], *, micro_batch_size: int = 1
    ) -> "BatchSizeSchedule":
        """Reads stages that begin at a **step**, as Levanter's ``ScheduleStep`` and others have.

        A stage that begins at step s begins after as many examples as the batches before it hold.
        The last stage lasts for ever. (Levanter:
        ``from_steps([(step.start, step.value) for step in schedule])``.)

        Args:
            stages: Pairs ``(step, batch_size)``; the first step is 0.
            micro_batch_size: That of the loader, which rounds sizes up to it: they are rounded
                here already, so that each stage keeps its number of steps.

        Returns:
            The schedule, in examples.

        Raises:
            TypeError: If `stages` are no pairs.
            ValueError: For what the class refuses.

        Examples:
            >>> from adaoptax.schedules import BatchSizeSchedule
            >>> BatchSizeSchedule.from_steps([(0, 8), (10, 16), (30, 64)]).stages
            ((0, 8), (80, 16), (400, 64))
        """
        micro = whole_number("micro_batch_size", micro_batch_size, 1, "it counts examples.")
        examples, last_step, last_size = 0, 0, 0
        converted = []
        for step, size in _checked_stages(stages, 1):
            examples += (step - last_step) * last_size
            last_step, last_size = step, round_up(size, micro)
            converted.append((examples, last_size))
        return cls(converted)

    @property
    def stages(self) -> tuple[Stage, ...] | None:
        """Pairs of a threshold in examples and the size from there on; None for a function."""
        return self._stages

    @property
    def min_batch_size(self) -> int:
        """Smallest size of the stages; of a function the bound that was given, else 1."""
        return self._min if self._stages is None else min(size for _, size in self._stages)

    @property
    def max_batch_size(self) -> int | None:
        """Largest size of the stages; of a function the bound that was given, else None."""
        return self._max if self._stages is None else max(size for _, size in self._stages)

    def __call__(self, examples: Scalar) -> int:
        """Returns the size of the batch that starts when so many examples were seen."""
        seen = whole_number("examples", _fetched(examples), 0, "it counts the examples seen.")
        if self._stages is not None:
            return self._stages[bisect.bisect_right(self._thresholds, seen) - 1][1]
        assert self._function is not None
        size = _fetched(self._function(seen * self._tokens))
        where = f"the function of this schedule returned it at {seen} examples."
        return self._bounded(whole_number("batch_size", size, 1, where))

    def _bounded(self, size: int) -> int:
        size = max(size, self._min)
        return size if self._max is None else min(size, self._max)

    def __str__(self) -> str:
        if self._stages is None:
            return repr(self)
        return " ".join(f"{_write(threshold)}:{size}" for threshold, size in self._stages)

    def __repr__(self) -> str:
        if self._stages is not None:
            return f"BatchSizeSchedule.parse({str(self)!r})"
        name = getattr(self._function, "__qualname__", repr(self._function))
        return f"BatchSizeSchedule({name}, bounds=({self._min}, {self._max}))"

    def _key(self) -> tuple[Any, ...]:
        function = (self._function, self._tokens, self._min, self._max)
        return function if self._stages is None else (self._stages,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BatchSizeSchedule) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


BatchSizes: TypeAlias = (
    BatchSizeSchedule | int | str | Iterable[tuple[Any, Any]] | Callable[[int], int]
)


def batch_size_schedule(sizes: BatchSizes, *, tokens_per_example: int = 1) -> BatchSizeSchedule:
    """Makes a `BatchSizeSchedule` of whatever describes one.

    Args:
        sizes: A whole number (always this size), a string such as ``"0:768 250B:1536"``, pairs
            ``(examples, batch_size)``, a function of examples, or a `BatchSizeSchedule`, which is
            returned as it is.
        tokens_per_example: Where this is given, the numbers to the left are in tokens.

    Returns:
        The schedule.

    Raises:
        TypeError: If `sizes` is none of these.
        ValueError: For what `BatchSizeSchedule` refuses.

    Examples:
        >>> from adaoptax.schedules import batch_size_schedule
        >>> str(batch_size_schedule(256))
        '0:256'
        >>> batch_size_schedule("0:8 1K:16")(1000)
        16
    """
    if isinstance(sizes, BatchSizeSchedule) and tokens_per_example == 1:
        return sizes
    if isinstance(sizes, str):
        return BatchSizeSchedule.parse(sizes, tokens_per_example=tokens_per_example)
    if callable(sizes) or isinstance(sizes, Iterable):
        return BatchSizeSchedule(sizes, tokens_per_example=tokens_per_example)
    return BatchSizeSchedule([(0, sizes)])


def _fetched(x: Any) -> Any:
    """A number on the host, by an explicit transfer: runs under a transfer guard."""
    return jax.device_get(x) if isinstance(x, jax.Array) else x


def _checked_stages(pairs: Any, tokens_per_example: int) -> list[Stage]:
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
        raise TypeError(f"Expected sizes to be pairs or a function, got sizes={pairs!r}: {_FORM}")
    stages: list[Stage] = []
    for pair in pairs:
        try:
            threshold, size = pair
        except (TypeError, ValueError):
            raise TypeError(f"Expected a pair, got {pair!r} in sizes: {_FORM}") from None
        start = round_up(_threshold(threshold), tokens_per_example) // tokens_per_example
        size = whole_number("batch_size", size, 1, f"it is the size from {threshold} on.")
        if not stages and start != 0:
            raise ValueError(
                f"Expected the first threshold to be 0, got {threshold}: the size before it is "
                f"missing; begin with 0:{size}, or with another size."
            )
        if stages and start <= stages[-1][0]:
            raise ValueError(
                f"Expected thresholds that increase, got {threshold} after a stage that begins at "
                f"{stages[-1][0]} examples: a schedule cannot go back in time; sort the entries, "
                "and leave out one of two that begin at the same example."
            )
        stages.append((start, size))
    if not stages:
        raise ValueError(f"Expected at least one stage, got none: {_FORM}")
    return stages


def _threshold(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 250e9 is how people write it
    return whole_number("threshold", value, 0, "it counts examples or tokens.")


def _parsed(text: str) -> list[tuple[int, int]]:
    """Reads ``"0:768 250B:1536"`` as [(0, 768), (250000000000, 1536)]."""
    if not isinstance(text, str):
        raise TypeError(
            f"Expected a string such as '0:768 250B:1536', got {text!r}: pass other forms to "
            "batch_size_schedule."
        )
    stages = []
    for entry in text.replace(",", " ").split():
        parts = entry.split(":")
        if len(parts) != 2:
            raise ValueError(
                f"Expected entries THRESHOLD:SIZE, got {entry!r} in {text!r}: write them like "
                "'0:768 250B:1536', with blanks or commas only between entries."
            )
        stages.append((_read(parts[0], entry), _read(parts[1], entry)))
    if not stages:
        raise ValueError(
            f"Expected at least one entry THRESHOLD:SIZE, got {text!r}: pass '0:256' for one size."
        )
    return stages


def _read(text: str, entry: str) -> int:
    """Reads ``"1.5M"`` as 1500000; `entry` is where it stands, for the error."""
    match = _NUMBER.fullmatch(text.upper())
    if match is None:
        raise ValueError(
            f"Expected a number >= 0 such as 768, 1.5M or 250B, got {text!r} in {entry!r}: the "
            "suffixes are K, M, B and T."
        )
    number = Fraction(match[1] + match[2]) * _SUFFIXES[match[3]]
    if number.denominator != 1:
        raise ValueError(
            f"Expected a whole number, got {text!r} in {entry!r}: it is {float(number)} examples; "
            "leave out decimals."
        )
    return int(number)


def _write(number: int) -> str:
    """The shortest way to write a whole number that `_read` reads back, "1.5M"."""
    forms = [_with_suffix(number, suffix, unit) for suffix, unit in _SUFFIXES.items()]
    return min(forms, key=len)


def _with_suffix(number: int, suffix: str, unit: int) -> str:
    whole, rest = divmod(number, unit)
    decimals = str(rest).zfill(len(str(unit)) - 1).rstrip("0")
    return f"{whole}.{decimals}{suffix}" if decimals else f"{whole}{suffix}"
