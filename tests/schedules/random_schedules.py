"""Random schedules: small ones, so that stages are skipped, met exactly and cut short."""

from hypothesis import strategies as st

sizes = st.integers(1, 70)
micro_batch_sizes = st.sampled_from([1, 2, 3, 8, 16])


@st.composite
def stages(draw, largest_step=300):
    """Pairs (threshold, size), thresholds from 0 upward."""
    steps = draw(st.lists(st.integers(1, largest_step), max_size=6))
    thresholds = [sum(steps[:i]) for i in range(len(steps) + 1)]
    return [(threshold, draw(sizes)) for threshold in thresholds]
