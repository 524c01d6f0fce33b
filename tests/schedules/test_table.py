"""Numbers of things and lengths of time, written for the eye."""

import pytest

from adaoptax.schedules.table import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00123, "0.00123 s"),
        (119.0, "119 s"),
        (120.0, "2.0 min"),
        (7199.0, "120.0 min"),
        (7200.0, "2.0 h"),
        (172_799.0, "48.0 h"),
        (172_800.0, "2.0 d"),
        (1e9, "11,574.1 d"),
    ],
)
def test_a_time_is_in_the_largest_unit_of_which_it_holds_two(seconds, text):
    assert duration(seconds) == text
