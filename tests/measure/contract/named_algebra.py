"""Algebra over rows."""

import jax.numpy as jnp
from named_tools import (
    DATA,
    MEAN,
    MIXES,
    B,
    D,
    Table,
    V,
    adders,
    hidden,
    score,
)

ALGEBRA: Table = {}
loss, add = adders(ALGEBRA)

first = lambda p, b: b["x"] @ p["w"]

# Algebra over rows.
gram = lambda p, b: (lambda z: z @ z.T + jnp.eye(len(z)))(hidden(p, b["x"]))
add("log-determinant", MIXES, "of z zᵀ + I", lambda p, b: jnp.linalg.slogdet(gram(p, b))[1])
add(
    "GP marginal likelihood",
    MIXES,
    "of z zᵀ + I",
    lambda p, b: (
        0.5 * b["y"] @ jnp.linalg.solve(gram(p, b), b["y"])
        + jnp.sum(jnp.log(jnp.diag(jnp.linalg.cholesky(gram(p, b)))))
    ),
)
add(
    "sparse GP",
    MEAN,
    "inducing points are parameters",
    lambda p, b: (lambda k, kx: jnp.mean((kx @ jnp.linalg.solve(k, p["e"][:, 0]) - b["y"]) ** 2))(
        p["e"] @ p["e"].T + jnp.eye(V), hidden(p, b["x"]) @ p["e"].T
    ),
)
add(
    "kernel ridge",
    MIXES,
    "of z zᵀ + I",
    lambda p, b: jnp.mean(
        (gram(p, b) @ jnp.linalg.solve(gram(p, b) + jnp.eye(B), b["y"]) - b["y"]) ** 2
    ),
)
add(
    "eigenvalues",
    MIXES,
    "of z zᵀ + I",
    lambda p, b: jnp.sum(
        jnp.sqrt(
            jnp.linalg.eigvalsh(
                hidden(p, b["x"]).T @ hidden(p, b["x"]) + jnp.diag(jnp.arange(1.0, D + 1))
            )
        )
    ),
)
add(
    "nuclear norm",
    MIXES,
    "singular values of the batch",
    lambda p, b: jnp.sum(jnp.linalg.svd(hidden(p, b["x"]), compute_uv=False)),
)
add(
    "Frobenius norm of the Gram matrix",
    MIXES,
    "pairs of rows",
    lambda p, b: jnp.mean(gram(p, b) ** 2),
)
add(
    "whitening",
    MIXES,
    "Cholesky factor of the covariance",
    lambda p, b: (
        lambda z: jnp.mean(
            jnp.tanh(jnp.linalg.solve(jnp.linalg.cholesky(z.T @ z / len(z) + jnp.eye(D)), z.T)) ** 4
        )
    )(first(p, b)),
)
add(
    "CKA",
    MIXES,
    "pairs of rows",
    lambda p, b: (
        1
        - jnp.sum((hidden(p, b["x"]).T @ b["x2"]) ** 2)
        / jnp.linalg.norm(hidden(p, b["x"]).T @ hidden(p, b["x"]))
    ),
)
add(
    "sliced Wasserstein",
    MIXES,
    "sorted over rows",
    lambda p, b: jnp.mean((jnp.sort(score(p, b["x"])) - jnp.sort(b["y"])) ** 2),
)
add(
    "least squares of the data",
    DATA,
    "fitted to data alone",
    lambda p, b: jnp.mean(
        (
            score(p, b["x"])
            - b["x"] @ jnp.linalg.solve(b["x"].T @ b["x"] + jnp.eye(D), b["x"].T @ b["y"])
        )
        ** 2
    ),
    ("x", "y"),
)
add(
    "least squares head",
    MIXES,
    "fitted to hidden rows",
    lambda p, b: (
        lambda z: jnp.mean((z @ jnp.linalg.solve(z.T @ z + jnp.eye(D), z.T @ b["y"]) - b["y"]) ** 2)
    )(hidden(p, b["x"])),
)
