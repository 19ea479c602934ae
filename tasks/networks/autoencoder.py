"""Autoencoders of flat images."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from l2o.tasks.networks.mlp import MLP


class Autoencoder(nnx.Module):
    """An MLP down to a code and back up, tanh throughout (after Hinton and Salakhutdinov 2006).

    Args:
        sizes: Numbers of pixels, hidden units and numbers of the code.
        rngs: Keys of the initial weights.
    """

    def __init__(self, sizes: Sequence[int], *, rngs: nnx.Rngs):
        self.mlp = MLP((*sizes, *sizes[-2::-1]), nnx.tanh, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Map pixels (rows, pixels) to as many."""
        return self.mlp(pixels)


class Reconstruction(NamedTuple):
    """What a variational autoencoder makes of images.

    Attributes:
        logits: Of the pixels, shape (rows, pixels).
        divergence: Of the code from a standard normal, in nats, shape (rows,).
    """

    logits: jax.Array
    divergence: jax.Array


class VariationalAutoencoder(nnx.Module):
    """A variational autoencoder (Kingma, Welling 2014), whose code is its mean where none is drawn.

    Args:
        sizes: Numbers of pixels, hidden units and numbers of the code.
        rngs: Keys of the initial weights and, in training, of the codes.
    """

    def __init__(self, sizes: Sequence[int], *, rngs: nnx.Rngs):
        self.encoder = MLP((*sizes[:-1], 2 * sizes[-1]), rngs=rngs)
        self.decoder = MLP(sizes[::-1], rngs=rngs)
        self.rngs = rngs.fork()
        self.deterministic = False  # `eval()` makes it True, as of nnx.Dropout

    def __call__(self, pixels: jax.Array) -> Reconstruction:
        """Encode pixels (rows, pixels) between 0 and 1, and decode them."""
        mean, log_std = jnp.split(self.encoder(pixels), 2, axis=-1)
        divergence = 0.5 * jnp.square(mean) + 0.5 * jnp.exp(2.0 * log_std) - 0.5 - log_std
        code = mean
        if not self.deterministic:
            code += jnp.exp(log_std) * jax.random.normal(self.rngs.noise(), mean.shape)
        return Reconstruction(self.decoder(code), jnp.sum(divergence, axis=-1))
