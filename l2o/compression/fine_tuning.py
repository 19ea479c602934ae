"""Fine-tuning of a compressed network, whose masks and bits hold throughout.

What is trained are weights behind the compression: a pruned weight gets no gradient and stays zero,
a quantized one is moved through its rounding (straight-through). So any optimizer does it, learned
ones among them.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o.compression.layers import leaves_by_name
from l2o.compression.problem import CompressionProblem
from l2o.compression.scheme import Guide
from l2o.compression.trained_model import Params
from l2o.leaves import require_transformation
from l2o.rng import check_seed, key_of
from l2o.supervision.supervised import Rows, num_rows, take
from l2o.task import Key


def fine_tune(
    problem: CompressionProblem,
    counts: np.ndarray | jax.Array,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    batch_size: int = 64,
    seed: int = 0,
) -> Params:
    """Train a compressed network on the training rows.

    Args:
        problem: Problem that the counts solve.
        counts: Counts of each group.
        optimizer: Any optax transformation; it is given `value=loss`.
        steps: Number of steps.
        batch_size: Number of rows of a batch, drawn with replacement.
        seed: Seed of the batches.

    Returns:
        Parameters behind the compression, see `CompressionProblem.compressed`.

    Raises:
        ValueError: If `optimizer` is no optax transformation, or a number is out of range.
    """
    check_seed(seed)
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}. Try {name}=64.")
    tx = require_transformation(optimizer, "optimizer")
    counts = jnp.asarray(counts, jnp.int32)
    # A quantized network is trained behind its rounding, a pruned one without what is gone.
    params = problem.network.params
    params = params if problem.scheme.name == "bits" else problem.compressed(counts)
    keys = jax.random.split(key_of(jax.random.key(seed), "fine_tuning"), steps)
    train = _training(problem.architecture, tx, batch_size)
    return train(params, keys, problem.network.guide, counts, problem.model.data["train"])


@functools.lru_cache(maxsize=4)
def _training(
    problem: CompressionProblem, tx: optax.GradientTransformationExtraArgs, batch_size: int
) -> Callable[[Params, Key, Guide, jax.Array, Rows], Params]:
    """Compiled training of compressed networks of an architecture."""
    model, compress = problem.model, problem.scheme.compress
    is_trained = [name not in model.frozen for name in leaves_by_name(model.params)]

    @jax.jit
    def train(params: Params, keys: Key, guide: Guide, counts: jax.Array, rows: Rows) -> Params:
        leaves, structure = jax.tree.flatten(params)

        def with_frozen(trained: Params) -> Params:
            moved = iter(trained)
            pairs = zip(leaves, is_trained, strict=True)
            return jax.tree.unflatten(structure, [next(moved) if t else x for x, t in pairs])

        def loss(trained: Params, batch: Rows) -> jax.Array:
            outputs = model.apply(compress(with_frozen(trained), guide, counts), batch.inputs)
            return jnp.mean(model.criterion.losses(outputs, batch.targets))

        def step(carry: tuple[Any, Any], key: Key):
            trained, state = carry
            indices = jax.random.randint(key, (batch_size,), 0, num_rows(rows))
            value, grads = jax.value_and_grad(loss)(trained, take(rows, indices))
            updates, state = tx.update(grads, state, trained, value=value)
            return (optax.apply_updates(trained, updates), state), None

        first = [leaf for leaf, kept in zip(leaves, is_trained, strict=True) if kept]
        (trained, _), _ = jax.lax.scan(step, (first, tx.init(first)), keys)
        return with_frozen(jax.tree.leaves(trained))

    return train
