"""Families of networks that learn from small images."""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import l2o
from l2o import Split, Task, TaskFamily
from l2o.tasks.families import sized_family
from l2o.tasks.image_mlp import Images
from l2o.tasks.networks.autoencoder import Autoencoder, Reconstruction, VariationalAutoencoder
from l2o.tasks.networks.conv import ConvNet, ResNet
from l2o.tasks.networks.mlp import MLP, Activation
from l2o.tasks.networks.transformer import PatchNet

Data = Mapping[Split, Images]

HIDDEN = {"32": (32,), "32x32": (32, 32), "64x32": (64, 32)}
HELD_OUT_HIDDEN = {"128x128": (128, 128), "64x64x64x64": (64, 64, 64, 64)}


def dense(
    name: str, data: Data, activation: Activation = nnx.relu, *, normalized: bool = False
) -> TaskFamily:
    """MLPs with any activation, with LayerNorm before it if they are normalised."""
    pixels, classes = num_pixels(data), num_classes(data)

    def make(task: str, hidden: tuple[int, ...], varied: bool) -> Task:
        def module(rngs: nnx.Rngs) -> MLP:
            return MLP((pixels, *hidden, classes), activation, normalized=normalized, rngs=rngs)

        return l2o.supervised_nnx(task, data, module, varied=varied, family=name)

    return sized_family(name, make, HIDDEN, HELD_OUT_HIDDEN)


def convolutional(
    name: str, data: Data, *, colours: int = 1, normalized: bool = False
) -> TaskFamily:
    """Convolutions of stride 2 and a dense layer, with batch normalisation if normalised."""
    side, classes = side_of(data, colours), num_classes(data)

    def make(task: str, channels: tuple[int, ...], varied: bool) -> Task:
        def module(rngs: nnx.Rngs) -> ConvNet:
            return ConvNet(side, (colours, *channels), classes, normalized=normalized, rngs=rngs)

        return l2o.supervised_nnx(task, data, module, varied=varied, family=name, batch_size=32)

    return sized_family(
        name, make, {"8": (8,), "8x16": (8, 16)}, {"16x32": (16, 32), "16x16x16": (16, 16, 16)}
    )


def residual(name: str, data: Data, *, colours: int = 1) -> TaskFamily:
    """ResNets of pre-activation blocks with LayerNorm; sizes are channels and blocks."""
    classes = num_classes(data)

    def make(task: str, size: tuple[int, int], varied: bool) -> Task:
        channels, blocks = size

        def module(rngs: nnx.Rngs) -> ResNet:
            return ResNet((colours, channels), blocks, classes, rngs=rngs)

        return l2o.supervised_nnx(task, data, module, varied=varied, family=name, batch_size=32)

    return sized_family(name, make, {"8_1": (8, 1), "8_2": (8, 2)}, {"16_2": (16, 2)})


def vision_transformer(name: str, data: Data, *, patch: int) -> TaskFamily:
    """Vision transformers; sizes are the width and the number of blocks."""
    return of_patches(name, data, patch, "attention")


def mixer(name: str, data: Data, *, patch: int) -> TaskFamily:
    """MLP-Mixers; sizes are the width and the number of blocks."""
    return of_patches(name, data, patch, "mlp")


def of_patches(name: str, data: Data, patch: int, mixes: Literal["attention", "mlp"]) -> TaskFamily:
    """Networks of patches whose tokens are mixed by attention or by an MLP."""
    side, classes = side_of(data), num_classes(data)

    def make(task: str, size: tuple[int, int], varied: bool) -> Task:
        width, depth = size

        def module(rngs: nnx.Rngs) -> PatchNet:
            return PatchNet(side, patch, width, depth, classes, mixes, rngs=rngs)

        return l2o.supervised_nnx(task, data, module, varied=varied, family=name, batch_size=32)

    return sized_family(name, make, {"16_1": (16, 1), "16_2": (16, 2)}, {"32_2": (32, 2)})


def autoencoding(name: str, data: Data) -> TaskFamily:
    """MLP autoencoders; half the mean square of what they get wrong of each pixel."""
    images, pixels = to_itself(data), num_pixels(data)

    def make(task: str, sizes: tuple[int, ...], varied: bool) -> Task:
        def module(rngs: nnx.Rngs) -> Autoencoder:
            return Autoencoder((pixels, *sizes), rngs=rngs)

        criterion = l2o.squared_error()
        return l2o.supervised_nnx(task, images, module, criterion, varied=varied, family=name)

    return sized_family(name, make, {"32x8": (32, 8), "64x16": (64, 16)}, {"64x32x8": (64, 32, 8)})


def variational(name: str, data: Data) -> TaskFamily:
    """Variational autoencoders; nats per pixel by which the evidence is bounded.

    On validation and test images the code is its mean, so the loss there is no bound.
    """
    images, pixels = to_itself(data), num_pixels(data)

    def make(task: str, sizes: tuple[int, ...], varied: bool) -> Task:
        def module(rngs: nnx.Rngs) -> VariationalAutoencoder:
            return VariationalAutoencoder((pixels, *sizes), rngs=rngs)

        criterion = evidence_bound()
        return l2o.supervised_nnx(task, images, module, criterion, varied=varied, family=name)

    return sized_family(name, make, {"32x8": (32, 8), "64x16": (64, 16)}, {"64x32x8": (64, 32, 8)})


def evidence_bound() -> l2o.Criterion:
    """Cross-entropy of pixels between 0 and 1 and divergence of the code, in nats per pixel.

    Its scale is the cross-entropy of each pixel's mean over the training rows.
    """

    def losses(found: Reconstruction, pixels: jax.Array) -> jax.Array:
        of_pixels = nnx.softplus(found.logits) - pixels * found.logits
        return jnp.mean(of_pixels, axis=-1) + found.divergence / pixels.shape[-1]

    def scale(found: Reconstruction, pixels: np.ndarray) -> float:
        mean = np.clip(np.mean(np.asarray(pixels), axis=0), 1e-6, 1.0 - 1e-6)
        return float(-np.mean(mean * np.log(mean) + (1.0 - mean) * np.log(1.0 - mean)))

    return l2o.Criterion(losses, scale)


def to_itself(data: Data) -> Mapping[Split, Images]:
    """Images whose targets are their own pixels."""
    return {split: Images(images.pixels, images.pixels) for split, images in data.items()}


def num_pixels(data: Data) -> int:
    """Numbers of an image."""
    return data["train"].pixels.shape[1]


def side_of(data: Data, colours: int = 1) -> int:
    """Height and width of the images, which are square."""
    return round((num_pixels(data) // colours) ** 0.5)


def num_classes(data: Data) -> int:
    """Number of classes."""
    return int(np.max(data["train"].labels)) + 1
