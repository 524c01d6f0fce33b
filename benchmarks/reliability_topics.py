"""What the tests try, by the tests that try it: the rows of `benchmarks.reliability`.

A pattern is a file of tests, ``file::test`` or ``file::test(parameters)``, below ``tests/``, where
``*`` stands for anything. What happened is what these tests assert.
"""

from typing import NamedTuple


class Topic(NamedTuple):
    """One thing that was tried.

    Attributes:
        tried: What, in a few words.
        happened: What the tests assert, true where all of them pass.
        tests: Patterns of the tests.
    """

    tried: str
    happened: str
    tests: tuple[str, ...]


TOPICS: dict[str, tuple[Topic, ...]] = {
    "Kills and restarts": (
        Topic(
            "A loader is dropped at random places and goes on from its last state: ten kinds of "
            "sources, flaky ones among them, changing sizes, epochs and numbers of processes",
            "the stream of the run that was never interrupted, each example once an epoch",
            ("loop/test_kill_and_resume.py",),
        ),
        Topic(
            "A training run dies at random steps; fresh objects go on from its checkpoints",
            "the same examples and the same parameters, bit for bit",
            (
                "integrations/test_orbax.py::test_random_kills*",
                "test_training.py::test_kill_and_resume*",
            ),
        ),
        Topic(
            "`kill -9` of a training process at random moments, also while it starts or saves",
            "only whole checkpoints are left; the same command ends bit for bit as without kills",
            (
                "integrations/test_orbax_signals.py::test_kill_9*",
                "integrations/test_orbax_faults.py::test_kill_9*",
                "test_train.py::test_twenty_kills*",
                "loop/test_json_lines.py::test_a_kill*",
                "integrations/test_tensorboard.py::*kill*",
            ),
        ),
        Topic(
            "SIGTERM and Ctrl-C, once, twice, in a thread, to one of several processes",
            "the step ends, all is saved, all processes stop at one step; twice ends at once",
            (
                "integrations/test_orbax_signals.py::*signal*",
                "integrations/test_orbax_signals.py::*ctrl_c*",
                "integrations/test_orbax_signals.py::*handlers*",
                "integrations/test_orbax_processes.py::test_a_signal*",
                "test_train.py::test_goes_on_after_a_signal*",
                "test_parallel_examples.py::test_interrupting*",
            ),
        ),
        Topic(
            "A resume after every step, and in the middle of growth, of stages, of windows",
            "the same sizes, decisions and records as without it",
            (
                "loop/test_loader_resume.py::test_growth_with*",
                "loop/test_adaptive.py::*resume*",
                "loop/test_json_lines.py::test_a_resumed_file*",
                "schedules/test_rules_in_a_loop.py::test_a_resumed*",
                "schedules/test_stage_penalty.py::test_a_resume*",
            ),
        ),
        Topic(
            "A resume on another number of processes or in another layout of the arrays",
            "the same examples in the same order; parameters equal up to rounding",
            (
                "integrations/test_orbax.py::test_restores_into_another*",
                "integrations/test_orbax_processes.py::*go_on*",
                "loop/test_loader_processes.py::*another_number*",
                "test_processes.py::test_their_state*",
                "test_processes_checkpoint.py",
            ),
        ),
    ),
    "Disks and files": (
        Topic(
            "A full disk under checkpoints and records, for a while and for good",
            "a warning, another trial; older checkpoints and all lines stay; in the end an error",
            (
                "integrations/test_orbax_faults.py::*full_disk*",
                "integrations/test_orbax_faults.py::test_the_last_save*",
                "loop/test_json_lines.py::*full*",
                "integrations/test_tensorboard.py::test_a_refused_write*",
            ),
        ),
        Topic(
            "Truncated, changed, unfinished, foreign and later checkpoints; folders of others",
            "an error that names step and folder, and what else there is to restore",
            (
                "integrations/test_orbax_faults.py::test_damage*",
                "integrations/test_orbax_faults.py::*foreign*",
                "integrations/test_orbax_faults.py::*unfinished*",
                "integrations/test_orbax_faults.py::*later_format*",
                "integrations/test_orbax_faults.py::*another*",
                "integrations/test_orbax_faults.py::*cannot_be_written*",
            ),
        ),
        Topic(
            "States of loader, policy and loop with a key gone, swapped or changed at random",
            "refused with the key's name and nothing changed, or the same stream goes on",
            (
                "loop/test_damaged_states.py",
                "loop/test_policy.py::*foreign*",
                "loop/test_policy.py::*missing_key*",
                "loop/test_adaptive.py::test_refuses*",
                "loop/test_loader_resume.py::test_refuses*",
            ),
        ),
    ),
    "Data": (
        Topic(
            "Sources that raise, shrink, stall, or change type, shape or length on the way",
            "the error reaches `next` once, the place stays, and no example is lost",
            ("loop/test_source_faults.py", "loop/test_loader.py::*fail*"),
        ),
        Topic(
            "Lists, arrays, grain, Hugging Face, torch: read, grown and resumed",
            "exactly the examples of a plain loop",
            (
                "loop/test_real_sources.py",
                "loop/test_torch_sources.py",
                "loop/test_sources.py::test_random_access*",
            ),
        ),
        Topic(
            "Padding and masks of every kind, holding NaN or garbage; batches of padding only",
            "padding counts nowhere; nothing real is undefined, not zero",
            (
                "measure/test_padding.py",
                "*::*padding*",
            ),
        ),
    ),
    "Numbers": (
        Topic(
            "NaN and infinite gradients, losses and statistics",
            "the step never happened for parameters and averages; counted; no evidence for growth",
            (
                "*::*nonfinite*",
                "*::*_nan_*",
                "batch_tests/test_undefined.py::test_no_evidence*",
                "batch_tests/test_undefined.py::test_one_bad*",
            ),
        ),
        Topic(
            "One group, no gradient, no noise, all noise, underflow",
            "a stated outcome each: undefined keeps the size, all noise asks for infinity",
            (
                "batch_tests/test_undefined.py",
                "batch_tests/test_decisions.py",
                "*::*zero_gradient*",
                "*::*undefined*",
                "*::*one_group*",
                "*::*one_real_group*",
            ),
        ),
        Topic(
            "float16 and bfloat16 gradients, parameters and moments",
            "statistics in float32: nothing overflows, types stay",
            ("*::*float16*", "*::*(*float16*", "*::*low_precision*"),
        ),
        Topic(
            "float64 gradients and clocks",
            "float64 statistics, equal to NumPy's",
            ("*::*float64*", "*::*(*float64*"),
        ),
        Topic(
            "Complex parameters",
            "counted by their squared modulus",
            ("*::*complex*", "*::*(*complex*"),
        ),
        Topic(
            "Random settings of schedules, policies, gains and formulas, by hypothesis",
            "the stated property holds for all",
            ("*::[hypothesis]",),
        ),
    ),
    "Models and programs": (
        Topic(
            "A zoo of models: dense, convolutional, recurrent, attention, tied, scanned, shared",
            "statistics of `exact` equal those of float64 gradients of single examples",
            ("measure/exact/test_zoo.py",),
        ),
        Topic(
            "Random programs, and random programs that mix examples",
            "the same; each mixing step is named, with no false alarm",
            (
                "measure/exact/test_random_programs.py",
                "measure/exact/test_mixing_random.py",
            ),
        ),
        Topic(
            "Losses that mix examples, have side effects, or are no mean",
            "refused with the operation and its line",
            (
                "measure/exact/test_mixing.py",
                "measure/exact/test_mixing_models.py",
                "measure/exact/test_exact_arguments.py",
            ),
        ),
        Topic(
            "Every transformation in jit, scan, vmap, chains, meshes, donation, serialisation",
            "Optax's contract: types stay, no second compilation, no hidden transfer",
            ("test_conformance.py",),
        ),
        Topic(
            "Statistics under jit, scan, vmap, remat, cond, pmap",
            "the same numbers, one compilation",
            (
                "measure/test_measure_transforms.py",
                "measure/test_control_flow.py",
                "measure/exact/test_exact_transforms.py",
            ),
        ),
        Topic(
            "Growth from one micro-batch to many, in every way of accumulating",
            "no compilation after the first, or one a capacity",
            ("loop/test_accumulate_compilations.py", "test_training.py::test_one_compilation*"),
        ),
    ),
    "Devices and processes": (
        Topic(
            "Eight virtual devices: shard_map, pmap, plain jit on a mesh, FSDP, explicit meshes",
            "the numbers of one device; as few collectives as stated",
            (
                "measure/test_devices*.py",
                "measure/test_every_devices.py",
                "measure/exact/test_exact_devices.py",
                "loop/test_accumulate_devices.py",
                "loop/test_global_batch.py",
                "test_conformance.py::test_explicit_mesh*",
            ),
        ),
        Topic(
            "Several processes that train, fail, hang, or lose their parent",
            "all decide alike to the last bit; one that fails ends the others",
            (
                "test_processes.py",
                "test_parallel_examples.py",
                "loop/test_loader_processes.py",
            ),
        ),
    ),
    "Arguments": (
        Topic(
            "Arguments out of range, of a wrong type, or that do not fit together",
            "one sentence: the argument, its value, what that usually means, what to do",
            ("*::[refusals]",),
        ),
        Topic(
            "A forgotten `stats=`",
            "a TypeError at the first step, never a silent default",
            ("*::*dropped*",),
        ),
    ),
}
