"""The public names: complete, documented, light to import."""

import inspect
import subprocess
import sys

import pytest

import adaoptax

ROOMS = {
    "": adaoptax,
    "batch_tests.": adaoptax.batch_tests,
    "loop.": adaoptax.loop,
    "measure.": adaoptax.measure,
    "noise_tracker.": adaoptax.noise_tracker,
    "prox.": adaoptax.prox,
    "scaling.": adaoptax.scaling,
    "scaling.rules.": adaoptax.scaling.rules,
    "schedules.": adaoptax.schedules,
    "stats.": adaoptax.stats,
}
NAMES = [
    f"{room}{name}"
    for room, module in ROOMS.items()
    for name in module.__all__
    if not room or getattr(module, name) is not getattr(adaoptax, name, None)
]


def resolve(path: str) -> object:
    node: object = adaoptax
    for part in path.split("."):
        node = getattr(node, part)
    return node


def test_all_lists_every_public_name_once() -> None:
    assert len(set(adaoptax.__all__)) == len(adaoptax.__all__)
    for name in adaoptax.__all__:
        assert hasattr(adaoptax, name), name


def test_a_newcomer_sees_few_names() -> None:
    names = [name for name in adaoptax.__all__ if not inspect.ismodule(getattr(adaoptax, name))]
    assert len(names) <= 48


FUNCTIONS = [path for path in NAMES if inspect.isfunction(resolve(path))]


@pytest.mark.parametrize("path", FUNCTIONS)
def test_public_functions_say_what_they_take_return_and_show_it(path: str) -> None:
    doc = inspect.getdoc(resolve(path)) or ""
    for section in ("Args:", "Returns:", "Examples:"):
        assert section in doc, f"{path} has no {section}"
    for parameter in inspect.signature(resolve(path)).parameters:  # type: ignore[arg-type]
        assert f"{parameter}:" in doc, f"{path} does not explain {parameter}"


@pytest.mark.parametrize("name", NAMES)
def test_public_classes_are_documented(name: str) -> None:
    node = resolve(name)
    if inspect.isclass(node):
        assert inspect.getdoc(node), name
        if issubclass(node, tuple):
            assert "Attributes:" in (inspect.getdoc(node) or ""), name


def test_the_core_imports_jax_optax_and_numpy_only() -> None:
    code = (
        "import sys, jax, optax, numpy; before = set(sys.modules); import adaoptax;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "heavy = {'flax', 'grain', 'matplotlib', 'orbax', 'sklearn', 'tensorboardX', 'torch'};"
        "heavy |= {'datasets', 'torchdata', 'tqdm'};"
        "print(sorted(new & heavy))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
