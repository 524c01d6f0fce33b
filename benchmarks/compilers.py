"""What statistics cost in the compilers: seconds to compile on CPU, cycles expected on a TPU.

    python -m benchmarks.compilers          # CPU: seconds to trace and lower, and to compile
    python -m benchmarks.compilers --tpu    # cycles that the TPU's compiler expects; needs no TPU
    python -m benchmarks.compilers --tpu --models mlp cnn --page docs/compilers.md

Ratios to the plain step, `jax.value_and_grad`, in the same run; no program runs. The compiler of
TPUs is in the package libtpu. It compiles on any Linux machine for a TPU that is not there, and
writes beside each kernel how many cycles it expects. They are added up here, those of loops at
every trip. It chooses between programs by them; no time can be told from them. Either takes about
six minutes on two cores.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import math
import os
import pathlib
import random
import re
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

import adaoptax
from adaoptax import measure
from benchmarks.measure import show
from benchmarks.methods import ALL, PLAIN
from benchmarks.models import MODELS, Model, Problem
from benchmarks.models.layers import cross_entropy, transformer_layer
from benchmarks.models.transformers import transformer
from benchmarks.results import show as rounded
from benchmarks.tables import markdown
from benchmarks.timing import machine, time_ratio

Numbers = dict[str, list[list[float]]]
"""Step → one or more quantities, each measured one or more times."""

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CALLED = re.compile(r"(?:body|to_apply)=%?([\w.\-]+)")  # a fusion has the number of all it calls
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_BOUND = re.compile(r"= s32\[\]\S* constant\((\d+)\)")


def scanned() -> Problem:
    """The language model with its layers in a scan, which are rematerialised."""
    _, params, batch = transformer()
    params["layers"] = jax.tree.map(lambda *each: jnp.stack(each), *params["layers"])
    layer = jax.checkpoint(lambda x, p: (transformer_layer(x, p, heads=4, causal=True), None))

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        x, _ = jax.lax.scan(layer, params["embed"][batch[:, :-1]], params["layers"])
        return cross_entropy(jax.nn.standardize(x, axis=-1) @ params["head"], batch[:, 1:])

    return loss_fn, params, batch


COMPILED: dict[str, Model] = {
    **{name: MODELS[name] for name in ("mlp", "cnn", "lm")},
    "lm-scan": Model("the same LM, scan and remat", scanned, {}),
    "tiny": MODELS["tiny"],
}


def steps(loss_fn: Any) -> dict[str, Callable[..., Any]]:
    """The plain step and those with statistics, as functions that were never traced."""
    fresh = lambda: lambda *args: loss_fn(*args)
    exact = lambda names: adaoptax.value_grad_and_stats(fresh(), measure.exact(names))
    every = exact(ALL)
    return {
        PLAIN: jax.value_and_grad(fresh()),
        "exact: no statistics": exact(()),
        "exact: norm": exact(("norm",)),
        "exact: all three": every,
        "exact: all three, none kept": lambda *args: every(*args)[:2],
    }


def compile_times(model: Model, rounds: int) -> Numbers:
    """Seconds to trace and lower, and to compile, in each round; a first one warms up."""
    loss_fn, *args = model.build()
    names, order = list(steps(loss_fn)), random.Random(0)
    times: Numbers = {name: [[], []] for name in names}
    for round_ in range(rounds + 1):
        for name in order.sample(names, len(names)):
            show(f"{model.title}: round {round_}/{rounds}: {name}")
            jax.clear_caches()  # as if it were the first program of its process
            step = jax.jit(steps(loss_fn)[name])
            started = time.perf_counter()
            lowered = step.lower(*args)
            between = time.perf_counter()
            lowered.compile()
            if round_:
                times[name][0].append(between - started)
                times[name][1].append(time.perf_counter() - between)
    return times


def count_cycles(text: str) -> float:
    """Estimated cycles of one run of a program, from what libtpu writes into its HLO text.

    Gathers, scatters, scalars and copies beside the kernels have no estimate and count nothing.
    NaN where a kernel is marked as unknown, the trips of a loop are not told, or it has branches.
    """
    computations: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            name, entry = header[2], header[2] if header[1] else entry
        computations.setdefault(name, []).append(line)

    @functools.cache
    def total(name: str) -> float:
        return sum(map(cycles, computations[name]))

    def cycles(line: str) -> float:
        own = sum(map(int, _CYCLES.findall(line)))
        if own >= 2**62 or " conditional(" in line:  # unknown is written as 2⁶³
            return math.nan
        return own + trips(line) * sum(map(total, _CALLED.findall(line)))

    def trips(line: str) -> float:
        if not (loop := _CONDITION.search(line)):
            return 1
        condition = "\n".join(computations[loop[1]])  # its one bound, where nothing is annotated
        bounds = _TRIPS.findall(line) or _BOUND.findall(condition) * ("direction=LT" in condition)
        return int(bounds[0]) if len(bounds) == 1 else math.nan

    return total(entry)


def tpu_device() -> Any:
    """A TPU to compile for, which libtpu makes up."""
    if importlib.util.find_spec("libtpu") is None:
        requires = importlib.metadata.requires("jax") or []
        libtpu = next(line.split(";")[0].strip() for line in requires if line.startswith("libtpu"))
        packages = f'"jax=={jax.__version__}" "{libtpu}"'
        raise SystemExit(f"Expected libtpu for --tpu: pip install {packages}")
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ["TPU_ACCELERATOR_TYPE"] = "v5e-4"  # or it would ask which TPU this machine has
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]


def tpu_cycles(model: Model, device: Any) -> Numbers:
    """The estimated cycles of every step, compiled for that TPU."""
    loss_fn, *args = model.build()
    place = jax.sharding.SingleDeviceSharding(device)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), args)
    cycles: Numbers = {}
    # The library chooses its formulas by the default backend, which is the CPU here.
    with mock.patch.object(jax, "default_backend", return_value="tpu"):
        for name, step in steps(loss_fn).items():
            show(f"{model.title}: {name}")
            compiled = jax.jit(step).lower(*shapes).compile()
            cycles[name] = [[count_cycles(compiled.as_text() or "")]]
    return cycles


def table(columns: dict[str, Numbers], unit: str) -> str:
    """Ratios to the plain step, of which the first line has the numbers themselves."""
    number = lambda x: f"{x:,.0f}" if x >= 100 else f"{x:.2f}"

    def cell(model: Numbers, name: str) -> str:
        if name == PLAIN:
            return " / ".join(map(number, map(statistics.median, model[name]))) + f" {unit}"
        return " / ".join(map(rounded, map(time_ratio, model[name], model[PLAIN])))

    names = next(iter(columns.values()))
    lines = [[name, *(cell(model, name) for model in columns.values())] for name in names]
    return markdown(["step", *columns], lines)


def write(page: pathlib.Path, part: str, text: str) -> None:
    """Puts the text between the marks of that part of the page."""
    marks = re.compile(rf"(?<=<!-- {part} -->\n).*?(?=<!-- end -->)", re.DOTALL)
    new, found = marks.subn(lambda _: f"\n{text}\n\n", page.read_text(), count=1)
    if not found:
        raise SystemExit(f"Expected <!-- {part} --> and <!-- end --> in {page}.")
    page.write_text(new)


def main() -> None:
    """Compiles, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tpu", action="store_true", help="cycles on a TPU instead of times on CPU; needs libtpu")
    add("--models", nargs="+", default=["mlp", "cnn", "lm", "lm-scan"], choices=COMPILED,
        metavar="MODEL", help=f"any of {', '.join(COMPILED)} (default: all but tiny)")  # fmt: skip
    add("--rounds", type=int, default=7, help="rounds of a median on CPU (default: 7)")
    add("--page", type=pathlib.Path, metavar="PATH", help="put the table between marks of a page")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"Expected --rounds >= 1, got {options.rounds}: a median needs one.")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # a hit would cost nothing
    if options.tpu:
        device = tpu_device()
        release = importlib.metadata.version("libtpu")
        place = f"Compiled for one {device.device_kind}, jax {jax.__version__}, libtpu {release}"
        part, unit, numbers = "tpu", "cycles", lambda model: tpu_cycles(model, device)
    else:
        place = f"Compiled on {machine()}, medians of {options.rounds} rounds"
        part, unit, numbers = "cpu", "s", lambda model: compile_times(model, options.rounds)
    columns = {}
    for i, model in enumerate(COMPILED[key] for key in options.models):
        columns[model.title] = numbers(model)
        show()
        print(f"[{i + 1}/{len(options.models)}] {model.title}", flush=True)
    text = f"{place}:\n\n{table(columns, unit)}"
    print(f"\n{text}")
    if options.page:
        write(options.page, part, text)


if __name__ == "__main__":
    main()
