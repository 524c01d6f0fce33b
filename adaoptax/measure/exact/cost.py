"""The cost model: the cheapest formula for a dense layer's statistics, and the work of a loss.

A dense layer with inputs X_b [N, T, I] and output cotangents D_b [N, T, O] has the gradient
g_b = X_bᵀ D_b, whose sum over the batch takes B·N·T·I·O multiplications. Its norms come from

    factors   T = 1: ‖x_b‖² ‖d_b‖²; nothing is formed
    gram      Σ (X_b X_bᵀ) ∘ (D_b D_bᵀ): B·N·T²(I + O) multiplications, beside the gradient's own
    batched   all g_b at once, summed afterwards: the gradient's own work, B·N·I·O numbers alive
    scan      one g_b after the other: the same work, N·I·O numbers alive

The constants were measured on CPUs, as ratios to a plain step in the same run (docs/benchmarks.md);
for accelerators they are an estimate: a scan of small products leaves those idle.
"""

from typing import NamedTuple

from adaoptax.measure.exact.factors import Want

# A pass over a buffer of g_b costs as much as so many multiplications of Gram matrices an entry.
_GRAM_PER_ENTRY = 50
_BATCHED_BYTES = 64 * 2**20


class Choice(NamedTuple):
    """How statistics are formed.

    Attributes:
        formula: "factors", "gram", "batched", "scan", or "none" if nothing is wanted.
        flops: Multiplications and additions beside those of the plain gradient.
        bytes: Memory beside that of the plain step.
    """

    formula: str
    flops: float
    bytes: float


class Sizes(NamedTuple):
    """B examples; N independent products of [T, I] and [T, O]."""

    b: int
    n: int
    t: int
    i: int
    o: int


def choose(sizes: Sizes, want: Want, platform: str) -> Choice:
    """The cheapest formula for a dense layer."""
    b, n, t, i, o = sizes
    entries, product = n * i * o, 2.0 * b * n * t * i * o
    along = product if want.inner else 0.0
    if not want.squares:
        return Choice("none", along, 0)
    if t == 1:
        squared = product if want.coordinate else 0.0
        return Choice("factors", along + squared, 4 * b * n * (i + o) * want.coordinate)
    gram = 2.0 * b * n * t * t * (i + o)
    batched_bytes = 4 * b * entries
    if platform == "cpu":
        use_gram = not want.coordinate and t * t * (i + o) < _GRAM_PER_ENTRY * i * o
        use_batched = (want.inner and t >= 96) or t >= 256
    else:
        use_gram = not want.coordinate and gram < product
        use_batched = True
    if use_gram:
        return Choice("gram", gram + along, 8 * b * n * t * t)
    if use_batched and batched_bytes <= _BATCHED_BYTES:
        return Choice("batched", 2.0 * b * entries * (2 + want.inner), batched_bytes)
    return Choice("scan", 2.0 * b * entries * 2 + along, 4 * entries)
