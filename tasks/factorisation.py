"""Matrix completion by factors of low rank."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from l2o import Key, Split, Task, TaskFamily
from l2o.tasks.families import sized_family

NOISE = 0.1
"""Standard deviation of what is observed around a matrix whose entries have 1."""

SHARES: Mapping[Split, tuple[float, float]] = {
    "train": (0.0, 0.5),
    "valid": (0.5, 0.75),
    "test": (0.75, 1.0),
}
"""Which of the entries a split has, in an order that the instance draws."""


def matrix_completion(
    name: str, shape: tuple[int, int], rank: int, *, batch_size: int = 128, family: str = ""
) -> Task:
    """Find factors U Vᵀ of a matrix from half of its entries, which are noisy.

    An instance draws a matrix of this rank, with entries of variance 1, and which of them are
    observed. The loss is half the mean square error of the observed entries of a batch; its least
    value without noise is 0. Factors have twice the rank (Gunasekar et al. 2017 study why that
    still generalises from small initial values, which these have: a standard deviation of 0.1).

    >>> matrix_completion("small", (8, 6), 2).loss_scale
    0.505

    Args:
        name: Name of the task.
        shape: Rows and columns of the matrix.
        rank: Rank of the matrix.
        batch_size: Number of entries of a batch.
        family: Name that tasks of other shapes share; empty for the task's own name.
    """
    rows, columns = shape
    counts: Mapping[Split, tuple[int, int]] = {s: ends_of(s, rows * columns) for s in SHARES}

    def sample(key: Key):
        k_left, k_right, k_noise, k_order = jax.random.split(key, 4)
        left = jax.random.normal(k_left, (rows, rank))
        right = jax.random.normal(k_right, (columns, rank))
        noise = NOISE * jax.random.normal(k_noise, shape)
        return {
            "matrix": left @ right.T / rank**0.5 + noise,
            "order": jax.random.permutation(k_order, rows * columns),
        }

    def init(key: Key, instance):
        del instance
        k_left, k_right = jax.random.split(key)
        return {
            "left": 0.1 * jax.random.normal(k_left, (rows, 2 * rank)),
            "right": 0.1 * jax.random.normal(k_right, (columns, 2 * rank)),
        }

    def batch(key: Key, instance, data, split: Split):
        del data
        first, last = counts[split]
        drawn = jax.random.randint(key, (batch_size,), first, last)
        return instance["order"][drawn]

    def all_rows(instance, data, split: Split):
        del data
        return instance["order"][slice(*counts[split])]

    def loss(params, entries, instance):
        row, column = entries // columns, entries % columns
        # Products with one-hot matrices: the gradient of a gather is a scatter, slow under vmap.
        left = jax.nn.one_hot(row, rows) @ params["left"]
        right = jax.nn.one_hot(column, columns) @ params["right"]
        away = jnp.sum(left * right, axis=1) - instance["matrix"][row, column]
        return 0.5 * jnp.mean(jnp.square(away))

    scale = 0.5 * (1.0 + NOISE**2)
    return Task(
        name=name,
        family=family,
        sample=sample,
        init=init,
        batch=batch,
        loss=loss,
        loss_cap=10.0 * scale,
        loss_scale=scale,
        all_rows=all_rows,
    )


def ends_of(split: Split, number: int) -> tuple[int, int]:
    """First and last (exclusive) of so many entries that a split has."""
    first, last = SHARES[split]
    return int(first * number), int(last * number)


def factorisation() -> TaskFamily:
    """Matrix completion by factors of low rank, from half of the noisy entries."""

    def make(name: str, size: tuple[int, int, int], varied: bool) -> Task:
        del varied  # every instance is a matrix of its own
        return matrix_completion(name, size[:2], size[2], family="factorisation")

    return sized_family(
        "factorisation",
        make,
        {"32x32": (32, 32, 4), "64x32": (64, 32, 4)},
        {"128x64": (128, 64, 8)},
    )
