"""When and how far the batch grows: from the size that a step required to the next size."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from adaoptax._validate import is_number, real_number, whole_number
from adaoptax.loop.saved_state import (
    damaged,
    require_layout,
    saved_count,
    saved_number,
    to_strict,
)
from adaoptax.loop.sizes import Bounds, Grid, SizeOrSchedule
from adaoptax.typing import Scalar

_VERSION = 1

# The fields that are whole numbers >= 0, in the object and in the saved state alike.
_COUNTS = (
    "num_updates",
    "num_cap_hits",
    "num_noise_dominated",
    "num_undefined",
    "num_grown",
    "num_shrunk",
    "_num_above",
    "_num_below",
    "_num_examples",
    "_clock",
)


class GrowthPolicy:
    """Turns the batch size that each step required into the size of the next batch.

    The requirement (a real number of examples, noisy from step to step) is kept apart from the
    size in force (a whole number on the grid), which starts at `min_batch_size`. After each
    update, `decision` says which row of this table held:

    =========================================  ==============  =================================
    requirement r, size b in force             decision        next size
    =========================================  ==============  =================================
    r > b, for `patience` updates in a row     ``grow``        r rounded up to the grid, but at
                                                               most b * max_growth rounded down
                                                               (one step of the grid is always
                                                               allowed), and at most
                                                               max_batch_size
    r = inf (the gradient is all noise)        ``grow``        the largest step allowed
    r > b = max_batch_size                     ``cap``         b; `num_cap_hits` counts r > max
    r > b, in fewer updates                    ``wait``        b
    hysteresis * b < r <= b                    ``keep``        b; both counts of updates in a row
                                                               start anew
    r <= hysteresis * b, for `patience`        ``shrink``      with ``shrink=True`` r rounded up,
    updates in a row (in fewer: ``wait``)                      but at least b / max_growth
                                                               rounded up (one step of the grid
                                                               is always allowed), and at least
                                                               min_batch_size; else ``keep``
    r = NaN (undefined: no evidence)           ``undefined``   b; the updates in a row before it
                                                               still count
    None (not measured at this step)           ``unmeasured``  b; only its examples are counted
    fewer than `cooldown` examples since the   ``cooldown``    b; updates in a row are counted on
    last change of size, and r asks for one
    =========================================  ==============  =================================

    The bounds may be schedules over the examples seen (a `BatchSizeSchedule`, or any function from
    examples to a size, rounded up to the grid); the size is moved between them at once when they
    change. With one schedule for both, the size is that schedule and the requirement is only
    recorded. A new size is on the host before the next batch is read, see `size_at`.

    All of it is plain Python on the host. Where several processes train together, the
    requirement must be the same on all of them.

    Args:
        min_batch_size: Smallest size and the first one, in examples; or a schedule.
        max_batch_size: Largest size, in examples: what memory holds, see
            `AccumulatedStep.fit`; or a schedule.
        multiple_of: Step of the grid of sizes, in examples: the micro-batch size of the loader,
            or the number of devices. Constant bounds must lie on the grid.
        sizes: If given, the only sizes there are, in increasing order, such as the capacities of a
            step: no batch is padded then. Each has to be a multiple of `multiple_of`.
        max_growth: Largest factor between one size and the next, above 1; inf for no limit.
        patience: Updates in a row that must ask for a change before it is made.
        cooldown: Examples that must pass between two changes of size.
        shrink: Whether the size may become smaller.
        hysteresis: Shrink only where the requirement is at most this fraction of the size,
            between 0 and 1, so that noise does not move the size to and fro.

    Attributes:
        num_updates: Number of updates with a requirement.
        num_cap_hits: Updates that required more than `max_batch_size` (inf included): the cap
            bound, and the noise is larger than asked for.
        num_noise_dominated: Updates with a requirement of inf: the gradient could not be told from
            its noise.
        num_undefined: Updates with a requirement of NaN.
        num_grown: Updates after which the size was larger.
        num_shrunk: Updates after which the size was smaller.

    Raises:
        ValueError: If an argument is outside its range, or a bound is off the grid.

    Examples:
        >>> from adaoptax.loop import GrowthPolicy
        >>> policy = GrowthPolicy(8, 64, multiple_of=8)
        >>> [policy.update(required) for required in (5.0, 13.3, float("nan"), 100.0, 100.0)]
        [8, 16, 16, 32, 64]
        >>> policy.required_batch_size, policy.batch_size, policy.num_cap_hits
        (100.0, 64, 2)
        >>> policy.decision
        'grow'
    """

    def __init__(
        self,
        min_batch_size: SizeOrSchedule,
        max_batch_size: SizeOrSchedule,
        *,
        multiple_of: int = 1,
        sizes: Sequence[int] | None = None,
        max_growth: float = 2.0,
        patience: int = 1,
        cooldown: int = 0,
        shrink: bool = False,
        hysteresis: float = 0.5,
    ) -> None:
        self._grid = Grid(multiple_of, sizes)
        self._bounds = Bounds(min_batch_size, max_batch_size, self._grid)
        if not (is_number(max_growth) and max_growth > 1):
            raise ValueError(
                f"Expected max_growth > 1, got max_growth={max_growth!r}: it is the largest "
                "factor between one size and the next; pass 2.0 to allow doubling."
            )
        if not (is_number(hysteresis) and 0 < hysteresis < 1):
            raise ValueError(
                f"Expected 0 < hysteresis < 1, got hysteresis={hysteresis!r}: it is the fraction "
                "of the size at which shrinking begins; pass 0.5 for half of it."
            )
        self._max_growth, self._hysteresis = float(max_growth), float(hysteresis)
        self._patience = whole_number("patience", patience, 1, "it counts updates in a row.")
        self._cooldown = whole_number("cooldown", cooldown, 0, "it counts examples.")
        self._shrink = bool(shrink)
        self._low, self._high = self._bounds.at(0)
        self._batch_size = self._low
        self._decision: str | None = None
        self._required: float | None = None
        self._since_change: int | None = None  # examples; None before the first change
        self._num_above = self._num_below = 0  # updates in a row that ask for more, for less
        self._num_examples = self._clock = 0  # that updates, that `size_at` too were told of
        self.num_updates = self.num_cap_hits = self.num_noise_dominated = self.num_undefined = 0
        self.num_grown = self.num_shrunk = 0

    @property
    def batch_size(self) -> int:
        """The size in force, in examples."""
        return self._batch_size

    @property
    def required_batch_size(self) -> float | None:
        """The last requirement that was a number or inf; None before the first."""
        return self._required

    @property
    def max_batch_size(self) -> int:
        """The largest size that there can be."""
        return self._bounds.largest

    @property
    def decision(self) -> str | None:
        """What the last update decided, a word of the table; None before the first."""
        return self._decision

    def update(self, required_batch_size: Scalar | None, num_examples: int | None = None) -> int:
        """Takes the requirement of one step and decides the size of the next batch.

        Args:
            required_batch_size: Examples that the step required: one real number (Python, NumPy
                or a JAX scalar), not rounded; inf for "more than any", NaN for "undefined". None
                at a step that was not measured (`measure.every`): a requirement that a test holds
                from an earlier step is no new evidence.
            num_examples: Examples that the step used, by default the size in force; they count
                for `cooldown` only.

        Returns:
            The size in force from now on.

        Raises:
            ValueError: If the requirement is negative or not a single number, or `num_examples`
                is not a whole number.

        Examples:
            >>> from adaoptax.loop import GrowthPolicy
            >>> policy = GrowthPolicy(16, 128, patience=2)
            >>> policy.update(30.0), policy.update(30.0)
            (16, 30)
        """
        if num_examples is None:
            num_examples = self._batch_size
        num_examples = whole_number("num_examples", num_examples, 0, "it is what the step used.")
        required = None
        if required_batch_size is not None:
            required = _checked_requirement(required_batch_size)
            self.num_updates += 1
        self._num_examples += num_examples
        if self._since_change is not None:
            self._since_change += num_examples
        self.size_at(self._num_examples)
        self._decision = self._decide(required)
        return self._batch_size

    def size_at(self, examples_seen: int) -> int:
        """Moves the size between the bounds in force after `examples_seen` examples.

        With constant bounds this is `batch_size`. With schedules `update` does it too, for the
        examples that it was told of; a loop that reads requirements late asks here, right before
        it reads a batch, so that a threshold is never passed late.

        Args:
            examples_seen: `BatchLoader.examples_seen`. The clock never goes back.

        Returns:
            The size in force from now on.

        Raises:
            ValueError: If a schedule returns no whole number >= 1, or bounds that cross.

        Examples:
            >>> from adaoptax.loop import GrowthPolicy
            >>> policy = GrowthPolicy(lambda examples: 8 if examples < 100 else 16, 64)
            >>> policy.size_at(99), policy.size_at(100)
            (8, 16)
        """
        self._clock = max(self._clock, whole_number("examples_seen", examples_seen, 0, "a count."))
        self._low, self._high = self._bounds.at(self._clock)
        self._change_to(min(max(self._batch_size, self._low), self._high))
        return self._batch_size

    def _decide(self, required: float | None) -> str:
        """Takes in one requirement, changes the size, and names the row of the table."""
        if required is None:
            return "unmeasured"
        if math.isnan(required):
            self.num_undefined += 1
            return "undefined"
        self._required = required
        self.num_cap_hits += required > self._high
        self.num_noise_dominated += required == math.inf
        before = self._batch_size
        above = required > before
        below = self._shrink and required <= self._hysteresis * before
        self._num_above = self._num_above + 1 if above else 0
        self._num_below = self._num_below + 1 if below else 0
        if above and before == self._high:
            return "cap"
        if not above and (not below or before == self._low):
            return "keep"
        if max(self._num_above, self._num_below) < self._patience:
            return "wait"
        if self._since_change is not None and self._since_change < self._cooldown:
            return "cooldown"
        self._change_to(self._grown(required) if above else self._shrunk(required))
        if self._batch_size == before:
            return "keep"
        return "grow" if above else "shrink"

    def _grown(self, required: float) -> int:
        furthest = self._grid.down(min(self._batch_size * self._max_growth, self._high))
        furthest = min(max(furthest, self._grid.up(self._batch_size + 1)), self._high)
        return furthest if required >= furthest else self._grid.up(required)

    def _shrunk(self, required: float) -> int:
        furthest = self._grid.up(self._batch_size / self._max_growth)
        furthest = min(furthest, self._grid.down(self._batch_size - 1))
        return max(self._grid.up(required), furthest, self._low)

    def _change_to(self, size: int) -> None:
        if size == self._batch_size:
            return
        self.num_grown += size > self._batch_size
        self.num_shrunk += size < self._batch_size
        self._batch_size = size
        self._since_change = self._num_above = self._num_below = 0

    def get_state(self) -> dict[str, Any]:
        """Returns the size, the requirement and all counters.

        Returns:
            A new dict of plain numbers, texts and None that strict JSON can hold.

        Examples:
            >>> from adaoptax.loop import GrowthPolicy
            >>> policy = GrowthPolicy(8, 64)
            >>> size = policy.update(float("inf"))
            >>> state = policy.get_state()
            >>> state["batch_size"], state["required_batch_size"], state["num_cap_hits"]
            (16, 'Infinity', 1)
        """
        state: dict[str, Any] = {
            "version": _VERSION,
            "batch_size": self._batch_size,
            "required_batch_size": to_strict(self._required),  # which may be inf
            "since_change": self._since_change,
        }
        return state | {name.lstrip("_"): getattr(self, name) for name in _COUNTS}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state, also under other arguments where its size fits them.

        Args:
            state: What `get_state` returned, also after a round trip through JSON.

        Raises:
            ValueError: If the state is damaged, or its size is outside the range or off the grid
                of this policy. The policy is then as it was before.

        Examples:
            >>> from adaoptax.loop import GrowthPolicy
            >>> policy = GrowthPolicy(8, 64)
            >>> policy.set_state(GrowthPolicy(16, 32).get_state())
            >>> policy.batch_size
            16
        """
        names = {name: name.lstrip("_") for name in _COUNTS}
        keys = ["batch_size", "required_batch_size", "since_change", *names.values()]
        require_layout(state, _VERSION, keys)
        size, clock = saved_count(state, "batch_size"), saved_count(state, "clock")
        low, high = self._bounds.at(clock)
        if not (low <= size <= high and self._grid.up(size) == size):
            raise ValueError(
                f"Expected batch_size to be {self._grid} from {low} to {high}, got "
                f"batch_size={size} saved: pass bounds and multiple_of that allow it, or set "
                "state['batch_size'] to a size that they allow."
            )
        required = _saved_requirement(state["required_batch_size"])
        since_change = state["since_change"]
        if since_change is not None:
            since_change = saved_count(state, "since_change")
        counts = {name: saved_count(state, key) for name, key in names.items()}
        self._batch_size, self._required, self._since_change = size, required, since_change
        self._low, self._high, self._decision = low, high, None
        for name, count in counts.items():
            setattr(self, name, count)


def _checked_requirement(value: Any) -> float:
    required = real_number("required_batch_size", value)
    if required < 0:
        raise ValueError(
            f"Expected required_batch_size >= 0, got required_batch_size={required}: this "
            "usually means a division by a negative estimate of the signal; pass inf there."
        )
    return required


def _saved_requirement(saved: Any) -> float | None:
    if saved is None:
        return None
    required = float(saved_number("required_batch_size", saved))
    if not required >= 0:
        raise damaged("required_batch_size", saved, ">= 0")
    return required
