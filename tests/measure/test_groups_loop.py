"""What is said about the loop of `groups`, and that the program holds just that loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaoptax import value_grad_and_stats
from adaoptax.measure import groups
from adaoptax.measure.groups import loop_of_groups
from adaoptax.measure.loss import describe_loss

pytestmark = pytest.mark.topic("transformations of JAX")


def dense(params, batch):
    return jnp.mean(jnp.tanh(batch @ params) ** 2)


def convolutional(params, batch):
    """One convolution, whose gradient with respect to its kernel is another."""
    axes = ("NWC", "WIO", "NWC")
    return jnp.mean(
        jax.lax.conv_general_dilated(batch, params, (1,), "SAME", dimension_numbers=axes) ** 2
    )


PROBLEMS = {
    dense: (np.ones((3, 2), np.float32), np.ones((8, 3), np.float32)),
    convolutional: (np.ones((3, 2, 2), np.float32), np.ones((8, 5, 2), np.float32)),
}


@pytest.mark.parametrize("loss_fn", PROBLEMS)
@pytest.mark.parametrize(
    ("shards", "kind"), [(None, "scan"), (1, "scan"), (2, "vmap of scan"), (4, "vmap")]
)
def test_the_program_holds_the_loop_that_is_named(loss_fn, shards, kind):
    args = PROBLEMS[loss_fn]
    loop = loop_of_groups(describe_loss(loss_fn), *args, (), n=4, shards=shards)
    assert loop.kind == kind
    assert ("2 convolutions" in loop.reason) == (loss_fn is convolutional)
    program = jax.jit(value_grad_and_stats(loss_fn, groups(4, shards=shards))).lower(*args)
    assert ("stablehlo.while" in program.as_text()) == ("scan" in kind)


def test_nothing_is_computed():
    calls = []

    def loss_fn(params, batch, scale, key):
        jax.debug.callback(lambda: calls.append(0))
        noise = jax.random.normal(key, batch.shape)
        return scale * jnp.mean((batch + noise) @ params), {"count": len(batch)}

    params, batch = PROBLEMS[dense]
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, (params, batch)))
    loss = describe_loss(loss_fn, has_aux=True, key_argnums=3)
    for of_params, of_batch in ((params, batch), shapes):
        loop = loop_of_groups(loss, of_params, of_batch, (2.0, jax.random.key(0)), n=2)
        assert loop.kind == "scan"
    assert not calls
