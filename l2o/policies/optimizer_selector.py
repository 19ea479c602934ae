"""One agent that selects which of several optimizers trains until the next action.

All of them follow the run, so that each is warm when it is selected: an update costs the sum of
theirs, and their states take the sum of their memory.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2o.policies.base_optimizers import BASE_OPTIMIZERS
from l2o.policies.heads import make_head
from l2o.policies.observation import (
    NUM_RUN_FEATURES,
    NUM_TENSOR_FEATURES,
    RunStatistics,
    init_statistics,
    run_features,
    tensor_features,
    update_statistics,
)
from l2o.policies.policy import (
    ControlledOptimizer,
    Policy,
    PolicyOptimizer,
    as_learned_optimizer,
    check_action_interval,
    make_actor,
)
from l2o.policies.preference import shares_of


class SelectorState(NamedTuple):
    """State of several optimizers, of which one trains.

    Attributes:
        statistics: Statistics of the run.
        selected: Index of the optimizer that trains, int32 scalar.
        base_states: State of each optimizer.
    """

    statistics: RunStatistics
    selected: jax.Array
    base_states: tuple[optax.OptState, ...]


def optimizer_selector(
    bases: Sequence[str] = ("sgdm", "adam", "sgdm", "adam"),
    learning_rates: Sequence[float] = (0.1, 0.01, 0.01, 0.001),
    action_interval: int = 25,
    core: str = "mlp",
    hidden_size: int = 32,
    objectives: Sequence[str] = (),
    preference: Sequence[float] = (),
) -> PolicyOptimizer:
    """Select among optimizers at constant rates by one agent with a categorical head.

    >>> import l2o
    >>> lopt = l2o.optimizer_selector(["sgdm", "adam"], [0.1, 0.001])
    >>> lopt.policy.head.num_choices
    2

    Args:
        bases: Names of the optimizers, "sgdm" or "adam"; at least two.
        learning_rates: Learning rate of each optimizer.
        action_interval: Number of inner steps between two actions.
        core: "mlp", or "gru" for an agent with a memory.
        hidden_size: Number of units of each hidden layer.
        objectives: Names of at least two rewards among which the policy is told what each counts,
            drawn for every run of meta-training, see `l2o.policies.preference`.
        preference: What each counts in use; equal if not given.

    Raises:
        ValueError: If there are fewer than two optimizers, a name is unknown, a rate is not
            positive, or `action_interval` < 1.
    """
    check_action_interval(action_interval)
    if len(bases) != len(learning_rates):
        raise ValueError(
            f"`learning_rates` must be one for each of the {len(bases)} `bases`; got "
            f"{len(learning_rates)}. Add or drop some."
        )
    for base, rate in zip(bases, learning_rates, strict=True):
        if base not in BASE_OPTIMIZERS:
            known = ", ".join(BASE_OPTIMIZERS)
            raise ValueError(f"`bases` must be among {known}; got {base}. Try sgdm.")
        if not 0 < rate < math.inf:
            raise ValueError(f"`learning_rates` must be positive and finite; got {rate}. Try 0.01.")
    head = make_head("categorical", len(bases))
    choices = [BASE_OPTIMIZERS[b].make(rate) for b, rate in zip(bases, learning_rates, strict=True)]

    def init(params: optax.Params, horizon: int | jax.Array) -> SelectorState:
        states = tuple(tx.init(params) for tx in choices)
        return SelectorState(init_statistics(params, horizon), jnp.zeros((), jnp.int32), states)

    def observe(state: SelectorState) -> jax.Array:
        sizes = [jnp.size(m) for m in jax.tree.leaves(state.statistics.momentum)]
        tensors = tensor_features(state.statistics, sizes, pooled=True)[0]
        selected = jax.nn.one_hot(state.selected, len(choices), dtype=jnp.float32)
        return jnp.concatenate([run_features(state.statistics), tensors, selected])[None]

    def apply_action(state: SelectorState, action: jax.Array) -> SelectorState:
        return state._replace(selected=action[0, 0].astype(jnp.int32))

    def update(grads, state: SelectorState, params, value: jax.Array):
        results = [
            tx.update(grads, base_state, params)
            for tx, base_state in zip(choices, state.base_states, strict=True)
        ]
        is_selected = [state.selected == i for i in range(len(choices))]
        updates = jax.tree.map(
            lambda *candidates: jnp.select(is_selected, candidates),
            *(candidate for candidate, _ in results),
        )
        statistics = update_statistics(state.statistics, grads, params, updates, value)
        base_states = tuple(base_state for _, base_state in results)
        return updates, state._replace(statistics=statistics, base_states=base_states)

    num_features = NUM_RUN_FEATURES + NUM_TENSOR_FEATURES + len(choices) + len(objectives)
    shares = shares_of(objectives, preference)
    told = {"objectives": list(objectives), "preference": list(shares)} if objectives else {}
    return as_learned_optimizer(
        Policy(
            name="optimizer_selector",
            controlled=ControlledOptimizer(init, observe, apply_action, update),
            actor=make_actor(core, num_features, head.num_outputs, hidden_size),
            head=head,
            action_interval=action_interval,
            config={
                "bases": list(bases),
                "learning_rates": list(learning_rates),
                "action_interval": action_interval,
                "core": core,
                "hidden_size": hidden_size,
            }
            | told,
            objectives=tuple(objectives),
            preference=shares,
        )
    )
