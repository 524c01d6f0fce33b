"""The public names: complete, documented, light to import."""

import inspect
import subprocess
import sys

import pytest

import adaoptax

FUNCTIONS = [name for name in adaoptax.__all__ if inspect.isfunction(getattr(adaoptax, name))]
FUNCTIONS += [f"measure.{name}" for name in adaoptax.measure.__all__ if name.islower()]
CLASSES = [*adaoptax.__all__, *(f"measure.{name}" for name in adaoptax.measure.__all__)]


def resolve(path: str) -> object:
    node: object = adaoptax
    for part in path.split("."):
        node = getattr(node, part)
    return node


def test_all_lists_every_public_name_once() -> None:
    assert len(set(adaoptax.__all__)) == len(adaoptax.__all__)
    for name in adaoptax.__all__:
        assert hasattr(adaoptax, name), name


@pytest.mark.parametrize("path", FUNCTIONS)
def test_public_functions_say_what_they_take_return_and_show_it(path: str) -> None:
    doc = inspect.getdoc(resolve(path)) or ""
    for section in ("Args:", "Returns:", "Examples:"):
        assert section in doc, f"{path} has no {section}"
    for parameter in inspect.signature(resolve(path)).parameters:  # type: ignore[arg-type]
        assert f"{parameter}:" in doc, f"{path} does not explain {parameter}"


@pytest.mark.parametrize("name", CLASSES)
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
