import math
import pathlib

import pytest

from benchmarks import compilers
from benchmarks.methods import PLAIN
from benchmarks.models import MODELS

PROGRAM = """\
HloModule step, is_scheduled=true

%sum (a.1: f32[], b.1: f32[]) -> f32[] {
  ROOT %add.1 = f32[] add(%a.1, %b.1)
}

%body (state.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state.1 = (s32[]{:T(128)}, /*index=1*/f32[8]{0:T(128)}) parameter(0)
  %twice.1 = f32[8]{0:T(128)} fusion(%x.1), calls=%fused.1, backend_config={CYCLES_100}
  ROOT %tuple.1 = (s32[], f32[8]) tuple(%i.1, %twice.1)
}

%condition (state.2: (s32[], f32[8])) -> pred[] {
  %bound.1 = s32[]{:T(128)} constant(BOUND)
  ROOT %less.1 = pred[]{:T(512)} compare(%i.2, %bound.1), direction=LT
}

ENTRY %main (x.3: f32[8]) -> f32[] {
  %while.1 = (s32[], f32[8]) while(%two), condition=%condition, body=%body, backend_config={TRIPS}
  ROOT %reduce.1 = f32[] reduce(%y.3, %zero.3), to_apply=%sum, backend_config={CYCLES_7}
}
"""


def program(bound: str, trips: str = "", kernel: int = 100) -> str:
    cycles = lambda n: f'"window_config":{{"estimated_cycles":"{n}","iteration_bounds":["1"]}}'
    text = PROGRAM.replace("CYCLES_100", cycles(kernel)).replace("CYCLES_7", cycles(7))
    annotation = f'"known_trip_count":{{"n":"{trips}"}}' if trips else ""
    return text.replace("BOUND", bound).replace("TRIPS", annotation)


@pytest.mark.parametrize(
    "text", [program("5"), program("-1", trips="5")], ids=["bound", "annotation"]
)
def test_a_loop_counts_at_every_trip(text: str) -> None:
    assert compilers.count_cycles(text) == 5 * 100 + 7


@pytest.mark.parametrize(
    "text", [program("-1"), program("5", kernel=2**63)], ids=["trips", "kernel"]
)
def test_what_the_compiler_does_not_tell_is_not_a_number(text: str) -> None:
    assert math.isnan(compilers.count_cycles(text))


def test_times_of_a_tiny_model_are_ratios_to_the_plain_step() -> None:
    times = compilers.compile_times(MODELS["tiny"], rounds=1)
    assert all(seconds > 0 for pair in times.values() for [seconds] in pair)
    lines = compilers.table({"tiny": times}, "s").splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [f"| {name}" for name in times]
    assert lines[0].startswith(f"| {PLAIN} |")


@pytest.mark.parametrize("old", ["", "\nold\n\n"], ids=["empty", "written"])
def test_only_the_part_of_the_page_is_written(tmp_path: pathlib.Path, old: str) -> None:
    parts = "a\n<!-- cpu -->\n{}<!-- end -->\nb\n<!-- tpu -->\n{}<!-- end -->\n"
    page = tmp_path / "page.md"
    page.write_text(parts.format(old, old))
    compilers.write(page, "cpu", r"| \1 |")
    assert page.read_text() == parts.format("\n| \\1 |\n\n", old)
    with pytest.raises(SystemExit, match="Expected <!-- gpu -->"):
        compilers.write(page, "gpu", "")
