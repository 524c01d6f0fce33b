"""What accumulated steps compile, and when: by count, and under the transfer guard."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaoptax
from adaoptax.loop import BatchLoader, accumulate

pytestmark = [pytest.mark.sampled, pytest.mark.topic("growth")]

MICRO, LARGEST = 2, 128
SIZES = [MICRO * k for k in (1, 2, 3, 5, 8, 16, 31, 64)]
RNG = np.random.default_rng(1)
DATA = {
    "x": RNG.normal(size=(301, 3)).astype(np.float32),
    "y": RNG.normal(size=301).astype(np.float32),
}
TX = optax.chain(adaoptax.norm_test(eta=0.5), adaoptax.adascale(0.1, base_batch_size=MICRO))


def loss_fn(params, batch):
    return jnp.mean((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2)


def update(state, loss, grads, stats):
    params, opt_state, step = state
    updates, opt_state = TX.update(grads, opt_state, params, stats=stats)
    output = {"loss": loss, "required": adaoptax.required_batch_size(opt_state)}
    return (optax.apply_updates(params, updates), opt_state, step + 1), output


def initial_state():
    """As users write it: a weak type, a Python number, arrays that are on no device for good."""
    params = {"w": jnp.zeros(3), "b": jnp.asarray(0.5)}
    assert params["b"].weak_type
    return params, TX.init(params), 0


def make(how, largest=LARGEST):
    return accumulate(loss_fn, update, micro_batch_size=MICRO, max_batch_size=largest, how=how)


def loader_for(step, **options):
    return BatchLoader(DATA, MICRO, max_batch_size=LARGEST, pad_to=step.capacities, **options)


@pytest.fixture
def begin(compilations):
    """``begin(step)`` → (state, loader); the counter starts at zero."""

    def prepare(step, **options):
        state, loader = initial_state(), loader_for(step, **options)
        compilations.reset()
        return state, loader

    return prepare


def run(step, state, loader, sizes):
    """One step for each size, as a loop does that only makes explicit transfers."""
    with jax.transfer_guard("disallow"):
        for size in sizes:
            loader.resize(size)
            state, output = step(state, next(loader))
            jax.device_get(output)
    return state


@pytest.mark.parametrize(("how", "programs"), [("padded", 1), ("host", 3)])
def test_the_first_step_compiles_for_1_to_64_micro_batches(how, programs, compilations, begin):
    step = make(how)
    state, loader = begin(step)
    state = run(step, state, loader, SIZES[:1])
    assert compilations.count == programs
    run(step, state, loader, SIZES + SIZES[::-1])
    assert compilations.count == programs


def test_the_ladder_compiles_once_a_capacity(compilations, begin):
    step = make("ladder")
    state, loader = begin(step)
    state = run(step, state, loader, SIZES)
    assert compilations.count == len(step.capacities) == math.log2(LARGEST // MICRO) + 1
    run(step, state, loader, range(MICRO, LARGEST + 1, MICRO))
    assert compilations.count == len(step.capacities)


def test_a_ragged_micro_batch_is_one_program_more_for_the_host(compilations, begin):
    step = make("host")
    state, loader = begin(step, num_epochs=1)
    state = run(step, state, loader, [128, 128])
    assert compilations.count == 3
    run(step, state, loader, [128])
    assert loader.num_examples == 45
    assert compilations.count == 4


@pytest.mark.parametrize("how", ["padded", "ladder", "host"])
def test_after_compiling_ahead_nothing_compiles(how, compilations, begin, capsys):
    step = make(how)
    state, loader = begin(step, num_epochs=1)
    lines: list[str] = []
    example = {"x": DATA["x"][0], "y": DATA["y"][0]}
    step.compile(state, example, progress=lines.append, check_loss=False)
    count = {"padded": 1, "ladder": 7, "host": 4}[how]
    assert compilations.count == len(lines) == count
    assert [line.split(":")[0] for line in lines] == [
        f"compiled {i + 1}/{count}" for i in range(count)
    ]
    if how != "host":
        sizes = [f"up to {rows} examples" for rows in step.capacities]
        assert [line.split(": ")[1].split(",")[0] for line in lines] == sizes
    assert all(line.endswith(" MB") for line in lines)
    assert capsys.readouterr().err == ""
    run(step, state, loader, [2, 16, 128, 155])
    assert next(loader).num_examples % MICRO == 1  # the last one is ragged
    assert compilations.count == count


def test_lines_go_to_standard_error(capsys):
    step, state = make("padded"), initial_state()
    step.compile(state, next(loader_for(step)))
    captured = capsys.readouterr()
    assert captured.err.startswith("compiled 1/1: up to 128 examples, ")
    assert captured.out == ""
    step.compile(state, next(loader_for(step)), progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("how", ["padded", "host"])
def test_extra_arguments_may_lie_on_the_host(how, compilations):
    step = accumulate(
        lambda params, batch, key, scale: scale * loss_fn(params, batch), update,
        micro_batch_size=MICRO, max_batch_size=LARGEST, how=how, key_argnums=2,
    )  # fmt: skip
    keys = [jax.random.key(i) for i in range(3)]
    state, loader = initial_state(), loader_for(step)
    compilations.reset()
    with jax.transfer_guard("disallow"):
        for i, key in enumerate(keys):
            loader.resize(SIZES[i])
            state, _ = step(state, next(loader), key, 0.5 + i)
    assert compilations.count == {"padded": 1, "host": 3}[how]


@pytest.mark.parametrize("how", ["padded", "host"])
def test_a_new_state_has_no_weak_types(how):
    """An update that sets a number: it would be a weak type, and one more compilation elsewhere."""

    def with_rate(state, loss, grads, stats):
        return (state[0], 0.5, jnp.asarray(0.25)), loss

    step = accumulate(loss_fn, with_rate, micro_batch_size=MICRO, max_batch_size=LARGEST, how=how)
    params = initial_state()[0]
    state, _ = step((params, 1.0, np.float32(1)), next(loader_for(step)))
    assert [float(x) for x in state[1:]] == [0.5, 0.25]
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
    assert all(leaf.committed for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("how", ["padded", "ladder", "host"])
def test_a_restored_state_compiles_nothing(how, compilations, begin):
    step = make(how)
    state, loader = begin(step)
    state = run(step, state, loader, SIZES)
    compilations.reset()
    saved = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    run(step, jax.tree.unflatten(jax.tree.structure(state), saved), loader, SIZES)
    assert compilations.count == 0


# --- Memory ---------------------------------------------------------------------------------------


def test_fit_is_the_largest_capacity_below_the_limit():
    state, largest = initial_state(), 4 * MICRO
    ladder = make("ladder", largest)
    example = next(BatchLoader(DATA, MICRO))
    ladder.compile(state, example, progress=False)
    sizes = []
    for k in (1, 2, 4):
        memory = ladder._compiled[k].memory_analysis()
        outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
        sizes.append(memory.argument_size_in_bytes + memory.temp_size_in_bytes + outputs)
    assert sizes == sorted(set(sizes))
    for rows, size in zip((2, 4, 8), sizes, strict=True):
        assert ladder.fit(state, example, memory_bytes=size) == rows
    padded = make("padded", largest)
    assert padded.fit(state, example, memory_bytes=sizes[1] + 1) == 4
    for step in (ladder, padded):
        with pytest.raises(ValueError, match=r"one micro-batch to fit in memory_bytes=.*smaller"):
            step.fit(state, example, memory_bytes=sizes[0] - 1)


def test_memory_does_not_depend_on_the_size_where_the_host_drives():
    state = initial_state()
    for largest in (LARGEST, None):
        step = accumulate(
            loss_fn, update, micro_batch_size=MICRO, max_batch_size=largest, how="host"
        )
        example = next(BatchLoader(DATA, MICRO))
        assert step.fit(state, example, memory_bytes=10**9) == largest
        with pytest.raises(ValueError, match="one micro-batch to fit"):
            step.fit(state, example, memory_bytes=10)


def test_fit_runs_nothing_and_keeps_what_it_compiled(compilations, begin):
    step = make("padded")
    state, loader = begin(step)
    with pytest.raises(ValueError, match="Expected memory_bytes for a cpu device"):
        step.fit(state, next(loader))
    assert step.fit(state, next(loader), memory_bytes=10**9) == LARGEST
    assert compilations.count == 1
    run(step, state, loader, SIZES)
    assert compilations.count == 1
