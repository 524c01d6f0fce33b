"""Errors of measuring: each names the argument, its value and a way out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_reference import regression, regression_loss

from adaoptax import value_grad_and_stats
from adaoptax.measure import groups, per_example


def run(method, batch, **options):
    params, _ = regression(4)
    return value_grad_and_stats(regression_loss, method)(params, batch, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: groups(1), "n=1", id="one group"),
        pytest.param(lambda: groups(0), "n=0", id="no group"),
        pytest.param(lambda: groups(-2), "n=-2", id="negative"),
        pytest.param(lambda: per_example(0), "chunk_size=0", id="chunk of none"),
        pytest.param(lambda: per_example(chunk_size=-3), "chunk_size=-3", id="negative chunk"),
        pytest.param(
            lambda: per_example(statistics=("inner", "ortho")), "'ortho'.*per_example", id="name"
        ),
        pytest.param(
            lambda: per_example(statistics="norm"),  # type: ignore[arg-type]
            "tuple.*'norm'",
            id="string",
        ),
        pytest.param(
            lambda: groups(2, statistics=("norm", "inner")), "'inner'.*groups", id="not by groups"
        ),
    ],
)
def test_factories(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("method", [groups(5), groups(3), groups(8)], ids=str)
def test_a_batch_that_does_not_divide(method):
    _, batch = regression(4)
    with pytest.raises(ValueError, match=rf"n={method.n} .*got 4 examples.*mask"):
        run(method, batch)


def test_a_batch_of_one():
    _, batch = regression(1)
    for method in (per_example(), per_example(1)):
        with pytest.raises(ValueError, match=r"at least 2 examples, got 1"):
            run(method, batch)
    with pytest.raises(ValueError, match=r"n=2 .*got 1"):
        run(groups(2), batch)


@pytest.mark.parametrize("num_rows", [1, 11, 13, 22 + 1])
def test_no_default_method(num_rows):
    _, batch = regression(num_rows)
    with pytest.raises(ValueError, match=rf"method=None, got {num_rows} examples.*per_example"):
        run(None, batch)


@pytest.mark.parametrize("method", [None, per_example(), groups(2)], ids=str)
def test_leaves_of_unequal_length_are_named(method):
    _, batch = regression(4)
    with pytest.raises(ValueError, match=r"leaf of batch.*\['x'\]: 4.*\['y'\]: 3"):
        run(method, {"x": batch["x"], "y": batch["y"][:3]})
    with pytest.raises(ValueError, match=r"\['scale'\]: None.*\['x'\]: 4.*extra argument"):
        run(method, {**batch, "scale": np.float32(1)})


@pytest.mark.parametrize("batch", [None, {}, {"x": None}])
def test_a_batch_without_arrays(batch):
    with pytest.raises(ValueError, match="batch to hold at least one array"):
        run(groups(2), batch)


@pytest.mark.parametrize("method", [4, "groups", (per_example(),), True, per_example, groups])
def test_what_is_not_a_method(method):
    with pytest.raises(TypeError, match=r"method=.*adaoptax\.measure"):
        value_grad_and_stats(regression_loss, method)


@pytest.mark.parametrize("whole", [2.0, np.int64(2), np.float32(2)])
def test_whole_numbers_of_any_type(whole):
    params, batch = regression(4)
    for method in (groups(whole), per_example(whole)):
        measured = value_grad_and_stats(regression_loss, method)(params, batch)
        assert float(measured[2].num_examples) == 4


@pytest.mark.parametrize("number", [2.5, float("nan"), float("inf")])
def test_numbers_that_are_not_whole(number):
    with pytest.raises(ValueError, match=f"n={number}"):
        groups(number)
    with pytest.raises(ValueError, match=f"chunk_size={number}"):
        per_example(number)


def test_a_method_is_a_value():
    """Hashable and comparable: fit for a static argument."""
    assert per_example(4) == per_example(4) != per_example(5)
    assert hash(groups(4)) == hash(groups(4))
    assert groups(4) != groups(2)


def test_a_loss_that_is_no_scalar():
    """As for jax.grad itself."""
    with pytest.raises(TypeError, match="scalar"):
        value_grad_and_stats(lambda w, x: x @ w, groups(2))(jnp.ones(2), np.ones((4, 2)))


def test_the_mask_is_a_keyword():
    params, batch = regression(4)
    with pytest.raises(TypeError):
        value_grad_and_stats(regression_loss, groups(2))(params, batch, np.ones(4))


def test_the_loss_is_not_run_for_a_wrong_batch():
    calls = []

    def loss_fn(params, batch):
        calls.append(1)
        return regression_loss(params, batch)

    params, batch = regression(5)
    with pytest.raises(ValueError, match="n=2"):
        jax.jit(value_grad_and_stats(loss_fn, groups(2)))(params, batch)
    assert not calls


def test_what_is_measured_follows_the_size_by_position():
    wanted = ("norm", "coordinate")
    for made, named in (
        (groups(2, wanted), groups(n=2, statistics=wanted)),
        (per_example(2, wanted), per_example(chunk_size=2, statistics=wanted)),
    ):
        assert made == named
        assert made.statistics == wanted
