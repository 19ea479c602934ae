"""Blocks of transformers and Mixers, and the networks made of them."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from l2o.tasks.networks.conv import as_images
from l2o.tasks.networks.mlp import SMALL


class Block(nnx.Module):
    """A pre-norm block of a transformer or a Mixer: tokens, then channels (Tolstikhin et al. 2021).

    Args:
        width: Channels.
        tokens: Number of tokens, for mixing; ignored by attention.
        mixer: "attention", "causal" attention, or a "mlp" over tokens.
        heads: Heads of the attention.
        rngs: Keys of the initial weights.
    """

    def __init__(
        self,
        width: int,
        tokens: int,
        mixer: Literal["attention", "causal", "mlp"],
        heads: int = 2,
        *,
        rngs: nnx.Rngs,
    ):
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.mixer, self.heads = mixer, heads
        if mixer == "mlp":
            self.tokens = nnx.List(
                [
                    nnx.Linear(tokens, 2 * tokens, rngs=rngs),
                    nnx.Linear(2 * tokens, tokens, rngs=rngs),
                ]
            )
        else:
            self.tokens = nnx.List(
                [nnx.Linear(width, 3 * width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)]
            )
        self.channels = nnx.List(
            [nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map tokens (rows, tokens, width) to as many."""
        first, last = self.tokens
        y = self.norms[0](x)
        if self.mixer == "mlp":
            x = x + jnp.swapaxes(last(nnx.gelu(first(jnp.swapaxes(y, 1, 2)))), 1, 2)
        else:
            qkv = first(y).reshape(*y.shape[:2], 3, self.heads, -1)
            mixed = jax.nn.dot_product_attention(
                *jnp.moveaxis(qkv, 2, 0), is_causal=self.mixer == "causal"
            )
            x = x + last(mixed.reshape(y.shape))
        up, down = self.channels
        return x + down(nnx.gelu(up(self.norms[1](x))))


class PatchNet(nnx.Module):
    """Patches of an image as tokens: a ViT (Dosovitskiy et al. 2021) or an MLP-Mixer.

    Args:
        side: Height and width of the images.
        patch: Height and width of a patch, which divides the side.
        width: Channels of the tokens.
        depth: Number of blocks.
        classes: Number of outputs.
        mixer: "attention" for a ViT, "mlp" for a Mixer.
        rngs: Keys of the initial weights.
    """

    def __init__(
        self,
        side: int,
        patch: int,
        width: int,
        depth: int,
        classes: int,
        mixer: Literal["attention", "mlp"],
        *,
        rngs: nnx.Rngs,
    ):
        tokens = (side // patch) ** 2
        self.embed = nnx.Linear(patch * patch, width, rngs=rngs)
        if mixer == "attention":  # a Mixer tells positions apart by itself
            positions = jax.random.normal(rngs.params(), (tokens, width), jnp.float32)
            self.positions = nnx.Param(0.02 * positions)
        self.blocks = nnx.List([Block(width, tokens, mixer, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, classes, kernel_init=SMALL, rngs=rngs)
        self.patch, self.mixer = patch, mixer

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map flat images (rows, pixels) to logits (rows, classes)."""
        images = as_images(inputs)[..., 0]
        rows, side, n = len(images), images.shape[1] // self.patch, self.patch
        cut = images.reshape(rows, side, n, side, n).swapaxes(2, 3).reshape(rows, side * side, -1)
        x = self.embed(cut)
        if self.mixer == "attention":
            x = x + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(self.norm(x), axis=1))


class ByteTransformer(nnx.Module):
    """A causal transformer over bytes, with tied embeddings.

    Args:
        length: Most bytes of a window.
        width: Channels.
        depth: Number of blocks.
        rngs: Keys of the initial weights.
    """

    def __init__(self, length: int, width: int, depth: int, *, rngs: nnx.Rngs):
        self.table = nnx.Param(0.02 * jax.random.normal(rngs.params(), (256, width), jnp.float32))
        self.positions = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (length, width), jnp.float32)
        )
        self.blocks = nnx.List([Block(width, length, "causal", rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        """Map bytes (rows, length) to logits (rows, length, 256) of those that follow."""
        # A product with a one-hot matrix: a gather's gradient is a scatter, slow under vmap.
        x = (
            jax.nn.one_hot(text, 256, dtype=self.table.dtype) @ self.table[...]
            + self.positions[...]
        )
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.table[...].T
