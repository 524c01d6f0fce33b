"""Ways to choose the batch size, each with one of four optimizers, as contenders of a run."""

from typing import Any

import optax

import adaoptax
from adaoptax.schedules import SizesAndRate
from benchmarks.experiments.experiment import Case
from benchmarks.training import Contender

# Share of the run at which each part begins, and how far its batch is from small to large, in
# factors: 0.5 is as many doublings from one as from the other.
RAMPS = {
    "ramp mild": {0: 0, 0.5: 0.25, 0.75: 0.5},
    "ramp late": {0: 0, 0.5: 0.5, 0.75: 1},
    "ramp doubling": {0: 0, 0.2: 0.25, 0.4: 0.5, 0.6: 0.75, 0.8: 1},
    "ramp early": {0: 0, 0.1: 0.5, 0.3: 1},
}
_TESTS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "norm": (adaoptax.norm_test, ("norm",)),
    "inner product": (adaoptax.inner_product_test, ("norm", "inner")),
    "augmented": (
        lambda theta, **options: adaoptax.augmented_inner_product_test(theta, theta, **options),
        ("norm", "inner"),
    ),
    "coordinate": (adaoptax.coordinate_test, ("norm", "coordinate")),
}
_ALL = ("norm", "inner", "coordinate")  # one program for all tests but the cheapest


def is_test(sizes: str) -> bool:
    """Whether these sizes are those that a test asks for: "norm 0.8"."""
    return sizes.rpartition(" ")[0] in _TESTS


def contender(case: Case) -> Contender:
    """The method of a case."""
    sizes, rate = str(case["sizes"]), float(case["learning_rate"])
    statistics: tuple[str, ...] = ()
    small, large, examples = (int(case[name]) for name in ("small", "large", "examples"))
    schedule: Any = optax.cosine_decay_schedule(rate, examples)
    before: list[Any] = []
    bounds: Any
    if sizes == "SEBS":
        bounds, schedule = _sebs(rate, small, large, examples)
    elif sizes in RAMPS:
        bounds = _ramp(sizes, small, large, examples)
    elif is_test(sizes):
        kind, _, tolerance = sizes.rpartition(" ")
        make, statistics = _TESTS[kind]
        before = [make(float(tolerance), decay=0.9)]
        bounds = (small, large)
    else:
        bounds = {"constant small": small, "constant large": large}[sizes]
    if len(statistics) > 1:
        statistics = _ALL
    over_examples = [adaoptax.scale_by_schedule_over_examples(schedule)]
    match case["optimizer"]:
        case "SGD":
            tx = [optax.trace(0.9), *over_examples]
        case "AdaScale":
            tx = [optax.trace(0.9), adaoptax.scale_by_adascale(small, decay=0.99), *over_examples]
            statistics = statistics or ("norm",)
        case "AdaGrad":
            tx = [optax.adagrad(rate)]
        case name:
            tx = [{"AdaGrad-Norm": adaoptax.adagrad_norm}[str(name)](rate)]
    chain = optax.with_extra_args_support(optax.chain(*before, *tx))
    return Contender(chain, bounds, statistics)


def _ramp(name: str, small: int, large: int, examples: int) -> adaoptax.BatchSizeSchedule:
    doublings = (large // small).bit_length() - 1
    return adaoptax.BatchSizeSchedule(
        [(int(at * examples), small << round(far * doublings)) for at, far in RAMPS[name].items()]
    )


def _sebs(rate: float, small: int, large: int, examples: int) -> SizesAndRate:
    """The batch grows by four where a step schedule would divide the rate by four."""
    milestones = [examples // 2, 3 * examples // 4]
    return adaoptax.sebs(small, rate, rho=4, milestones=milestones, max_batch_size=large)
