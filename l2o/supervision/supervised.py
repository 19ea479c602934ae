"""Supervised tasks: from data and a network to loss, metrics, batches and varied instances."""

import math
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o.supervision.criterion import Criterion, cross_entropy
from l2o.task import Data, Instance, Key, Shared, Split, Task

Arrays = Any
"""Pytree of arrays, NumPy's or JAX's, whose first axis is that of rows."""

SPLITS: tuple[Split, ...] = ("train", "valid", "test")

SCALES = (0.25, 4.0)
"""Range of a global reparametrisation α: parameters are stored divided by α and used times α.

Celo draws it from 0.001 to 1,000; this range suits designs whose first step size is a constant."""


class Rows(NamedTuple):
    """Inputs and targets of a split, in the same order."""

    inputs: Arrays
    targets: Arrays


class Batch(NamedTuple):
    """Rows, of which the first `size` count.

    Attributes:
        inputs: Pytree of arrays of shape (rows, ...).
        targets: Likewise.
        size: Number of rows that count, an int32 scalar.
        key: Key of what is random in a network while it trains; None on the other splits, and of a
            network in which nothing is.
        frozen: Arrays that the network uses and that are not trained; None without any.
    """

    inputs: Arrays
    targets: Arrays
    size: jax.Array
    key: Key | None = None
    frozen: Shared | None = None


def supervised(
    name: str,
    data: Mapping[Split, tuple[Arrays, Arrays]],
    init: Callable[[Key], optax.Params],
    apply: Callable[..., Any],
    criterion: Criterion | None = None,
    *,
    batch_size: int = 64,
    varied: bool = False,
    is_stochastic: bool = False,
    mixes_rows: bool = False,
    frozen: Arrays = None,
    family: str = "",
) -> Task:
    """Make a task of data and a network.

    With `varied`, instances differ in the scale of their initial weights (0.5 to 2 times), the part
    of the training rows they see (from a quarter up), their batch size (from an eighth of
    `batch_size` up) and a global reparametrisation (`SCALES`); without, every instance is the plain
    problem. The part of the rows is a run of consecutive ones, cyclically, so the rows must come
    shuffled.

    >>> import jax, jax.numpy as jnp, numpy as np
    >>> import l2o
    >>> rows = np.eye(8, 4, dtype=np.float32), np.arange(8) % 2
    >>> task = l2o.supervised(
    ...     "two_classes",
    ...     {"train": rows, "valid": rows, "test": rows},
    ...     init=lambda key: {"w": 0.5 * jax.random.normal(key, (4, 2)), "b": jnp.zeros(2)},
    ...     apply=lambda params, inputs: inputs @ params["w"] + params["b"],
    ... )
    >>> instance = task.sample(jax.random.key(0))
    >>> task.init(jax.random.key(1), instance)["w"].shape
    (4, 2)

    Args:
        name: Name of the task.
        data: Shuffled inputs and targets of each split; no row belongs to two.
        init: Function `(key) -> params` that draws initial parameters.
        apply: Function `(params, inputs) -> outputs`, or `(params, inputs, key) -> outputs` of a
            network that `is_stochastic`.
        criterion: Loss and metrics; if None `cross_entropy()`, of sequences where a row has several
            targets.
        batch_size: Number of rows of a batch; fewer count in a varied instance.
        varied: Whether instances differ.
        is_stochastic: Whether `apply` takes a key: of the batch, or None off the training split.
        mixes_rows: Whether a row's output depends on the others of its batch, as with batch
            normalisation. Then all rows of a batch count: it does not shrink, and instances do not
            differ in its size.
        frozen: Arrays that are not trained, such as weights of a pretrained network, if `apply`
            takes them as `frozen=`. They travel with the data, so that compiled programs do not
            hold them.
        family: Name that variants of the task share; empty for the task's own name.

    Raises:
        ValueError: If a split is missing, is empty, is not of arrays of numbers or has not as many
            inputs as targets; if targets are not what the criterion takes, or all are the same; or
            if the criterion or the size of a batch is none.
    """
    if not isinstance(criterion, Criterion | None):
        raise ValueError(
            f"`criterion` of task {name} must be a Criterion; got {criterion!r}. "
            "Try l2o.cross_entropy(), or l2o.squared_error()."
        )
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise ValueError(
            f"`batch_size` of task {name} must be a whole number above 0; got {batch_size!r}. "
            "Try batch_size=64."
        )
    rows = {split: rows_of(name, data, split) for split in SPLITS}
    train_rows = num_rows(rows["train"])
    targets = jax.tree.leaves(rows["train"].targets)
    by = criterion or cross_entropy(sequences=np.ndim(targets[0]) > 1)

    def sample(key: Key) -> Instance:
        if not varied:
            return {
                "init_scale": jnp.float32(1.0),
                "scale": jnp.float32(1.0),
                "first_row": jnp.int32(0),
                "num_rows": jnp.int32(train_rows),
                "batch_size": jnp.int32(batch_size),
            }
        k_init, k_scale, k_first_row, k_num_rows, k_batch_size = jax.random.split(key, 5)
        fewest = batch_size if mixes_rows else batch_size / 8
        return {
            "init_scale": log_uniform(k_init, 0.5, 2.0),
            "scale": log_uniform(k_scale, *SCALES),
            "first_row": jax.random.randint(k_first_row, (), 0, train_rows),
            "num_rows": log_uniform(k_num_rows, max(train_rows / 4, 1), train_rows).astype(
                jnp.int32
            ),
            "batch_size": log_uniform(k_batch_size, fewest, batch_size).astype(jnp.int32),
        }

    def scaled_init(key: Key, instance: Instance) -> optax.Params:
        def scale(p: jax.Array) -> jax.Array:
            weights = instance["init_scale"] * p if p.ndim > 1 else p
            return weights / instance["scale"]

        return jax.tree.map(scale, init(key))

    def batch(key: Key, instance: Instance, data: Data, split: Split) -> Batch:
        k_rows, k_network = jax.random.split(key) if is_stochastic else (key, None)
        kept = data.get("frozen")
        uniform = jax.random.uniform(k_rows, (batch_size,))
        if split != "train":
            drawn = take(data[split], (uniform * num_rows(data[split])).astype(jnp.int32))
            return Batch(drawn.inputs, drawn.targets, jnp.int32(batch_size), frozen=kept)
        order = (uniform * instance["num_rows"]).astype(jnp.int32)
        drawn = take(data[split], (instance["first_row"] + order) % train_rows)
        return Batch(drawn.inputs, drawn.targets, instance["batch_size"], k_network, kept)

    def all_rows(instance: Instance, data: Data, split: Split) -> Batch:
        rows, size = data[split], jnp.int32(num_rows(data[split]))
        if split == "train":
            rows = take(rows, (instance["first_row"] + jnp.arange(train_rows)) % train_rows)
            size = instance["num_rows"]
        return Batch(rows.inputs, rows.targets, size, frozen=data.get("frozen"))

    def shrink(batch: Batch, fraction: jax.Array) -> Batch:
        size = jnp.maximum(jnp.round(fraction * batch.size), 1.0)
        return batch._replace(size=size.astype(batch.size.dtype))

    def call(params: optax.Params, inputs: Arrays, key: Key | None, kept: Shared | None) -> Any:
        options = {} if kept is None else {"frozen": kept.arrays}
        return apply(params, inputs, *([key] if is_stochastic else []), **options)

    def outputs(params: optax.Params, batch: Batch, instance: Instance) -> Any:
        used = jax.tree.map(lambda p: instance["scale"] * p, params)
        return call(used, batch.inputs, batch.key, batch.frozen)

    def counts(batch: Batch) -> jax.Array:
        return jnp.arange(num_rows(batch)) < batch.size

    def loss(params: optax.Params, batch: Batch, instance: Instance) -> jax.Array:
        losses = by.losses(outputs(params, batch, instance), batch.targets)
        return jnp.sum(jnp.where(counts(batch), losses, 0.0)) / batch.size

    def metrics(params: optax.Params, batch: Batch, instance: Instance):
        if by.metrics is None:
            return {}
        return by.metrics(outputs(params, batch, instance), batch.targets, counts(batch))

    kept = None if frozen is None else Shared(frozen)
    shapes = jax.eval_shape(
        lambda key, few, kept: call(init(key), few, None, kept),
        jax.random.key(0),
        take(rows["train"], jnp.arange(1)).inputs,
        kept,
    )
    for split in SPLITS:
        if problem := by.mistake(shapes, rows[split].targets):
            raise ValueError(f"`data` of task {name}: targets of {split} {problem}.")
    scale = by.scale(shapes, rows["train"].targets)
    if not 0 < scale < math.inf:
        raise ValueError(
            f"`data` of task {name} must have targets that differ; got a loss of guessing of "
            f"{scale:g}. Try another target, or a criterion with a scale of its own."
        )
    return Task(
        name=name,
        family=family,
        sample=sample,
        init=scaled_init,
        batch=batch,
        loss=loss,
        loss_cap=by.cap * scale,
        data=jax.tree.map(jnp.asarray, rows if kept is None else {**rows, "frozen": kept}),
        metrics=metrics,
        maximized=by.maximized,
        metric_caps=by.metric_caps,
        loss_scale=scale,
        all_rows=all_rows,
        shrink=None if mixes_rows else shrink,
    )


def log_uniform(key: Key, low: float, high: float, shape: tuple[int, ...] = ()) -> jax.Array:
    """A float32 scalar, or an array of a shape, log-uniform between `low` and `high`."""
    ends = jnp.log(jnp.float32(low)), jnp.log(jnp.float32(high))
    return jnp.exp(jax.random.uniform(key, shape, jnp.float32, *ends))


def rows_of(task: str, data: Mapping[Split, tuple[Arrays, Arrays]], split: Split) -> Rows:
    """A split's inputs and targets, which must be there and as many as each other."""
    if not isinstance(data, Mapping):
        raise ValueError(
            f"`data` of task {task} must be a dict; got {type(data).__name__}. Try "
            '{"train": (inputs, targets), "valid": (...), "test": (...)}.'
        )
    if split not in data:
        raise ValueError(
            f"`data` of task {task} must have the splits {', '.join(SPLITS)}; got "
            f"{', '.join(data) or 'none'}. Add {split}=(inputs, targets)."
        )
    pair = data[split]
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(
            f"`data` of task {task} must have pairs; got {describe(pair)} for {split}. "
            f"Try {split}=(inputs, targets)."
        )
    rows = Rows(*pair)
    for leaf in jax.tree.leaves(rows):
        if not hasattr(leaf, "dtype") or not (
            jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool
        ):
            raise ValueError(
                f"`data` of task {task} must be arrays of numbers; got {describe(leaf)} in "
                f"{split}. Try numpy.asarray(...)."
            )
    sizes = {int(np.shape(leaf)[0]) if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(rows)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"`data` of task {task} must have as many inputs as targets, at least one; got arrays "
            f"with {', '.join(map(str, sorted(sizes))) or 'no'} rows in {split}."
        )
    return rows


def describe(thing: object) -> str:
    """A few words about what was given in place of arrays."""
    dtype = getattr(thing, "dtype", None)
    if dtype is not None:
        return f"an array of {dtype}"
    size = f" of {len(thing)}" if isinstance(thing, tuple | list) else ""
    return f"{type(thing).__name__}{size}"


def num_rows(rows: Rows | Batch) -> int:
    """Number of rows, counted or not."""
    return len(jax.tree.leaves(rows.inputs)[0])


def take(rows: Rows, indices: jax.Array) -> Rows:
    """Some rows."""
    return jax.tree.map(lambda x: x[indices], rows)
