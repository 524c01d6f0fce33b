"""AdaScale's Table 2 in small, of a language model: see `adascale`, whose cases these are."""

import functools

from benchmarks.experiments import adascale
from benchmarks.experiments.experiment import Experiment, main

EXPERIMENT = Experiment(
    name="adascale_lm",
    title="AdaScale on a byte-level language model",
    claim=adascale.CLAIM,
    cases=functools.partial(adascale.cases, ("byte_lm",)),
    run=adascale.run,
    report=adascale.write,
)

if __name__ == "__main__":
    main(EXPERIMENT)
