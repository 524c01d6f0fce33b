"""What batch tests refuse, and what the message says."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaoptax
from adaoptax.batch_tests import (
    averaged_gradient,
    optimal_split,
    proximal_test,
    split_tolerances,
)

NAN, INF = float("nan"), float("inf")
UNIT = adaoptax.GradientStats(*[jnp.float32(1)] * 4)
TESTS: dict[str, Any] = {
    "norm_test": lambda **o: adaoptax.norm_test(0.5, **o),
    "inner_product_test": lambda **o: adaoptax.inner_product_test(0.5, **o),
    "augmented_inner_product_test": lambda **o: adaoptax.augmented_inner_product_test(0.5, 1, **o),
    "coordinate_test": lambda **o: adaoptax.coordinate_test(0.5, **o),
    "optimal_split": lambda **o: optimal_split(0.5, **o),
    "proximal_test": lambda **o: proximal_test(0.5, **o),
    "averaged_gradient": lambda **o: averaged_gradient(adaoptax.norm_test(0.5, **o)),
}


@pytest.mark.parametrize("bad", [0, 0.0, -0.1, -1, NAN, INF, -INF])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("eta", adaoptax.norm_test),
        ("eta", adaoptax.coordinate_test),
        ("theta", adaoptax.inner_product_test),
        ("theta", lambda bad: adaoptax.augmented_inner_product_test(bad, 0.5)),
        ("nu", lambda bad: adaoptax.augmented_inner_product_test(0.5, bad)),
        ("epsilon", optimal_split),
        ("epsilon", lambda bad: split_tolerances(UNIT, bad)),
        ("eta", lambda bad: adaoptax.adadagrad(0.1, eta=bad)),
        ("eta", lambda bad: adaoptax.adadagrad_norm(0.1, eta=bad)),
    ],
)
def test_tolerances_are_positive_and_finite(name, make, bad):
    with pytest.raises(ValueError, match=rf"Expected {name} > 0 and finite, got {name}={bad!r}"):
        make(bad)


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize(
    ("option", "bad"),
    [
        ("decay", 1),
        ("decay", 1.0),
        ("decay", -0.1),
        ("decay", NAN),
        ("interval", 0),
        ("interval", -3),
        ("interval", NAN),
        ("interval", INF),
        ("interval", 1.5),
        ("dataset_size", 0),
        ("dataset_size", -5),
        ("dataset_size", NAN),
        ("dataset_size", INF),
        ("signal", "debias"),
        ("signal", None),
    ],
)
def test_options_out_of_range(name, option, bad):
    with pytest.raises(ValueError, match=rf"{option}={bad!r}"):
        TESTS[name](**{option: bad})


@pytest.mark.parametrize("bad", [0, -0.5, 1.01, NAN, INF])
def test_coverage_is_a_share(bad):
    with pytest.raises(ValueError, match=rf"coverage={bad!r}"):
        adaoptax.coordinate_test(0.5, coverage=bad)


def test_unknown_signal_lists_the_choices():
    with pytest.raises(ValueError, match=r"'debiased', 'plug-in'.*signal='plugin'"):
        adaoptax.norm_test(0.5, signal="plugin")


@pytest.mark.parametrize("name", TESTS)
def test_dropped_stats_are_a_type_error(name):
    tx, grads = TESTS[name](), jnp.ones(2)
    for update in (tx.update, optax.chain(tx, optax.sgd(0.1)).update):
        state = tx.init(grads) if update is tx.update else (tx.init(grads), optax.EmptyState())
        with pytest.raises(TypeError, match="stats"):
            update(grads, state)


@pytest.mark.parametrize("wrong", [None, 3.0, (1, 2, 3, 4), {"sq_norm": 1.0}])
@pytest.mark.parametrize("name", TESTS)
def test_stats_of_a_wrong_type(name, wrong):
    tx, grads = TESTS[name](), jnp.ones(2)
    message = rf"Expected stats to be a GradientStats, got {type(wrong).__name__}.*{name}"
    with pytest.raises(TypeError, match=message):
        tx.update(grads, tx.init(grads), stats=wrong)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    "name", ["inner_product_test", "augmented_inner_product_test", "optimal_split"]
)
def test_missing_inner_products_name_a_method_that_measures_them(name, jit, rows, numpy_stats):
    grads, stats = numpy_stats(rows)
    tx = TESTS[name]()
    update = jax.jit(tx.update) if jit else tx.update
    with pytest.raises(ValueError, match=r"inner_product_variance, got None.*per_example"):
        update(grads, tx.init(grads), stats=stats._replace(inner_product_variance=None))
    with pytest.raises(ValueError, match=r"inner_product_variance, got None"):
        split_tolerances(stats._replace(inner_product_variance=None), 0.5)


def test_missing_coordinate_variance_names_methods_that_measure_it(rows, numpy_stats):
    grads, stats = numpy_stats(rows)
    tx = TESTS["coordinate_test"]()
    with pytest.raises(ValueError, match=r"coordinate_variance, got None.*per_example.*coordinate"):
        tx.update(grads, tx.init(grads), stats=stats._replace(coordinate_variance=None))


@pytest.mark.parametrize("name", ["norm_test", "coordinate_test"])
def test_norm_and_coordinate_need_no_inner_products(name, rows, numpy_stats):
    grads, stats = numpy_stats(rows)
    tx = TESTS[name]()
    _, state = tx.update(grads, tx.init(grads), stats=stats._replace(inner_product_variance=None))
    assert np.isfinite(float(state.required_batch_size))


def test_traced_tolerances_are_not_judged(rows, numpy_stats):
    grads, stats = numpy_stats(rows)

    @jax.jit
    def required(eta: Any) -> Any:
        tx = adaoptax.norm_test(eta, decay=0.5 * eta, interval=1, dataset_size=80 * eta)
        return tx.update(grads, tx.init(grads), stats=stats)[1].required_batch_size

    b0 = 320 / 19
    assert float(required(0.25)) == pytest.approx(b0 * 20 / (b0 + 20), rel=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: adaoptax.norm_test(np.float32(0)),
        lambda: adaoptax.norm_test(0.5, dataset_size=np.int64(0)),
        lambda: adaoptax.norm_test(0.5, interval=np.int64(0)),
        lambda: adaoptax.scale_by_adascale(np.int64(0)),
        lambda: adaoptax.measure.groups(np.int64(1)),  # type: ignore[arg-type]
        lambda: adaoptax.measure.per_example(np.int32(0)),  # type: ignore[arg-type]
    ],
)
def test_numpy_numbers_are_judged_like_python_numbers(make):
    with pytest.raises(ValueError, match="Expected"):
        make()
