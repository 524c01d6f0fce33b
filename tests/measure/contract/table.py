"""Writes the page of named losses: ``python -m tests.measure.contract.table``.

What the table says is asked of the library, by traces alone.
"""

import pathlib
import sys

import jax

HERE = pathlib.Path(__file__).parent
PAGE = HERE.parents[2] / "docs" / "guide" / "losses.md"
HEAD = """\
# Named losses

What `measure.exact` and the methods that cut the batch (`groups`, `per_example`, `micro_steps`,
`accumulate`, `devices`) make of losses that people train. A loss is *measured* if it is proved that
loss and gradient stay those of `jax.value_and_grad` and that its examples have gradients of their
own. Otherwise it is *refused*, with the operation and its line. [Sharp edges](../sharp_edges.md)
says what is proved and what to do about a refusal.

`python -m tests.measure.contract.table` writes this page. The tests run every one of these losses.

"""
COLUMNS = "| loss | `exact` | in parts | what it is |\n| --- | --- | --- | --- |\n"


def outcome(proof: object, *args: object) -> str:
    """ "measured" or "refused"."""
    try:
        proof(*args)  # type: ignore[operator]
    except ValueError:
        return "refused"
    return "measured"


def page() -> str:
    """The text of the page."""
    sys.path.insert(0, str(HERE))
    from named import TABLES, make_batch, make_params

    from adaoptax.measure.exact.plan import Plan
    from adaoptax.measure.exact.planning import make_plan
    from adaoptax.measure.exact.proof import check_mean, check_plan
    from adaoptax.measure.exact.row_moments import trace_loss
    from adaoptax.measure.loss import describe_loss
    from adaoptax.measure.rows import count_rows

    params, batch = make_params(), make_batch()

    def plan_of(loss: object) -> Plan:
        traced = trace_loss(loss, params, batch, ())  # type: ignore[arg-type]
        return make_plan(traced.closed, len(jax.tree.leaves(params)), count_rows(batch))

    titles = (
        "Supervised", "Sums, weights and penalties", "Language models", "Experts", "Decisions",
        "Metrics as losses", "Contrastive", "Generative", "Structures", "Linear algebra",
    )  # fmt: skip
    text = HEAD
    for title, table in zip(titles, TABLES, strict=True):
        text += (
            f"## {title}\n\n| loss | `exact` | in parts | what it is |\n| --- | --- | --- | --- |\n"
        )
        for name, named in table.items():
            loss = describe_loss(named.fn)
            whole = outcome(lambda loss=loss: check_plan(loss, plan_of(loss)))
            parts = outcome(check_mean, loss, params, batch, (), "groups", count_rows(batch) // 2)
            why = named.why.replace("|", "\\|")
            text += f"| {name} | {whole} | {parts} | {why} |\n"
        text += "\n"
    return text.rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
