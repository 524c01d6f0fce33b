"""What the pages on other projects say was run, as far as it can be run here."""

import re
from pathlib import Path

import optax
import pytest

from benchmarks import others

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.skipif(
    optax.__version__ != "0.2.8", reason="the page names the version it was checked with"
)
@pytest.mark.parametrize("finding", others.FINDINGS, ids=lambda finding: finding.__name__)
def test_what_the_page_for_optax_lists_holds(finding):
    assert "0.2.8" in (DOCS / "upstream.md").read_text()
    assert finding()


def test_the_gain_of_the_comparison_is_that_of_the_command():
    before, *after = others.adaoptax_gains()
    assert before == pytest.approx(others.truth(others.BEFORE), rel=0.02)
    assert after == pytest.approx([others.truth(others.AFTER)] * 4, rel=0.02)
    page = (DOCS / "others.md").read_text()
    said = re.search(r"adaoptax on the\s+same\s+stream:([\d.,\s]+)", page)
    assert said is not None
    numbers = [float(number) for number in re.findall(r"\d\.\d\d", said[1])]
    assert numbers == pytest.approx(after, abs=0.006)
