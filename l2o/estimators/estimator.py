"""The interface of meta-gradient estimators, and one of several."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from l2o.combiners.combiner import Combiner
from l2o.learned_optimizer import Theta
from l2o.rng import key_of
from l2o.task import Data, Key
from l2o.weightings.weighting import Weighting, WeightingState

EstimatorState = Any

TINY = 1e-30


@dataclass(frozen=True, eq=False)
class Estimator:
    """Estimator of the gradient of a meta-loss with respect to theta, a tree of any kind.

    Attributes:
        init: `(key, theta) -> EstimatorState`.
        estimate: `(key, theta, state, data) -> (meta-gradient, state, metrics)`. The metrics hold
            at least `meta_loss` (mean over steps and members), `finite` (fraction of inner steps
            with a finite training loss), `diverged` (fraction of those with one that is not, or is
            above the task's cap) and `valid` (fraction of members that were not left out).
        steps: Number of inner steps of one estimate, over all members.
        data: Arrays to pass as `data`, an argument of the compiled program.
    """

    init: Callable[[Key, Theta], EstimatorState]
    estimate: Callable[
        [Key, Theta, EstimatorState, Data], tuple[Theta, EstimatorState, dict[str, jax.Array]]
    ]
    steps: int
    data: Data = field(default=(), repr=False)


class WeightedState(NamedTuple):
    """State of estimators whose weights move.

    Attributes:
        parts: State of each estimator, by name.
        weighting: State of the rule that moves the weights.
    """

    parts: dict[str, EstimatorState]
    weighting: WeightingState


def average_estimators(
    estimators: Mapping[str, Estimator],
    *,
    weights: Mapping[str, float] | None = None,
    combine: Combiner | None = None,
    weighting: Weighting | None = None,
    report_groups: Mapping[str, Sequence[str]] | None = None,
) -> Estimator:
    """Average several estimators with weights, for instance over tasks of different shapes.

    Random streams derive from the names: adding one leaves the others' draws as they were. An
    estimator none of whose members is valid is left out of the mean. Metrics are averaged with the
    same weights, where they are numbers, and kept apart under `name/metric`; those of a combiner
    besides, the share that it gives to each, under `name/share`. With a `weighting`, weights move
    by the meta-losses of the steps before and are under `name/weight`; metrics are averaged with
    those that were given.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rosenbrock
    >>> optimizer = l2o.learnable_adam()
    >>> def estimator(task):
    ...     problem = l2o.inner_problem(task, optimizer, horizon=20, window=5)
    ...     return l2o.nres(problem, num_pairs=8, std=0.01)
    >>> parts = {"smooth": estimator(rosenbrock()), "noisy": estimator(rosenbrock(noise=0.1))}
    >>> l2o.average_estimators(parts, weights={"smooth": 2.0, "noisy": 1.0}).steps
    160

    Args:
        estimators: Estimators to average, by name.
        weights: Positive weight of each name; equal if not given.
        combine: How the meta-gradients of the estimators become one: `l2o.mgda`, `l2o.pcgrad` or
            `l2o.cagrad`; their mean if not given.
        weighting: Rule that moves the weights, `l2o.worst_case()` or `l2o.learning_progress()`;
            they stay as they are if not given.
        report_groups: Names whose metrics are averaged together, too, with the same weights, and
            reported under `group/metric`; by name of the group.

    Raises:
        ValueError: If there are no estimators, or the weights do not fit them.
    """
    names = tuple(estimators)
    if not names:
        raise ValueError("`estimators` must not be empty; got {}. Pass at least one.")
    weights = checked_weights(names, weights)
    given = jnp.asarray([weights[name] for name in names], jnp.float32)

    def init(key: Key, theta: Theta) -> EstimatorState:
        parts = {name: part.init(key_of(key, name), theta) for name, part in estimators.items()}
        if weighting is None:
            return parts
        return WeightedState(parts, weighting.init(given / jnp.sum(given)))

    def estimate(key: Key, theta: Theta, state: EstimatorState, data: Data):
        if weighting is None:
            gradient, parts, report, _ = estimate_with(key, theta, state, data, weights)
            return gradient, parts, report
        current = dict(zip(names, weighting.weights(state.weighting), strict=True))
        gradient, parts, report, losses = estimate_with(key, theta, state.parts, data, current)
        after = WeightedState(parts, weighting.update(state.weighting, losses))
        return gradient, after, report | {f"{n}/weight": w for n, w in current.items()}

    def estimate_with(
        key: Key,
        theta: Theta,
        state: dict[str, EstimatorState],
        data: Data,
        current: Mapping[str, float | jax.Array],
    ):
        """Estimate with weights that may be traced; the meta-loss of each name comes last."""
        gradients, states, metrics = {}, {}, {}
        for name, part in estimators.items():
            gradients[name], states[name], metrics[name] = part.estimate(
                key_of(key, name), theta, state[name], data[name]
            )
        report = average_metrics(metrics, weights, report_groups)
        losses = jnp.stack([metrics[name]["meta_loss"] for name in names])
        if combine is None:
            return average_gradients(gradients, metrics, current), states, report, losses
        mean, shares = combine_gradients(
            combine, key_of(key, "combine"), gradients, metrics, current
        )
        shares = {f"{name}/share": share for name, share in shares.items()}
        return mean, states, report | shares, losses

    return Estimator(
        init=init,
        estimate=estimate,
        steps=sum(part.steps for part in estimators.values()),
        data={name: part.data for name, part in estimators.items()},
    )


def average_gradients(
    gradients: Mapping[str, Theta],
    metrics: Mapping[str, Mapping[str, jax.Array]],
    weights: Mapping[str, float | jax.Array],
) -> Theta:
    """Average meta-gradients over names, without those none of whose members is valid.

    Args:
        gradients: Trees like theta, by name.
        metrics: Metrics of the same estimates; `valid` is read.
        weights: Weight of each name.

    Returns:
        The weighted mean, a tree like theta; zero if no estimate is valid.
    """
    names = tuple(gradients)
    alive = {name: jnp.where(metrics[name]["valid"] > 0, weights[name], 0.0) for name in names}
    return jax.tree.map(
        lambda *g: weighted_mean(dict(zip(names, g, strict=True)), alive, nothing=0.0),
        *gradients.values(),
    )


def combine_gradients(
    combine: Combiner,
    key: Key,
    gradients: Mapping[str, Theta],
    metrics: Mapping[str, Mapping[str, jax.Array]],
    weights: Mapping[str, float | jax.Array],
) -> tuple[Theta, dict[str, jax.Array]]:
    """Combine meta-gradients over names, without those none of whose members is valid.

    Args:
        combine: Combiner.
        key: Random key of the combiner.
        gradients: Trees like theta, by name.
        metrics: Metrics of the same estimates; `valid` is read.
        weights: Weight of each name.

    Returns:
        The combined meta-gradient, a tree like theta, zero if no estimate is valid; and the
        coefficients of all over the sum of them, by name.
    """
    names = tuple(gradients)
    is_alive = jnp.stack([metrics[name]["valid"] > 0 for name in names])
    alive = jnp.where(
        is_alive, jnp.stack([jnp.asarray(weights[name], jnp.float32) for name in names]), 0.0
    )
    alive = alive * jnp.sum(is_alive) / jnp.maximum(jnp.sum(alive), TINY)
    rows = jnp.stack([ravel_pytree(gradients[name])[0] for name in names])
    rows = jnp.where(is_alive[:, None], rows, 0.0)
    found = combine(key, jnp.matmul(rows, rows.T, precision="float32"), alive)
    found = jnp.where(is_alive, found, 0.0)
    unravel = ravel_pytree(gradients[names[0]])[1]
    shares = found / jnp.maximum(jnp.sum(found), TINY)
    return unravel(found @ rows), dict(zip(names, shares, strict=True))


def average_metrics(
    metrics: Mapping[str, Mapping[str, jax.Array]],
    weights: Mapping[str, float],
    report_groups: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, jax.Array]:
    """Average metrics over names where they are numbers; see `average_estimators`.

    Args:
        metrics: Metrics by name, then by metric.
        weights: Weight of each name.
        report_groups: Names that are averaged together, too, by name of the group.

    Returns:
        Metrics under `name/metric`, `metric` over all names, and `group/metric`.
    """
    report = {f"{name}/{k}": value for name, part in metrics.items() for k, value in part.items()}
    groups = {"": tuple(metrics)} | {f"{n}/": group for n, group in (report_groups or {}).items()}
    for prefix, group in groups.items():
        for k in metrics[group[0]]:
            values = {name: metrics[name][k] for name in group}
            known = {n: jnp.where(jnp.isnan(v), 0.0, weights[n]) for n, v in values.items()}
            report[prefix + k] = weighted_mean(values, known)
    return report


def checked_weights(
    names: Sequence[str], weights: Mapping[str, float] | None
) -> Mapping[str, float]:
    """Return the weights of these names, equal if not given.

    Raises:
        ValueError: unless each name has one that is positive and finite.
    """
    weights = dict.fromkeys(names, 1.0) if weights is None else weights
    if set(weights) != set(names) or not all(0 < w < math.inf for w in weights.values()):
        raise ValueError(
            f"`weights` must be positive and finite, one for each of {', '.join(names)}; "
            f"got {dict(weights)}. Leave them out for equal ones."
        )
    return weights


def weighted_mean(
    values: Mapping[str, jax.Array],
    weights: Mapping[str, jax.Array | float],
    nothing: float = jnp.nan,
) -> jax.Array:
    """Average arrays of one shape, or return `nothing` if all weights are zero."""
    total = sum(jnp.asarray(weight) for weight in weights.values())
    # What has no weight may be NaN.
    terms = [jnp.where(weights[n] > 0, weights[n] * value, 0.0) for n, value in values.items()]
    return jnp.where(total > 0, sum(terms) / jnp.where(total > 0, total, 1.0), nothing)
