"""Checkpoints: what is saved comes back bit for bit, compiles nothing, and goes on exactly."""

import collections
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import checkpoint_problem as problem
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax import NamedSharding, P

import adaoptax
from adaoptax.integrations._state_leaves import as_restored
from adaoptax.integrations.orbax import Checkpointer
from adaoptax.loop import BatchLoader

ROOT = pathlib.Path(__file__).parents[2]
Pair = collections.namedtuple("Pair", "first second")


@jax.tree_util.register_pytree_node_class
class Custom:
    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def tree_flatten(self) -> Any:
        return self.parts, None

    @classmethod
    def tree_unflatten(cls, aux: Any, parts: Any) -> "Custom":
        return cls(*parts)


def raw(leaf: Any) -> np.ndarray:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def assert_bit_equal(a: Any, b: Any) -> None:
    structures = jax.tree.structure(a), jax.tree.structure(b)
    assert structures[0] == structures[1]  # type: ignore[operator]
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        name = jax.tree_util.keystr(path)
        assert (x.dtype, x.shape, x.sharding) == (y.dtype, y.shape, y.sharding), name
        assert raw(x).tobytes() == raw(y).tobytes(), name


def after_some_steps(num_steps: int = 3) -> BatchLoader:
    loader = BatchLoader(np.arange(40), 4, max_batch_size=16)
    for _ in range(num_steps):
        next(loader)
    return loader


def save_once(folder: Any, state: Any, loader: BatchLoader | None = None) -> BatchLoader:
    loader = loader or after_some_steps()
    with Checkpointer(folder) as saver:
        saver.save(state, loader)
    return loader


def mixed_state() -> Any:
    """Every kind of leaf and node; values that need their sign, NaN and last bit."""
    mesh = jax.make_mesh((8,), ("data",))
    sharded = jax.device_put(jnp.linspace(-1, 1, 16), NamedSharding(mesh, P("data")))
    params = {"w": sharded, "a.b": jnp.ones(2), "a": {"b": jnp.zeros(2)}, "x/y": jnp.arange(3)}
    tx = optax.chain(optax.clip(1.0), optax.identity(), optax.adam(optax.linear_schedule(1, 0, 9)))
    return (
        params,
        tx.init(params),
        Pair(None, [(), {}, {0: jnp.ones(1), 1: jnp.asarray([-0.0, jnp.nan, 1e-40])}]),
        Custom(jnp.asarray(1.5, jnp.bfloat16), jnp.ones((0, 3)), jnp.asarray([True, False])),
        jax.random.key(1),
        jax.random.split(jax.random.key(2, impl="rbg"), 3),
        optax.EmptyState(),
        7,
        2.5,
        True,
        np.arange(3, dtype=np.uint8),
        np.float32(0.1),
    )


def blank(state: Any) -> Any:
    """The same structure with other values, as a fresh program has it."""

    def zero(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                jnp.zeros_like(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
            )
        if isinstance(leaf, jax.Array):
            zeros = jnp.zeros_like(leaf)
            return jax.device_put(zeros, leaf.sharding) if leaf.committed else zeros
        return np.zeros_like(leaf) if isinstance(leaf, (np.ndarray, np.generic)) else type(leaf)(0)

    return jax.tree.map(zero, state)


def test_every_kind_of_state_comes_back_bit_for_bit(tmp_path: pathlib.Path) -> None:
    state = mixed_state()
    loader = save_once(tmp_path / "run", state)
    other = after_some_steps(0)
    with Checkpointer(tmp_path / "run") as saver:
        restored = saver.restore(blank(state), other)
        assert saver.restored_step == 3
        assert saver.steps == [3]
    assert_bit_equal(restored, as_restored(state))
    assert other.get_state() == loader.get_state()
    assert all(leaf.committed for leaf in jax.tree.leaves(restored))


def test_a_fresh_start_gives_the_state_itself_strong_and_committed(tmp_path: pathlib.Path) -> None:
    mesh = jax.make_mesh((8,), ("data",))
    weak, here = jnp.asarray(1.0), jax.device_put(jnp.ones(3), jax.devices()[2])
    with Checkpointer(tmp_path) as saver:
        state = saver.restore({"weak": weak, "number": 3, "here": here}, after_some_steps(0))
        assert saver.restored_step is None
        on_mesh = jax.device_put(jnp.ones(8), NamedSharding(mesh, P("data")))
        both = saver.restore({"mesh": on_mesh, "rest": jnp.ones(2)})
        alone = saver.restore({"rest": jnp.ones(2)})
    assert all(leaf.committed and not leaf.weak_type for leaf in jax.tree.leaves(state))
    assert state["here"] is here
    assert state["number"].dtype == jnp.int32
    assert state["weak"].devices() == {jax.devices()[2]}
    assert both["rest"].sharding == NamedSharding(mesh, P())
    assert both["mesh"] is on_mesh
    assert alone["rest"].committed


def test_fresh_and_restored_starts_compile_once(tmp_path: pathlib.Path, compilations: Any) -> None:
    def start() -> tuple[Any, Any, problem.Loop]:
        loop = problem.Loop()
        saver = Checkpointer(tmp_path / "run", every=2).__enter__()
        return saver.restore(problem.fresh_state(), loop), saver, loop

    def steps(state: Any, saver: Checkpointer, loop: problem.Loop) -> None:
        for _ in range(3):
            state, required = problem.train_step(state, next(loop.loader))
            loop.observe(required)
            saver.after_step(state, loop)
        saver.__exit__(None, None, None)

    jax.clear_caches()
    compilations.reset()
    fresh = start()
    before = compilations.count
    steps(*fresh)
    assert compilations.count == before + 1
    restored = start()
    assert restored[1].restored_step == 3
    compilations.reset()
    steps(*restored)
    assert compilations.count == 0


def test_everything_runs_without_implicit_transfers(tmp_path: pathlib.Path) -> None:
    for _ in range(2):
        loader, key = after_some_steps(0), jax.random.key(0)
        fresh = {"w": jnp.ones(3), "n": 3, "weak": jnp.asarray(1.0), "key": key}
        with jax.transfer_guard("disallow"), Checkpointer(tmp_path, every=1) as saver:
            state = saver.restore(fresh, loader)
            for _ in range(2):
                next(loader)
                saver.after_step(state, loader)
    assert saver.restored_step == 2


def test_a_donated_state_is_saved_as_it_was(tmp_path: pathlib.Path) -> None:
    double = jax.jit(lambda x: 2 * x, donate_argnums=0)
    loader = after_some_steps(0)
    with Checkpointer(tmp_path, every=1, keep=None) as saver:
        state = saver.restore(jnp.arange(100_000, dtype=jnp.float32), loader)
        for _ in range(4):
            next(loader)
            state = double(state)
            saver.after_step(state, loader)
    for step in range(1, 5):
        with Checkpointer(tmp_path) as saver:
            if step < 4:
                with pytest.warns(RuntimeWarning, match="will be deleted at the first save"):
                    state = saver.restore(jnp.zeros(100_000), step=step)
            else:
                state = saver.restore(jnp.zeros(100_000), step=step)
        np.testing.assert_array_equal(state, 2.0**step * np.arange(100_000))


def test_saves_by_steps_and_at_the_end_and_keeps_the_newest(tmp_path: pathlib.Path) -> None:
    loader = BatchLoader(np.arange(92), 4, num_epochs=1)  # 23 steps
    saved = []
    with Checkpointer(tmp_path, every=5, keep=2) as saver:
        for _ in loader:
            assert saver.after_step({"w": jnp.ones(2)}, loader) is False
            saver._settle()
            saved.append(saver.steps)
    assert saved[3:5] == [[], [5]]
    assert saved[9:15] == [[5, 10]] * 5 + [[10, 15]]
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [20, 23]


def test_what_is_saved_is_not_saved_again_and_an_error_saves_nothing(
    tmp_path: pathlib.Path,
) -> None:
    state, loader = {"w": jnp.ones(2)}, after_some_steps(0)
    with Checkpointer(tmp_path / "a", every=1) as saver:
        next(loader)
        saver.after_step(state, loader)
        saver.save(state, loader)
        saver.save(state, loader)
    assert saver.directory == tmp_path / "a"

    def fails(step: int) -> None:
        if step == 13:
            raise FloatingPointError("the user's own")

    with pytest.raises(FloatingPointError, match="the user's own"):
        problem.train(tmp_path / "b", 20, 5, after=fails)
    assert sorted(int(p.name) for p in (tmp_path / "b").iterdir()) == [5, 10]


def test_a_loop_that_moved_on_is_not_saved_with_an_older_state(tmp_path: pathlib.Path) -> None:
    loader = after_some_steps(0)

    def run() -> None:
        with Checkpointer(tmp_path) as saver:
            next(loader)
            saver.after_step(jnp.ones(2), loader)
            next(loader)

    with pytest.warns(RuntimeWarning, match=r"Step 1 was not saved at the end, because the loop"):
        run()
    assert list(tmp_path.iterdir()) == []


def test_going_on_from_an_earlier_step_replaces_the_later_ones(tmp_path: pathlib.Path) -> None:
    expected, seen, _ = problem.train(tmp_path / "whole", 20, 4, keep=None)
    problem.train(tmp_path / "run", 20, 4, keep=None)
    loop = problem.Loop()
    with Checkpointer(tmp_path / "run", every=100, keep=None) as saver:
        with pytest.warns(RuntimeWarning, match=r"the later steps \[12, 16, 20\] will be deleted"):
            state = saver.restore(problem.fresh_state(), loop, step=8)
        assert saver.steps == [4, 8, 12, 16, 20]
        for batch in loop:
            assert batch.data["index"][batch.mask].tolist() == seen[loop.step]
            state, required = problem.train_step(state, batch)
            loop.observe(required)
            if saver.after_step(state, loop) or loop.step == 20:
                break
    assert sorted(int(p.name) for p in (tmp_path / "run").iterdir()) == [4, 8, 20]
    assert problem.digest(state) == problem.digest(expected)


def test_step_0_stays_when_training_goes_on_from_it(tmp_path: pathlib.Path) -> None:
    save_once(tmp_path, jnp.ones(2), after_some_steps(0))
    loader = after_some_steps(0)
    with Checkpointer(tmp_path) as saver:
        state = saver.restore(jnp.zeros(2), loader)
        assert saver.restored_step == 0
        next(loader)
        saver.save(state, loader)
        assert saver.steps == [0, 1]


def test_the_state_may_be_given_by_shape_where_there_is_a_checkpoint(
    tmp_path: pathlib.Path,
) -> None:
    abstract = jax.eval_shape(lambda: {"w": jnp.ones(3)})
    with Checkpointer(tmp_path) as saver:
        with pytest.raises(ValueError, match="no checkpoint to fill them"):
            saver.restore(abstract)
        saver.save({"w": jnp.arange(3.0)}, after_some_steps())
    with Checkpointer(tmp_path) as saver:
        state = saver.restore(abstract)
    np.testing.assert_array_equal(state["w"], [0, 1, 2])


@pytest.mark.topic("other layouts")
def test_restores_into_another_layout_of_the_arrays(tmp_path: pathlib.Path) -> None:
    save_once(tmp_path, {"w": jnp.arange(16.0)})
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    rows = NamedSharding(mesh, P(("data", "model")))
    with Checkpointer(tmp_path) as saver:
        state = saver.restore({"w": jax.device_put(jnp.zeros(16), rows)})
    assert state["w"].sharding == rows
    np.testing.assert_array_equal(state["w"], np.arange(16))


def test_a_checkpoint_is_read_by_hand(tmp_path: pathlib.Path) -> None:
    loader = save_once(tmp_path, ({"w": jnp.arange(3.0)}, Pair(jnp.ones(1), None)))
    arrays = ocp.StandardCheckpointer().restore(tmp_path / "3" / "state")
    assert sorted(arrays) == ["[0]['w']", "[1].first"]
    np.testing.assert_array_equal(arrays["[0]['w']"], [0, 1, 2])
    header = json.loads((tmp_path / "3" / "loop" / "metadata").read_text())
    assert header["loop"] == loader.get_state()
    assert header["leaves"] == {"[0]['w']": "float32[3]", "[1].first": "float32[1]"}


@pytest.mark.topic("dying runs")
@pytest.mark.parametrize(
    "seeds", [range(6), pytest.param(range(6, 60), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_random_kills_end_as_the_uninterrupted_run(
    tmp_path: pathlib.Path, seeds: range, tried: Callable[[str, int], None]
) -> None:
    """After each kill fresh objects take over what is on the disk."""
    steps = 24
    expected, stream, _ = problem.train(tmp_path / "whole", steps, 1000)
    assert len({len(examples) for examples in stream.values()}) >= 4  # it grows all the while
    kills = 0

    class Killed(BaseException):
        pass

    for seed in seeds:
        rng = np.random.default_rng(seed)
        seen: dict[int, list[int]] = {}
        folder, dies = tmp_path / str(seed), True
        while dies:
            dies = rng.random() < 0.7
            last = int(rng.integers(1, steps)) if dies else 10**9
            every = int(rng.integers(1, 9))
            loop = problem.Loop()
            try:
                with Checkpointer(folder, every=every) as saver:
                    state = saver.restore(problem.fresh_state(), loop)
                    for batch in loop if loop.step < steps else ():
                        state, required = problem.train_step(state, batch)
                        loop.observe(required)
                        seen[loop.step] = batch.data["index"][batch.mask].tolist()
                        if loop.step >= last:
                            raise Killed
                        if saver.after_step(state, loop) or loop.step >= steps:
                            break
            except Killed:
                kills += 1
        message = f"seed={seed}"
        assert seen == stream, message
        assert problem.digest(state) == problem.digest(expected), message
    assert kills > len(seeds)
    tried("runs", len(seeds))
    tried("kills", kills)


def test_the_states_of_all_kinds_of_loops_survive(tmp_path: pathlib.Path) -> None:
    class OddLoop:
        def __init__(self, state: Any) -> None:
            self.step, self.state = 3, state

        def get_state(self) -> Any:
            return self.state

        def set_state(self, state: Any) -> None:
            self.state = state

    odd = {
        "place": (1, [2.5, None, True], b"\x00\xff"),
        1: {"inf": float("inf"), "big": 2**70},
        "array": np.arange(6, dtype=np.int16).reshape(2, 3),
        "scalar": np.int64(5),
        "set": {1, 2},
        "bytearray": bytearray(b"x"),
        "tag": {"__adaoptax__": "a name that the codec uses itself"},
    }
    save_once(tmp_path / "a", jnp.ones(1), OddLoop(odd))  # type: ignore[arg-type]
    loop = OddLoop(None)
    with Checkpointer(tmp_path / "a") as saver:
        saver.restore(jnp.zeros(1), loop)
    np.testing.assert_equal(loop.state, odd)
    assert repr(loop.state) == repr(odd)
    with pytest.raises(TypeError, match=r"got object at state\['x'\]\[1\]: this is usually"):
        save_once(tmp_path / "b", jnp.ones(1), OddLoop({"x": [1, object()]}))  # type: ignore[arg-type]


def test_nothing_is_printed(tmp_path: pathlib.Path) -> None:
    code = (
        "import sys; sys.path[:0] = ['tests/integrations']; import checkpoint_problem as p;"
        f"p.train({str(tmp_path)!r}, 4, 2); p.train({str(tmp_path)!r}, 8, 2)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert out.stdout == ""
    assert out.stderr == ""


def test_arguments_are_explained(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"Expected every >= 1, got every=0: it counts steps"):
        Checkpointer(tmp_path, every=0)
    with pytest.raises(ValueError, match=r"Expected keep >= 1, got keep=0"):
        Checkpointer(tmp_path, keep=0)
    with pytest.raises(ValueError, match="mount the bucket"):
        Checkpointer("gs://bucket/run")
    with pytest.raises(RuntimeError, match="outside its with block"):
        Checkpointer(tmp_path).restore({})
    with Checkpointer(tmp_path) as saver:
        with pytest.raises(TypeError, match="Expected loop to have get_state"):
            saver.restore(jnp.ones(1), object())
        with pytest.raises(TypeError, match="Expected loop to have get_state"):
            saver.after_step(jnp.ones(1), None)
        with pytest.raises(TypeError, match=r"got str at state\['name'\]: leave it out"):
            saver.restore({"name": "x"})
        with pytest.raises(ValueError, match=r"one of the checkpoints \[\] in .*, got step=3"):
            saver.restore(jnp.ones(1), step=3)
        donated = jnp.ones(1)
        donated.delete()
        with pytest.raises(ValueError, match=r"a deleted one at state.*donated"):
            saver.save(donated, adaoptax.BatchLoader(np.arange(9), 3))
