"""Schedules of hyperparameters that are written down, as optax optimizers.

What a policy did over a run, averaged over runs, is a schedule that needs no policy: `l2o schedule`
writes it as JSON, `l2o.load_schedule` makes the optimizer that follows it.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o.policies.base_optimizers import BaseOptimizer, base_optimizer


class FrozenState(NamedTuple):
    """State of an optimizer that follows a schedule with a size of batches.

    Attributes:
        count: Number of updates so far, int32 scalar.
        inner: State of the optimizer.
        batch_fraction: Fraction of the next batch that counts, see `l2o.batch_fraction`.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    inner: optax.OptState
    batch_fraction: jax.Array


def load_schedule(path: str | Path) -> optax.GradientTransformationExtraArgs:
    """Load the optimizer that follows a schedule written by `l2o schedule`.

    Its last values are held after the last step. One of a policy with an agent for each tensor is
    for models with as many tensors.

    >>> import json, pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "schedule.json"
    >>> values = {"base": "sgdm", "hyperparameters": {"learning_rate": [0.1, 0.05]}}
    >>> _ = path.write_text(json.dumps(values))
    >>> tx = load_schedule(path)
    >>> state = tx.init(1.0)
    >>> updates, state = tx.update(jnp.float32(1.0), state, 1.0)
    >>> float(updates)
    -0.10000000149011612

    Args:
        path: Path of the JSON file.

    Returns:
        An optax transformation, which ignores a `value=` unless its base needs one.

    Raises:
        ValueError: If it is no schedule, or of a learned base that is another one now.
    """
    try:
        content = json.loads(Path(path).read_bytes())
        values = {
            name: np.asarray(rows, np.float32) for name, rows in content["hyperparameters"].items()
        }
        base, sha256 = content["base"], content.get("base_sha256", "")
        lengths = {len(rows) for rows in values.values()}
        is_schedule = "learning_rate" in values and len(lengths) == 1 and min(lengths) > 0
        if not is_schedule or not all(np.all(np.isfinite(rows)) for rows in values.values()):
            raise ValueError("no values for each step")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ValueError(
            f"`path` must be a schedule written by l2o schedule; got {path} ({reason}). "
            "Try runs/schedule/digits_mlp_32.json."
        ) from error
    found = base_optimizer(base)
    if found.sha256 != sha256:
        raise ValueError(
            f"`path` must be a schedule of the {base} that is here; got {path}, of one with sha256 "
            f"{sha256[:12]}. Install the version of l2o that wrote it."
        )
    return frozen_optimizer(found, values)


def frozen_optimizer(
    base: BaseOptimizer, values: Mapping[str, np.ndarray]
) -> optax.GradientTransformationExtraArgs:
    """Make an optimizer that follows a schedule.

    Args:
        base: Optimizer whose hyperparameters are scheduled.
        values: Values of each hyperparameter by name, shape (steps,); or (steps, tensors) for an
            optimizer for each tensor, in the order of `jax.tree.leaves(params)`.
    """
    own = {name: rows for name, rows in values.items() if name != "batch_fraction"}
    num_tensors = next((rows.shape[1] for rows in own.values() if rows.ndim == 2), None)
    if num_tensors is None:
        tx = scheduled(base, own)
    else:
        columns = ({name: rows[:, i] for name, rows in own.items()} for i in range(num_tensors))
        tx = each_tensor([scheduled(base, column) for column in columns])
    if "batch_fraction" not in values:
        return tx
    fraction = held(values["batch_fraction"])

    def init(params: optax.Params) -> FrozenState:
        return FrozenState(jnp.zeros((), jnp.int32), tx.init(params), fraction(0))

    def update(
        updates: optax.Updates,
        state: FrozenState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, FrozenState]:
        updates, inner = tx.update(updates, state.inner, params, **extra)
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, FrozenState(count, inner, fraction(count))

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def held(rows: np.ndarray) -> Callable[[jax.Array | int], jax.Array]:
    """Make an optax schedule of values, shape (steps,), the last of which is held."""
    return lambda count: jnp.asarray(rows)[jnp.minimum(count, len(rows) - 1)]


def scheduled(
    base: BaseOptimizer, values: Mapping[str, np.ndarray]
) -> optax.GradientTransformationExtraArgs:
    """A base optimizer with a schedule for each of some hyperparameters, shape (steps,)."""
    arguments: dict[str, Any] = {name: held(rows) for name, rows in values.items()}
    if base.sha256:  # a learned one, which is told how long the run is
        arguments["horizon"] = len(next(iter(values.values())))
    fixed = set(inspect.signature(base.make).parameters) - set(arguments)
    tx = optax.inject_hyperparams(base.make, static_args=fixed)(**arguments)
    return optax.with_extra_args_support(tx)


def each_tensor(
    transforms: Sequence[optax.GradientTransformationExtraArgs],
) -> optax.GradientTransformationExtraArgs:
    """An optimizer for each tensor, in the order of `jax.tree.leaves(params)`."""

    def labels(params: optax.Params) -> Any:
        leaves, treedef = jax.tree.flatten(params)
        if len(leaves) != len(transforms):
            raise ValueError(
                f"`params` must have {len(transforms)} tensors, one for each of the schedule; got "
                f"{len(leaves)}. Make a schedule on a model like this one."
            )
        return treedef.unflatten(range(len(leaves)))

    return optax.partition(dict(enumerate(transforms)), labels)
