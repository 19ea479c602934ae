"""Recurrent networks."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx


class ByteRNN(nnx.Module):
    """An LSTM or a GRU over bytes, which starts from zeros.

    Args:
        width: Units.
        cell: "lstm" or "gru".
        rngs: Keys of the initial weights.
    """

    def __init__(self, width: int, cell: Literal["lstm", "gru"], *, rngs: nnx.Rngs):
        kind = nnx.OptimizedLSTMCell if cell == "lstm" else nnx.GRUCell
        self.embed = nnx.Linear(256, width, use_bias=False, rngs=rngs)
        self.cell = kind(width, width, rngs=rngs)
        self.head = nnx.Linear(width, 256, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        """Map bytes (rows, length) to logits (rows, length, 256) of those that follow."""
        # `nnx.RNN` would keep a key, though nothing here is random.
        inputs = jnp.swapaxes(
            self.embed(jax.nn.one_hot(text, 256, dtype=self.embed.kernel.dtype)), 0, 1
        )
        start: Any = self.cell.initialize_carry(inputs.shape[1:], nnx.Rngs(0))
        step: Any = self.cell
        _, states = jax.lax.scan(step, start, inputs)
        return self.head(jnp.swapaxes(states, 0, 1))
