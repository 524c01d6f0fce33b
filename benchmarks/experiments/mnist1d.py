"""MNIST-1D, made locally: ten curves that are moved, scaled, bent and covered with noise.

The recipe is that of Greydanus and Kobak, `Scaling down deep learning with MNIST-1D
<https://arxiv.org/abs/2011.14439>`_, with templates of our own: numbers are not comparable with
those of the published data set, its difficulty is alike.
"""

import numpy as np

_TEMPLATE, _LENGTH = 12, 40


def make_mnist1d(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Curves [count, 40], standardised, and their classes [count]; classes are equally frequent."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 10).astype(np.int32)
    templates = _templates()
    curves = np.stack([_vary(templates[label], rng) for label in labels])
    return (curves / 0.7).astype(np.float32), labels


def _templates() -> np.ndarray:
    """One smooth curve [12] a class, of amplitude one: the same in every call."""
    rng = np.random.default_rng(2020)
    places = np.linspace(0, np.pi, _TEMPLATE)
    waves = np.sin(np.outer(np.arange(1, 6), places))
    curves = (rng.normal(size=(10, 5)) / np.arange(1, 6) ** 0.5) @ waves
    return curves / np.abs(curves).max(axis=1, keepdims=True)


def _vary(curve: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One example: padded, scaled, shifted, covered with noise, sheared, and read at 40 points."""
    padding = rng.integers(36, 61)
    long = np.concatenate([curve, np.zeros(padding)]) * (1 + 0.4 * (rng.random() - 0.5))
    long = np.roll(long, rng.integers(0, 49))
    smooth = np.exp(-0.5 * (np.arange(-6, 7) / 2) ** 2)
    correlated = np.convolve(rng.normal(size=len(long) + 12), smooth / smooth.sum(), "valid")
    long += 0.25 * correlated + 0.02 * rng.normal(size=len(long))
    long -= 0.75 * rng.uniform(-1, 1) * np.linspace(-0.5, 0.5, len(long))
    return np.interp(np.linspace(0, 1, _LENGTH), np.linspace(0, 1, len(long)), long)
