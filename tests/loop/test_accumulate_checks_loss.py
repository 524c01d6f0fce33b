"""`compile` tells a loss whose micro-batches do not add up to their batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaoptax
from adaoptax.loop import accumulate

pytestmark = pytest.mark.topic("growth")

RNG = np.random.default_rng(3)
DATA = {
    "x": RNG.normal(size=(64, 5)).astype(np.float32),
    "real": np.arange(5) <= np.arange(64)[:, None] % 5,
}
STATE = (jnp.arange(5.0) / 5,)
BATCH = adaoptax.Batch({name: rows[:8] for name, rows in DATA.items()}, np.arange(8) < 7)
ONE = {name: rows[0] for name, rows in DATA.items()}


def of_tokens(w, batch):
    return batch["real"] * (batch["x"] * w - 1) ** 2


def row_means(w, batch, *args):
    return jnp.mean(of_tokens(w, batch).sum(axis=1) / batch["real"].sum(axis=1))


def token_mean(w, batch):
    return of_tokens(w, batch).sum() / batch["real"].sum()


def whole_sum(w, batch):
    return of_tokens(w, batch).sum()


def compile_step(loss_fn, example, *args, how="padded", micro=4, check_loss=True, **options):
    step = accumulate(
        loss_fn, lambda state, *measured: (state, measured[0]),
        micro_batch_size=micro, max_batch_size=2 * micro, how=how, donate=False, **options,
    )  # fmt: skip
    step.compile(STATE, example, *args, progress=False, check_loss=check_loss)
    return step


@pytest.mark.parametrize("how", ["padded", "ladder", "host"])
@pytest.mark.parametrize("micro", [1, 4])
def test_a_mean_of_rows_compiles(how, micro):
    compile_step(row_means, BATCH, how=how, micro=micro)
    compile_step(row_means, ONE, how=how, micro=micro)


@pytest.mark.parametrize("how", ["padded", "host"])
@pytest.mark.parametrize("micro", [1, 3, 4])
@pytest.mark.parametrize("loss_fn", [whole_sum, token_mean])
def test_another_loss_is_an_error_before_training(loss_fn, micro, how):
    for example in (BATCH, ONE, jax.eval_shape(lambda x: x, ONE)):
        with pytest.raises(ValueError, match="Expected loss_fn to be the mean over the rows"):
            compile_step(loss_fn, example, micro=micro, how=how)


def test_on_the_word_of_the_user_it_is_left_out():
    compile_step(whole_sum, BATCH, loss_kind="assumed")
    compile_step(whole_sum, BATCH, loss_kind="ghost")


def by_length(w, batch):
    """No mean of its parts where they are halves of a micro-batch."""
    return row_means(w, batch) * (2.0 if len(batch["x"]) < 4 else 1.0)


def test_halves_are_compared_too():
    with pytest.raises(ValueError, match=r"mean over the rows of its batch.*0\.5 times as large"):
        compile_step(by_length, BATCH, micro=4)
    with pytest.raises(ValueError, match="with one row what it does with several"):  # padding
        compile_step(by_length, BATCH, micro=4, check_loss=False)


def test_padding_does_not_count():
    """Garbage in rows that the mask leaves out is no difference."""
    data = {name: np.where(BATCH.mask[:, None], x, 7) for name, x in BATCH.data.items()}
    data["x"][~BATCH.mask] = np.nan
    compile_step(row_means, adaoptax.Batch(data, BATCH.mask), micro=8)


def test_batches_that_lie_on_the_devices_and_keys():
    def dropped(w, batch, key):
        keep = jax.random.bernoulli(key, 0.5, batch["x"].shape)
        return row_means(w, batch | {"x": batch["x"] * keep})

    step = compile_step(row_means, BATCH)
    step.compile(STATE, step.place(BATCH), progress=False)
    key = jax.random.key(0)
    compile_step(dropped, BATCH, key, key_argnums=2)
    with pytest.raises(ValueError, match="to be the mean over the rows"):
        compile_step(lambda *inputs: 4 * len(inputs[1]["x"]) * dropped(*inputs), BATCH, key,
                     key_argnums=2)  # fmt: skip
