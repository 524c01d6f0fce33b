"""Types of the public names: all there, and `Any` only where nothing more can be said."""

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

ROOMS = (
    "adaoptax",
    "adaoptax.batch_tests",
    "adaoptax.loop",
    "adaoptax.measure",
    "adaoptax.noise_tracker",
    "adaoptax.prox",
    "adaoptax.scaling",
    "adaoptax.scaling.rules",
    "adaoptax.schedules",
    "adaoptax.stats",
    "adaoptax.typing",
    "adaoptax.integrations.flax",
    "adaoptax.integrations.orbax",
    "adaoptax.integrations.plots",
    "adaoptax.integrations.progress",
    "adaoptax.integrations.tensorboard",
)

# Annotations with Any that may stand anywhere, since the value is the user's own.
OF_THE_USER = {
    "Callable[..., Any]",  # a loss function, a scaling rule
    "Callable[..., Any] | None",
    "Callable[..., tuple[Any, Any]]",  # an update: state and output
    "Callable[..., tuple[Any, ArrayTree, GradientStats]]",  # loss, or loss and aux
    "Callable[..., tuple[Any, ArrayTree, PerExampleMoments]]",
    "Callable[[Any], Any]",
    "Callable[[Any], Any] | None",  # takes the parameters out of the state
    "Iterable[Callable[[Record], Any]]",
    "Mapping[str, Any]",  # a record, or a state that was saved
    "Mapping[str, Any] | None",
    "Sequence[Mapping[str, Any]]",
    "dict[str, Any]",
    "list[dict[str, Any]]",
    "tuple[Any, Any]",
    "tuple[jax.Array, Any]",  # loss and aux
    "Callable[[ArrayTree, ArrayTree], tuple[jax.Array, Any]]",
}
# The others, one by one: name, and argument, field or "return".
KNOWN = {
    ("AccumulatedStep.place", "return"),  # a batch on the device, for the step only
    *(("AdamHyperparams", f) for f in ("b1", "b2", "eps", "eps_root")),  # as the arguments were
    *(("AdamHyperparams", f"{f}_factor") for f in ("learning_rate", "weight_decay")),
    ("AdaptiveLoop.observe", "output"),  # a dict or a named tuple of numbers
    ("BatchLoader.__init__", "source"),  # whatever `docs/guide/sources.md` lists
    ("BatchSizeSchedule.__init__", "sizes"),  # pairs of numbers of any kind
    ("Loss", "due"),  # a bool, traced or not
    ("check_loss", "mask"),  # as the call of `value_grad_and_stats` takes it
    *((f"Checkpointer.{f}", "loop") for f in ("restore", "after_step", "save")),  # any with a state
}


def public() -> Iterator[tuple[str, Any]]:
    """Every public function and class of this package, once."""
    seen = set()
    for room in ROOMS:
        module = importlib.import_module(room)
        for name in module.__all__:
            node = getattr(module, name)
            here = getattr(node, "__module__", "").startswith("adaoptax")
            if (inspect.isfunction(node) or inspect.isclass(node)) and here and node not in seen:
                seen.add(node)
                yield f"{node.__module__}.{node.__qualname__}", node


PUBLIC = dict(public())


def annotations(node: Any) -> Iterator[tuple[str, str, str | None]]:
    """``(name, argument or field, its annotation)`` of a function or a class, from its source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(node))).body[0]
    if isinstance(tree, ast.FunctionDef):
        yield from _of_function(tree, tree.name, False)
        return
    assert isinstance(tree, ast.ClassDef)
    for each in tree.body:
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            yield tree.name, each.target.id, ast.unparse(each.annotation)
        elif isinstance(each, ast.FunctionDef) and _is_public(each.name):
            static = any(ast.unparse(d) == "staticmethod" for d in each.decorator_list)
            yield from _of_function(each, f"{tree.name}.{each.name}", not static)


def _is_public(name: str) -> bool:
    return not name.startswith("_") or (name.startswith("__") and name.endswith("__"))


def _of_function(
    tree: ast.FunctionDef, name: str, is_method: bool
) -> Iterator[tuple[str, str, str | None]]:
    text = lambda node: None if node is None else ast.unparse(node)
    arguments = [*tree.args.posonlyargs, *tree.args.args][is_method:]
    arguments += tree.args.kwonlyargs
    for each in arguments:
        yield name, each.arg, text(each.annotation)
    for star in (tree.args.vararg, tree.args.kwarg):
        if star is not None and text(star.annotation) != "Any":  # arguments of others
            yield name, star.arg, text(star.annotation)
    yield name, "return", text(tree.returns)


@pytest.mark.parametrize("path", PUBLIC)
def test_public_names_are_annotated_in_full(path: str) -> None:
    missing = [(name, what) for name, what, of in annotations(PUBLIC[path]) if of is None]
    assert not missing


def test_any_stands_only_where_nothing_more_can_be_said() -> None:
    found = {
        (name, what)
        for node in PUBLIC.values()
        for name, what, of in annotations(node)
        if of is not None and "Any" in of and of not in OF_THE_USER
    }
    assert found == KNOWN
