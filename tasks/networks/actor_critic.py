"""An actor and a critic, apart, as functions of their parameters, and which neurons are dormant."""

import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from l2o import Key

Weights = Mapping[str, jax.Array]
"""Weights w0, w1, ... of shape (inputs, outputs) and biases b0, b1, ... of shape (outputs,)."""

DORMANT = 0.025
"""Largest score of a neuron that counts as dormant (Sokar et al. 2023)."""


def init(key: Key, num_inputs: int, hidden_sizes: Sequence[int], num_actions: int):
    """Draw the weights of an actor and of a critic.

    They are He's, but for the actor's outputs of a hundredth of that standard deviation, so that
    it begins by acting at random.

    Returns:
        Weights, by the names "actor" and "critic".
    """
    k_actor, k_critic = jax.random.split(key)
    return {
        "actor": init_layers(k_actor, (num_inputs, *hidden_sizes, num_actions), 0.01),
        "critic": init_layers(k_critic, (num_inputs, *hidden_sizes, 1), 1.0),
    }


def init_layers(key: Key, sizes: Sequence[int], last_scale: float) -> dict[str, jax.Array]:
    """Draw He's weights of dense layers, the last times a factor; biases are 0."""
    shapes = list(itertools.pairwise(sizes))
    drawn = jax.random.normal(key, (sum(m * n for m, n in shapes),))  # one draw compiles faster
    weights, begin = {}, 0
    for i, (inputs, outputs) in enumerate(shapes):
        end = begin + inputs * outputs
        scale = (2.0 / inputs) ** 0.5 * (last_scale if i == len(shapes) - 1 else 1.0)
        weights[f"w{i}"] = scale * drawn[begin:end].reshape(inputs, outputs)
        weights[f"b{i}"] = jnp.zeros(outputs)
        begin = end
    return weights


def layers(weights: Weights, inputs: jax.Array) -> list[jax.Array]:
    """Compute the outputs of all layers; those of hidden ones after their ReLU.

    Args:
        weights: Weights of the network.
        inputs: Inputs, shape (..., inputs).

    Returns:
        Arrays of shape (..., outputs), one a layer.
    """
    found, last = [], len(weights) // 2 - 1
    for i in range(last + 1):
        inputs = inputs @ weights[f"w{i}"] + weights[f"b{i}"]
        inputs = inputs if i == last else jax.nn.relu(inputs)
        found.append(inputs)
    return found


def dormancy(weights: Weights, inputs: jax.Array) -> list[jax.Array]:
    """Compute how active each neuron is beside the others of its layer.

    For a layer of H neurons and the mean magnitude aⱼ of the output of neuron j it is
    H aⱼ / Σₖ aₖ (Sokar et al. 2023): 0 of a neuron that is never active, 1 in the mean. It is the
    feature of that name of OPEN (Goldie et al. 2024), of the layer's weights and bias alike. The
    optimizers of l2o do not read it: `update` is not given what a network computes.

    >>> weights = {"w0": jnp.eye(2), "b0": jnp.array([0.0, 2.0])}
    >>> print(dormancy(weights, jnp.array([[1.0, 1.0], [1.0, -1.0]]))[0])
    [0.6666667 1.3333334]

    Args:
        weights: Weights of the network.
        inputs: Inputs, shape (..., inputs).

    Returns:
        Arrays of shape (outputs,), one a layer, which broadcast to its weights and bias.
    """
    found = []
    for outputs in layers(weights, inputs):
        mean = jnp.mean(jnp.abs(outputs).reshape(-1, outputs.shape[-1]), axis=0) + 1e-11
        found.append(mean / jnp.mean(mean))
    return found


def dormant_fraction(weights: Weights, inputs: jax.Array) -> jax.Array:
    """Compute the fraction of hidden neurons whose dormancy is at most `DORMANT`."""
    return jnp.mean(jnp.concatenate(dormancy(weights, inputs)[:-1]) <= DORMANT)
