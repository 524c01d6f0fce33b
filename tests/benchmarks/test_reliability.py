"""The reliability report: what it counts, and that it speaks of tests that there are."""

import pathlib
import re

import pytest

from benchmarks import reliability
from benchmarks.reliability import Case, every_test, matches, read_cases, report
from benchmarks.reliability_topics import TOPICS

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "reliability.md"
SPECIAL = ("[hypothesis]", "[refusals]")

XML = """<testsuites><testsuite timestamp="2026-01-02T03:04:05">
<testcase classname="tests.loop.test_kill_and_resume"
  name="test_random_kills_deliver_the_uninterrupted_stream[0]" time="60">
  <properties><property name="kills" value="1200"/><property name="runs" value="85"/></properties>
</testcase>
<testcase classname="tests.loop.test_kill_and_resume"
  name="test_random_kills_deliver_the_uninterrupted_stream[1]" time="60">
  <properties><property name="kills" value="34"/></properties>{failure}
</testcase>
<testcase classname="tests.test_stats" name="test_merge[float16-[1 2]]">
  <properties><property name="examples drawn" value="60"/></properties>
</testcase>
<testcase classname="" name="tests.loop.test_torch_sources"><skipped message="no torch"/></testcase>
<testcase classname="tests.loop.test_policy" name="test_refuses_arguments_out_of_range[a]"/>
</testsuite></testsuites>"""


@pytest.mark.parametrize(
    "pattern", [each for topics in TOPICS.values() for topic in topics for each in topic.tests]
)
def test_every_pattern_means_tests_that_there_are(pattern: str) -> None:
    if not pattern.endswith(SPECIAL):
        pattern = pattern.partition("(")[0]  # parameters are known in a run only
        assert any(matches(pattern, Case(file, name)) for file, name in every_test())


def test_cases_are_counted_with_what_they_tell(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "tests.xml"
    path.write_text(XML.format(failure=""))
    cases = read_cases(path)
    assert [case.file for case in cases[:3:2]] == ["loop/test_kill_and_resume.py", "test_stats.py"]
    assert cases[2].parameters == "float16-[1 2]"
    assert [case.outcome for case in cases] == ["passed"] * 3 + ["skipped", "passed"]
    page = report(cases, "2026-01-02")
    assert "5 cases" in page
    assert "4 passed, **0 failed**, 1 skipped; 2 minutes of" in page
    assert "60 examples were drawn by hypothesis, and 1 cases expect" in page
    assert "2 cases, 1,234 kills, 85 runs | the stream of the run" in page
    assert "1 case: no torch" in page


def test_a_failure_takes_the_place_of_the_promise(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "tests.xml"
    path.write_text(XML.format(failure="<failure/>"))
    page = report(read_cases(path), "2026-01-02")
    assert "**1 of 2 failed**: `test_random_kills_deliver" in page
    assert "the stream of the run" not in page
    assert page.count("**did not run**") > 5


def test_the_page_names_files_that_there_are_and_is_not_old() -> None:
    text = PAGE.read_text()
    files = set(re.findall(r"`([\w/]+\.py)`", text))
    assert files
    assert not [file for file in files if not (reliability.TESTS / file).exists()]
    assert "**0 failed**" in text
    assert "did not run" not in text
    drawn = re.search(r"^([\d,]+) examples were drawn", text, re.MULTILINE)
    assert drawn
    assert int(drawn[1].replace(",", "")) > 1000
    counted = int(re.search(r"cases\*\* of ([\d,]+) tests", text)[1].replace(",", ""))  # type: ignore[index]
    there = len(every_test())
    assert abs(counted - there) <= 0.2 * there, (
        f"The page speaks of {counted} tests, there are {there}: run the whole suite with "
        "--junitxml and write the page again (see benchmarks/reliability.py)."
    )
