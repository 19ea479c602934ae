"""Distributions over actions, parametrized by the outputs of a network.

An action is sampled by transforming noise, so that two runs can be given antithetic noise. What is
recorded, and has a likelihood, is the sample before it is squashed (`pre_squash`). The squashing
changes no ratio of likelihoods and, unlike the density of the squashed action, never divides by
zero.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from l2o.task import Key

HeadName = Literal["gaussian", "squashed", "categorical"]

LOG_STD = (-4.0, 0.0)
"""Bounds of the learned logarithm of a Gaussian's standard deviation."""

INITIAL_LOG_STD = -1.0


def bounded_log_std(log_std: jax.Array) -> jax.Array:
    """Bound a log-std by a sigmoid, as a hard clip would leave no gradient that leads back."""
    low, high = LOG_STD
    return low + (high - low) * jax.nn.sigmoid(log_std)


@dataclass(frozen=True, eq=False)
class Head:
    """Distribution over actions.

    `outputs` of the network has shape (..., num_outputs). `log_std`, which is trained and does not
    depend on the observation, has shape (num_actions,); `bounded_log_std` makes log-standard
    deviations of it. It is empty for a categorical head. Densities and entropies are summed over
    the actions of one agent and have shape (...).

    Attributes:
        num_outputs: Number of outputs that the network must have.
        num_choices: Number of choices of a categorical head; None for a Gaussian.
        init_log_std: Function `() -> log_std`, its value before training.
        noise: Function `(key, shape) -> noise` of shape (*shape, num_actions).
        antithetic: Function `(noise) -> noise` that is as likely, and as opposite as can be.
        sample: Function `(outputs, log_std, noise) -> pre_squash`.
        mode: Function `(outputs) -> pre_squash`, the most likely one, which release files take. Of
            a squashed head, tanh of it is the median of the actions: their mode is closer to -1 or
            1, and there are two of them where the standard deviation is large.
        squash: Function `(pre_squash) -> action` of shape (..., num_actions); a float index if
            categorical.
        log_prob: Function `(outputs, log_std, pre_squash) -> log-density`, or log-probability if
            categorical.
        entropy: Function `(outputs, log_std) -> entropy` of `pre_squash`, in nats; of a squashed
            head not that of its actions.
    """

    num_outputs: int
    num_choices: int | None
    init_log_std: Callable[[], jax.Array]
    noise: Callable[[Key, tuple[int, ...]], jax.Array]
    antithetic: Callable[[jax.Array], jax.Array]
    sample: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    mode: Callable[[jax.Array], jax.Array]
    squash: Callable[[jax.Array], jax.Array]
    log_prob: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    entropy: Callable[[jax.Array, jax.Array], jax.Array]


def make_head(name: HeadName, num_actions: int) -> Head:
    """Make the head of a name.

    >>> make_head("categorical", 3).num_outputs
    3

    Args:
        name: "gaussian", "squashed" for actions between -1 and 1, or "categorical".
        num_actions: Number of actions of an agent; of choices for a categorical head.

    Raises:
        ValueError: If there is none of that name, or fewer than one action (two to choose from).
    """
    at_least = 2 if name == "categorical" else 1
    if num_actions < at_least:
        raise ValueError(
            f"`num_actions` must be at least {at_least} for a {name} head; got {num_actions}. "
            f"Try num_actions={at_least}."
        )
    if name == "categorical":
        return categorical(num_actions)
    if name in ("gaussian", "squashed"):
        return gaussian(num_actions, jnp.tanh if name == "squashed" else lambda action: action)
    raise ValueError(f"`head` must be one of {', '.join(get_args(HeadName))}; got {name}.")


def gaussian(num_actions: int, squash: Callable[[jax.Array], jax.Array]) -> Head:
    """Make independent normals around the network's outputs, with a learned log-std."""
    share = (INITIAL_LOG_STD - LOG_STD[0]) / (LOG_STD[1] - LOG_STD[0])

    def log_prob(outputs: jax.Array, log_std: jax.Array, pre_squash: jax.Array) -> jax.Array:
        z = (pre_squash - outputs) * jnp.exp(-bounded_log_std(log_std))
        density = -0.5 * (z**2 + jnp.log(2.0 * jnp.pi)) - bounded_log_std(log_std)
        return jnp.sum(density, axis=-1)

    def entropy(outputs: jax.Array, log_std: jax.Array) -> jax.Array:
        entropies = bounded_log_std(log_std) + 0.5 * jnp.log(2.0 * jnp.pi * jnp.e)
        return jnp.broadcast_to(jnp.sum(entropies), outputs.shape[:-1])

    return Head(
        num_outputs=num_actions,
        num_choices=None,
        init_log_std=lambda: jnp.full(num_actions, math.log(share / (1.0 - share)), jnp.float32),
        noise=lambda key, shape: jax.random.normal(key, (*shape, num_actions), jnp.float32),
        antithetic=lambda noise: -noise,
        sample=lambda outputs, log_std, noise: outputs + jnp.exp(bounded_log_std(log_std)) * noise,
        mode=lambda outputs: outputs,
        squash=squash,
        log_prob=log_prob,
        entropy=entropy,
    )


def categorical(num_choices: int) -> Head:
    """Make a softmax over choices; the noise is uniform and inverts the distribution."""

    def sample(outputs: jax.Array, log_std: jax.Array, noise: jax.Array) -> jax.Array:
        del log_std
        below = jnp.cumsum(jax.nn.softmax(outputs), axis=-1)
        index = jnp.sum(noise > below[..., :-1], axis=-1, keepdims=True)
        return index.astype(jnp.float32)

    def log_prob(outputs: jax.Array, log_std: jax.Array, pre_squash: jax.Array) -> jax.Array:
        del log_std
        chosen = jax.nn.one_hot(
            pre_squash[..., 0].astype(jnp.int32), num_choices, dtype=jnp.float32
        )
        return jnp.sum(jax.nn.log_softmax(outputs) * chosen, axis=-1)

    def entropy(outputs: jax.Array, log_std: jax.Array) -> jax.Array:
        del log_std
        return -jnp.sum(jax.nn.softmax(outputs) * jax.nn.log_softmax(outputs), axis=-1)

    return Head(
        num_outputs=num_choices,
        num_choices=num_choices,
        init_log_std=lambda: jnp.zeros(0, jnp.float32),
        noise=lambda key, shape: jax.random.uniform(key, (*shape, 1), jnp.float32),
        antithetic=lambda noise: 1.0 - noise,
        sample=sample,
        mode=lambda outputs: jnp.argmax(outputs, axis=-1, keepdims=True).astype(jnp.float32),
        squash=lambda action: action,
        log_prob=log_prob,
        entropy=entropy,
    )
