"""Datasets and loaders of torch and torchdata themselves (skipped where they are missing)."""

import json
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from test_loader_resume import check_growth_and_resume
from test_real_sources import N, X, hf, one

from adaoptax.loop import BatchLoader

torch: Any = pytest.importorskip("torch")
torch_data: Any = pytest.importorskip("torch.utils.data")
stateful = pytest.importorskip("torchdata.stateful_dataloader")

pytestmark = [
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
    pytest.mark.topic("real sources"),
]


class Pairs(torch_data.Dataset):
    def __len__(self):
        return N

    def __getitem__(self, index):
        return {"x": torch.full((2,), float(index)), "y": index}


class Endless(torch_data.IterableDataset):
    def __iter__(self):
        return iter(range(N))


def tensors():
    return torch_data.TensorDataset(torch.from_numpy(X), torch.arange(N))


def stateful_loader(dataset=Pairs, **arguments):
    torch.manual_seed(5)
    return stateful.StatefulDataLoader(dataset(), 4, **arguments)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(Pairs, id="Dataset"),
        pytest.param(tensors, id="TensorDataset"),
        pytest.param(lambda: torch_data.Subset(Pairs(), list(range(N))), id="Subset"),
        pytest.param(lambda: {"x": torch.from_numpy(X), "y": torch.arange(N)}, id="tensors"),
        pytest.param(lambda: hf().with_format("torch"), id="Hugging Face format"),
    ],
)
def test_random_access_grows_and_resumes_exactly(make, prefetch):
    delivered = check_growth_and_resume(make, num_epochs=1, prefetch=prefetch)
    assert sorted(delivered) == list(range(N))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(stateful_loader, id="in order"),
        pytest.param(lambda: stateful_loader(shuffle=True), id="shuffled"),
        pytest.param(
            lambda: stateful_loader(shuffle=True, generator=torch.Generator().manual_seed(1)),
            id="generator",
        ),
        pytest.param(lambda: stateful_loader(tensors), id="TensorDataset"),
    ],
)
def test_a_stateful_data_loader_grows_and_resumes_exactly(make):
    assert sorted(check_growth_and_resume(make)) == list(range(N))


def test_the_state_of_a_stateful_data_loader_is_json_though_it_holds_tensors():
    loader = BatchLoader(stateful_loader(shuffle=True), 4)
    next(loader)
    state = loader.get_state()
    assert json.loads(json.dumps(state)) == state


def test_a_tensor_dataset_gives_what_its_examples_give():
    assert [leaf.tolist() for leaf in one(tensors())] == [X[:4].tolist(), [0, 1, 2, 3]]

    class Doubled(torch_data.TensorDataset):
        def __getitem__(self, index):
            return tuple(2 * tensor for tensor in super().__getitem__(index))

    assert one(Doubled(torch.arange(N)))[0].tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, jnp.bfloat16),
        (torch.float16, np.float16),
        (torch.float64, np.float64),
        (torch.uint8, np.uint8),
        (torch.bool, np.bool_),
        (torch.complex64, np.complex64),
    ],
)
def test_tensors_become_arrays_of_the_same_type_and_bits(dtype, expected):
    values = torch.tensor([1.5, -0.3, 0.0, 2.0**-9, 1.0, 3.0]).to(dtype)
    scalars = [values[i] for i in range(6)]
    vectors = [{"a": values[i : i + 2]} for i in range(5)]
    for source in (values, scalars, torch_data.TensorDataset(values), vectors):
        data = one(source)
        data = data[0] if isinstance(data, tuple) else data
        data = data["a"][:, 0] if isinstance(data, dict) else data
        assert data.dtype == expected
        wide = values[:4].to(torch.complex64).tolist()
        np.testing.assert_array_equal(data.astype(np.complex64), wide)


def test_tensors_with_gradients_or_conjugates_are_values():
    values = torch.arange(6.0, requires_grad=True)
    assert one([values[i] for i in range(6)]).tolist() == [0.0, 1.0, 2.0, 3.0]
    assert one(torch.tensor([1 + 2j] * 6).conj()).tolist() == [1 - 2j] * 4


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (torch_data.DataLoader(Pairs(), 4), TypeError, "instead of its DataLoader"),
        (Endless(), TypeError, "torchdata's StatefulDataLoader"),
        ([torch.eye(2).to_sparse()] * 6, TypeError, r"with torch\.sparse_coo.*\.to_dense\(\)"),
        ([torch.zeros(2), torch.zeros(3)] * 3, ValueError, r"\(2,\) at source\[0\] and \(3,\)"),
        ([torch.zeros(2), torch.zeros(2).double()] * 3, ValueError, "float32 at .* and float64"),
        (torch_data.TensorDataset(torch.zeros(0, 2)), ValueError, "got none"),
    ],
)
def test_refuses_with_what_to_pass_instead(source, error, message):
    with pytest.raises(error, match=message):
        one(source)


def test_refuses_a_data_loader_of_another_batch_size():
    with pytest.raises(ValueError, match="micro_batch_size=2 examples from source, got one of 4"):
        next(BatchLoader(stateful_loader(), 2))


def test_the_torch_code_on_the_page_runs():
    page = pathlib.Path(__file__).parents[2] / "docs" / "guide" / "sources.md"
    blocks = re.findall(r"```\{code-block\} python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(blocks) == 2
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)
        assert len(next(namespace["loader"]).mask) == 8
