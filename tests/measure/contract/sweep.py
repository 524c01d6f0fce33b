"""Many random losses, written to a table: ``python -m tests.measure.contract.sweep --help``.

Rows that the table has already are not run again: a run that was stopped goes on. The record of
5,000 seeds (over an hour on one core)::

    python -m tests.measure.contract.sweep --count 5000 --page docs/guide/random_losses.md \\
        --methods "exact all" default groups micro_steps
"""

import argparse
import collections
import csv
import os
import pathlib
import sys

FLAGS = (  # programs that run once: see tests/conftest.py
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
)
os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}"
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import jax  # noqa: E402
from contract import METHODS, outcome  # noqa: E402
from generator import make_loss  # noqa: E402
from tqdm import tqdm  # noqa: E402

COLUMNS = ("seed", "families", "mixes", "method", "outcome", "description")


def main() -> None:
    """Runs what is missing, then prints a summary by family and method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="how many seeds")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("contract.csv"))
    parser.add_argument("--page", type=pathlib.Path, help="writes a page for the docs, too")
    parser.add_argument("--methods", nargs="+", default=["exact", "default"], choices=METHODS)
    args = parser.parse_args()
    done = {(row["seed"], row["method"]) for row in read(args.out)}
    new = not args.out.exists()
    with args.out.open("a", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        if new:
            table.writeheader()
        broken = 0
        with tqdm(range(args.start, args.start + args.count)) as seeds:
            for seed in seeds:
                missing = [name for name in args.methods if (str(seed), name) not in done]
                if not missing:
                    continue
                case = make_loss(seed)
                for name in missing:
                    found = outcome(case, name)
                    broken += found.startswith("BROKEN")
                    cells = (seed, ";".join(case.families), int(case.mixes), name, found)
                    table.writerow(dict(zip(COLUMNS, (*cells, case.description), strict=True)))
                file.flush()
                seeds.set_postfix(broken=broken)
                if seed % 50 == 49:
                    jax.clear_caches()  # thousands of programs, none of which runs again
    rows = read(args.out)
    print(summary(rows))
    if args.page is not None:
        args.page.write_text(page(rows))


def read(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows of the table so far."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


KINDS = ("kept", "refused", "BROKEN", "skipped")
Counts = dict[tuple[str, str], collections.Counter[str]]


def kind_of(row: dict[str, str]) -> str:
    """One of `KINDS`."""
    return row["outcome"].partition(":")[0]


def count(rows: list[dict[str, str]]) -> Counts:
    """How often each outcome, by method and family."""
    counts: Counts = collections.defaultdict(collections.Counter)
    for row in rows:
        for family in ("(all)", *row["families"].split(";")):
            counts[row["method"], family][kind_of(row)] += 1
    return counts


def summary(rows: list[dict[str, str]]) -> str:
    """Outcomes by method and family, and an example of each kind of broken outcome."""
    examples: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        if kind_of(row) == "BROKEN":
            words = " ".join(row["outcome"].split()[1:3])
            examples.setdefault((row["method"], words), row)
    lines = [f"{'method':14}{'family':22}" + "".join(f"{kind:>9}" for kind in KINDS)]
    for (method, family), found in sorted(count(rows).items()):
        lines.append(f"{method:14}{family:22}" + "".join(f"{found[kind]:9}" for kind in KINDS))
    for (method, _), row in sorted(examples.items()):
        lines.append(f"{method}, seed {row['seed']}: {row['outcome']}\n    {row['description']}")
    return "\n".join(lines)


HEAD = """\
# Random losses

A generator writes losses at random, of what losses are made of: layers, reductions, weights, masks,
loops, rankings, linear algebra, in any composition. Each is measured by several methods. What is
accepted is compared with float64 gradients of single examples: loss, gradient, and statistics.
{seeds:,} losses, seeds {first} to {last}, with jax {jax}: **{broken} silent differences**.

`python -m tests.measure.contract.sweep --help` says how to run them; the tests run the first
200 with every method.

- *Measured / refused* are numbers of losses. A loss is in every family that it has a part of.
- Losses whose plain value is not finite are left out.

"""


def page(rows: list[dict[str, str]]) -> str:
    """The record, in Markdown."""
    seeds = [int(row["seed"]) for row in rows]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    counts = count(rows)
    broken = sum(kind_of(row) == "BROKEN" for row in rows)
    text = HEAD.format(
        seeds=len(set(seeds)), first=min(seeds), last=max(seeds), jax=jax.__version__, broken=broken
    )
    text += (
        f"| family | {' | '.join(f'`{m}`' for m in methods)} |\n{'| --- ' * (len(methods) + 1)}|\n"
    )
    for family in sorted({family for _, family in counts}):
        found = [counts[method, family] for method in methods]
        cells = " | ".join(f"{each['kept']} / {each['refused']}" for each in found)
        text += f"| {family.strip('()')} | {cells} |\n"
    return text


if __name__ == "__main__":
    main()
