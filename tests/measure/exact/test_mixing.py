"""Losses that are no mean of per-example losses are refused, all others pass and were followed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from adaoptax.measure.exact.dependence.propagate import Different
from adaoptax.measure.exact.mixing import check_separable, dependence, two_traces
from adaoptax.measure.loss import describe_loss

pytestmark = pytest.mark.topic("mixing losses")

ROWS = 6
PARAMS = jnp.linspace(-1, 1, 40).reshape(8, 5)
BATCH = {
    "x": jnp.ones((ROWS, 8)),
    "y": jnp.zeros(ROWS, jnp.int32),
    "t": jnp.ones((ROWS, 7, 8)),
    "mask": jnp.ones((ROWS, 7)),
}
KEY = jax.random.key(0)
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def check(loss_fn, params=PARAMS, batch=BATCH, args=(), has_aux=False):
    check_separable(describe_loss(loss_fn, has_aux=has_aux), params, batch, args)


def follow(loss_fn, params=PARAMS, batch=BATCH, args=()):
    """What is known of the loss; None if its two traces differ."""
    try:
        traces = two_traces(describe_loss(loss_fn), params, batch, args)
        return traces and dependence(*traces, len(jax.tree.leaves(params)))
    except Different:
        return None


def of_logits(fn):
    """A loss of ``fn(logits [rows, 5], batch)``."""
    return lambda params, batch: fn(batch["x"] @ params, batch)


def of_tokens(fn):
    """A loss of ``fn(logits [rows, 7, 5], batch)``."""
    return lambda params, batch: fn(batch["t"] @ params, batch)


def two_views(z, batch):
    z = jnp.concatenate([z, 2 * z])
    rows = z.shape[0] // 2
    return jnp.mean((jnp.tanh(z[:rows]) - z[rows:]) ** 2)


def recurrent(z, batch):
    step = lambda h, x: (jnp.tanh(h @ jnp.ones((5, 5)) + x), h)
    h, outputs = jax.lax.scan(step, jnp.zeros((z.shape[0], 5)), z.swapaxes(0, 1))
    return jnp.mean(h**2) + jnp.mean(outputs)


def own_count(z, batch):
    each = jnp.sum(jnp.sum(z**2, -1) * batch["mask"], 1)
    return jnp.mean(each / jnp.maximum(jnp.sum(batch["mask"], 1), 1))


def diffusion(z, batch):
    noise = jax.random.normal(KEY, z.shape)
    time = jax.random.uniform(jax.random.fold_in(KEY, 1), (z.shape[0], 1))
    return jnp.mean((jnp.tanh(z + time * noise) - noise) ** 2)


def gradient_penalty(params, batch):
    gradient = jax.grad(lambda x: jnp.sum(jnp.tanh(x @ params)))(batch["x"])
    return jnp.mean((jnp.linalg.norm(gradient, axis=-1) - 1) ** 2)


def step_by_step(params, batch):
    """Every task of a batch adapts parameters of its own."""

    def adapted(x):
        inner = jax.grad(lambda w: jnp.mean((x @ w - 1) ** 2))(params)
        return jnp.mean((x @ (params - 0.1 * inner)) ** 2)

    return jnp.mean(jax.vmap(adapted)(batch["t"]))


def flat_tokens(params, batch):
    rows, tokens, width = batch["t"].shape
    hidden = jax.nn.relu(batch["t"].reshape(-1, width) @ params)
    logits = hidden.reshape(rows, tokens, 5)
    return jnp.mean(jnp.sum(logits, axis=-1) * batch["mask"])


def convolution(params, batch):
    x = batch["t"][..., None]
    y = jax.lax.conv_general_dilated(
        x, params[:3, :3, None, None], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    pooled = jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jnp.mean(pooled**2)


def log_softmax_by_hand(z, batch):
    """Stabilised by the largest logit of the whole batch, which drops out again."""
    e = jnp.exp(z - jnp.max(z))
    return -jnp.mean(jnp.log(e / jnp.sum(e, axis=1, keepdims=True))[:, 0])


FOLLOWED = {
    "mean": of_logits(lambda z, b: jnp.mean(z**2)),
    "sum over the length": of_logits(lambda z, b: jnp.sum(z**2) / z.shape[0]),
    "weights 1/B": of_logits(lambda z, b: jnp.sum(jnp.full(len(z), 1 / len(z)) * z[:, 0])),
    "dot": of_logits(lambda z, b: jnp.vdot(z, z) / z.shape[0]),
    "both axes": of_tokens(lambda z, b: jnp.mean(z**2, axis=(0, 1)).sum()),
    "cross entropy": of_logits(lambda z, b: cross_entropy(z, b["y"]).mean()),
    "one hot": of_logits(
        lambda z, b: -jnp.mean(jnp.sum(jax.nn.one_hot(b["y"], 5) * jax.nn.log_softmax(z), 1))
    ),
    "take along axis": of_logits(
        lambda z, b: -jnp.take_along_axis(jax.nn.log_softmax(z), b["y"][:, None], 1).mean()
    ),
    "pick by index": of_logits(
        lambda z, b: -jnp.mean(jax.nn.log_softmax(z)[jnp.arange(len(z)), b["y"]])
    ),
    "sigmoid": of_logits(lambda z, b: optax.sigmoid_binary_cross_entropy(z, z > 0).mean()),
    "huber": of_logits(lambda z, b: optax.huber_loss(z).mean()),
    "cosine": of_logits(lambda z, b: optax.cosine_distance(z, b["x"][:, :5]).mean()),
    "ctc": of_tokens(
        lambda z, b: optax.ctc_loss(
            z, 1 - b["mask"], jnp.zeros((len(z), 3), jnp.int32), jnp.zeros((len(z), 3))
        ).mean()
    ),
    "vmap": lambda p, b: jax.vmap(lambda x, y: cross_entropy(x @ p, y))(b["x"], b["y"]).mean(),
    "rows in scan over time": of_tokens(recurrent),
    "tokens flattened": flat_tokens,
    "convolution": convolution,
    "attention": of_tokens(
        lambda z, b: jnp.mean((jax.nn.softmax(jnp.einsum("btd,bsd->bts", z, z)) @ z) ** 2)
    ),
    "own count of tokens": of_tokens(own_count),
    "tokens over a constant": of_tokens(
        lambda z, b: jnp.sum(jnp.sum(z, -1) * b["mask"]) / b["mask"].size
    ),
    "regulariser": lambda p, b: jnp.mean((b["x"] @ p) ** 2) + jnp.sqrt(jnp.sum(p**2)),
    "guard against NaN": of_logits(lambda z, b: jnp.nan_to_num(jnp.mean(z**2))),
    "guard by select": of_logits(
        lambda z, b: jnp.where(jnp.isfinite(jnp.mean(z)), jnp.mean(z), 0.0)
    ),
    "two views": of_logits(two_views),
    "dropout": of_logits(
        lambda z, b: jnp.mean(jnp.where(jax.random.bernoulli(KEY, 0.5, z.shape), 2 * z, 0))
    ),
    "top-k of the classes": of_logits(lambda z, b: jnp.mean(jax.lax.top_k(z, 2)[0])),
    "sorted classes": of_logits(lambda z, b: jnp.mean(jnp.sort(z, axis=1)[:, 2:] ** 2)),
    "segments within": of_logits(
        lambda z, b: jax.vmap(lambda v: jax.ops.segment_sum(v, jnp.arange(5) // 2, 3))(z).mean()
    ),
    "jit and remat": of_logits(jax.jit(jax.checkpoint(lambda z, b: jnp.mean(jnp.tanh(z))))),
    "fixed loop": of_logits(
        lambda z, b: jax.lax.fori_loop(0, 3, lambda i, c: jnp.tanh(c + i), z).mean()
    ),
    "while of each row": of_logits(
        lambda z, b: jax.vmap(
            lambda v: jax.lax.while_loop(lambda v: v.sum() < 9, lambda v: 2 * v + 1, v)
        )(z).mean()
    ),
    "cond on a parameter": lambda p, b: jax.lax.cond(
        p[0, 0] > 0, lambda z: jnp.mean(z**2), lambda z: jnp.mean(z), b["x"] @ p
    ),
    "gradient penalty": gradient_penalty,
    "adaptation of each task": step_by_step,
    "diffusion": of_logits(diffusion),
    "softmax by hand": of_logits(log_softmax_by_hand),
    "ensemble": of_logits(
        lambda z, b: jnp.mean(jax.nn.logsumexp(z[None] * jnp.arange(1.0, 4)[:, None, None], axis=0))
    ),
    "loss over bfloat16": of_logits(lambda z, b: jnp.mean(z.astype(jnp.bfloat16) ** 2)),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_means_of_per_example_losses_pass(name):
    """A mean: a sum over the examples that halves their weight when they double."""
    check(FOLLOWED[name])
    value = follow(FOLLOWED[name])
    assert value is not None
    assert value.sums is not None
    assert (value.unknown, value.mixed, value.soft, value.rows) == (False, None, None, frozenset())
    assert value.scale == frozenset([0.5])


# What passes without having been followed to the end: kept here so that it is known.
GIVEN_UP = {
    "map over rows": lambda p, b: jax.lax.map(lambda x: jnp.sum((x @ p) ** 2), b["x"]).mean(),
    "scan over rows": of_logits(
        lambda z, b: jax.lax.scan(lambda c, v: (c + v.sum(), None), 0.0, z)[0] / len(z)
    ),
    "map over uneven parts": of_logits(
        lambda z, b: jax.lax.map(lambda v: v.sum(), z, batch_size=4).mean()
    ),
    "rows one by one in Python": of_logits(
        lambda z, b: jnp.stack([jnp.sum(z[i] ** 2) for i in range(len(z))]).mean()
    ),
    "weights of the rows": of_logits(lambda z, b: jnp.average(z[:, 0], weights=jnp.ones(len(z)))),
    "trace of pairs": of_logits(lambda z, b: jnp.trace(z @ z.T) / len(z)),
    "diagonal of pairs": of_logits(lambda z, b: jnp.diag(z @ z.T).mean()),
    "sum of pairs": of_logits(lambda z, b: jnp.mean(z[:, :1] + z[:, 1])),
    "tokens sorted by expert": of_tokens(
        lambda z, b: (lambda flat, order: jnp.mean(flat[order][jnp.argsort(order)] ** 2))(
            z.reshape(-1, 5), jnp.argsort(jnp.argmax(z.reshape(-1, 5), 1))
        )
    ),
    "bounded": of_logits(lambda z, b: jnp.clip(jnp.mean(z**2), 0, 100)),
    "mean added to each": of_logits(lambda z, b: jnp.mean(z + jnp.mean(z**2))),
}


@pytest.mark.parametrize("name", GIVEN_UP)
def test_what_cannot_be_told_passes(name):
    check(GIVEN_UP[name])
    value = follow(GIVEN_UP[name])
    assert value is None or value.unknown or value.scale is None


@pytest.mark.parametrize(
    "fn",
    [
        pytest.param(lambda z, b: jnp.mean((z / jnp.max(z)) ** 2), id="over the largest"),
        pytest.param(lambda z, b: jnp.median(z), id="median"),
        pytest.param(
            lambda z, b: jnp.mean(jnp.tanh(z + z[jax.random.permutation(KEY, len(z))])),
            id="mixup by permutation",
        ),
        pytest.param(lambda z, b: jnp.abs(jnp.mean(z) - 0.1), id="bounds on the mean"),
    ],
)
def test_what_is_not_seen(fn):
    """These do mix. They look like what is harmless: a stabiliser, a sort, indices, a guard."""
    check(of_logits(fn))


def standardised(z):
    return (z - z.mean(axis=0)) / jnp.sqrt(z.var(axis=0) + 1e-5)


def info_nce(z, batch):
    return -jnp.mean(jnp.diag(jax.nn.log_softmax(z @ z.T)))


def nt_xent(z, batch):
    z = jnp.concatenate([z, 2 * z])
    n = z.shape[0]
    pairs = jnp.where(jnp.eye(n, dtype=bool), -1e9, z @ z.T)
    return cross_entropy(pairs, jnp.roll(jnp.arange(n), n // 2)).mean()


def triplet(z, batch):
    distance = jnp.sum((z[:, None] - z[None]) ** 2, axis=-1)
    same = batch["y"][:, None] == batch["y"]
    hardest = jnp.max(jnp.where(same, distance, -jnp.inf), axis=1)
    nearest = jnp.min(jnp.where(same, jnp.inf, distance), axis=1)
    return jnp.mean(jax.nn.relu(hardest - nearest + 1))


def capacity(z, batch):
    """Mixture of experts: a token is dropped where others filled its expert."""
    gates = jax.nn.softmax(z.reshape(-1, 5))
    chosen = jax.nn.one_hot(jnp.argmax(gates, 1), 5)
    place = jnp.cumsum(chosen, axis=0) * chosen
    return jnp.mean(gates * chosen * (place < 4))


def load_balance(z, batch):
    gates = jax.nn.softmax(z.reshape(-1, 5))
    share = jax.nn.one_hot(jnp.argmax(gates, 1), 5).mean(axis=0)
    return jnp.mean(z**2) + jnp.sum(share * gates.mean(axis=0))


def siglip(z, batch):
    return -jnp.mean(jnp.sum(jax.nn.log_sigmoid((2 * jnp.eye(len(z)) - 1) * (z @ z.T)), -1))


def pmapped_norm(z, batch):
    norm = lambda v: jnp.tanh(v - jax.lax.pmean(v, "batch"))
    return jnp.mean(jax.vmap(norm, axis_name="batch")(z))


MIXING = {
    "batch norm": (of_logits(lambda z, b: jnp.mean(jnp.tanh(standardised(z)))), "reduce_sum"),
    "norm by vmap": (of_logits(pmapped_norm), "tanh"),
    "norm in a scan": (
        of_logits(
            lambda z, b: jax.lax.scan(lambda c, _: (jnp.tanh(c - c.mean(0)), None), z, length=2)[
                0
            ].mean()
        ),
        "tanh",
    ),
    "norm in jit": (of_logits(lambda z, b: jax.jit(standardised)(z).__pow__(2).mean()), "square"),
    "whitened advantage": (
        of_logits(lambda z, b: jnp.mean(standardised(b["x"]) * z[:, :1])),
        "_var",
    ),
    "baseline": (of_logits(lambda z, b: jnp.mean((b["x"] - b["x"].mean()) * z[:, :1])), "mul"),
    "InfoNCE": (of_logits(info_nce), r"log_softmax .*two examples"),
    "NT-Xent": (of_logits(nt_xent), "two examples"),
    "SigLIP": (of_logits(siglip), "two examples"),
    "triplet": (of_logits(triplet), "reduce_max.* chooses"),
    "Gram": (of_logits(lambda z, b: jnp.mean(jnp.exp(z @ z.T))), "two examples"),
    "forgotten axis": (of_logits(lambda z, b: jnp.mean((z[:, :1] - z[:, 1]) ** 2)), "two examples"),
    "covariance": (of_logits(lambda z, b: jnp.sum((z.T @ z / len(z)) ** 2)), "dot_general"),
    "attention over the batch": (
        of_logits(lambda z, b: jnp.mean((jax.nn.softmax(z @ z.T) @ z) ** 2)),
        "two examples",
    ),
    "log mean exp": (of_logits(lambda z, b: jax.nn.logsumexp(z[:, 0])), "reduce_sum.* log"),
    "softmax over the batch": (of_logits(lambda z, b: jnp.sum(jax.nn.softmax(z, 0) * z)), "div"),
    "root of the mean": (of_logits(lambda z, b: jnp.sqrt(jnp.mean(z**2))), "sqrt"),
    "norm of all": (of_logits(lambda z, b: jnp.linalg.norm(z)), "sqrt"),
    "worst example": (of_logits(lambda z, b: jnp.max(z)), "reduce_max"),
    "worst examples": (of_logits(lambda z, b: jnp.mean(jax.lax.top_k(z[:, 0], 2)[0])), "top_k"),
    "mean over tokens": (
        of_tokens(lambda z, b: jnp.sum(z[..., 0] * b["mask"]) / jnp.sum(b["mask"])),
        "reduce_sum.* div.* tokens",
    ),
    "mean over at least one token": (
        of_tokens(lambda z, b: jnp.sum(z[..., 0] * b["mask"]) / jnp.maximum(jnp.sum(b["mask"]), 1)),
        "reduce_sum.* div.* tokens",
    ),
    "mean where": (of_tokens(lambda z, b: jnp.mean(z[..., 0], where=b["mask"] > 0)), "div"),
    "mean weighted by data": (of_logits(lambda z, b: jnp.average(z, weights=b["x"][:, :5])), "div"),
    "mixup": (of_logits(lambda z, b: jnp.mean(jnp.tanh(z + z[::-1]))), "different examples"),
    "next row": (
        of_logits(lambda z, b: jnp.mean(z * jnp.roll(z, 1, axis=0))),
        "different examples",
    ),
    "pairs of rows": (of_logits(lambda z, b: jnp.mean((z[::2] - z[1::2]) ** 2)), "different ex"),
    "running sum": (of_logits(lambda z, b: jnp.mean(jnp.cumsum(z, axis=0))), "cumsum"),
    "first example": (of_logits(lambda z, b: jnp.mean(z[0])), "picks some"),
    "capacity of experts": (of_tokens(capacity), "cumsum"),
    "balance of experts": (of_tokens(load_balance), "mul"),
    "histogram": (
        of_logits(lambda z, b: jnp.sum((jnp.zeros(5).at[b["y"]].add(z[:, 0]) / len(z)) ** 2)),
        "scatter-add",
    ),
    "optax.ntxent": (of_logits(lambda z, b: optax.losses.ntxent(z, b["y"])), "two examples"),
}


@pytest.mark.parametrize("name", MIXING)
def test_mixed_examples_are_named(name):
    loss_fn, operation = MIXING[name]
    message = rf"mixes examples: .*{operation}.*groups\(n\)"
    with pytest.raises(ValueError, match=message) as error:
        check(loss_fn)
    assert "test_mixing.py" in str(error.value) or "optax" in str(error.value)


@pytest.mark.parametrize(
    ("loss_fn", "factor"),
    [
        pytest.param(of_logits(lambda z, b: jnp.sum(z**2)), "1", id="sum"),
        pytest.param(of_logits(lambda z, b: jnp.sum(z**2) / ROWS), "1", id="constant"),
        pytest.param(of_logits(lambda z, b: jnp.mean(z**2) / len(z)), "0.25", id="divided twice"),
        pytest.param(of_logits(lambda z, b: jnp.mean(z**2) * len(z)), "1", id="multiplied"),
        pytest.param(of_logits(lambda z, b: jnp.sum(z**2) / (len(z) - 1)), "0.455", id="B - 1"),
        pytest.param(
            of_logits(lambda z, b: jnp.mean(z**2) + jnp.sum(jax.nn.relu(z))), "1", id="one term"
        ),
        pytest.param(
            of_logits(lambda z, b: jax.lax.fori_loop(0, 3, lambda i, c: c + jnp.sum(z), 0.0)),
            "1",
            id="in a loop",
        ),
    ],
)
def test_no_mean(loss_fn, factor):
    with pytest.raises(
        ValueError, match=rf"the mean over the examples.* {factor} times.*jnp\.mean"
    ):
        check(loss_fn)


def test_one_entry_a_row_outside_of_the_batch():
    weighted = lambda p, b, w: jnp.mean((b["x"] @ p)[:, 0] * w["rows"])
    message = (
        r"any length, got TypeError with 12 examples in place of 6.*extra argument 1\['rows'\]"
    )
    with pytest.raises(ValueError, match=message):
        check(weighted, args=({"rows": jnp.ones(ROWS), "other": jnp.ones(3)},))
    captured = lambda p, b: jnp.mean((b["x"] @ p)[:, 0] * jnp.ones(ROWS))
    with pytest.raises(ValueError, match=r"any length.*closes over"):
        check(captured)


def test_a_loss_that_insists_on_its_length_passes():
    def loss_fn(params, batch):
        assert batch["x"].shape[0] == ROWS
        return jnp.mean(batch["x"] @ params)

    check(loss_fn)


def test_errors_of_the_loss_itself_stay_as_they_are():
    with pytest.raises(TypeError, match="dot_general"):
        check(lambda p, b: jnp.mean(b["x"] @ p.T))


def test_aux_may_mix():
    z = lambda p, b: b["x"] @ p
    check(lambda p, b: (jnp.mean(z(p, b) ** 2), {"spread": jnp.std(z(p, b))}), has_aux=True)
    with pytest.raises(ValueError, match="mixes"):
        check(lambda p, b: (jnp.std(z(p, b)), jnp.mean(z(p, b))), has_aux=True)


@pytest.mark.parametrize(
    "key", [jax.random.key(1), jax.random.PRNGKey(1)], ids=["typed key", "raw key"]
)
def test_keys(key):
    """Of each row in the batch, split inside of the loss, or one as an extra argument."""
    draw = lambda k, v: jnp.sum(v * jax.random.bernoulli(k, 0.5, v.shape))
    batch = {"x": BATCH["x"], "key": jax.random.split(key, ROWS)}
    check(lambda p, b: jax.vmap(draw)(b["key"], b["x"] @ p).mean(), batch=batch)
    split = lambda p, b, k: jax.vmap(draw)(jax.random.split(k, len(b["x"])), b["x"] @ p).mean()
    check(split, args=(key,))
    check(lambda p, b, k: draw(k, b["x"] @ p) / len(b["x"]), args=(key,))


def test_inputs_of_other_kinds():
    check(lambda p, b: jnp.mean(b[0] @ p) + jnp.mean(b[1]), batch=(np.ones((4, 8)), np.ones(4)))
    check(lambda p, b, mode: jnp.mean(b["x"] @ p) if mode == "mean" else 0.0, args=("mean",))
    check(lambda p, b: jnp.mean(b["x"] * p["w"]), params={"w": 2.0, "none": None})


good = FOLLOWED["mean"]
bad = MIXING["batch norm"][0]


@pytest.mark.parametrize(
    "inside",
    [
        pytest.param(lambda f: jax.jit(f), id="jit"),
        pytest.param(lambda f: jax.jit(jax.grad(f)), id="grad"),
        pytest.param(lambda f: jax.checkpoint(f), id="remat"),
        pytest.param(
            lambda f: (
                lambda p, b: jax.vmap(f, in_axes=(None, 0))(
                    p, jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), b)
                )
            ),
            id="vmap",
        ),
    ],
)
def test_inside_of_transformations(inside):
    def checked(loss_fn, params, batch):
        check(loss_fn, params, batch)
        return loss_fn(params, batch)

    with jax.transfer_guard("disallow"):
        jax.eval_shape(inside(functools.partial(checked, good)), PARAMS, BATCH)
        with pytest.raises(ValueError, match="mixes"):
            jax.eval_shape(inside(functools.partial(checked, bad)), PARAMS, BATCH)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_on_a_mesh(kind):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        params = jax.device_put(PARAMS, NamedSharding(mesh, P()))
        batch = jax.device_put(BATCH, NamedSharding(mesh, P("data")))
        check(good, params, batch)
        with pytest.raises(ValueError, match="mixes"):
            check(bad, params, batch)


@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_of_shard_map(check_vma):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    over_devices = lambda p, b: jax.lax.pmean(good(p, b), "data")
    across = lambda p, b: jnp.mean(jnp.tanh(b["x"] - jax.lax.pmean(b["x"].mean(0), "data")))

    def run(loss_fn):
        def each(params, batch):
            check(loss_fn, params, batch)
            return loss_fn(params, batch)[None]

        mapped = jax.shard_map(
            each, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"), check_vma=check_vma
        )
        jax.eval_shape(mapped, PARAMS, BATCH)

    run(good)
    run(over_devices)
    for mixing in (bad, across):
        with pytest.raises(ValueError, match="mixes"):
            run(mixing)


def test_a_cached_function_is_blamed_where_it_is_called():
    """The body of jnp.var was traced elsewhere before, with the same shapes."""
    jax.make_jaxpr(lambda z: jnp.var(z, axis=0))(jnp.ones((ROWS, 5)))

    def spread(z, batch):
        return jnp.sum(jnp.var(z, axis=0))

    line = spread.__code__.co_firstlineno + 1
    with pytest.raises(ValueError, match=rf"inside _var at \S*test_mixing\.py:{line}:"):
        check(of_logits(spread))
