"""What a batch costs on the host: microseconds an example, and ratios to the source's own reads.

Run ``python -m benchmarks.loader``; in a few minutes it prints the tables of
`docs/guide/sources.md`.
Examples are 28 x 28 float32, read in random order; the micro-batch has 64.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import grain
import numpy as np

from adaoptax.loop import BatchLoader
from benchmarks.tables import markdown
from benchmarks.timing import interleave, machine, time_ratio

NUM_EXAMPLES, MICRO, LARGEST = 32768, 64, 4096
THREADS = (0, 1, 2)
"""Of grain's own reading; the best is what counts."""

Open = Callable[[], Iterator[Any]]
"""Starts to read: what is behind a thread must not run while others are timed."""


class Rows:
    """What grain reads: one row at a time."""

    def __init__(self, images: np.ndarray) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._images[index]


def own_indices(size: int) -> Iterator[np.ndarray]:
    """Rows of the batches of one shuffled epoch after another."""
    order = np.random.default_rng(0).permutation(NUM_EXAMPLES)
    for start in itertools.cycle(range(0, NUM_EXAMPLES - size + 1, size)):
        yield order[start : start + size]


def loader(source: Any, size: int, **arguments: Any) -> Open:
    """Opens a new loader."""
    return lambda: BatchLoader(source, size, micro_batch_size=MICRO, **arguments)


def numpy_sources(images: np.ndarray, size: int) -> dict[str, Open]:
    """A fancy index, and the loader over the same array."""
    padded = {"max_batch_size": LARGEST, "pad_to": "max"}
    return {
        "images[indices]": lambda: (images[indices] for indices in own_indices(size)),
        "loader": loader(images, size),
        f"loader, padded to {LARGEST}": loader(images, size, **padded),
        "loader, prefetch=2": loader(images, size, prefetch=2),
        f"loader, prefetch=2, padded to {LARGEST}": loader(images, size, prefetch=2, **padded),
    }


def list_sources(images: np.ndarray, size: int) -> dict[str, Open]:
    """Stacking a list of dicts, and the loader over it."""
    examples = [{"x": image} for image in images]
    return {
        "np.stack of a list of dicts": lambda: (
            np.stack([examples[i]["x"] for i in indices]) for indices in own_indices(size)
        ),
        "loader": loader(examples, size),
    }


def grain_sources(images: np.ndarray, size: int) -> dict[str, Open]:
    """Grain's own batches with several numbers of threads, and the loader over its dataset."""
    dataset = grain.MapDataset.source(Rows(images))
    batches = dataset.shuffle(seed=0).repeat().batch(size)

    def read(threads: int) -> Open:
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        return lambda: iter(batches.to_iter_dataset(options))

    own = {f".batch(size).to_iter_dataset(), {n} threads": read(n) for n in THREADS}
    return own | {"loader": loader(dataset, size)}


def hugging_face_sources(images: np.ndarray, size: int) -> dict[str, Open]:
    """The dataset's own batches at random places, and the loader over it."""
    dataset = _hugging_face(images)
    return {
        "dataset[indices]": lambda: (dataset[indices] for indices in own_indices(size)),
        "loader": loader(dataset, size),
    }


def ordered_sources(images: np.ndarray, size: int) -> dict[str, Open]:
    """The dataset's own batches in order, and the loader over it."""
    dataset = _hugging_face(images)
    return {
        "dataset.iter(size)": lambda: itertools.chain.from_iterable(
            dataset.iter(size) for _ in itertools.count()
        ),
        "loader, shuffle=False": loader(dataset, size, shuffle=False),
    }


def _hugging_face(images: np.ndarray) -> Any:
    features = datasets.Features({"x": datasets.List(datasets.Value("float32"), length=784)})
    columns = {"x": images.reshape(len(images), -1)}
    return datasets.Dataset.from_dict(columns, features=features).with_format("numpy")


CASES: dict[str, Callable[[np.ndarray, int], dict[str, Open]]] = {
    "NumPy array": numpy_sources,
    "list": list_sources,
    "grain.MapDataset": grain_sources,
    "datasets.Dataset": hugging_face_sources,
    "datasets.Dataset in order": ordered_sources,
}


def timed_batches(open_source: Open, count: int) -> Callable[[], float]:
    """Seconds of `count` batches, after a first one: far more than any thread has read ahead."""

    def run() -> float:
        batches = open_source()
        next(batches)
        started = time.perf_counter()
        for _ in range(count):
            next(batches)
        return time.perf_counter() - started

    return run


def main() -> None:
    """Prints one table a kind of source."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds; 9 by default")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 512, 4096], help="batch sizes")
    options = parser.parse_args()
    images = np.random.default_rng(0).random((NUM_EXAMPLES, 28, 28), np.float32)
    print(f"{machine()}, numpy {np.__version__}; microseconds an example (ratio to the best own)")
    for case, make in CASES.items():
        rows: dict[str, list[str]] = {}
        for size in options.sizes:
            count = max(16, LARGEST // size)
            sources = make(images, size)
            runs = {name: timed_batches(source, count) for name, source in sources.items()}
            times = interleave(runs, options.rounds)
            for name, cell in cells(times, count * size).items():
                rows.setdefault(name, []).append(cell)
        header = [case, *(f"batch {size}" for size in options.sizes)]
        lines = [[f"`{name}`", *row] for name, row in rows.items()]
        print(f"\n{markdown(header, lines)}", flush=True)


def cells(times: dict[str, list[float]], num_examples: int) -> dict[str, str]:
    """Name → median microseconds an example, and median ratio to the best without the loader."""
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    best = min((name for name in times if not name.startswith("loader")), key=medians.__getitem__)
    return {
        name: f"{1e6 * medians[name] / num_examples:.2f} ({time_ratio(seconds, times[best]):.2f})"
        for name, seconds in times.items()
    }


if __name__ == "__main__":
    main()
