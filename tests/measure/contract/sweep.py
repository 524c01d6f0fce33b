"""Many random losses, written to a table: ``python -m tests.measure.contract.sweep --help``.

Rows that the table has already are not run again: a run that was stopped goes on.
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
    print(summary(read(args.out)))


def read(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows of the table so far."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def summary(rows: list[dict[str, str]]) -> str:
    """Outcomes by method and family, and an example of each kind of broken outcome."""
    counts: dict[tuple[str, str], collections.Counter[str]] = collections.defaultdict(
        collections.Counter
    )
    examples: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        kind = row["outcome"].partition(":")[0]
        for family in ("(all)", *row["families"].split(";")):
            counts[row["method"], family][kind] += 1
        if kind == "BROKEN":
            words = " ".join(row["outcome"].split()[1:3])
            examples.setdefault((row["method"], words), row)
    kinds = ("kept", "refused", "BROKEN", "skipped")
    lines = [f"{'method':14}{'family':22}" + "".join(f"{kind:>9}" for kind in kinds)]
    for (method, family), found in sorted(counts.items()):
        lines.append(f"{method:14}{family:22}" + "".join(f"{found[kind]:9}" for kind in kinds))
    for (method, _), row in sorted(examples.items()):
        lines.append(f"{method}, seed {row['seed']}: {row['outcome']}\n    {row['description']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
