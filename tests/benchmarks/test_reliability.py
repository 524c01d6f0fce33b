"""The reliability report: what it counts, and that it speaks of tests that there are."""

import pathlib
import re

import pytest

from benchmarks import reliability
from benchmarks.reliability import Case, every_test, read_cases, report
from benchmarks.reliability_topics import HYPOTHESIS, REFUSALS, TOPICS

pytest_plugins = ("pytester",)
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "reliability.md"

XML = """<testsuites><testsuite timestamp="2026-01-02T03:04:05">
<testcase classname="tests.loop.test_kill_and_resume"
  name="test_random_kills_deliver_the_uninterrupted_stream[0]" time="60">
  <properties><property name="kills" value="1200"/><property name="runs" value="85"/>
  <property name="topic" value="dropped loaders"/></properties>
</testcase>
<testcase classname="tests.loop.test_kill_and_resume"
  name="test_random_kills_deliver_the_uninterrupted_stream[1]" time="60">
  <properties><property name="kills" value="34"/><property name="topic" value="dropped loaders"/>
  </properties>{failure}
</testcase>
<testcase classname="tests.test_stats" name="test_merge[float16-[1 2]]">
  <properties><property name="examples drawn" value="60"/></properties>
</testcase>
<testcase classname="" name="tests.loop.test_torch_sources"><skipped message="no torch"/></testcase>
<testcase classname="tests.loop.test_policy" name="test_refuses_arguments_out_of_range[a]"/>
</testsuite></testsuites>"""


def test_marks_and_topics_are_those_of_each_other() -> None:
    paths = set(reliability.TESTS.rglob("test_*.py")) - {pathlib.Path(__file__)}
    texts = "".join(path.read_text() for path in paths)
    marks = re.findall(r"mark\.topic\(([^)]*)\)", texts)
    marked = {name for mark in marks for name in re.findall(r'"([^"]+)"', mark)}
    topics = {name: topic for each in TOPICS.values() for name, topic in each.items()}
    assert marked - set(topics) == set()
    by_themselves = {name for name, topic in topics.items() if topic.words}
    assert set(topics) - by_themselves - {HYPOTHESIS, REFUSALS} - marked == set()
    for name in by_themselves - marked:
        assert any(name in Case(file, test).topics for file, test in every_test()), name


def test_a_run_reports_marks_of_files_and_of_tests(pytester: pytest.Pytester) -> None:
    pytester.makeconftest((reliability.TESTS / "conftest.py").read_text())
    pytester.makepyfile(
        test_a="""
        import pytest
        pytestmark = pytest.mark.topic("a file")
        @pytest.mark.topic("a test", "another")
        def test_one(tried):
            tried("kills", 3)
        @pytest.mark.parametrize("dtype", ["float16"])
        def test_two(dtype):
            pytest.skip("not now")
        """
    )
    options = ["-p", "no:cacheprovider", "--junitxml=report.xml"]
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=1, skipped=1)
    one, two = read_cases(pytester.path / "report.xml")
    assert one.topics == {"a file", "a test", "another"}
    assert one.tried == (("kills", 3),)
    assert two.topics == {"a file", "low precision"}
    assert two.outcome == "skipped"


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
