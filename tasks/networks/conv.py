"""Convolutional networks, plain and residual."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from l2o.tasks.networks.mlp import SMALL


class Conv(nnx.Module):
    """A convolution as a matrix that patches are multiplied by, which vmapped CPUs do faster.

    Args:
        channels: Numbers of channels of inputs and outputs.
        width: Height and width of a patch.
        stride: Rows and columns from one patch to the next.
        rngs: Keys of the initial weights, He's.
    """

    def __init__(
        self, channels: tuple[int, int], width: int = 3, stride: int = 1, *, rngs: nnx.Rngs
    ):
        inputs, outputs = channels
        init = nnx.initializers.he_normal(in_axis=(0, 1, 2), out_axis=3)
        self.kernel = nnx.Param(init(rngs.params(), (width, width, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32))
        self.width, self.stride = width, stride

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map images (rows, height, width, channels) to as many, smaller by the stride."""
        return (
            patches(images, self.width, self.stride)
            @ self.kernel[...].reshape(-1, self.kernel.shape[-1])
            + self.bias[...]
        )


def patches(images: jax.Array, width: int, stride: int) -> jax.Array:
    """Square patches around every `stride`-th pixel of images that are padded by zeros.

    Args:
        images: Shape (rows, height, width, channels).
        width: Height and width of a patch.
        stride: Rows and columns from one patch to the next.

    Returns:
        Shape (rows, height / stride, width / stride, width² · channels), rounded up.
    """
    before = (width - 1) // 2
    pad = (before, width - 1 - before)
    height, length = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), pad, pad, (0, 0)))
    shifted = [
        padded[:, i : i + height : stride, j : j + length : stride]
        for i in range(width)
        for j in range(width)
    ]
    return jnp.concatenate(shifted, axis=-1)


def as_images(inputs: jax.Array, channels: int = 1) -> jax.Array:
    """Flat square images as (rows, side, side, channels)."""
    side = round((inputs.shape[-1] // channels) ** 0.5)
    return inputs.reshape(len(inputs), side, side, channels)


class ConvNet(nnx.Module):
    """Convolutions of stride 2, then one dense layer.

    Args:
        side: Height and width of the images.
        channels: Channels of the images, then of each convolution.
        classes: Number of outputs.
        normalized: Whether convolutions are followed by batch normalisation.
        rngs: Keys of the initial weights.
    """

    def __init__(
        self,
        side: int,
        channels: Sequence[int],
        classes: int,
        *,
        normalized: bool = False,
        rngs: nnx.Rngs,
    ):
        pairs = list(itertools.pairwise(channels))
        self.convs = nnx.List([Conv(pair, stride=2, rngs=rngs) for pair in pairs])
        self.norms = nnx.List([nnx.BatchNorm(m, rngs=rngs) for m in channels[1:] if normalized])
        for _ in pairs:
            side = -(-side // 2)
        features = side * side * channels[-1]
        self.head = nnx.Linear(features, classes, kernel_init=SMALL, rngs=rngs)
        self.channels = channels[0]

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map flat images (rows, pixels) to logits (rows, classes)."""
        x = as_images(inputs, self.channels)
        for i, conv in enumerate(self.convs):
            x = conv(x)
            x = nnx.relu(self.norms[i](x) if len(self.norms) else x)
        return self.head(x.reshape(len(x), -1))


class ResNet(nnx.Module):
    """Residual blocks of two convolutions with LayerNorm over channels, then their mean.

    Args:
        channels: Channels of the images and of all blocks.
        blocks: Number of blocks.
        classes: Number of outputs.
        rngs: Keys of the initial weights.
    """

    def __init__(self, channels: tuple[int, int], blocks: int, classes: int, *, rngs: nnx.Rngs):
        inputs, width = channels
        self.stem = Conv(channels, stride=2, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2 * blocks)])
        self.convs = nnx.List([Conv((width, width), rngs=rngs) for _ in range(2 * blocks)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, classes, kernel_init=SMALL, rngs=rngs)
        self.channels = inputs

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map flat images (rows, pixels) to logits (rows, classes)."""
        x = self.stem(as_images(inputs, self.channels))
        for i in range(0, len(self.convs), 2):
            y = x
            for j in (i, i + 1):
                y = self.convs[j](nnx.relu(self.norms[j](y)))
            x = x + y
        return self.head(jnp.mean(nnx.relu(self.norm(x)), axis=(1, 2)))
