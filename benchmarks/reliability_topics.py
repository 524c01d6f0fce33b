"""The topics of the reliability page: what was tried, and what the tests of it assert.

A test belongs to a topic by ``@pytest.mark.topic("its name")`` (``pytestmark`` for a whole file),
or by a word in its name or parameters. Tests that draw examples with hypothesis, and those that
compare the words of an error, are found without either.
"""

from typing import NamedTuple

HYPOTHESIS, REFUSALS = "hypothesis", "refusals"


class Topic(NamedTuple):
    """One thing that was tried.

    Attributes:
        tried: What, in a few words.
        happened: What the tests assert, true where all of them pass.
        words: Words in the names of tests that belong to it, beside those that are marked.
    """

    tried: str
    happened: str
    words: tuple[str, ...] = ()


TOPICS: dict[str, dict[str, Topic]] = {
    "Kills and restarts": {
        "dropped loaders": Topic(
            "A loader is dropped at random places and goes on from its last state: ten kinds "
            "of sources, flaky ones among them, changing sizes, epochs and numbers of "
            "processes",
            "the stream of the run that was never interrupted, each example once an epoch",
        ),
        "dying runs": Topic(
            "A training run dies at random steps; fresh objects go on from its checkpoints",
            "the same examples and the same parameters, bit for bit",
        ),
        "kill -9": Topic(
            "`kill -9` of a training process at random moments, also while it starts or saves",
            "only whole checkpoints are left; the same command ends bit for bit as without kills",
        ),
        "signals": Topic(
            "SIGTERM and Ctrl-C, once, twice, in a thread, to one of several processes",
            "the step ends, all is saved, all processes stop at one step; twice ends at once",
        ),
        "resumes": Topic(
            "A resume after every step, and in the middle of growth, of stages, of windows",
            "the same sizes, decisions and records as without it",
        ),
        "other layouts": Topic(
            "A resume on another number of processes or in another layout of the arrays",
            "the same examples in the same order; parameters equal up to rounding",
        ),
    },
    "Disks and files": {
        "full disks": Topic(
            "A full disk under checkpoints and records, for a while and for good",
            "a warning, another trial; older checkpoints and all lines stay; in the end an error",
        ),
        "bad checkpoints": Topic(
            "Truncated, changed, unfinished, foreign and later checkpoints; folders of others",
            "an error that names step and folder, and what else there is to restore",
        ),
        "damaged states": Topic(
            "States of loader, policy and loop with a key gone, swapped or changed at random",
            "refused with the key's name and nothing changed, or the same stream goes on",
        ),
    },
    "Data": {
        "faulty sources": Topic(
            "Sources that raise, shrink, stall, or change type, shape or length on the way",
            "the error reaches `next` once, the place stays, and no example is lost",
        ),
        "real sources": Topic(
            "Lists, arrays, grain, Hugging Face, torch: read, grown and resumed",
            "exactly the examples of a plain loop",
        ),
        "padding": Topic(
            "Padding and masks of every kind, holding NaN or garbage; batches of padding only",
            "padding counts nowhere; nothing real is undefined, not zero",
            ("padding",),
        ),
    },
    "Numbers": {
        "NaN": Topic(
            "NaN and infinite gradients, losses and statistics",
            "the step never happened for parameters and averages; counted; no evidence for growth",
            ("nonfinite", "_nan_"),
        ),
        "edge cases": Topic(
            "One group, no gradient, no noise, all noise, underflow",
            "a stated outcome each: undefined keeps the size, all noise asks for infinity",
            ("zero_gradient", "undefined", "one_group", "one_real_group"),
        ),
        "low precision": Topic(
            "float16 and bfloat16 gradients, parameters and moments",
            "statistics in float32: nothing overflows, types stay",
            ("float16", "low_precision"),
        ),
        "float64": Topic(
            "float64 gradients and clocks",
            "float64 statistics, equal to NumPy's",
            ("float64",),
        ),
        "complex": Topic(
            "Complex parameters",
            "counted by their squared modulus",
            ("complex",),
        ),
        HYPOTHESIS: Topic(
            "Random settings of schedules, policies, gains and formulas, by hypothesis",
            "the stated property holds for all",
        ),
    },
    "Models and programs": {
        "model zoo": Topic(
            "A zoo of models: dense, convolutional, recurrent, attention, tied, scanned, shared",
            "statistics of `exact` equal those of float64 gradients of single examples",
        ),
        "random programs": Topic(
            "Random programs, and random programs that mix examples",
            "the same; each mixing step is named, with no false alarm",
        ),
        "mixing losses": Topic(
            "Losses that mix examples, have side effects, or are no mean",
            "refused with the operation and its line",
        ),
        "contract of Optax": Topic(
            "Every transformation in jit, scan, vmap, chains, meshes, donation, serialisation",
            "Optax's contract: types stay, no second compilation, no hidden transfer",
        ),
        "transformations of JAX": Topic(
            "Statistics under jit, scan, vmap, remat, cond, pmap",
            "the same numbers, one compilation",
        ),
        "growth": Topic(
            "Growth from one micro-batch to many, in every way of accumulating",
            "no compilation after the first, or one a capacity",
        ),
    },
    "Devices and processes": {
        "devices": Topic(
            "Eight virtual devices: shard_map, pmap, plain jit on a mesh, FSDP, explicit meshes",
            "the numbers of one device; as few collectives as stated",
        ),
        "processes": Topic(
            "Several processes that train, fail, hang, or lose their parent",
            "all decide alike to the last bit; one that fails ends the others",
        ),
    },
    "Arguments": {
        REFUSALS: Topic(
            "Arguments out of range, of a wrong type, or that do not fit together",
            "one sentence: the argument, its value, what that usually means, what to do",
        ),
        "forgotten stats": Topic(
            "A forgotten `stats=`",
            "a TypeError at the first step, never a silent default",
            ("dropped",),
        ),
    },
}
