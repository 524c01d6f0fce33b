"""The host side of training: batches that grow, the policy that grows them, exact resume."""

from adaoptax.loop.accumulate import AccumulatedStep, accumulate
from adaoptax.loop.adaptive import AdaptiveLoop, Record
from adaoptax.loop.json_lines import JsonLines, read_json_lines
from adaoptax.loop.loader import BatchLoader
from adaoptax.loop.noise_windows import NoiseWindow, noise_windows
from adaoptax.loop.permutation import epoch_permutation
from adaoptax.loop.policy import GrowthPolicy
from adaoptax.loop.processes import check_same_everywhere, data_process, global_batch
from adaoptax.loop.rows import Batch
from adaoptax.loop.sizes import capacities

__all__ = [
    "AccumulatedStep",
    "AdaptiveLoop",
    "Batch",
    "BatchLoader",
    "GrowthPolicy",
    "JsonLines",
    "NoiseWindow",
    "Record",
    "accumulate",
    "capacities",
    "check_same_everywhere",
    "data_process",
    "epoch_permutation",
    "global_batch",
    "noise_windows",
    "read_json_lines",
]
