"""Losses that people train: accepted with the plain loss and gradient, or refused."""

import functools

import pytest
import table
from contract import METHODS, judge
from named import NAMED, make_batch, make_params
from oracle import Truth, examine

PARAMS, BATCH, OTHERS = make_params(), make_batch(), make_batch(1)


@functools.lru_cache(4)
def truth_of(name: str, single: bool = False) -> Truth:
    entry = NAMED[name]
    redraw = {**OTHERS, **{leaf: BATCH[leaf] for leaf in entry.given}}
    loss_fn = lambda p, b, _: entry.fn(p, b)
    rtol = 1e-5 if entry.float32 else 1e-8
    return examine(loss_fn, PARAMS, BATCH, redraw, single=single, rtol=rtol)


@pytest.mark.sampled
@pytest.mark.parametrize("method", ["exact", "groups"])
@pytest.mark.parametrize("name", NAMED)
def test_accepted_or_refused(name, method):
    entry = NAMED[name]
    wanted = entry.exact if method == "exact" else entry.parts
    find = functools.partial(truth_of, name)
    found = judge(METHODS[method], entry.fn, PARAMS, BATCH, find)
    allowed = {"accept": ("kept",), "refuse": ("refused",), "either": ("kept", "refused")}[wanted]
    assert found.startswith(allowed), f"{wanted}: {entry.why}; {found}"


@pytest.mark.sampled
@pytest.mark.parametrize("name", NAMED)
def test_labels(name):
    """Found out numerically, in float64, without the library."""
    entry, truth = NAMED[name], truth_of(name, single=True)
    if entry.exact != "either":
        assert truth.additive == (entry.exact == "accept"), entry.why
    if entry.parts != "either":
        assert truth.mean == (entry.parts == "accept"), entry.why


def test_there_are_many():
    assert len(NAMED) >= 150


@pytest.mark.slow
def test_the_page_of_losses_says_what_is_proved():
    assert table.PAGE.read_text() == table.page()
