"""Supervised tasks of Flax NNX modules."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from flax import nnx

from l2o.supervision.criterion import Criterion
from l2o.supervision.supervised import Arrays, supervised
from l2o.task import Key, Split, Task


def supervised_nnx(
    name: str,
    data: Mapping[Split, tuple[Arrays, Arrays]],
    module: Callable[[nnx.Rngs], nnx.Module],
    criterion: Criterion | None = None,
    *,
    batch_size: int = 64,
    varied: bool = False,
    family: str = "",
) -> Task:
    """Make a task of data and a Flax NNX module, as `supervised` does of a function.

    The module is split once, here: its `nnx.Param` are the parameters, as nested dicts, and all
    else that it holds stays what it was. Dropout draws from the key of the training batch and does
    nothing on other splits. Batch normalisation goes by the batch at hand on all splits, as no
    running statistics are kept.

    >>> from flax import nnx
    >>> import l2o
    >>> from l2o.tasks.digits import digits
    >>> task = l2o.supervised_nnx("linear", digits(), lambda rngs: nnx.Linear(64, 10, rngs=rngs))
    >>> jax.eval_shape(task.init, jax.random.key(0), task.sample(jax.random.key(0)))["kernel"].shape
    (64, 10)

    Args:
        name: Name of the task.
        data: Shuffled inputs and targets of each split; no row belongs to two.
        module: Function `(rngs) -> module`, which maps inputs to outputs, such as a class whose
            constructor takes `rngs` alone.
        criterion: Loss and metrics; `cross_entropy()` if None.
        batch_size: Number of rows of a batch.
        varied: Whether instances differ, as in `supervised`; in the size of their batches only
            without batch normalisation.
        family: Name that variants of the task share; empty for the task's own name.

    Raises:
        ValueError: As `supervised`, or if the module was made already, has no parameters, or
            carries statistics other than those of batch normalisation.
    """
    if isinstance(module, nnx.Module):
        raise ValueError(
            f"`module` of task {name} must be a function of rngs; got a {type(module).__name__}. "
            "Try its class, or lambda rngs: ... that makes it."
        )
    # Only shapes, as drawing initial weights would compile a program for each shape.
    training = nnx.eval_shape(lambda: module(nnx.Rngs(0)))
    training.train()
    graph, params, keys, rest = nnx.split(training, nnx.Param, nnx.RngKey, ...)
    if jax.tree.leaves(rest):
        rest = jax.jit(lambda: nnx.split(module(nnx.Rngs(0)), nnx.Param, nnx.RngKey, ...)[3])()
    for _, part in nnx.iter_modules(training):
        carries = any(isinstance(value, nnx.BatchStat) for value in vars(part).values())
        if carries and not hasattr(part, "use_running_average"):
            raise ValueError(
                f"`module` of task {name} must not carry statistics from batch to batch, but for "
                f"layers with use_running_average; got {type(part).__name__}. Try nnx.BatchNorm, "
                "or nnx.LayerNorm."
            )
    training.eval()
    normalizes = bool(jax.tree.leaves(nnx.state(training, nnx.BatchStat)))
    training.set_attributes(use_running_average=False, raise_if_not_found=False)
    graph_elsewhere = nnx.graphdef(training)
    structure = jax.tree.structure(params)
    if not structure.num_leaves:
        raise ValueError(f"`module` of task {name} must have parameters; got none (nnx.Param).")

    def init(key: Key) -> optax.Params:
        return nnx.to_pure_dict(nnx.state(module(nnx.Rngs(key)), nnx.Param))

    def apply(params: optax.Params, inputs: Arrays, key: Key | None) -> Any:
        state = jax.tree.unflatten(structure, jax.tree.leaves(params))
        streams = jax.tree.structure(keys)
        drawn = jax.random.split(jax.random.key(0) if key is None else key, streams.num_leaves)
        fresh = jax.tree.unflatten(streams, list(drawn))
        mode = graph_elsewhere if key is None else graph
        return nnx.merge(mode, state, fresh, rest, copy=True)(inputs)

    is_stochastic = bool(jax.tree.leaves(keys))
    return supervised(
        name,
        data,
        init,
        apply if is_stochastic else lambda params, inputs: apply(params, inputs, None),
        criterion,
        batch_size=batch_size,
        varied=varied,
        is_stochastic=is_stochastic,
        mixes_rows=normalizes,
        family=family,
    )
