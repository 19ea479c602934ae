"""Networks that solve a differential equation (physics-informed)."""

import itertools

import jax
import jax.numpy as jnp

from l2o import Key, Split, Task, TaskFamily
from l2o.tasks.families import sized_family

MODES = 4
"""Sines that a solution is made of."""


def poisson_network(
    name: str, hidden_sizes: tuple[int, ...], *, batch_size: int = 32, family: str = ""
) -> Task:
    """Solve u'' = f on [0, 1] with u(0) = u(1) = 0 by a tanh network (Raissi et al. 2019).

    An instance draws the solution, u(x) = Σₖ aₖ sin(kπx) with aₖ normal with a standard deviation
    of 1/k², for k up to `MODES`, and f with it. The loss is half the mean square of u'' - f at
    points drawn uniformly, over π⁴ so that it is of the size of u. The network is multiplied by
    x (1 - x), so the ends are right by themselves. The metric "error" is the root mean square
    distance to the solution. Splits differ in nothing: all points are drawn anew.

    >>> poisson_network("small", (8,)).name
    'small'

    Args:
        name: Name of the task.
        hidden_sizes: Widths of the hidden layers.
        batch_size: Number of points of a batch.
        family: Name that tasks of other sizes share; empty for the task's own name.
    """
    layers = tuple(itertools.pairwise((1, *hidden_sizes, 1)))
    orders = jnp.pi * jnp.arange(1, MODES + 1)

    def sample(key: Key):
        return jax.random.normal(key, (MODES,)) / jnp.arange(1, MODES + 1) ** 2

    def init(key: Key, instance):
        del instance
        params = {}
        for i, (inputs, outputs) in enumerate(layers):
            k_weights, k_bias = jax.random.split(jax.random.fold_in(key, i))
            bound = (3.0 / inputs) ** 0.5
            params[f"w{i}"] = jax.random.uniform(
                k_weights, (inputs, outputs), minval=-bound, maxval=bound
            )
            params[f"b{i}"] = jax.random.uniform(k_bias, (outputs,), minval=-1.0, maxval=1.0)
        return params

    def solution(params, x: jax.Array) -> jax.Array:
        hidden = x[None]
        for i in range(len(layers)):
            hidden = hidden @ params[f"w{i}"] + params[f"b{i}"]
            if i < len(layers) - 1:
                hidden = jnp.tanh(hidden)
        return x * (1.0 - x) * hidden[0]

    def batch(key: Key, instance, data, split: Split):
        del instance, data, split
        return jax.random.uniform(key, (batch_size,))

    def loss(params, points, amplitudes):
        curvature = jax.vmap(jax.grad(jax.grad(solution, argnums=1), argnums=1), in_axes=(None, 0))
        forcing = -jnp.sin(points[:, None] * orders) @ (amplitudes * orders**2)
        return 0.5 * jnp.mean(jnp.square(curvature(params, points) - forcing)) / jnp.pi**4

    def metrics(params, points, amplitudes):
        found = jax.vmap(solution, in_axes=(None, 0))(params, points)
        true = jnp.sin(points[:, None] * orders) @ amplitudes
        return {"error": jnp.sqrt(jnp.mean(jnp.square(found - true)))}

    scale = 0.25 * MODES  # of u = 0: half the variance of each sine's curvature, over π⁴
    return Task(
        name=name,
        family=family,
        sample=sample,
        init=init,
        batch=batch,
        loss=loss,
        loss_cap=10.0 * scale,
        metrics=metrics,
        metric_caps={"error": 10.0},
        loss_scale=scale,
    )


def poisson() -> TaskFamily:
    """Physics-informed networks for the one-dimensional Poisson equation."""

    def make(name: str, hidden: tuple[int, ...], varied: bool) -> Task:
        del varied  # every instance is an equation of its own
        return poisson_network(name, hidden, family="poisson")

    return sized_family("poisson", make, {"16": (16,), "16x16": (16, 16)}, {"64x64": (64, 64)})
