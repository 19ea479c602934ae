"""Distributions over actions, by what a network puts out.

An action is drawn from noise, so that two runs can be given opposite noise. What is recorded, and
has a likelihood, is the draw itself (`raw`); `squash` bounds it afterwards, which changes no ratio
of likelihoods and, unlike the density of the bounded action, never divides by zero.
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

FIRST_LOG_STD = -1.0


def log_std_of(spread: jax.Array) -> jax.Array:
    """Between the bounds, by a sigmoid: a hard clip would leave no gradient that leads back."""
    low, high = LOG_STD
    return low + (high - low) * jax.nn.sigmoid(spread)


@dataclass(frozen=True, eq=False)
class Head:
    """A distribution over actions.

    `outputs` has shape (..., num_outputs), from the network. `spread` holds what does not depend
    on the observation: what `log_std_of` makes standard deviations from, shape (num_actions,);
    empty for a categorical head. Everything is a sum over the actions of one agent, shape (...).

    Attributes:
        num_outputs: that the network must have.
        num_choices: that a categorical head has; None for a Gaussian.
        spread: `() -> spread` before learning.
        noise: `(key, shape) -> noise` of shape (*shape, num_actions).
        reflect: `(noise) -> noise` that is as likely, and as opposite as can be.
        draw: `(outputs, spread, noise) -> raw`.
        mode: `(outputs) -> raw`, the action that ships.
        squash: `(raw) -> action` of shape (..., num_actions); a float index if categorical.
        log_prob: `(outputs, spread, raw) -> log-density`, or log-probability if categorical.
        entropy: `(outputs, spread) -> entropy` of `raw`, in nats.
    """

    num_outputs: int
    num_choices: int | None
    spread: Callable[[], jax.Array]
    noise: Callable[[Key, tuple[int, ...]], jax.Array]
    reflect: Callable[[jax.Array], jax.Array]
    draw: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    mode: Callable[[jax.Array], jax.Array]
    squash: Callable[[jax.Array], jax.Array]
    log_prob: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    entropy: Callable[[jax.Array, jax.Array], jax.Array]


def make_head(name: HeadName, num_actions: int) -> Head:
    """The head of this name; a categorical one chooses among `num_actions`.

    Raises:
        ValueError: if there is none of that name, or fewer than one action (two to choose from).
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
        return gaussian(num_actions, jnp.tanh if name == "squashed" else lambda raw: raw)
    raise ValueError(f"`head` must be one of {', '.join(get_args(HeadName))}; got {name}.")


def gaussian(num_actions: int, squash: Callable[[jax.Array], jax.Array]) -> Head:
    """Independent normals around the network's outputs, with a learned spread."""

    share = (FIRST_LOG_STD - LOG_STD[0]) / (LOG_STD[1] - LOG_STD[0])

    def log_prob(outputs: jax.Array, spread: jax.Array, raw: jax.Array) -> jax.Array:
        z = (raw - outputs) * jnp.exp(-log_std_of(spread))
        return jnp.sum(-0.5 * (z**2 + jnp.log(2.0 * jnp.pi)) - log_std_of(spread), axis=-1)

    def entropy(outputs: jax.Array, spread: jax.Array) -> jax.Array:
        of_each = log_std_of(spread) + 0.5 * jnp.log(2.0 * jnp.pi * jnp.e)
        return jnp.broadcast_to(jnp.sum(of_each), outputs.shape[:-1])

    return Head(
        num_outputs=num_actions,
        num_choices=None,
        spread=lambda: jnp.full(num_actions, math.log(share / (1.0 - share)), jnp.float32),
        noise=lambda key, shape: jax.random.normal(key, (*shape, num_actions)),
        reflect=lambda noise: -noise,
        draw=lambda outputs, spread, noise: outputs + jnp.exp(log_std_of(spread)) * noise,
        mode=lambda outputs: outputs,
        squash=squash,
        log_prob=log_prob,
        entropy=entropy,
    )


def categorical(num_choices: int) -> Head:
    """One of several choices, by softmax; the noise is uniform and inverts the distribution."""

    def draw(outputs: jax.Array, spread: jax.Array, noise: jax.Array) -> jax.Array:
        del spread
        below = jnp.cumsum(jax.nn.softmax(outputs), axis=-1)
        index = jnp.sum(noise > below[..., :-1], axis=-1, keepdims=True)
        return index.astype(jnp.float32)

    def log_prob(outputs: jax.Array, spread: jax.Array, raw: jax.Array) -> jax.Array:
        del spread
        chosen = jax.nn.one_hot(raw[..., 0].astype(jnp.int32), num_choices)
        return jnp.sum(jax.nn.log_softmax(outputs) * chosen, axis=-1)

    def entropy(outputs: jax.Array, spread: jax.Array) -> jax.Array:
        del spread
        return -jnp.sum(jax.nn.softmax(outputs) * jax.nn.log_softmax(outputs), axis=-1)

    return Head(
        num_outputs=num_choices,
        num_choices=num_choices,
        spread=lambda: jnp.zeros(0),
        noise=lambda key, shape: jax.random.uniform(key, (*shape, 1)),
        reflect=lambda noise: 1.0 - noise,
        draw=draw,
        mode=lambda outputs: jnp.argmax(outputs, axis=-1, keepdims=True).astype(jnp.float32),
        squash=lambda raw: raw,
        log_prob=log_prob,
        entropy=entropy,
    )
