"""`explain` names what is done with each parameter, and the guide shows what it prints."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaoptax.measure import exact, explain

PAGE = Path(__file__).parents[3] / "docs" / "guide" / "measuring.md"
X = np.ones((4, 5, 8), "f4")


def mean_square(x):
    return jnp.mean(jnp.tanh(x) ** 2)


def rnn(params, x):
    def cell(h, xt):
        return jnp.tanh(xt @ params["w"] + h @ params["u"] + params["b"]), None

    return mean_square(jax.lax.scan(cell, jnp.zeros((len(x), 8)), x.swapaxes(0, 1))[0])


def layers(params, x):
    block = jax.checkpoint(lambda h, w: (jnp.tanh(h @ w), None))
    return mean_square(jax.lax.scan(block, x, params)[0])


def tied(params, x):
    ids = (x[:, :, 0] > 0).astype(int)
    return mean_square(params["table"][ids] @ params["table"].T)


def weight_norm(params, x):
    direction = params["v"] / jnp.linalg.norm(params["v"], axis=0)
    return mean_square(x @ (params["g"] * direction))


SQUARE = np.ones((8, 8), "f4")
HOW = {
    "dense": (lambda p, x: mean_square(x[:, 0] @ p), SQUARE, ["dense, factors"]),
    "multiple": (
        lambda p, x: mean_square(x[:, 0] @ (p.T / jnp.sqrt(8.0))),
        SQUARE,
        ["dense, factors"],
    ),
    "sequence": (lambda p, x: mean_square(x @ p), SQUARE, ["dense, gram"]),
    "rnn": (
        rnn,
        {"b": SQUARE[0], "u": SQUARE, "w": SQUARE},
        ["repeated", "dense, gram", "dense, gram"],
    ),
    "layers": (layers, np.ones((3, 8, 8), "f4"), ["dense, gram"]),
    "tied": (tied, {"table": np.ones((7, 8), "f4")}, ["embedding+dense, rows"]),
    "weight norm": (weight_norm, {"g": SQUARE[0], "v": SQUARE}, ["formed", "formed"]),
    "penalty": (
        lambda p, x: mean_square(x[:, 0] @ p["w"]) + 0.1 * jnp.sum(p["w"] ** 2),
        {"w": SQUARE},
        ["dense, factors"],
    ),
    "unused": (lambda p, x: mean_square(x), SQUARE, ["unused"]),
    "unknown": (lambda p, x: mean_square(jnp.sort(p * x[:, :1], 2)), SQUARE, ["repeated"]),
}


@pytest.mark.parametrize("case", HOW)
def test_how_each_parameter_is_treated(case):
    loss_fn, params, how = HOW[case]
    explanation = explain(loss_fn, params, X)
    assert [treatment.how for treatment in explanation.treatments] == how
    for leaf, treatment in zip(jax.tree.leaves(params), explanation.treatments, strict=True):
        assert treatment.shape == leaf.shape
        assert treatment.how in str(explanation)


def test_the_work_of_inner_products_is_that_of_one_more_product():
    """Of the plain gradient's three (forward, and two backward)."""
    params, x = np.ones((512, 512), "f4"), np.ones((512, 512), "f4")
    loss_fn = lambda p, x: mean_square(x @ p)
    work = lambda *names: explain(loss_fn, params, x, statistics=names).time_ratio
    assert work() == work("norm") == 1
    np.testing.assert_allclose(work("inner"), 4 / 3, rtol=1e-6)
    np.testing.assert_allclose(work("inner", "coordinate"), 5 / 3, rtol=1e-6)


def test_shapes_suffice():
    shape = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    explanation = explain(lambda p, x: mean_square(x @ p), shape, shape)
    assert explanation.num_examples == 8


def test_extra_arguments_are_values_that_the_loss_computes_with():
    """Arrays, flags and keys; only of the keys the shape suffices."""

    def loss_fn(p, x, scale, flag, key):
        assert flag == "train"
        noise = jax.random.normal(key, x.shape)
        return mean_square(jnp.where(scale > 0, x + scale * noise, x) @ p)

    args = jnp.ones([]), "train", jax.random.key(0)
    (found,) = explain(loss_fn, SQUARE, X, *args, key_argnums=4).treatments
    assert found.how.startswith("dense")


def test_a_parameter_that_is_a_python_float():
    explanation = explain(lambda p, x: mean_square(x * p["scale"]), {"scale": 0.5}, X)
    assert explanation.treatments[0].shape == ()


def test_scans_multiply_the_work():
    deep, shallow = (np.ones((n, 8, 8), "f4") for n in (6, 3))
    work = lambda params: explain(layers, params, X).treatments[0].flops
    assert work(deep) == 2 * work(shallow) > 0


def test_the_guide_shows_what_is_printed(capsys):
    before, after = PAGE.read_text().split("```text\n", maxsplit=1)
    exec("\n".join(re.findall(r"```python\n(.*?)```", before, re.DOTALL)), {})
    assert capsys.readouterr().out == after[: after.index("```")]


def test_unknown_statistics():
    with pytest.raises(ValueError, match="explain measures these only"):
        explain(lambda p, x: mean_square(x @ p), SQUARE, X, statistics=("norms",))
    with pytest.raises(ValueError, match="exact measures these only"):
        exact(("norms",))
