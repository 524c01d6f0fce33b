"""Steps in PyTorch: loss, gradient and per-example statistics, as its libraries compute them."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.models import Model
from benchmarks.peers import PLAIN
from benchmarks.peers.memory import peak_bytes
from benchmarks.peers.modules import TWINS
from benchmarks.timing import Program, timed

Step = Callable[[], Any]

for known in ("Full backward hook is firing", "There is a performance drop", "Extension saving"):
    warnings.filterwarnings("ignore", message=known)  # known properties of what is measured


def program_of(
    make_step: Callable[[nn.Module, torch.Tensor, torch.Tensor], Step], model: Model, batch: Any
) -> Program:
    """The step of the model's twin on the same batch, on the GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inputs, labels = (tensor.to(device) for tensor in tensors(batch))
    step = make_step(TWINS[model.make](**model.options).to(device), inputs, labels)

    def finished() -> None:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    finished()  # the first step sets hooks and buffers up
    return Program(timed(finished), peak_bytes(finished))


def tensors(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels; images with their channels first."""
    as_tensor = lambda x: torch.from_numpy(np.array(x))
    if not isinstance(batch, dict):
        tokens = as_tensor(batch).long()
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    inputs = as_tensor(batch["x"])
    if inputs.ndim == 4:
        inputs = inputs.permute(0, 3, 1, 2).contiguous()
    return inputs, as_tensor(batch["y"]).long()


def loss_of(
    module: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Mean cross-entropy, also over the steps of a sequence."""
    return functional.cross_entropy(module(inputs).flatten(0, -2), labels.flatten())


def plain(module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> Step:
    """The mean gradient alone."""

    def step() -> None:
        module.zero_grad(set_to_none=True)
        loss_of(module, inputs, labels).backward()

    return step


def vmap_grad(module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> Step:
    """`torch.func`: every example's gradient, its norm, and their mean."""
    params = {name: value.detach() for name, value in module.named_parameters()}

    def one(params: Any, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        call = lambda x: torch.func.functional_call(module, params, (x,))
        return loss_of(call, inputs[None], labels[None])

    each = torch.func.vmap(torch.func.grad_and_value(one), in_dims=(None, 0, 0))

    def step() -> Any:
        grads, losses = each(params, inputs, labels)
        mean = {name: grad.mean(0) for name, grad in grads.items()}
        return losses.mean(), mean, sum(_sq_norms(grad) for grad in grads.values())

    return step


def backpack_step(extension: str, field: str, combine: Callable[[list], Any]) -> Any:
    """BackPACK: a backward pass that leaves `field` beside the gradient of every parameter."""

    def make(module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> Step:
        import backpack
        from backpack import extensions

        extended = backpack.extend(module)

        def step() -> Any:
            extended.zero_grad(set_to_none=True)
            with backpack.backpack(getattr(extensions, extension)()):
                loss_of(extended, inputs, labels).backward()
            missing = [name for name, p in extended.named_parameters() if not hasattr(p, field)]
            if missing:  # BackPACK only warns
                raise NotImplementedError(f"no rule for the layer of {missing[0]}")
            return combine([getattr(param, field) for param in extended.parameters()])

        return step

    return make


def opacus_hooks(module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> Step:
    """Opacus: hooks that form every example's gradient."""
    from opacus.grad_sample import GradSampleModule

    hooked = GradSampleModule(module)

    def step() -> Any:
        hooked.zero_grad(set_to_none=True)
        loss_of(hooked, inputs, labels).backward()
        return sum(_sq_norms(param.grad_sample) for param in hooked.parameters())

    return step


def opacus_ghost(module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> Step:
    """Opacus: norms by ghost clipping, without its second backward pass that clips."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    hooked = GradSampleModuleFastGradientClipping(
        module, max_grad_norm=1.0, use_ghost_clipping=True
    )

    def step() -> Any:
        hooked.zero_grad(set_to_none=True)
        loss_of(hooked, inputs, labels).backward()
        return hooked.get_norm_sample() ** 2

    return step


def _sq_norms(grads: torch.Tensor) -> torch.Tensor:
    return grads.flatten(1).square().sum(1)


STEPS: dict[str, Any] = {
    PLAIN: plain,
    "torch.func vmap(grad): norm": vmap_grad,
    "BackPACK BatchL2Grad: norm": backpack_step("BatchL2Grad", "batch_l2", sum),
    "BackPACK SumGradSquared: coordinate": backpack_step(
        "SumGradSquared", "sum_grad_squared", lambda squares: squares
    ),
    "Opacus hooks: norm": opacus_hooks,
    "Opacus ghost: norm": opacus_ghost,
}
"""Name of a method → what makes its step."""
