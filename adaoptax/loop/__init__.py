"""The host side of training: batches that grow, the policy that grows them, exact resume."""

from adaoptax.loop.loader import Batch, BatchLoader
from adaoptax.loop.permutation import epoch_permutation
from adaoptax.loop.policy import GrowthPolicy

__all__ = ["Batch", "BatchLoader", "GrowthPolicy", "epoch_permutation"]
