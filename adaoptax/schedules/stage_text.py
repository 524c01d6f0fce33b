"""Stages written as text: ``"0:768 250B:1536"``."""

import re
from fractions import Fraction

_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
# Bounded lengths, so that a slip of the finger is no endless computation.
_NUMBER = re.compile(r"(\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})((?:E\+?\d{1,2})?)([KMBT]?)", re.ASCII)


def parse_stages(text: str) -> list[tuple[int, int]]:
    """Reads ``"0:768 250B:1536"`` as [(0, 768), (250000000000, 1536)]."""
    if not isinstance(text, str):
        raise TypeError(
            f"Expected a string such as '0:768 250B:1536', got {text!r}: pass other forms to "
            "batch_size_schedule."
        )
    stages = []
    for entry in text.replace(",", " ").split():
        parts = entry.split(":")
        if len(parts) != 2:
            raise ValueError(
                f"Expected entries THRESHOLD:SIZE, got {entry!r} in {text!r}: write them like "
                "'0:768 250B:1536', with blanks or commas only between entries."
            )
        stages.append((read_number(parts[0], entry), read_number(parts[1], entry)))
    if not stages:
        raise ValueError(
            f"Expected at least one entry THRESHOLD:SIZE, got {text!r}: pass '0:256' for one size."
        )
    return stages


def read_number(text: str, entry: str) -> int:
    """Reads ``"1.5M"`` as 1500000; `entry` is where it stands, for the error."""
    match = _NUMBER.fullmatch(text.upper())
    if match is None:
        raise ValueError(
            f"Expected a number >= 0 such as 768, 1.5M or 250B, got {text!r} in {entry!r}: the "
            "suffixes are K, M, B and T."
        )
    number = Fraction(match[1] + match[2]) * _SUFFIXES[match[3]]
    if number.denominator != 1:
        raise ValueError(
            f"Expected a whole number, got {text!r} in {entry!r}: it is {float(number)} examples; "
            "leave out decimals."
        )
    return int(number)


def write_number(number: int) -> str:
    """The shortest way to write a whole number that `read_number` reads back, "1.5M"."""
    forms = [_with_suffix(number, suffix, unit) for suffix, unit in _SUFFIXES.items()]
    return min(forms, key=len)


def _with_suffix(number: int, suffix: str, unit: int) -> str:
    whole, rest = divmod(number, unit)
    decimals = str(rest).zfill(len(str(unit)) - 1).rstrip("0")
    return f"{whole}.{decimals}{suffix}" if decimals else f"{whole}{suffix}"
