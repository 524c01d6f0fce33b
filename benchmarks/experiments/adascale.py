"""AdaScale's Table 2 in small: the same work in base steps, at S = 1 to 64 times the base batch.

AdaScale runs until its clock τ has counted the steps of the run at S = 1. The others know their
iterations beforehand: `steps` / S of them, or as many as AdaScale took with the same seed.
"""

import functools
import math
from collections.abc import Callable, Sequence

from benchmarks.experiments.experiment import Case, Experiment, Outcome, Size, main
from benchmarks.experiments.scaled_report import write
from benchmarks.experiments.scaled_runs import Setting, run_adascale, run_fixed

# Learning rates are the best of a grid at S = 1, by the final test loss of two or three seeds:
#   digits_cnn: 0.01 0.070, 0.02 0.040, 0.04 0.025, 0.08 0.087
#   mnist1d:    0.01 0.223, 0.02 0.151, 0.04 0.205
#   byte_lm:    0.015 3.179, 0.03 3.114, 0.06 3.091, 0.12 3.153
SETTINGS: dict[Size, dict[str, Setting]] = {
    "tiny": {
        "digits_cnn": Setting("digits_cnn", 4, 8, 256, 0.04),
        "byte_lm": Setting("byte_lm", 8, 2, 256, 0.06),
    },
    "default": {
        "digits_cnn": Setting("digits_cnn", 16, 8, 4096, 0.04),
        "mnist1d": Setting("mnist1d", 24, 4, 8192, 0.02),
        "byte_lm": Setting("byte_lm", 32, 2, 4096, 0.06),
    },
    # As long as the paper's, and wider; with the learning rates of the small ones.
    "full": {
        "digits_cnn": Setting("digits_cnn", 64, 8, 32_768, 0.04),
        "mnist1d": Setting("mnist1d", 96, 4, 65_536, 0.02),
        "byte_lm": Setting("byte_lm", 128, 4, 65_536, 0.06),
    },
}
_SCALES: dict[Size, tuple[int, ...]] = {
    "tiny": (1, 4),
    "default": (1, 2, 4, 8, 16, 32, 64),
    "full": (1, 2, 4, 8, 16, 32, 64, 128),
}
# How the learning rate grows with S, and whether a run is as long as AdaScale's.
_RULES: dict[str, tuple[Callable[[int], float], bool]] = {
    "lsw": (float, False),
    "lsw_stretched": (float, True),
    "sqrt": (math.sqrt, False),
    "sqrt_stretched": (math.sqrt, True),
    "none": (lambda scale: 1.0, False),
}


def cases(problems: Sequence[str], size: Size) -> list[Case]:
    """Every method at every S; at S = 1 all methods are the same."""
    return [
        {**SETTINGS[size][problem]._asdict(), "scale": scale, "method": method}
        for problem in problems
        if problem in SETTINGS[size]
        for scale in _SCALES[size]
        for method in (("adascale", *_RULES) if scale > 1 else ("adascale",))
    ]


def run(case: Case, seeds: Sequence[int]) -> list[Outcome]:
    """One run a seed."""
    setting, phases = Setting.of_case(case), ((int(case["scale"]), 1.0),)
    if case["method"] == "adascale":
        return [run_adascale(setting, phases, seed) for seed in seeds]
    rule, stretched = _RULES[str(case["method"])]
    lengths = [
        int(run_adascale(setting, phases, seed).metrics["examples"])
        if stretched
        else setting.steps * setting.base_batch
        for seed in seeds
    ]
    return [
        run_fixed(setting, phases, seed, rule, length)
        for seed, length in zip(seeds, lengths, strict=True)
    ]


CLAIM = (
    "One learning rate and one schedule, tuned at the base batch, serve every multiple S of it: the"
    " work of S = 1 is done in as many fewer iterations as the gain allows (6.7 times at S = 8 and"
    " 28 times at S = 64 in the paper's CIFAR-10), at the same quality, where linear scaling with"
    " warm-up (LSW) degrades or diverges."
)

EXPERIMENT = Experiment(
    name="adascale",
    title="AdaScale on images and curves",
    claim=CLAIM,
    cases=functools.partial(cases, ("digits_cnn", "mnist1d")),
    run=run,
    report=write,
)

if __name__ == "__main__":
    main(EXPERIMENT)
