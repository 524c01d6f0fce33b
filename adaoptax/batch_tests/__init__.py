"""Gradient transformations that state the batch size a step requires, one file a test."""

from adaoptax.batch_tests.augmented_inner_product import augmented_inner_product_test
from adaoptax.batch_tests.averaged_gradient import AveragedGradientState, averaged_gradient
from adaoptax.batch_tests.complete_step import (
    ProximalTestState,
    proximal_inner_product_test,
    proximal_test,
)
from adaoptax.batch_tests.coordinate import coordinate_test
from adaoptax.batch_tests.inner_product import inner_product_test
from adaoptax.batch_tests.norm import norm_test
from adaoptax.batch_tests.optimal_split import optimal_split, split_tolerances
from adaoptax.batch_tests.state import BatchTestState, required_batch_size

__all__ = [
    "AveragedGradientState",
    "BatchTestState",
    "ProximalTestState",
    "augmented_inner_product_test",
    "averaged_gradient",
    "coordinate_test",
    "inner_product_test",
    "norm_test",
    "optimal_split",
    "proximal_inner_product_test",
    "proximal_test",
    "required_batch_size",
    "split_tolerances",
]
