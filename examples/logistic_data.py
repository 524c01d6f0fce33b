"""Two-class data that needs no download, as float64 NumPy arrays with labels -1 and 1."""

import numpy as np
from sklearn.datasets import load_breast_cancer

# Rows and columns of the synthetic sets. Those named after LIBSVM sets have their public sizes.
SIZES = {"synthetic": (7_000, 50), "mushrooms": (8_124, 112), "covertype": (581_012, 54)}
NAMES = ("cancer", *SIZES)


def load(
    name: str, seed: int = 0, max_examples: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Features [examples, features] and labels of one data set.

    Args:
        name: ``"cancer"`` is scikit-learn's Wisconsin breast cancer, 569 × 30, standardised; the
            others are drawn: correlated normal features, labels from a logistic model.
        seed: Of what is drawn, and of which rows are kept.
        max_examples: Keep this many rows; None for all.

    Returns:
        ``(features, labels)``.

    Raises:
        ValueError: If there is no such data set.
    """
    rng = np.random.default_rng(seed)
    if name == "cancer":
        x, classes = load_breast_cancer(return_X_y=True)
        y = np.where(classes == 1, 1.0, -1.0)
        x = (x - x.mean(axis=0)) / x.std(axis=0)
    elif name in SIZES:
        x, y = draw(*SIZES[name], rng)
    else:
        raise ValueError(f"Expected name to be one of {NAMES}, got name={name!r}.")
    if max_examples is not None and max_examples < len(x):
        kept = rng.choice(len(x), max_examples, replace=False)
        x, y = x[kept], y[kept]
    return x, y


def draw(rows: int, columns: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Normal features of scales from 1 to 1/4, labels from a logistic model of norm 4."""
    scales = np.geomspace(1, 0.25, columns)
    x = rng.normal(size=(rows, columns)) * scales
    weights = rng.normal(size=columns)
    margins = x @ (4 * weights / np.linalg.norm(weights * scales))
    y = np.where(rng.random(rows) < 1 / (1 + np.exp(-margins)), 1.0, -1.0)
    return x, y


def check(features: np.ndarray, labels: np.ndarray) -> None:
    """Raises ValueError unless these are rows of numbers with one label -1 or 1 each."""
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"Expected features [examples, features] and one label for each row, got shapes"
            f" {features.shape} and {labels.shape}: this usually means that one of them was split"
            " or filtered; pass rows and labels of the same examples."
        )
    if not np.isfinite(features).all():
        raise ValueError(
            "Expected finite features, got NaN or inf: this usually means missing values; fill"
            " them in or leave those rows out."
        )
    if not np.isin(labels, (-1, 1)).all():
        raise ValueError(
            f"Expected labels -1 and 1, got {np.unique(labels)[:5].tolist()}: logistic regression"
            " knows two classes; pass 2 * (labels == positive_class) - 1."
        )
