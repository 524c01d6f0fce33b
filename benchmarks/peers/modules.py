"""The models once more, as PyTorch modules of the same shapes."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.models import convolutional, transformers
from benchmarks.models.mlp import mlp as jax_mlp


def mlp(batch_size: int, sizes: tuple[int, ...] = (784, 512, 512, 10)) -> nn.Module:
    """As `benchmarks.models.mlp`."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn(batch_size: int) -> nn.Module:
    """As `benchmarks.models.cnn`."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(3, 2),
        nn.Flatten(),
        nn.Linear(3 * 3 * 128, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.first = _normalised(3, inputs, outputs, stride)
        self.second = _normalised(3, outputs, outputs)
        self.short = nn.Identity() if stride == 1 else _normalised(1, inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, channels, height, width]."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.short(x))


def _normalised(size: int, inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    kernel = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(kernel, nn.GroupNorm(8, outputs))


def resnet(batch_size: int, width: int = 16) -> nn.Module:
    """As `benchmarks.models.resnet`."""
    widths = [width * 2**stage for stage in range(4) for _ in range(2)]
    blocks = [Residual(i, o) for i, o in zip([width, *widths[:-1]], widths, strict=True)]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10, bias=False)]
    return nn.Sequential(_normalised(3, 3, width), nn.ReLU(), *blocks, *pool)


class Layer(nn.Module):
    """A pre-LN transformer layer."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, steps, width]."""
        split = lambda part: part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q, k, v = (split(part) for part in self.qkv(self.norms[0](x)).chunk(3, dim=-1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        return x + self.down(functional.gelu(self.up(self.norms[1](x)), approximate="tanh"))


def transformer(batch_size: int, length: int, vocabulary: int, tied: bool) -> nn.Module:
    """As `benchmarks.models.transformer`."""
    width = 256
    embed, head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary, bias=False)
    if tied:
        head.weight = embed.weight
    layers = [Layer(width, 4, causal=True) for _ in range(4)]
    return nn.Sequential(embed, *layers, nn.LayerNorm(width, elementwise_affine=False), head)


class Patches(nn.Module):
    """Cuts images in 64 patches and adds learned positions to their embeddings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.positions = nn.Linear(48, width), nn.Embedding(64, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 3, 32, 32]."""
        patches = functional.unfold(x, 4, stride=4).transpose(1, 2)
        # Every row looks its positions up, as libraries of per-example gradients require.
        places = torch.arange(64, device=x.device).repeat(x.shape[0], 1)
        return self.embed(patches) + self.positions(places)


class MeanOfTokens(nn.Module):
    """[rows, steps, width] → [rows, width]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Averages."""
        return x.mean(1)


def vit(batch_size: int, layers: int = 12, width: int = 192) -> nn.Module:
    """As `benchmarks.models.vit`."""
    body = [Layer(width, 3, causal=False) for _ in range(layers)]
    norm = nn.LayerNorm(width, elementwise_affine=False)
    return nn.Sequential(Patches(width), *body, norm, MeanOfTokens(), nn.Linear(width, 10))


TWINS: dict[Callable[..., Any], Callable[..., nn.Module]] = {
    jax_mlp: mlp,
    convolutional.cnn: cnn,
    convolutional.resnet: resnet,
    transformers.transformer: transformer,
    transformers.vit: vit,
}
