"""Real handwritten digits, 8x8 pixels: scikit-learn's copy of the UCI test set, 1,797 images."""

import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from flax import nnx

from l2o import Split, TaskFamily
from l2o.tasks.image_mlp import Images, image_mlp_family
from l2o.tasks.images import (
    autoencoding,
    convolutional,
    dense,
    mixer,
    residual,
    variational,
    vision_transformer,
)

SOURCE, LICENCE = "UCI digits, 8x8, in scikit-learn", "BSD-3-Clause (package)"

SPLIT_SIZES: Mapping[Split, int] = {"train": 1197, "valid": 300, "test": 300}


@functools.cache
def digits() -> Mapping[Split, Images]:
    """The images, shuffled once with a fixed seed and cut into three."""
    # What `sklearn.datasets.load_digits` reads; importing that takes longer than all else here.
    package = importlib.util.find_spec("sklearn")
    assert package and package.origin
    rows = np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    pixels, labels = rows[:, :-1], rows[:, -1]
    order = np.random.default_rng(0).permutation(len(labels))
    ends = np.cumsum(list(SPLIT_SIZES.values()))
    return {
        split: Images(
            pixels=(pixels[rows] / 16.0).astype(np.float32), labels=labels[rows].astype(np.int32)
        )
        for split, rows in zip(SPLIT_SIZES, np.split(order, ends[:-1]), strict=True)
    }


def of_digits(family: TaskFamily) -> TaskFamily:
    """Say of a family where its data come from."""
    return replace(family, source=SOURCE, licence=LICENCE)


def digits_mlp() -> TaskFamily:
    """MLPs on handwritten digits, which come with the package.

    >>> [task.name for task in digits_mlp().train]
    ['digits_mlp_32_varied', 'digits_mlp_32x32_varied', 'digits_mlp_64x32_varied']
    """
    return of_digits(image_mlp_family("digits_mlp", digits()))


RARE = (5, 6, 7, 8, 9)
RARE_SHARE = 0.1


@functools.cache
def imbalanced_digits() -> Mapping[Split, Images]:
    """The same with a tenth of the training and validation images of 5 to 9; the test is whole."""
    images = dict(digits())
    for seed, split in enumerate(("train", "valid"), start=1):
        labels = np.asarray(images[split].labels)
        drawn = np.random.default_rng(seed).random(len(labels))
        kept = ~np.isin(labels, RARE) | (drawn < RARE_SHARE)
        images[split] = Images(*(np.asarray(rows)[kept] for rows in images[split]))
    return images


def imbalanced_digits_mlp() -> TaskFamily:
    """MLPs on digits of which half are rare in training, for macro-F1, which counts all alike.

    >>> len(imbalanced_digits_mlp().evaluation)
    5
    """
    return of_digits(image_mlp_family("imbalanced_digits_mlp", imbalanced_digits()))


def digits_tanh_mlp() -> TaskFamily:
    """Tanh MLPs on handwritten digits."""
    return of_digits(dense("digits_tanh_mlp", digits(), nnx.tanh))


def digits_gelu_mlp() -> TaskFamily:
    """GELU MLPs on handwritten digits."""
    return of_digits(dense("digits_gelu_mlp", digits(), nnx.gelu))


def digits_layernorm_mlp() -> TaskFamily:
    """ReLU MLPs with LayerNorm on handwritten digits."""
    return of_digits(dense("digits_layernorm_mlp", digits(), normalized=True))


def digits_conv() -> TaskFamily:
    """Convolutional networks on handwritten digits."""
    return of_digits(convolutional("digits_conv", digits()))


def digits_batchnorm_conv() -> TaskFamily:
    """Convolutional networks with batch normalisation on handwritten digits."""
    return of_digits(convolutional("digits_batchnorm_conv", digits(), normalized=True))


def digits_resnet() -> TaskFamily:
    """Residual networks on handwritten digits."""
    return of_digits(residual("digits_resnet", digits()))


def digits_vit() -> TaskFamily:
    """Vision transformers on handwritten digits."""
    return of_digits(vision_transformer("digits_vit", digits(), patch=2))


def digits_mixer() -> TaskFamily:
    """MLP-Mixers on handwritten digits."""
    return of_digits(mixer("digits_mixer", digits(), patch=2))


def digits_autoencoder() -> TaskFamily:
    """MLP autoencoders of handwritten digits."""
    return of_digits(autoencoding("digits_autoencoder", digits()))


def digits_vae() -> TaskFamily:
    """Variational autoencoders of handwritten digits."""
    return of_digits(variational("digits_vae", digits()))
