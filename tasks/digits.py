"""Real handwritten digits, 8x8 pixels: scikit-learn's copy of the UCI test set, 1,797 images."""

import functools
from collections.abc import Mapping

import numpy as np

from l2o.task import Split, TaskFamily
from l2o.tasks.image_mlp import Images, image_mlp_family

SPLIT_SIZES: Mapping[Split, int] = {"train": 1197, "valid": 300, "test": 300}


@functools.cache
def digits() -> Mapping[Split, Images]:
    """The images, shuffled once with a fixed seed and cut into three."""
    from sklearn.datasets import load_digits

    pixels, labels = (np.asarray(x) for x in load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(labels))
    ends = np.cumsum(list(SPLIT_SIZES.values()))
    return {
        split: Images(
            pixels=(pixels[rows] / 16.0).astype(np.float32), labels=labels[rows].astype(np.int32)
        )
        for split, rows in zip(SPLIT_SIZES, np.split(order, ends[:-1]), strict=True)
    }


def digits_mlp() -> TaskFamily:
    """MLPs on handwritten digits: the embedded default."""
    return image_mlp_family("digits_mlp", digits())
