"""The adaptive loop: late reading, records, resume, and what it refuses."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaoptax import BatchSizeSchedule
from adaoptax.loop import AdaptiveLoop, BatchLoader, GrowthPolicy, Record

INF, NAN = math.inf, math.nan


def make_loop(n=200, num_epochs=None, callbacks=(), **policy):
    loader = BatchLoader(np.arange(n), 8, max_batch_size=64, num_epochs=num_epochs)
    return AdaptiveLoop(loader, GrowthPolicy(8, 64, multiple_of=8, **policy), callbacks=callbacks)


def drive(loop, outputs):
    """One step an output; returns the examples of each batch."""
    delivered = []
    for output in outputs:
        delivered.append(next(loop).data.tolist())
        loop.observe(output)
    return delivered


class Listener:
    def __init__(self):
        self.records, self.resumed, self.closed = [], [], 0

    def __call__(self, record):
        assert not self.closed
        self.records.append(record)

    def resume(self, record):
        self.resumed.append(record)

    def close(self):
        self.closed += 1


def test_the_requirement_of_a_step_decides_the_batch_after_the_next():
    sizes = [len(batch) for batch in drive(make_loop(), [{"required": 99.0}] * 6)]
    assert sizes == [8, 8, 16, 32, 64, 64]


class OnItsWay:
    """A scalar that notes when somebody waits for its value."""

    shape, dtype = (), np.dtype(np.float32)

    def __init__(self, value, waited):
        self.value, self.waited = value, waited

    def __array__(self, dtype=None, copy=None):
        self.waited.append(self.value)
        return np.asarray(self.value, dtype)


def test_a_step_is_read_only_when_the_next_one_has_started():
    waited: list[float] = []
    loop = make_loop()
    for step in range(1, 4):
        next(loop)  # the batch is read before anybody waits for the step before
        assert waited == [*range(1, step - 1)]
        loop.observe({"required": OnItsWay(step, waited)})
        assert waited == [*range(1, step)]


def test_records_hold_all_that_the_page_says():
    listener = Listener()
    with make_loop(num_epochs=1, n=60, callbacks=[listener]) as loop:
        outputs = iter([40.0, INF, NAN, 1.0, 1.0])
        for _ in loop:
            output = {"required": jnp.float32(next(outputs)), "loss": jnp.bfloat16(2.5)}
            loop.observe(output | {"mine": 7, "measured": jnp.bool_(True)})
    records = listener.records
    assert listener.closed == 1
    facts = [(r["step"], r["examples"], r["epoch"], r["batch_size"]) for r in records]
    assert facts == [(1, 8, 8 / 60, 8), (2, 16, 16 / 60, 8), (3, 32, 32 / 60, 16), (4, 60, 1.0, 28)]
    assert [r["decision"] for r in records] == ["grow", "grow", "undefined", "keep"]
    assert [r["next_batch_size"] for r in records] == [16, 32, 32, 32]
    assert [r["required"] for r in records[:2]] == [40.0, INF]
    assert math.isnan(records[2]["required"])
    assert {(r["loss"], r["mine"], r["measured"]) for r in records} == {(2.5, 7, True)}
    speeds = [record["examples_per_s"] for record in records]
    assert speeds[0] is speeds[-1] is None
    assert all(speed > 0 for speed in speeds[1:-1])
    kinds = {type(value) for record in records for value in record.values()}
    assert kinds <= {int, float, str, bool, type(None)}


def test_an_unmeasured_step_is_no_evidence():
    records: list[Record] = []
    loop = make_loop(callbacks=[records.append])
    drive(loop, [{"required": 99.0, "measured": np.False_}, {"loss": 1.0}, {}])
    assert [(r["required"], r["decision"]) for r in records] == [(None, "unmeasured")] * 2


def test_a_loop_that_only_looks_changes_nothing_but_tells_what_it_would_do():
    records: list[Record] = []
    loader = BatchLoader(np.arange(200), 8, max_batch_size=8)  # smaller than those of the policy
    policy = GrowthPolicy(8, 64, multiple_of=8)
    loop = AdaptiveLoop(loader, policy, callbacks=[records.append], act=False)
    delivered = drive(loop, [{"required": INF}] * 5)
    assert [len(batch) for batch in delivered] == [8] * 5
    assert [r["next_batch_size"] for r in records] == [16, 32, 64, 64]
    assert [r["decision"] for r in records] == ["grow", "grow", "grow", "cap"]
    assert policy.num_noise_dominated == 4


def test_without_a_policy_the_size_stays():
    loop = AdaptiveLoop(BatchLoader(np.arange(50), 8))
    assert [len(batch) for batch in drive(loop, [{"required": 99.0}] * 3)] == [8, 8, 8]


def test_a_schedule_decides_without_delay():
    schedule = lambda examples: 8 if examples < 24 else 32
    loader = BatchLoader(np.arange(200), 8, max_batch_size=32)
    sizes = [len(batch) for batch in drive(AdaptiveLoop(loader, schedule), [{}] * 5)]
    assert sizes == [8, 8, 8, 32, 32]


def test_runs_under_the_transfer_guard():
    output = jax.device_put({"required": np.float32(99.0), "loss": np.float32(1.0)})
    with jax.transfer_guard("disallow"):
        loop = make_loop()
        drive(loop, [output] * 3)
        assert loop.get_state()["unread"]["output"] == {"required": 99.0, "loss": 1.0}
        assert len(next(loop).data) == 32


requirements = st.lists(st.floats(0, 200) | st.sampled_from([INF, NAN, None]), min_size=3)


@pytest.mark.topic("resumes")
@settings(max_examples=150)
@given(requirements, st.data())
def test_resume_anywhere_takes_the_same_decisions(required, data):
    outputs = [{} if r is None else {"required": np.float32(r), "loss": 0.1} for r in required]
    listener = Listener()
    arguments = {"shrink": True, "patience": 2, "cooldown": 20}
    loop = make_loop(callbacks=[listener], **arguments)
    expected = drive(loop, outputs)
    loop.close()

    saved = data.draw(st.integers(0, len(outputs)))
    resumed_listener = Listener()
    first = make_loop(callbacks=[resumed_listener], **arguments)
    delivered = drive(first, outputs[:saved])
    state = json.loads(json.dumps(first.get_state(), allow_nan=False))
    assert first.get_state() == state  # looking does not change it
    drive(first, outputs[saved : saved + 2])  # these steps are lost

    resumed = make_loop(callbacks=[resumed_listener], **arguments)
    resumed.set_state(state)
    assert resumed.get_state() == state
    (last,) = resumed_listener.resumed
    kept = [r for r in resumed_listener.records if r["step"] <= last["step"]]
    del resumed_listener.records[:]
    assert delivered + drive(resumed, outputs[saved:]) == expected
    assert resumed.get_state() == loop.get_state()
    resumed.close()

    assert last["step"] == max(saved - 1, 0)
    clean = lambda records: [
        {k: str(v) for k, v in r.items() if k != "examples_per_s"} for r in records
    ]
    assert clean(kept + resumed_listener.records) == clean(listener.records)


def test_the_state_at_the_end_goes_on_in_a_longer_run():
    def run(loop, step=0):
        sizes = []
        for batch in loop:
            sizes.append(batch.num_examples)
            step += 1
            loop.observe({"required": float(20 * step)})
        return sizes, step

    longer, _ = run(make_loop(n=80, num_epochs=2))
    first = make_loop(n=80, num_epochs=1)
    sizes, step = run(first)
    state = first.get_state()
    state["loader"]["stream"]["num_epochs"] = 2
    second = make_loop(n=80, num_epochs=2)
    second.set_state(state)
    more, _ = run(second, step)
    # The first run ended with a short batch; all sizes after it are decided as in the long one.
    assert second.policy.get_state()["num_updates"] == step + len(more)
    assert sum(sizes + more) == sum(longer) == 160


@pytest.mark.topic("resumes")
def test_a_finished_run_resumes_where_a_threshold_is_its_last_example():
    schedule = BatchSizeSchedule.parse("0:8 64:16")
    make = lambda: AdaptiveLoop(BatchLoader(np.arange(64), 8, num_epochs=1), schedule)
    with make() as loop:
        for _ in loop:
            loop.observe({})
    resumed = make()
    resumed.set_state(json.loads(json.dumps(loop.get_state())))
    assert (resumed.step, resumed.policy.batch_size) == (8, 16)


def test_a_loop_left_before_observe_tells_the_steps_before():
    listener = Listener()
    with make_loop(callbacks=[listener]) as loop:
        for _ in loop:
            if loop.step > 3:
                break
            loop.observe({})
    assert [record["step"] for record in listener.records] == [1, 2, 3]
    assert listener.closed == 1
    with pytest.raises(RuntimeError, match="in the middle of a step"):
        loop.get_state()


def test_all_callbacks_are_closed_although_one_raises():
    class Raises(Listener):
        def close(self):
            raise OSError("a disk")

    listener = Listener()
    with pytest.raises(OSError, match="a disk"):
        make_loop(callbacks=[Raises(), listener]).close()
    assert listener.closed == 1


def test_callbacks_are_closed_after_an_error_without_waiting_for_the_step():
    listener = Listener()

    def broken():
        with make_loop(callbacks=[listener]) as loop:
            next(loop)
            loop.observe({"required": 9.0})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert (listener.records, listener.closed) == ([], 1)


def test_only_process_0_tells(monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    listener = Listener()
    loop = AdaptiveLoop(BatchLoader(np.arange(50), 8, process=(1, 2)), callbacks=[listener])
    drive(loop, [{"required": 99.0}] * 3)
    loop.set_state(loop.get_state())
    assert not listener.records
    assert not listener.resumed
    assert loop.policy.num_updates == 2


def test_batch_and_observation_take_turns():
    loop = make_loop()
    with pytest.raises(RuntimeError, match="got none since the last call: iterate over the loop"):
        loop.observe({})
    next(loop)
    with pytest.raises(RuntimeError, match="got another next"):
        next(loop)
    with pytest.raises(RuntimeError, match="in the middle of a step"):
        loop.get_state()
    loop.observe({})
    next(loop)


@pytest.mark.topic("damaged states")
@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (3.0, TypeError, "Expected output to be a dict of scalars by name, got float: return"),
        ({1: 2.0}, TypeError, "dict of scalars by name"),
        ({"step": 3}, ValueError, "Expected names of your own in output, got 'step'"),
        ({"required": np.ones(2)}, ValueError, r"output\['required'\] to be one number.*\(2,\)"),
        ({"best": None}, ValueError, r"output\['best'\] to be one real number, got None: records"),
        ({"phase": "warm-up"}, ValueError, r"\['phase'\] to be one real number, got 'warm-up'"),
        ({"mean": 1j}, ValueError, "one real number"),
    ],
)
def test_refuses_what_is_no_dict_of_numbers(output, error, message):
    loop = make_loop()
    next(loop)
    with pytest.raises(error, match=message):
        loop.observe(output)
    loop.observe({"required": 9.0})  # the same step may be told again


@pytest.mark.topic("damaged states")
@pytest.mark.parametrize(
    ("policy", "error", "message"),
    [
        (GrowthPolicy(8, 128, multiple_of=8), ValueError, "max_batch_size=64 of the loader, got"),
        (GrowthPolicy(8, 60), ValueError, "multiples of micro_batch_size=8.*got 60"),
        (8, TypeError, "got policy=8: for a fixed size pass None"),
    ],
)
def test_refuses_a_policy_that_does_not_fit_the_loader(policy, error, message):
    with pytest.raises(error, match=message):
        AdaptiveLoop(BatchLoader(np.arange(50), 8, max_batch_size=64), policy)


@pytest.mark.topic("damaged states")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "Expected version=1 as here, got version=2"),
        ({"unread": 3}, "to be a dict as get_state"),
        ({"unread": {"step": 1}}, "the key 'examples'"),
        ({"policy": {}}, "the key 'version'"),
        ({"loader": {}}, "the key 'version'"),
        ({"output": None}, "Expected output to be a dict of numbers, got output=None"),
        ({"output": {"loss": "much"}}, "Expected loss to be a number, got loss='much'"),
        ({"output": {"loss": [1]}}, "Expected loss to be a number, got loss="),
        ({"step": -1}, "Expected step >= 0"),
        ({"step": 2}, r"the last of the loader, \(step, examples\)=\(3, 32\), got \(2, 32\)"),
        ({"batch_size": 10**6}, "Expected batch_size <= examples"),
    ],
)
def test_refuses_damaged_states_and_stays(change, message):
    loop = make_loop()
    drive(loop, [{"required": 99.0}] * 3)
    before = loop.get_state()
    of_the_loop = change.keys() <= before.keys()
    with pytest.raises(ValueError, match=message):
        loop.set_state(before | (change if of_the_loop else {"unread": before["unread"] | change}))
    assert loop.get_state() == before
