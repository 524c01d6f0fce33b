"""The steps in PyTorch compute what their names say; only where the peers are installed."""

import pytest

torch = pytest.importorskip("torch")
backpack = pytest.importorskip("backpack")
opacus = pytest.importorskip("opacus")

from benchmarks.models import MODELS  # noqa: E402
from benchmarks.models.convolutional import cnn, resnet  # noqa: E402
from benchmarks.models.mlp import mlp  # noqa: E402
from benchmarks.peers import memory, methods, modules  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of others' code


def gradients_one_by_one(module, inputs, labels):
    """Every example's gradient by a backward pass of its own: parameter → [B, ...]."""
    each = []
    for row, label in zip(inputs, labels, strict=True):
        module.zero_grad()
        methods.loss_of(module, row[None], label[None]).backward()
        each.append([param.grad.clone() for param in module.parameters()])
    return [torch.stack(leaf) for leaf in zip(*each, strict=True)]


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    inputs, labels = methods.tensors(MODELS["tiny"].build()[2])
    module = modules.mlp(**MODELS["tiny"].options)
    return module, inputs, labels, gradients_one_by_one(module, inputs, labels)


def test_all_norms_agree(tiny) -> None:
    module, inputs, labels, each = tiny
    expected = sum(leaf.flatten(1).square().sum(1) for leaf in each)
    step = lambda name: methods.STEPS[name](module, inputs, labels)()
    for name in ("Opacus hooks: norm", "Opacus ghost: norm"):
        module = modules.mlp(**MODELS["tiny"].options)  # hooks stay with a module
        module.load_state_dict(tiny[0].state_dict())
        torch.testing.assert_close(step(name), expected)
    _, mean, norms = methods.vmap_grad(tiny[0], inputs, labels)()
    torch.testing.assert_close(norms, expected)
    torch.testing.assert_close(list(mean.values()), [leaf.mean(0) for leaf in each])


def test_backpack_scales_by_the_mean(tiny) -> None:
    module, inputs, labels, each = tiny
    rows = len(inputs)
    norms = methods.STEPS["BackPACK BatchL2Grad: norm"](module, inputs, labels)()
    expected = sum(leaf.flatten(1).square().sum(1) for leaf in each)
    torch.testing.assert_close(norms * rows**2, expected)
    squares = methods.STEPS["BackPACK SumGradSquared: coordinate"](module, inputs, labels)()
    expected = [leaf.square().sum(0) for leaf in each]
    torch.testing.assert_close([square * rows**2 for square in squares], expected)


def test_layers_without_a_rule_are_told() -> None:
    module = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.Linear(8, 4))
    step = methods.STEPS["BackPACK BatchL2Grad: norm"]
    with pytest.raises(NotImplementedError, match=r"0\.weight"):
        step(module, torch.ones(2, 8), torch.zeros(2, dtype=torch.long))()


@pytest.mark.parametrize("make", [mlp, cnn, resnet])
def test_twins_have_the_same_parameters(make) -> None:
    import jax

    _, params, batch = make(batch_size=2)
    twin = modules.TWINS[make](batch_size=2)
    own = sorted(leaf.size for leaf in jax.tree.leaves(params))
    assert own == sorted(param.numel() for param in twin.parameters())
    assert twin(methods.tensors(batch)[0]).shape == (2, 10)


def test_peak_memory_counts_what_lives_at_once() -> None:
    held = torch.ones(1000)

    def step() -> None:
        first = held + 1  # 4000 bytes
        second = first.view(10, 100) * 2  # as many again; the view is not new
        del first
        third = second + 1
        del second, third
        held.add_(1)

    assert memory.peak_bytes(step) == 8000
