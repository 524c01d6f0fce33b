"""Losses in which examples meet are refused with the operation that lets them."""

import jax
import jax.numpy as jnp
import optax
import pytest
from proving import KEY, check, check_separable, of_logits, of_tokens

pytestmark = pytest.mark.topic("mixing losses")

cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def log_softmax_by_hand(z, batch):
    """Stabilised by the largest logit of the whole batch, which drops out again."""
    e = jnp.exp(z - jnp.max(z))
    return -jnp.mean(jnp.log(e / jnp.sum(e, axis=1, keepdims=True))[:, 0])


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


REFUSED = {
    "batch norm": (
        of_logits(lambda z, b: jnp.mean(jnp.tanh(standardised(z)))),
        "sub.*standardised.* sum over the examples",
    ),
    "norm by vmap": (of_logits(pmapped_norm), "sub"),
    "norm in a scan": (
        of_logits(
            lambda z, b: jax.lax.scan(lambda c, _: (jnp.tanh(c - c.mean(0)), None), z, length=2)[
                0
            ].mean()
        ),
        "sub",
    ),
    "norm in jit": (
        of_logits(lambda z, b: jax.jit(standardised)(z).__pow__(2).mean()),
        "sub.*standardised",
    ),
    "InfoNCE": (of_logits(info_nce), "dot_general.*info_nce.* meet others"),
    "NT-Xent": (of_logits(nt_xent), "dot_general.*nt_xent"),
    "SigLIP": (of_logits(siglip), "dot_general.*siglip"),
    "triplet": (of_logits(triplet), "sub.*triplet.* meet others"),
    "Gram": (of_logits(lambda z, b: jnp.mean(jnp.exp(z @ z.T))), "dot_general"),
    "forgotten axis": (
        of_logits(lambda z, b: jnp.mean((z[:, :1] - z[:, 1]) ** 2)),
        "sub.* meet others",
    ),
    "covariance": (
        of_logits(lambda z, b: jnp.sum((z.T @ z / len(z)) ** 2)),
        "integer_pow.* not linear",
    ),
    "attention over the batch": (
        of_logits(lambda z, b: jnp.mean((jax.nn.softmax(z @ z.T) @ z) ** 2)),
        "dot_general",
    ),
    "log mean exp": (of_logits(lambda z, b: jax.nn.logsumexp(z[:, 0])), "reduce_max.* chooses"),
    "softmax over the batch": (
        of_logits(lambda z, b: jnp.sum(jax.nn.softmax(z, 0) * z)),
        "reduce_max.* chooses",
    ),
    "root of the mean": (of_logits(lambda z, b: jnp.sqrt(jnp.mean(z**2))), "square root"),
    "norm of all": (of_logits(lambda z, b: jnp.linalg.norm(z)), "square root"),
    "worst example": (of_logits(lambda z, b: jnp.max(z)), "reduce_max.* chooses"),
    "worst examples": (of_logits(lambda z, b: jnp.mean(jax.lax.top_k(z[:, 0], 2)[0])), "top_k"),
    "mixup": (of_logits(lambda z, b: jnp.mean(jnp.tanh(z + z[::-1]))), "rev.* along the batch"),
    "next row": (
        of_logits(lambda z, b: jnp.mean(z * jnp.roll(z, 1, axis=0))),
        "slice.* picks some",
    ),
    "pairs of rows": (
        of_logits(lambda z, b: jnp.mean((z[::2] - z[1::2]) ** 2)),
        "slice.* picks some",
    ),
    "running sum": (of_logits(lambda z, b: jnp.mean(jnp.cumsum(z, axis=0))), "cumsum"),
    "first example": (of_logits(lambda z, b: jnp.mean(z[0])), "picks some"),
    "capacity of experts": (of_tokens(capacity), "cumsum"),
    "balance of experts": (of_tokens(load_balance), "mul.*load_balance"),
    "histogram": (
        of_logits(lambda z, b: jnp.sum((jnp.zeros(5).at[b["y"]].add(z[:, 0]) / len(z)) ** 2)),
        "scatter-add",
    ),
    "optax.ntxent": (of_logits(lambda z, b: optax.losses.ntxent(z, b["y"])), "mul.* meet others"),
    "scan over rows": (
        of_logits(lambda z, b: jax.lax.scan(lambda c, v: (c + v.sum(), None), 0.0, z)[0] / len(z)),
        "scan.* with a carry",
    ),
    "map over uneven parts": (
        of_logits(lambda z, b: jax.lax.map(lambda v: v.sum(), z, batch_size=4).mean()),
        "slice.* picks some",
    ),
    "rows one by one in Python": (
        of_logits(lambda z, b: jnp.stack([jnp.sum(z[i] ** 2) for i in range(len(z))]).mean()),
        "slice.* picks some",
    ),
    "diagonal of pairs": (
        of_logits(lambda z, b: jnp.diag(z @ z.T).mean()),
        "dot_general.* meet others",
    ),
    "sum of pairs": (of_logits(lambda z, b: jnp.mean(z[:, :1] + z[:, 1])), "add.* meet others"),
    "tokens sorted by expert": (
        of_tokens(
            lambda z, b: (lambda flat, order: jnp.mean(flat[order][jnp.argsort(order)] ** 2))(
                z.reshape(-1, 5), jnp.argsort(jnp.argmax(z.reshape(-1, 5), 1))
            )
        ),
        "sort.* along the batch",
    ),
    "bounded": (of_logits(lambda z, b: jnp.clip(jnp.mean(z**2), 0, 100)), "max.* not linear"),
    "mean added to each": (of_logits(lambda z, b: jnp.mean(z + jnp.mean(z**2))), "add.* meet"),
    "softmax by hand": (of_logits(log_softmax_by_hand), "reduce_max.* chooses"),
    "over the largest": (of_logits(lambda z, b: jnp.mean((z / jnp.max(z)) ** 2)), "reduce_max"),
    "median": (of_logits(lambda z, b: jnp.median(z)), "reduce_or"),
    "mixup by permutation": (
        of_logits(lambda z, b: jnp.mean(jnp.tanh(z + z[jax.random.permutation(KEY, len(z))]))),
        "gather.* picks examples",
    ),
    "bounds on the mean": (of_logits(lambda z, b: jnp.abs(jnp.mean(z) - 0.1)), "abs.* not linear"),
    "mean of the others": (
        of_logits(lambda z, b: jnp.mean((z - jax.lax.stop_gradient(z.mean(0))) ** 2)),
        "sub.* meet",
    ),
    "a branch on the sum": (
        of_logits(lambda z, b: jax.lax.cond(z.sum() > 0, jnp.mean, lambda z: jnp.mean(z**2), z)),
        "gt.* not linear",
    ),
    "turns until all are done": (
        of_logits(
            lambda z, b: jax.lax.while_loop(
                lambda c: jnp.any(c < 3), lambda c: c + jnp.abs(z) + 1, z
            ).mean()
        ),
        "reduce_or.* chooses",
    ),
    "rounded": (of_logits(lambda z, b: jnp.sum(z).astype(int) * 1.0), "convert_element_type"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_is_named(name):
    loss_fn, operation = REFUSED[name]
    with pytest.raises(ValueError, match=rf"examples meet.*: .*{operation}.*groups\(8\)"):
        check_separable(loss_fn)
    with pytest.raises(
        ValueError,
        match=rf"examples meet.*: .*{operation}|another operation|more equations|does not grow",
    ):
        check(loss_fn)
