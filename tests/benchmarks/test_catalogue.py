"""The page of all methods: made from the code, complete, and up to date."""

import pathlib

import adaoptax
from adaoptax import batch_tests, prox, scaling, schedules
from benchmarks import catalogue

ROOT = pathlib.Path(__file__).parents[2]

# What makes or reads a state, a type, or a number for another method.
NO_METHODS = {
    "adam_hyperparams", "averaged_params", "batch_size_schedule", "decay_of_half_life",
    "half_life_of_decay", "optimal_rate", "plan", "required_batch_size", "rules",
    "split_tolerances",
}  # fmt: skip


def listed() -> set[str]:
    methods = [method for section in catalogue.SECTIONS.values() for method in section]
    return {method.factory.__name__ for method in methods}


def test_the_page_is_what_the_code_says() -> None:
    page = (ROOT / "docs" / "methods.md").read_text()
    assert page == catalogue.page(), "run python -m benchmarks.catalogue > docs/methods.md"


def test_no_method_is_forgotten() -> None:
    public = set()
    for room in (batch_tests, scaling, schedules):
        public |= {name for name in room.__all__ if name[0].islower()}
    assert public - NO_METHODS - listed() == set()
    rules = {name for name in scaling.rules.__all__ if name[0].islower()}
    assert rules - {"surge_constants"} - listed() == set()
    assert prox.proximal_gradient.__name__ in listed()


def test_every_probed_method_runs_and_tells_what_it_keeps() -> None:
    for section in catalogue.SECTIONS.values():
        for method in section:
            if method.kwargs:
                needs, keeps = catalogue.probe(method)
                assert needs
                assert keeps


def test_the_probe_counts_statistics_and_copies_of_parameters() -> None:
    probe = lambda factory, **kwargs: catalogue.probe(catalogue.Method(factory, kwargs))
    assert probe(adaoptax.inner_product_test, theta=0.9)[0] == "norm, inner"
    assert probe(adaoptax.adadagrad, learning_rate=0.1)[0] == "norm, coordinate"
    assert probe(adaoptax.scale_by_adam_with_batch, base_batch_size=2)[1].startswith("2 × param")
    assert probe(adaoptax.adagrad_norm, learning_rate=0.1) == ("none", "1 number")
