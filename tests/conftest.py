"""Eight virtual CPU devices, float64 on demand, hand-checkable gradients, compile counting."""

import fcntl
import functools
import importlib.metadata
import os
import pathlib
import re
import shutil
import signal
import tempfile
import zlib

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a run in the background, as under nohup
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What tests compile is small and runs once: compiling fast matters, and fast programs do not. Flags
# that the caller sets come last and win.
_XLA_FLAGS = [
    "--xla_cpu_parallel_codegen_split_count=1",
    # Eight devices on two busy cores may wait long for each other: slow is no failure.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=120",
]
_AS_USERS = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
_XLA_FLAGS += ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones have no other emitters
    _AS_USERS["xla_cpu_use_fusion_emitters"] = True
    _XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*_XLA_FLAGS, os.environ.get("XLA_FLAGS", "")])
# The programs that tests start share what they compile; the tests themselves compile all anew.
_CACHE = os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

import jax  # noqa: E402

if _CACHE is not None:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
jax.config.update("jax_num_cpu_devices", 8)  # before anything starts the backend

from collections.abc import Callable, Iterator  # noqa: E402
from typing import Any  # noqa: E402

import hypothesis  # noqa: E402
import jax.monitoring  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from adaoptax import GradientStats  # noqa: E402

hypothesis.settings.register_profile("adaoptax", derandomize=True, deadline=None)
hypothesis.settings.load_profile("adaoptax")


def pytest_configure(config: pytest.Config) -> None:
    """Makes the folder in which programs that tests start share what they compile."""
    if "PYTEST_XDIST_WORKER" not in os.environ and _CACHE is None:
        cache = tempfile.TemporaryDirectory(prefix="adaoptax-tests-")
        config.add_cleanup(cache.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.hookimpl(tryfirst=True)  # before slow tests are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks about two thirds of the cases of a sampled test slow, chosen by their names.

    Only of six cases and more, and never the first. Tests that start programs come first: they
    take longest, and no worker waits for them in the end.
    """
    items.sort(key=lambda item: item.path.parent.name not in ("tests", "integrations"))
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for _, *others in cases.values():
        if len(others) >= 5:
            for item in others:
                if zlib.crc32(item.name.encode()) % 3:
                    item.add_marker(pytest.mark.slow)


@pytest.fixture
def float64() -> Iterator[None]:
    """Turns on float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def optimised(monkeypatch: pytest.MonkeyPatch) -> None:
    """`jax.jit` as users have it, for tests of bits: fast compilation rounds two programs apart."""
    monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=_AS_USERS))


@pytest.fixture(scope="session")
def rows() -> np.ndarray:
    """Per-example gradients whose statistics are known by hand (see the design)."""
    fixture = np.array([[1.0, 0.0], [3.0, 0.0], [2.0, 2.0], [2.0, -2.0]], np.float32)
    fixture.setflags(write=False)
    return fixture


def _numpy_stats(rows: Any, group_size: float = 1, dtype: Any = np.float32) -> Any:
    leaves, treedef = jax.tree.flatten(rows)
    wide = [np.asarray(leaf, np.float64) for leaf in leaves]
    n = wide[0].shape[0]
    flat = np.concatenate([leaf.reshape(n, -1) for leaf in wide], axis=1)
    g = flat.mean(axis=0)
    per_group = np.float64(group_size / (n - 1) if n > 1 else np.nan)
    scalar = lambda x: jnp.asarray(x, dtype)
    with np.errstate(all="ignore"):
        stats = GradientStats(
            num_examples=scalar(n * group_size),
            num_groups=scalar(n),
            sq_norm=scalar(g @ g),
            variance=scalar(per_group * ((flat - g) ** 2).sum()),
            inner_product_variance=scalar(per_group * ((flat @ g - g @ g) ** 2).sum()),
            coordinate_variance=jax.tree.unflatten(
                treedef,
                [scalar(per_group * ((x - x.mean(axis=0)) ** 2).sum(axis=0)) for x in wide],
            ),
        )
        grads = jax.tree.unflatten(treedef, [scalar(x.mean(axis=0)) for x in wide])
    return grads, stats


@pytest.fixture(scope="session")
def numpy_stats() -> Callable[..., tuple[Any, GradientStats]]:
    """``numpy_stats(rows, group_size=1, dtype=float32)`` → ``(grads, stats)``.

    Computed by float64 numpy from the definitions, so that a test of what *uses* statistics does
    not lean on the code that measures them. `rows` is a pytree of group means, one a row.
    """
    return _numpy_stats


@pytest.fixture(scope="session")
def made_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, Callable[[pathlib.Path], Any]], pathlib.Path]:
    """``made_once("name", make)``: a folder that ``make(folder)`` fills, once for all workers."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a folder of its own in there
        root = root.parent

    def once(name: str, make: Callable[[pathlib.Path], Any]) -> pathlib.Path:
        folder, done = root / name, root / f"{name}.done"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return once


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Callable[[str, int], None]:
    """``tried("kills", 20)``: how often a test did it, for the reliability report."""
    return lambda what, times: request.node.user_properties.append((what, times))


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Puts topics, and the number of examples that hypothesis drew, into the report file."""
    topics = [topic for mark in item.iter_markers("topic") for topic in mark.args]
    item.user_properties += [("topic", topic) for topic in topics]
    drawn = re.findall(r"(\d+) passing", getattr(item, "hypothesis_statistics", ""))
    if drawn:
        item.user_properties.append(("examples drawn", sum(map(int, drawn))))


class Compilations:
    """Compilations since construction or the last `reset`."""

    def __init__(self) -> None:
        self.count = 0

    def reset(self) -> None:
        self.count = 0

    def __call__(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations() -> Iterator[Compilations]:
    """Counts the compilations of one test in ``compilations.count``."""
    counter = Compilations()
    jax.monitoring.register_event_duration_secs_listener(counter)
    yield counter
    jax.monitoring.unregister_event_duration_listener(counter)
