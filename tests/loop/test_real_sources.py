"""Datasets of other libraries themselves: growth, exact resume, types, and what is refused."""

import datasets
import grain
import numpy as np
import pytest
from test_loader_resume import SIZES, check_growth_and_resume

from adaoptax.loop import BatchLoader

pytestmark = pytest.mark.topic("real sources")

N = 43
X = np.repeat(np.arange(N, dtype=np.float32)[:, None], 2, axis=1)


def hf(**columns):
    return datasets.Dataset.from_dict(columns or {"x": X, "y": list(range(N))})


def hf_generator():
    return datasets.IterableDataset.from_generator(lambda: ({"x": X[i], "y": i} for i in range(N)))


def stream(dataset):
    return dataset.with_format("numpy").batch(4)


def grain_rows(first=0):
    return grain.MapDataset.range(first, first + N).map(lambda i: {"y": i})


RANDOM_ACCESS = {
    "datasets.Dataset": hf,
    "datasets.Dataset, numpy": lambda: hf().with_format("numpy"),
    "datasets.Dataset, jax": lambda: hf().with_format("jax"),
    "datasets.Dataset, filtered": lambda: hf(y=list(range(2 * N))).filter(lambda e: e["y"] < N),
    "datasets.Dataset, transform": lambda: hf().with_transform(lambda batch: {"y": batch["y"]}),
    "datasets.Dataset, one column": lambda: hf().with_format("numpy", columns=["y"]),
    "grain.MapDataset": grain_rows,
}
ITERATORS = {
    "datasets.IterableDataset": lambda: stream(hf().to_iterable_dataset()),
    "datasets.IterableDataset, shards": lambda: stream(hf().to_iterable_dataset(num_shards=3)),
    "datasets.IterableDataset, generator": lambda: stream(hf_generator()),
    "datasets.IterableDataset, filter": lambda: stream(
        hf().to_iterable_dataset().filter(lambda example: example["y"] % 5 != 0)
    ),
    "grain.IterDataset, batch": lambda: grain_rows().shuffle(seed=1).to_iter_dataset().batch(4),
    "grain.IterDataset, filter": lambda: (
        grain_rows().to_iter_dataset().filter(lambda example: example["y"] % 5 != 0).batch(4)
    ),
    "grain.MapDataset.mix": lambda: (
        grain.MapDataset.mix([grain_rows(), grain_rows(100)], [0.5, 0.5]).batch(4).to_iter_dataset()
    ),
    "grain.IterDataset.mix": lambda: grain.IterDataset.mix(
        [grain_rows().to_iter_dataset(), grain_rows(100).to_iter_dataset()], [0.5, 0.5]
    ).batch(4),
}


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("kind", RANDOM_ACCESS)
def test_random_access_grows_and_resumes_exactly(kind, prefetch):
    delivered = check_growth_and_resume(RANDOM_ACCESS[kind], num_epochs=1, prefetch=prefetch)
    assert sorted(delivered) == list(range(N))


@pytest.mark.parametrize("kind", ITERATORS)
def test_iterators_grow_and_resume_exactly(kind):
    delivered = check_growth_and_resume(ITERATORS[kind])
    if "mix" in kind:
        assert len(set(delivered)) == len(delivered) == sum(SIZES) + 16
    else:
        assert sorted(delivered) == [i for i in range(N) if i % 5 or "filter" not in kind]


def one(source, **arguments):
    return next(BatchLoader(source, 4, shuffle=False, **arguments)).data


@pytest.mark.parametrize("kind", [None, "numpy", "jax"])
def test_columns_of_a_hugging_face_dataset_become_arrays(kind):
    features = datasets.Features(
        {
            "image": datasets.Array2D((3, 2), "float32"),
            "list": datasets.List(datasets.Value("int64")),
            "nested": datasets.List(datasets.List(datasets.Value("int64"))),
            "label": datasets.ClassLabel(names=["a", "b"]),
            "text": datasets.Value("string"),
        }
    )
    columns = {
        "image": [np.full((3, 2), i, np.float32) for i in range(6)],
        "list": [[i, i + 1] for i in range(6)],
        "nested": [[[i], [i + 1]] for i in range(6)],
        "label": [0, 1] * 3,
        "text": ["a", "bb", "c", "dd", "e", "ff"],
    }
    dataset = datasets.Dataset.from_dict(columns, features=features).with_format(kind)
    for shuffle in (False, True):
        loader = BatchLoader(dataset, 6, shuffle=shuffle, num_epochs=1)
        data = next(loader).data
        order = np.argsort(data["list"][:, 0])
        assert data["image"].dtype == np.float32
        np.testing.assert_array_equal(data["image"][order], columns["image"])
        np.testing.assert_array_equal(data["nested"][order], columns["nested"])
        np.testing.assert_array_equal(data["label"][order], columns["label"])
        assert data["text"][order].tolist() == columns["text"]


def test_pictures_and_structures_of_hugging_face_become_arrays():
    pictures = [np.full((4, 5), i, np.uint8) for i in range(6)]
    dataset = datasets.Dataset.from_dict(
        {"picture": pictures, "pair": [{"a": i, "b": [i, i]} for i in range(6)]},
        features=datasets.Features(
            {
                "picture": datasets.Image(),
                "pair": {"a": datasets.Value("int64"), "b": datasets.List(datasets.Value("int64"))},
            }
        ),
    )
    data = one(dataset)
    np.testing.assert_array_equal(data["picture"], pictures[:4])
    assert data["pair"]["b"].tolist() == [[i, i] for i in range(4)]


def test_columns_may_be_written_to_and_the_dataset_stays():
    dataset = hf().with_format("numpy")
    data = one(dataset)
    data["x"][:] = data["y"][:] = 99
    np.testing.assert_array_equal(dataset[:4]["x"], X[:4])
    np.testing.assert_array_equal(dataset[:4]["y"], range(4))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (hf(x=[[1] * (i % 3 + 1) for i in range(8)]), r"\(1,\) at source\[0\] and \(2,\) at sour"),
        (hf(x=[1, None, 3, 4]), "numbers in column 'x' of source, got None"),
        (hf(x=[1.0, 2.0, None, 4.0]), "numbers in column 'x' of source, got None"),
        (hf(x=[[1, 2], [3, None], [5, 6], [7, 8]]), "numbers in column 'x' of source, got None"),
        (hf(x=["a", "b", None, "d"]), "numbers in column 'x' of source, got None"),
        (hf().with_format("pandas"), "got one with the format 'pandas'"),
        (hf(x=[1]).filter(lambda e: e["x"] > 1), "at least one example, got none"),
        (hf().to_iterable_dataset().batch(4), r'\.with_format\("numpy"\)\.batch'),
        (hf().to_iterable_dataset().with_format("numpy"), r'\.with_format\("numpy"\)\.batch'),
        (stream(hf().to_iterable_dataset().shuffle(1, buffer_size=9)), "with a shuffle buffer"),
        (
            datasets.interleave_datasets(
                [hf().to_iterable_dataset().shuffle(1, buffer_size=9), hf().to_iterable_dataset()]
            ),
            "with a shuffle buffer",
        ),
    ],
)
def test_refuses_what_hugging_face_cannot_give_exactly(source, message):
    with pytest.raises(ValueError, match=message):
        one(source)


def test_a_hole_elsewhere_in_the_column_is_no_error_until_it_is_read():
    filled = [i if i != 6 else None for i in range(8)]
    loader = BatchLoader(hf(x=filled), 4, shuffle=False)
    assert next(loader).data["x"].tolist() == [0, 1, 2, 3]
    for _ in range(2):
        with pytest.raises(ValueError, match="got None"):
            next(loader)
    assert loader.examples_seen == 4
    without = hf(x=filled).filter(lambda example: example["x"] is not None)
    assert sorted(next(BatchLoader(without, 7)).data["x"]) == [0, 1, 2, 3, 4, 5, 7]


def test_refuses_a_dict_of_splits():
    with pytest.raises(TypeError, match="pass one of its values"):
        BatchLoader(datasets.DatasetDict(train=hf()), 4)
