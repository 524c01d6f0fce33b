"""`measure.exact` on every model of the zoo, against float64 gradients of single examples."""

import functools
import itertools
from typing import Any

import jax
import numpy as np
import pytest
from reference import (
    Rows,
    Stats,
    assert_close,
    assert_coordinates,
    assert_moments,
    relative_distance,
    row_gradients,
    statistics,
)
from zoo import ENTRIES, Entry

from adaoptax import measure, value_grad_and_stats

pytestmark = pytest.mark.topic("model zoo")

ALL = ("norm", "inner", "coordinate")
SUBSETS = [names for n in range(4) for names in itertools.combinations(ALL, n)]


def expected_rows(entry: Entry) -> Rows:
    """The judge."""
    return row_gradients(
        entry.loss_fn,
        entry.params,
        entry.batch,
        entry.args,
        losses=entry.losses,
        has_aux=entry.has_aux,
        mask=entry.mask,
    )


def run(transform: Any, entry: Entry, *how: Any, **options: Any) -> Any:
    """Jits ``transform(loss_fn, ...)`` and calls it; the value comes back without its aux."""
    with jax.enable_x64(entry.float64):
        step = transform(entry.loss_fn, *how, has_aux=entry.has_aux, **options)
        compiled = jax.jit(step)
        value, *rest = compiled(entry.params, entry.batch, *entry.args, mask=entry.mask)
        return value[0] if entry.has_aux else value, *rest


def moments(entry: Entry, names: tuple[str, ...] = ALL) -> Any:
    return run(measure.per_example_moments, entry, statistics=names)


@functools.lru_cache(8)
def of_zoo(name: str) -> tuple[Entry, Rows]:
    entry = ENTRIES[name]()
    return entry, expected_rows(entry)


def assert_stats(found: Any, rows: Rows, expected: Stats, rtol: float = 1e-5) -> None:
    """All fields, to `rtol` and four units of rounding of what they are differences of.

    The variance is one of ‖h_j‖² and ‖g‖², as `exact` documents; that of inner products is one of
    ⟨h_j, g⟩ and ‖g‖², squared.
    """
    loss, grads, stats = found
    np.testing.assert_allclose(loss, rows.loss, rtol=rtol)
    assert relative_distance(grads, rows.mean_grad) < rtol
    for name in ("num_examples", "num_groups", "sq_norm"):
        np.testing.assert_allclose(
            getattr(stats, name), getattr(expected, name), rtol=rtol, err_msg=name
        )
    subtracted = jax.tree.map(lambda g: expected.subtracted * np.abs(g) ** 2, rows.mean_grad)
    rounding = 4 * np.finfo(stats.variance.dtype).eps * expected.sq_norm
    np.testing.assert_allclose(
        stats.variance, expected.variance, rtol=rtol, atol=rounding * expected.subtracted
    )
    np.testing.assert_allclose(
        np.sqrt(stats.inner_product_variance),
        np.sqrt(expected.inner_product_variance),
        rtol=rtol / 2,
        atol=rounding * np.sqrt(expected.subtracted),
    )
    assert_coordinates(stats.coordinate_variance, expected.coordinate_variance, rtol, subtracted)


# Norms alone, the default of users, take other formulas: Gram matrices for short sequences.
@pytest.mark.sampled
@pytest.mark.parametrize(
    "names",
    [pytest.param(ALL, id="all", marks=pytest.mark.slow), pytest.param(("norm",), id="norm")],
)
@pytest.mark.parametrize("name", ENTRIES)
def test_moments(name, names):
    """To 1e-5, the mean gradient to 1e-6."""
    entry, rows = of_zoo(name)
    loss, grads, found = moments(entry, names)
    assert_moments((loss, grads, found), rows, entry.rtol, entry.grad_rtol)
    real = np.dtype(np.float64 if entry.float64 else np.float32)
    types = lambda tree: jax.tree.map(lambda x: (np.shape(x), getattr(x, "dtype", real)), tree)
    assert types(grads) == types(entry.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {real}


@pytest.mark.sampled
@pytest.mark.parametrize("names", SUBSETS, ids="-".join)
@pytest.mark.parametrize("name", ["conv_grouped", "tied_embedding", "l2_regularised_mlp"])
def test_every_subset_of_statistics(name, names):
    entry, rows = of_zoo(name)
    found = moments(entry, names)
    measured = found[2]
    for statistic, values in zip(ALL, measured[:3], strict=True):
        assert (values is None) == (statistic not in names)
    assert_moments(found, rows, entry.rtol, entry.grad_rtol)


@pytest.mark.parametrize("name", ["mlp", "switch_by_map"])
def test_eager(name):
    entry, rows = of_zoo(name)
    found = measure.per_example_moments(entry.loss_fn, statistics=ALL)(entry.params, entry.batch)
    assert_moments(found, rows, entry.rtol, entry.grad_rtol)


OF_EVERY_KIND = [
    "mlp",
    "linear_regression",
    "cnn",
    "tied_embedding",
    "lstm",
    "l2_regularised_mlp",
    "layers_indexed_by_a_loop",
    "complex_weights",
    "parameters_nobody_uses",
    "aux_of_every_form",
    "dropout_of_every_example",
    "padding_with_garbage",
]


@pytest.mark.parametrize("name", OF_EVERY_KIND)
def test_stats(name):
    """The `GradientStats` of the method are those of the definitions."""
    entry, rows = of_zoo(name)
    found = run(value_grad_and_stats, entry, measure.exact(statistics=ALL))
    assert_stats(found, rows, statistics(rows))


def test_stats_in_float64():
    entry, rows = of_zoo("in_float64")
    found = run(value_grad_and_stats, entry, measure.exact(statistics=ALL))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float64)}
    assert_stats(found, rows, statistics(rows), rtol=1e-12)


def with_six_rows(entry: Entry, mask: Any = None) -> Entry:
    """The first row once more at the end: six rows make groups of two and of three."""
    index = np.array([0, 1, 2, 3, 4, 0])
    return entry._replace(batch=jax.tree.map(lambda x: x[index], entry.batch), mask=mask)


@functools.lru_cache(8)
def six_rows_of_zoo(name: str) -> tuple[Entry, Rows]:
    entry = with_six_rows(ENTRIES[name]())
    return entry, expected_rows(entry)


@pytest.mark.sampled
@pytest.mark.parametrize("group_size", [2, 3])
@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "short_sequence",
        "long_sequence",
        "conv_depthwise_multiplier",
        "tied_embedding",
        "rnn",
        "scanned_layers_unrolled_with_policy",
        "l2_regularised_mlp",
        "experts_by_index",
    ],
)
def test_groups_of_examples(name, group_size):
    entry, rows = six_rows_of_zoo(name)
    found = run(value_grad_and_stats, entry, measure.exact(statistics=ALL, group_size=group_size))
    assert_stats(found, rows, statistics(rows, group_size))


def test_groups_with_padding():
    """Groups of two, of one real row, and of none."""
    entry = with_six_rows(ENTRIES["mlp"](), mask=np.array([1, 1, 0, 1, 0, 0], bool))
    rows = expected_rows(entry)
    found = run(value_grad_and_stats, entry, measure.exact(statistics=ALL, group_size=2))
    assert_stats(found, rows, statistics(rows, 2))


@pytest.mark.parametrize("names", [("norm",), ALL], ids="-".join)
@pytest.mark.parametrize("name", ["mlp", "tied_embedding"])
def test_probes_are_unbiased(name, names):
    """Over all orders of the rows, the statistics of three rows average to those of all five."""
    entry, rows = of_zoo(name)
    expected = statistics(rows)
    method = measure.exact(statistics=names, probe_size=3)
    step = jax.jit(value_grad_and_stats(entry.loss_fn, method))
    probes = []
    for order in itertools.permutations(range(5)):
        batch = jax.tree.map(lambda x, order=list(order): x[order], entry.batch)
        loss, grads, stats = step(entry.params, batch)
        assert relative_distance(grads, rows.mean_grad) < 1e-6
        np.testing.assert_allclose(loss, rows.loss, rtol=1e-6)
        np.testing.assert_allclose(stats.sq_norm, expected.sq_norm, rtol=1e-5)
        assert (float(stats.num_examples), float(stats.num_groups)) == (5, 3)
        probes.append(jax.tree.map(np.float64, stats))
    average = jax.tree.map(lambda *x: np.mean(x, axis=0), *probes)
    np.testing.assert_allclose(average.variance, expected.variance, rtol=1e-5)
    assert np.std([probe.variance for probe in probes]) > 0.05 * expected.variance
    if "inner" in names:
        found = average.inner_product_variance
        np.testing.assert_allclose(found, expected.inner_product_variance, rtol=1e-5)
    if "coordinate" in names:
        found = jax.tree.map(np.float32, average.coordinate_variance)
        assert_coordinates(found, expected.coordinate_variance, 1e-5)


@pytest.mark.parametrize("name", ["aux_of_every_form", "aux_of_parameters"])
def test_aux_is_that_of_one_call(name):
    """In one float32 call of the loss on the whole batch."""
    entry, _ = of_zoo(name)
    _, aux = entry.loss_fn(entry.params, entry.batch)
    step = measure.per_example_moments(entry.loss_fn, has_aux=True)
    (_, found), _, _ = jax.jit(step)(entry.params, entry.batch)
    jax.tree.map(lambda x, expected: assert_close(x, expected, 1e-6, "aux"), found, aux)
    types = lambda tree: jax.tree.map(lambda x: x.dtype, tree)
    assert types(found) == types(aux)
