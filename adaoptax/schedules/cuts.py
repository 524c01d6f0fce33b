"""How far a learning rate lies below its peak, and where in a run that changes a batch size."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaoptax.schedules.batch_size import Stage
from adaoptax.schedules.over_examples import as_counts

_PLACES = 65_536  # at which a run is looked at; between them places are found by halving
_MAX_STAGES = 100_000
_ZERO = 1e-6  # of the peak: compiled schedules end at ±1e-7 where they mean 0

Rates = Callable[[np.ndarray], np.ndarray]
Sizes = Callable[[np.ndarray], np.ndarray]


class Decay(NamedTuple):
    """A learning rate over a run, which only rises or only falls from one place to the next.

    Attributes:
        places: Examples seen, increasing, from 0 to the last example of the run.
        rates: The learning rate there.
        peaks: The largest learning rate up to there.
    """

    places: np.ndarray
    rates: np.ndarray
    peaks: np.ndarray

    def cuts(self) -> np.ndarray:
        """By what the rate was cut so far: 1 at a peak, inf at a rate of 0."""
        return cuts(self.peaks, self.rates)


def cuts(peaks: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Peak / rate; 1 where a warm-up still stands at 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        cut = np.where(rates > _ZERO * peaks, peaks / rates, np.inf)
        return np.where(peaks > 0, cut, 1.0)


def rates_of(schedule: optax.Schedule, tokens_per_example: float) -> Rates:
    """The schedule as a function of arrays of examples, on the host, in one compiled program."""
    every = jax.jit(jax.vmap(lambda count: jnp.asarray(schedule(count), jnp.result_type(float))))

    def rates(examples: np.ndarray) -> np.ndarray:
        parts = []
        for begin in range(0, len(examples), _PLACES):
            part = examples[begin : begin + _PLACES]
            padded = np.pad(part, (0, _PLACES - len(part)), mode="edge")
            counts = jax.device_put(as_counts(padded, tokens_per_example))
            parts.append(np.asarray(jax.device_get(every(counts)), np.float64)[: len(part)])
        return np.concatenate(parts)

    return rates


def look_at(rates: Rates, num_examples: int) -> Decay:
    """Looks at the whole run, and finds each peak to the example."""
    places = np.unique(np.linspace(0, num_examples - 1, _PLACES).astype(np.int64))
    found = rates(places)
    bad = ~((found >= -_ZERO * np.max(found)) & np.isfinite(found))
    if bad.any():
        raise ValueError(
            f"Expected learning rates >= 0 and finite, got {found[np.argmax(bad)]} after "
            f"{places[np.argmax(bad)]} examples: a cut is a ratio of rates; check the arguments of "
            "the schedule, and that num_examples is not beyond its end."
        )
    falls_next = np.append(found[:-1] > found[1:], False)
    highest = falls_next & (found == np.maximum.accumulate(found))
    peaks = [
        _peak(rates, int(places[max(i - 1, 0)]), int(places[min(i + 1, len(places) - 1)]))
        for i in np.flatnonzero(highest).tolist()
    ]
    new = np.setdiff1d(np.asarray(peaks, np.int64), places)
    if len(new):
        at = np.searchsorted(places, new)
        places, found = np.insert(places, at, new), np.insert(found, at, rates(new))
    return Decay(places, found, np.maximum.accumulate(found))


def _peak(rates: Rates, low: int, high: int) -> int:
    """Where a rate that rises, then falls, between two places is largest."""
    while True:
        places = np.unique(np.linspace(low, high, 1024).astype(np.int64))
        best = int(np.argmax(rates(places)))
        if high - low < 1024:
            return int(places[best])
        low, high = int(places[max(best - 1, 0)]), int(places[min(best + 1, len(places) - 1)])


def stages_of(decay: Decay, rates: Rates, sizes: Sizes) -> list[Stage]:
    """Stages of the sizes that `sizes` makes of cuts, each beginning at the exact example."""
    num_examples = int(decay.places[-1]) + 1
    at_places = sizes(decay.cuts())
    all_the_rest = at_places >= num_examples - decay.places
    end = int(np.argmax(all_the_rest)) + 1 if all_the_rest.any() else len(at_places)
    changes = _changes(Decay(*(field[:end] for field in decay)), at_places[:end], rates, sizes)
    stages = [(0, int(at_places[0]))]
    for examples, size in changes:
        last = stages[-1][1]
        if last >= num_examples - examples:
            break
        if size != last:
            stages.append((examples, size))
    return stages


def _changes(
    decay: Decay, at_places: np.ndarray, rates: Rates, sizes: Sizes
) -> list[tuple[int, int]]:
    """Every first example of another size, by halving all intervals at once."""
    low, high = decay.places[:-1], decay.places[1:]
    peak, below, above = decay.peaks[:-1], at_places[:-1], at_places[1:]
    found: list[tuple[int, int]] = []
    while True:
        differ = below != above
        low, high, peak = low[differ], high[differ], peak[differ]
        below, above = below[differ], above[differ]
        done = high - low == 1
        found += zip(high[done].tolist(), above[done].tolist(), strict=True)
        low, high, peak = low[~done], high[~done], peak[~done]
        below, above = below[~done], above[~done]
        if len(found) + len(low) > _MAX_STAGES:
            raise ValueError(
                f"Expected at most {_MAX_STAGES:,} batch sizes, got more of them: the learning "
                "rate asks for another size at almost every step; pass a larger multiple_of, a "
                "max_batch_size, or a few sizes."
            )
        if not len(low):
            return sorted(found)
        middle = (low + high) // 2
        at_middle = rates(middle)
        peak_there = np.maximum(peak, at_middle)
        between = sizes(cuts(peak_there, at_middle))
        low, high = np.append(low, middle), np.append(middle, high)
        below, above = np.append(below, between), np.append(between, above)
        peak = np.append(peak, peak_there)
