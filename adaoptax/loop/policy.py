"""When and how far the batch grows: from the size that a step required to the next size."""

import math
from collections.abc import Mapping
from typing import Any

from adaoptax._validate import is_number
from adaoptax.loop.saved_state import require_equal, require_keys, saved_count
from adaoptax.loop.sizes import real_number, round_down, round_up, whole_number

_VERSION = 1

# The fields that are whole numbers >= 0, in the object and in the saved state alike.
_COUNTS = (
    "num_updates",
    "num_cap_hits",
    "num_undefined",
    "num_grown",
    "num_shrunk",
    "_num_above",
    "_num_below",
)


class GrowthPolicy:
    """Turns the batch size that each step required into the size of the next batch.

    The requirement (a real number of examples, noisy from step to step) is kept apart from the
    size in force (a whole number on the grid of `multiple_of`), which starts at
    `min_batch_size`. After each update:

    =========================================  ================================================
    requirement r, size b in force             next size
    =========================================  ================================================
    r > b, for `patience` updates in a row     r rounded up to the grid, but at most
                                               b * max_growth rounded down to the grid (one
                                               step of the grid is always allowed), and at most
                                               max_batch_size
    r = inf (the gradient is all noise)        the same with the largest step allowed
    hysteresis * b < r <= b                    b; both rows of updates start anew
    r <= hysteresis * b, for `patience`        b, or with `shrink=True` r rounded up, but at
    updates in a row                           least b / max_growth rounded up (one step of the
                                               grid is always allowed), and at least
                                               min_batch_size
    r = NaN (undefined: no evidence)           b; the rows of updates go on as if it had not
                                               happened; counted in `num_undefined`
    None (not measured at this step)           b; as if there had been no update, but for the
                                               examples, which count for the cooldown
    fewer than `cooldown` examples since the   b; the rows of updates go on
    last change of size
    =========================================  ================================================

    All of it is plain Python on the host. Where several processes train together, the
    requirement must be the same on all of them.

    Args:
        min_batch_size: Smallest size and the first one, in examples.
        max_batch_size: Largest size, in examples.
        multiple_of: Step of the grid of sizes, in examples: the micro-batch size of the loader,
            or the number of devices. Both bounds must lie on the grid.
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
    """

    def __init__(
        self,
        min_batch_size: int,
        max_batch_size: int,
        *,
        multiple_of: int = 1,
        max_growth: float = 2.0,
        patience: int = 1,
        cooldown: int = 0,
        shrink: bool = False,
        hysteresis: float = 0.5,
    ) -> None:
        self._multiple = whole_number("multiple_of", multiple_of, 1, "sizes are multiples of it.")
        self._min = _on_grid("min_batch_size", min_batch_size, self._multiple)
        self._max = _on_grid("max_batch_size", max_batch_size, self._multiple)
        if self._max < self._min:
            raise ValueError(
                f"Expected max_batch_size >= min_batch_size={self._min}, got "
                f"max_batch_size={self._max}: there is no size between them; swap them."
            )
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
        self._batch_size = self._min
        self._required: float | None = None
        self._since_change: int | None = None  # examples; None before the first change
        self._num_above = self._num_below = 0  # updates in a row that ask for more, for less
        self.num_updates = self.num_cap_hits = self.num_undefined = 0
        self.num_grown = self.num_shrunk = 0

    @property
    def batch_size(self) -> int:
        """The size in force, in examples."""
        return self._batch_size

    @property
    def required_batch_size(self) -> float | None:
        """The last requirement that was a number or inf; None before the first."""
        return self._required

    def update(self, required_batch_size: Any, num_examples: int | None = None) -> int:
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
        if required_batch_size is None:
            self._count_examples(num_examples)
            return self._batch_size
        required = real_number("required_batch_size", required_batch_size)
        if required < 0:
            raise ValueError(
                f"Expected required_batch_size >= 0, got required_batch_size={required}: this "
                "usually means a division by a negative estimate of the signal; pass inf there."
            )
        self.num_updates += 1
        self._count_examples(num_examples)
        if math.isnan(required):
            self.num_undefined += 1
            return self._batch_size
        self._required = required
        self.num_cap_hits += required > self._max
        self._count_in_a_row(required)
        if self._since_change is None or self._since_change >= self._cooldown:
            self._change_to(self._next_size(required))
        return self._batch_size

    def _count_examples(self, num_examples: int) -> None:
        if self._since_change is not None:
            self._since_change += num_examples

    def _count_in_a_row(self, required: float) -> None:
        above = required > self._batch_size
        below = required <= self._hysteresis * self._batch_size
        self._num_above = self._num_above + 1 if above else 0
        self._num_below = self._num_below + 1 if below else 0

    def _next_size(self, required: float) -> int:
        if self._num_above >= self._patience:
            return self._grown(required)
        if self._shrink and self._num_below >= self._patience:
            return self._shrunk(required)
        return self._batch_size

    def _grown(self, required: float) -> int:
        furthest = round_down(min(self._batch_size * self._max_growth, self._max), self._multiple)
        furthest = min(max(furthest, self._batch_size + self._multiple), self._max)
        return furthest if required >= furthest else round_up(required, self._multiple)

    def _shrunk(self, required: float) -> int:
        furthest = round_up(self._batch_size / self._max_growth, self._multiple)
        furthest = min(furthest, self._batch_size - self._multiple)
        return max(round_up(required, self._multiple), furthest, self._min)

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
            A new dict of plain ints, strings and None that strict JSON can hold.

        Examples:
            >>> from adaoptax.loop import GrowthPolicy
            >>> policy = GrowthPolicy(8, 64)
            >>> size = policy.update(float("inf"))
            >>> state = policy.get_state()
            >>> state["batch_size"], state["required_batch_size"], state["num_cap_hits"]
            (16, 'inf', 1)
        """
        state: dict[str, Any] = {
            "version": _VERSION,
            "batch_size": self._batch_size,
            # As text, which keeps every digit and, unlike a JSON number, may be inf.
            "required_batch_size": None if self._required is None else repr(self._required),
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
        keys = ["version", "batch_size", "required_batch_size", "since_change", *names.values()]
        require_keys("state", state, keys)
        require_equal("version", state["version"], _VERSION, "use the version that saved it.")
        size = saved_count(state, "batch_size")
        if not self._min <= size <= self._max or size % self._multiple:
            raise ValueError(
                f"Expected batch_size to be a multiple of {self._multiple} from {self._min} to "
                f"{self._max}, got batch_size={size} saved: pass bounds and multiple_of that allow "
                "it, or set state['batch_size'] to a size that they allow."
            )
        required = _saved_requirement(state["required_batch_size"])
        since_change = state["since_change"]
        if since_change is not None:
            since_change = saved_count(state, "since_change")
        counts = {name: saved_count(state, key) for name, key in names.items()}
        self._batch_size, self._required, self._since_change = size, required, since_change
        for name, count in counts.items():
            setattr(self, name, count)


def _on_grid(name: str, value: Any, multiple: int) -> int:
    size = whole_number(name, value, 1, "a batch holds examples.")
    if size % multiple:
        raise ValueError(
            f"Expected {name} to be a multiple of multiple_of={multiple}, got {name}={size}: "
            f"every size lies on that grid; pass {name}={round_up(size, multiple)}."
        )
    return size


def _saved_requirement(saved: Any) -> float | None:
    try:
        required = None if saved is None else float(saved)
    except (TypeError, ValueError):
        required = math.nan
    if required is not None and not required >= 0:
        raise ValueError(
            f"Expected required_batch_size to be None or a number >= 0, got "
            f"required_batch_size={saved!r} saved: the saved state is damaged."
        )
    return required
