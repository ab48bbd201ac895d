"""scikit-learn's handwritten digits, split the same way for training and for evaluation."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

try:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
except ImportError as error:
    raise SystemExit("The digits example needs scikit-learn: pip install 'compress-edge[examples]'") from error

Images = npt.NDArray[np.float32]
Classes = npt.NDArray[np.int64]

SPLIT_SEED = 0


class Split(NamedTuple):
    """Grey images `[N, 1, 8, 8]` in [0, 1] and their classes `[N]`."""

    images: Images
    classes: Classes


def load_splits() -> tuple[Split, Split]:
    """Three quarters to train on and the held-out quarter, with the classes equally frequent in both."""
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)  # pixels are counts from 0 to 16
    classes = digits.target.astype(np.int64)
    train_images, held_out_images, train_classes, held_out_classes = train_test_split(
        images, classes, test_size=0.25, random_state=SPLIT_SEED, stratify=classes
    )
    return Split(train_images, train_classes), Split(held_out_images, held_out_classes)
