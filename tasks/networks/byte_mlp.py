"""A perceptron over the bytes before, with one embedding for all of them."""

import jax
import jax.numpy as jnp
from flax import nnx

from l2o.tasks.networks.mlp import SMALL


class ByteMLP(nnx.Module):
    """Predict a byte from those before it by one hidden layer (Bengio et al. 2003).

    Args:
        context: Number of bytes that it sees.
        width: Number of hidden units; embeddings have a quarter of it.
        rngs: Keys of the initial weights.
    """

    def __init__(self, context: int, width: int, *, rngs: nnx.Rngs):
        features = width // 4
        normal = nnx.initializers.normal(1.0)
        self.embedding = nnx.Param(normal(rngs.params(), (256, features)))
        self.hidden = nnx.Linear(context * features, width, rngs=rngs)
        self.readout = nnx.Linear(width, 256, kernel_init=SMALL, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map bytes (rows, context) to logits (rows, 256)."""
        # A product with one-hot rows: under `vmap` a CPU is slow at adding up scattered gradients.
        embedded = jax.nn.one_hot(inputs, 256) @ self.embedding[...]
        x = jnp.tanh(self.hidden(embedded.reshape(len(inputs), -1)))
        return self.readout(x)
