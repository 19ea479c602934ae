"""Compression as the environment of an agent that walks the layers.

| reinforcement learning | here |
|---|---|
| episode | one pass over the groups of a network, an action each |
| observation | kind, shape and share of the group, its sensitivity, budget spent and left |
| action | a number in [-1, 1], which the budget's projection makes a count of |
| reward | score of what results less that of the uniform allocation, after the last group |

Groups that have not been reached yet count as asking for 0. So what is spent so far is what the
projection gives to those that have been, and no state of the walk exceeds the budget. That an agent
walks the layers is the idea of AMC (He et al. 2018, arXiv:1802.03494). Networks of one architecture
are one environment; an episode draws one of them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2o.compression.budget import project
from l2o.compression.problem import CompressionProblem, Network
from l2o.rl.environment import Environment, Observation, Outcome
from l2o.supervision.supervised import Rows
from l2o.task import Data, Key

NUM_FEATURES = 14
"""Number of features of an observation."""


class Sensitivity(NamedTuple):
    """What was measured of a network before any action.

    Attributes:
        whole: Score of the whole network.
        uniform: Score of the uniform allocation.
        drops: Drop of the score when one group alone is compressed as in the uniform allocation,
            shape (groups,).
        evaluations: Number of networks that were measured, two more than groups.
    """

    whole: float
    uniform: float
    drops: np.ndarray
    evaluations: int


class WalkState(NamedTuple):
    """A walk between two groups.

    Attributes:
        network: Index of the network, int32 scalar.
        position: Number of groups that have been acted upon, int32 scalar.
        action: Actions so far, and zeros, shape (groups,).
        counts: Their projection, shape (groups,).
        drops: Share of each group in the network's sensitivity, shape (groups,).
    """

    network: jax.Array
    position: jax.Array
    action: jax.Array
    counts: jax.Array
    drops: jax.Array


class Networks(NamedTuple):
    """Data of an environment.

    Attributes:
        networks: Arrays of the networks, with an axis of networks first.
        rows: Validation rows.
        uniform: Score of the uniform allocation of each network, shape (networks,).
        drops: Share of each group in each network's sensitivity, shape (networks, groups).
    """

    networks: Network
    rows: Rows
    uniform: jax.Array
    drops: jax.Array


class Walk(NamedTuple):
    """How the layers of an architecture are walked; the parts of an `Environment` without a reward.

    Attributes:
        start: Function `(network index) -> state`.
        observe: Function `(state) -> Observation` of one agent.
        advance: Function `(state, action) -> state`, for a scalar action.
    """

    start: Callable[[jax.Array], WalkState]
    observe: Callable[[WalkState], Observation]
    advance: Callable[[WalkState, jax.Array], WalkState]


def measure_sensitivity(problem: CompressionProblem) -> Sensitivity:
    """Measure a network whole, uniformly compressed, and with each group compressed alone."""
    highest, counts = problem.budget.highest, problem.project(np.zeros(problem.num_groups))
    whole, uniform = problem.score(highest), problem.score(counts)
    alone = [np.where(np.arange(len(counts)) == i, counts, highest) for i in range(len(counts))]
    drops = np.array([whole - problem.score(c) for c in alone])
    return Sensitivity(whole, uniform, drops, len(counts) + 2)


def shares(drops: np.ndarray) -> np.ndarray:
    """Share of each group in all drops of the score; what does not hurt has none."""
    hurt = np.maximum(drops, 0.0)
    return (hurt / max(float(hurt.sum()), 1e-6)).astype(np.float32)


def make_walk(problem: CompressionProblem) -> Walk:
    """Make the walk over the groups of an architecture."""
    budget, num_groups = problem.budget, problem.num_groups
    fixed = jnp.asarray(group_features(problem))
    total = float(budget.whole)
    least = float(budget.spent(budget.lowest))
    target = budget.limit / total
    lowest, highest = jnp.asarray(budget.lowest), jnp.asarray(budget.highest)

    def start(network: jax.Array) -> WalkState:
        action = jnp.zeros(num_groups)
        counts = project(budget, action)
        return WalkState(network, jnp.int32(0), action, counts, jnp.zeros(num_groups))

    def observe(state: WalkState) -> Observation:
        at = jnp.minimum(state.position, num_groups - 1)
        is_past = jnp.arange(num_groups) < state.position
        spent = budget.cost(jnp.where(is_past, state.counts, lowest)).astype(jnp.float32)
        left = (budget.limit - spent) / jnp.maximum(budget.limit - least, 1.0)
        numbers = [
            state.counts[at] / highest[at],
            state.drops[at],
            (spent - least) / jnp.maximum(budget.limit - least, 1.0),
            left,
            jnp.where(state.position > 0, state.action[jnp.maximum(at - 1, 0)], 0.0),
            jnp.float32(target),
            state.position / num_groups,
        ]
        features = jnp.concatenate([fixed[at], jnp.stack(numbers)])
        return Observation(features[None], features[:0])

    def advance(state: WalkState, action: jax.Array) -> WalkState:
        acted = state.action.at[state.position].set(action)
        return state._replace(
            position=state.position + 1, action=acted, counts=project(budget, acted)
        )

    return Walk(start, observe, advance)


def group_features(problem: CompressionProblem) -> np.ndarray:
    """What is known of each group from its shape, shape (groups, features)."""
    budget = problem.budget
    layers = {layer.name: layer for layer in problem.model.layers}
    chosen = [layers[name] for name in budget.names]
    whole = np.asarray(budget.highest)
    costs = []
    for i in range(len(whole)):
        without = np.where(np.arange(len(whole)) == i, budget.lowest, whole)
        costs.append(budget.spent(whole) - budget.spent(without))
    shares_of_cost = np.array(costs) / max(sum(costs), 1)
    sizes = np.array([layer.size for layer in chosen])
    rows = [
        [
            float(len(layer.shape) > 2),
            np.log10(layer.size) / 7.0,
            np.log10(layer.shape[-1]) / 4.0,
            np.log10(layer.size / layer.shape[-1]) / 4.0,
            layer.size / sizes.sum(),
            share,
            float(i == len(chosen) - 1),
        ]
        for i, (layer, share) in enumerate(zip(chosen, shares_of_cost, strict=True))
    ]
    return np.array(rows, np.float32)


def compression_environment(
    problems: Sequence[CompressionProblem], sensitivities: Sequence[Sensitivity]
) -> Environment:
    """Make the compression of networks of one architecture the environment of an agent.

    Args:
        problems: Problem of each network, made by `CompressionProblem.of` of the first.
        sensitivities: What was measured of each.

    Returns:
        An environment of one agent and one action, `num_actions` groups an episode. A window is an
        episode, so all episodes of a population are at the same group.
    """
    first = problems[0]
    walk, num_groups = make_walk(first), first.num_groups

    def score(network: jax.Array, counts: jax.Array, networks: Network, rows: Rows) -> jax.Array:
        chosen = jax.tree.map(lambda x: x[network], networks)
        return first.evaluate(chosen, rows, counts)

    score_if = only_if_any(score)

    def start(key: Key) -> WalkState:
        return walk.start(jax.random.randint(key, (), 0, len(problems)))

    def enter(key: Key, state: WalkState, data: Data) -> WalkState:
        del key
        return state._replace(drops=data.drops[state.network])

    def step(
        key: Key, state: WalkState, action: jax.Array, data: Data
    ) -> tuple[WalkState, Outcome]:
        del key
        state = walk.advance(state, action[0, 0])
        is_last = state.position >= num_groups
        found = score_if(is_last, state.network, state.counts, data.networks, data.rows)
        reward = jnp.where(is_last, found - data.uniform[state.network], 0.0)
        outcome = Outcome(
            reward=reward,
            credit=reward[None],
            rewards=reward[None],
            done=is_last,
            finite=jnp.float32(1.0),
            diverged=jnp.bool_(False),
        )
        return state, outcome

    return Environment(
        init=start,
        start=start,
        enter=enter,
        observe=walk.observe,
        step=step,
        num_actions=num_groups,
        steps_per_action=1,
        reward_names=(first.model.metric,),
        data=environment_data(problems, sensitivities),
    )


def environment_data(
    problems: Sequence[CompressionProblem], sensitivities: Sequence[Sensitivity]
) -> Networks:
    """Make the data of `compression_environment`, which any networks of its architecture may be."""
    return Networks(
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *(p.network for p in problems)),
        problems[0].rows,
        jnp.asarray([s.uniform for s in sensitivities], jnp.float32),
        jnp.asarray(np.stack([shares(s.drops) for s in sensitivities])),
    )


def only_if_any(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Make a function of a condition first that runs only if any of a batch meets it.

    `cond` becomes a selection under `vmap`, which would measure a network after every group. This
    asks once for the whole batch; where some meet it, all are computed, and where none does, the
    result is 0.

    >>> square = only_if_any(lambda x: x * x)
    >>> jax.vmap(square)(jnp.array([False, False]), jnp.array([2.0, 3.0])).tolist()
    [0.0, 0.0]
    >>> jax.vmap(square)(jnp.array([False, True]), jnp.array([2.0, 3.0])).tolist()
    [4.0, 9.0]
    """

    @jax.custom_batching.custom_vmap
    def run(condition: jax.Array, *inputs: Any) -> jax.Array:
        shape = jax.eval_shape(function, *inputs)
        nothing = lambda *inputs: jnp.zeros(shape.shape, shape.dtype)
        return jax.lax.cond(condition, function, nothing, *inputs)

    @run.def_vmap
    def run_batch(size: int, is_batched: Sequence[Any], condition: jax.Array, *inputs: Any):
        axes = tuple(
            jax.tree.map(lambda batched: 0 if batched else None, each) for each in is_batched[1:]
        )
        mapped = jax.vmap(function, in_axes=axes, axis_size=size)
        return only_if_any(mapped)(jnp.any(condition), *inputs), True

    return run
