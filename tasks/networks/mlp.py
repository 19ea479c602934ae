"""Multilayer perceptrons."""

import itertools
from collections.abc import Callable, Sequence

import jax
from flax import nnx

SMALL = nnx.initializers.variance_scaling(0.02, "fan_in", "normal")
"""A tenth of He's standard deviation, for outputs: a network begins near guessing."""

Activation = Callable[[jax.Array], jax.Array]


class MLP(nnx.Module):
    """Dense layers with an activation between them, of all axes but the first as one.

    Args:
        sizes: Numbers of inputs, hidden units and outputs.
        activation: Function between layers.
        normalized: Whether hidden layers are normalised (LayerNorm) before the activation.
        rngs: Keys of the initial weights: He's, but for outputs of a tenth of that standard
            deviation, so that a network begins near guessing whatever the size of its inputs.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: Activation = nnx.relu,
        *,
        normalized: bool = False,
        rngs: nnx.Rngs,
    ):
        he = nnx.initializers.he_normal()
        pairs = list(itertools.pairwise(sizes))
        inits = [he] * (len(pairs) - 1) + [SMALL]
        self.layers = nnx.List(
            [
                nnx.Linear(*pair, kernel_init=init, rngs=rngs)
                for pair, init in zip(pairs, inits, strict=True)
            ]
        )
        self.norms = nnx.List([nnx.LayerNorm(m, rngs=rngs) for m in sizes[1:-1] if normalized])
        self.activation = activation

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map inputs (rows, ...) to outputs (rows, sizes[-1])."""
        x = inputs.reshape(len(inputs), -1)
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i < len(self.layers) - 1:
                x = self.activation(self.norms[i](x) if len(self.norms) else x)
        return x
