"""Gradient transformations that state the batch size a step requires, one file a test."""

from adaoptax.batch_tests.augmented_inner_product import augmented_inner_product_test
from adaoptax.batch_tests.coordinate import coordinate_test
from adaoptax.batch_tests.framework import BatchTestState
from adaoptax.batch_tests.inner_product import inner_product_test
from adaoptax.batch_tests.norm import norm_test
from adaoptax.batch_tests.requirement import required_batch_size

__all__ = [
    "BatchTestState",
    "augmented_inner_product_test",
    "coordinate_test",
    "inner_product_test",
    "norm_test",
    "required_batch_size",
]
