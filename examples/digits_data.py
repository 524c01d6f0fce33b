"""scikit-learn's handwritten digits, which come with it: nothing is downloaded."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def digits(seed: int) -> list[np.ndarray]:
    """8×8 images: 1,440 to train on, each also shifted by a pixel in four directions, 357 to test.

    Returns:
        Training inputs [7200, 64], test inputs [357, 64], training labels, test labels.
    """
    data = load_digits()
    images = (data.images / 16).astype(np.float32)
    labels = data.target.astype(np.int32)
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=357, stratify=labels, random_state=seed
    )
    padded = np.pad(x_train, ((0, 0), (1, 1), (1, 1)))
    shifts = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]
    x_train = np.concatenate([padded[:, i : i + 8, j : j + 8] for i, j in shifts])
    flat = lambda x: x.reshape(len(x), 64)
    return [flat(x_train), flat(x_test), np.tile(y_train, len(shifts)), y_test]
