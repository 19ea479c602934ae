"""A trained network with its data: what is compressed, and by what it is measured."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from l2o.compression.layers import Layer, is_layer, leaves_by_name, nearest, uses
from l2o.supervision.criterion import Criterion, cross_entropy
from l2o.supervision.supervised import SPLITS, Arrays, Rows, num_rows, rows_of, take
from l2o.task import Split

Params = Any
"""Pytree of arrays whose leaves have names: nested dicts, lists, tuples or dataclasses."""

Units = Mapping[str, Sequence[tuple[str, int]]]
"""For each layer whose units can be removed, the arrays and axes that its units have besides."""


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """Trained network with its data; see `trained_model`.

    Attributes:
        name: Name, for reports.
        params: Trained parameters.
        apply: Function `(params, inputs) -> outputs`.
        data: Inputs and targets of each split.
        criterion: Loss and metrics.
        metric: Metric that compression is to keep: one of the criterion's, or "loss".
        frozen: Names of arrays that fine-tuning leaves as they are.
        units: What belongs to the units of layers; None to find it.
    """

    name: str
    params: Params = field(repr=False)
    apply: Callable[[Params, Arrays], Any]
    data: Mapping[Split, Rows] = field(repr=False)
    criterion: Criterion
    metric: str
    frozen: frozenset[str] = frozenset()
    units: Units | None = None

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Layers that can be compressed, in the order in which the network uses them."""
        found = uses(self.apply, self.params, self.row)
        leaves = leaves_by_name(self.params)
        ordered = (*found.order, *(name for name in leaves if name not in found.order))
        return tuple(
            Layer(name, leaves[name].shape, found.multiply_adds[name])
            for name in ordered
            if is_layer(leaves[name]) and name not in self.frozen
        )

    @property
    def row(self) -> Arrays:
        """Inputs of one row."""
        return take(self.data["train"], jnp.arange(1)).inputs

    @property
    def size(self) -> int:
        """Number of all parameters, those that are not compressed with them."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    def measure(self, params: Params, rows: Rows) -> dict[str, jax.Array]:
        """Compute the loss and the criterion's metrics on rows; traceable."""
        outputs = self.apply(params, rows.inputs)
        found = {"loss": jnp.mean(self.criterion.losses(outputs, rows.targets))}
        if self.criterion.metrics is not None:
            counts = jnp.ones(num_rows(rows), bool)
            found |= dict(self.criterion.metrics(outputs, rows.targets, counts))
        return found

    def score(self, params: Params, rows: Rows) -> jax.Array:
        """Compute the metric on rows, turned so that higher is better, finite; traceable."""
        value = self.measure(params, rows)[self.metric]
        worst = -1e9
        signed = value if self.metric in self.criterion.maximized else -value
        return jnp.nan_to_num(signed, nan=worst, posinf=worst, neginf=worst)


def trained_model(
    name: str,
    params: Params,
    apply: Callable[[Params, Arrays], Any],
    data: Mapping[Split, tuple[Arrays, Arrays]],
    criterion: Criterion | None = None,
    *,
    metric: str | None = None,
    frozen: Collection[str] = frozenset(),
    units: Units | None = None,
) -> TrainedModel:
    """Describe a trained network, to be compressed by `l2o.compress`.

    Arrays of real numbers with two axes or more are its layers, named by their path; the last axis
    is that of their units or channels. Biases and norms stay whole, and count towards the size.

    >>> import l2o
    >>> rows = np.eye(8, 4, dtype=np.float32), np.arange(8) % 2
    >>> model = l2o.trained_model(
    ...     "linear",
    ...     {"w": np.ones((4, 2), np.float32), "b": np.zeros(2, np.float32)},
    ...     lambda params, inputs: inputs @ params["w"] + params["b"],
    ...     {"train": rows, "valid": rows, "test": rows},
    ... )
    >>> model.layers, model.metric
    ((Layer(name='w', shape=(4, 2), multiply_adds=8),), 'accuracy')

    Args:
        name: Name of the model, for reports.
        params: Trained parameters.
        apply: Function `(params, inputs) -> outputs`, without randomness.
        data: Inputs and targets of train, valid and test; fine-tuning uses the first, a search the
            second, and the third is only measured.
        criterion: Loss and metrics; `cross_entropy()` if None.
        metric: Metric to keep; the criterion's first, or its loss if it has no metrics.
        frozen: Names of arrays that are neither compressed nor fine-tuned.
        units: For each layer whose units can be removed, the arrays and axes that its units have
            besides its last one, `{"up/kernel": [("up/bias", 0), ("down/kernel", 0)]}`; None to
            find it in the program of a chain of layers. Read where units are removed.

    Raises:
        ValueError: If layers cannot be named or there are none, the data do not suit the criterion,
            or there is no such metric.
    """
    leaves = leaves_by_name(params)
    if odd := [n for n, leaf in leaves.items() if not hasattr(leaf, "dtype")]:
        raise ValueError(
            f"`params` of {name} must be arrays; got {type(leaves[odd[0]]).__name__} at {odd[0]}. "
            "Try jax.tree.map(jnp.asarray, params)."
        )
    odd = [frozen] if isinstance(frozen, str) else [n for n in frozen if n not in leaves]
    if odd:
        raise ValueError(
            f"`frozen` must be a set of names of arrays of {name}; got {odd[0]!r}. Try "
            f"frozen={{{nearest(odd[0], leaves)[0]!r}}}."
        )
    if not any(is_layer(leaf) and n not in frozen for n, leaf in leaves.items()):
        raise ValueError(
            f"`params` of {name} must have layers, real arrays of two axes or more; got "
            f"{', '.join(list(leaves)[:3]) or 'none'}. Give it the weights."
        )
    rows = {split: rows_of(name, data, split) for split in SPLITS}
    targets = jax.tree.leaves(rows["train"].targets)
    by = criterion or cross_entropy(sequences=np.ndim(targets[0]) > 1)
    params = jax.tree.map(jnp.asarray, params)
    outputs = jax.eval_shape(apply, params, take(rows["train"], jnp.arange(1)).inputs)
    for split in SPLITS:
        if problem := by.mistake(outputs, rows[split].targets):
            raise ValueError(f"`data` of {name}: targets of {split} {problem}.")
    known = ("loss",)
    if by.metrics is not None:
        one = jax.ShapeDtypeStruct((1,), bool)
        few = take(rows["train"], jnp.arange(1)).targets
        known = ("loss", *jax.eval_shape(by.metrics, outputs, few, one))
    kept = metric or (known[1] if len(known) > 1 else "loss")
    if kept not in known:
        raise ValueError(f"`metric` must be one of {', '.join(known)}; got {kept}.")
    on_device: Mapping[Split, Rows] = {
        split: jax.tree.map(jnp.asarray, rows[split]) for split in SPLITS
    }
    return TrainedModel(name, params, apply, on_device, by, kept, frozenset(frozen), units)


def trained_model_nnx(
    name: str,
    module: nnx.Module,
    data: Mapping[Split, tuple[Arrays, Arrays]],
    criterion: Criterion | None = None,
    *,
    metric: str | None = None,
    frozen: Collection[str] = frozenset(),
    units: Units | None = None,
) -> TrainedModel:
    """Describe a trained Flax NNX module, to be compressed by `l2o.compress`.

    It is put into its mode of evaluation. Running statistics of batch normalisation are arrays like
    the others, so they shrink with the channels, but are not trained; all else stays what it is.

    >>> import l2o
    >>> rows = np.eye(8, 4, dtype=np.float32), np.arange(8) % 2
    >>> data = {"train": rows, "valid": rows, "test": rows}
    >>> l2o.trained_model_nnx("linear", nnx.Linear(4, 2, rngs=nnx.Rngs(0)), data).size
    10

    Args:
        name: Name of the model, for reports.
        module: Trained module, which maps inputs to outputs; it is copied, not changed.
        data: As in `trained_model`.
        criterion: As in `trained_model`.
        metric: As in `trained_model`.
        frozen: As in `trained_model`; running statistics are besides.
        units: As in `trained_model`.

    Raises:
        ValueError: As `trained_model`, or if `module` is none.
    """
    if not isinstance(module, nnx.Module):
        raise ValueError(
            f"`module` of {name} must be a trained nnx.Module; got {type(module).__name__}. Try "
            "l2o.trained_model for a function and its parameters."
        )
    module = nnx.clone(module)
    module.eval()
    kinds = nnx.Any(nnx.Param, nnx.BatchStat)
    graph, state, rest = nnx.split(module, kinds, ...)
    statistics = nnx.to_pure_dict(nnx.filter_state(state, nnx.BatchStat))
    structure = jax.tree.structure(state)

    def apply(params: Params, inputs: Arrays) -> Any:
        filled = jax.tree.unflatten(structure, jax.tree.leaves(params))
        return nnx.merge(graph, filled, rest, copy=True)(inputs)

    params = nnx.to_pure_dict(state)
    if not isinstance(frozen, str):
        frozen = {*frozen, *leaves_by_name(statistics)}
    return trained_model(
        name, params, apply, data, criterion, metric=metric, frozen=frozen, units=units
    )
