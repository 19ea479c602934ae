"""Chooser: which of several optimizers trains the next interval.

All of them follow the run, so that each is warm when it is chosen: an update costs the sum of
theirs, and their states take the sum of their memory.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2o.policies.base_optimizers import BASES
from l2o.policies.controller import check_interval
from l2o.policies.heads import make_head
from l2o.policies.observation import (
    NUM_RUN_FEATURES,
    NUM_TENSOR_FEATURES,
    Observed,
    observe_step,
    observed_init,
    run_features,
    tensor_features,
)
from l2o.policies.policy import Knobs, Policy, PolicyOptimizer, as_learned_optimizer, make_actor


class ChooserState(NamedTuple):
    """State of the knob.

    Attributes:
        seen: of the run.
        chosen: int32 index of the optimizer that trains.
        bases: state of each.
    """

    seen: Observed
    chosen: jax.Array
    bases: tuple[optax.OptState, ...]


def chooser(
    bases: Sequence[str] = ("sgdm", "adam", "sgdm", "adam"),
    learning_rates: Sequence[float] = (0.1, 0.01, 0.01, 0.001),
    interval: int = 25,
    core: str = "mlp",
    hidden_size: int = 32,
) -> PolicyOptimizer:
    """One agent that chooses among optimizers at constant rates, by a categorical head.

    Args:
        bases: "sgdm" or "adam", at least two.
        learning_rates: of each.
        interval: inner steps between two decisions.
        core: "mlp", or "gru" for an agent with a memory.
        hidden_size: of the network.

    Raises:
        ValueError: if there are fewer than two optimizers, a name is unknown, a rate is not
            positive, or `interval` < 1.
    """
    check_interval(interval)
    if len(bases) != len(learning_rates):
        raise ValueError(
            f"`learning_rates` must be one for each of the {len(bases)} `bases`; got "
            f"{len(learning_rates)}. Add or drop some."
        )
    for base, rate in zip(bases, learning_rates, strict=True):
        if base not in BASES:
            raise ValueError(f"`bases` must be among {', '.join(BASES)}; got {base}. Try sgdm.")
        if not 0 < rate < math.inf:
            raise ValueError(f"`learning_rates` must be positive and finite; got {rate}. Try 0.01.")
    head = make_head("categorical", len(bases))
    choices = [BASES[b].make(rate) for b, rate in zip(bases, learning_rates, strict=True)]

    def init(params: optax.Params, horizon: int | jax.Array) -> ChooserState:
        states = tuple(tx.init(params) for tx in choices)
        return ChooserState(observed_init(params, horizon), jnp.zeros((), jnp.int32), states)

    def observe(state: ChooserState) -> jax.Array:
        sizes = [jnp.size(m) for m in jax.tree.leaves(state.seen.momentum)]
        of_tensors = tensor_features(state.seen, sizes, together=True)[0]
        chosen = jax.nn.one_hot(state.chosen, len(choices))
        return jnp.concatenate([run_features(state.seen), of_tensors, chosen])[None]

    def turn(state: ChooserState, action: jax.Array) -> ChooserState:
        return state._replace(chosen=action[0, 0].astype(jnp.int32))

    def update(grads, state: ChooserState, params, value: jax.Array):
        results = [
            tx.update(grads, base, params) for tx, base in zip(choices, state.bases, strict=True)
        ]
        updates = jax.tree.map(
            lambda *of_each: jnp.select([state.chosen == i for i in range(len(choices))], of_each),
            *(steps for steps, _ in results),
        )
        seen = observe_step(state.seen, grads, params, updates, value)
        return updates, state._replace(seen=seen, bases=tuple(base for _, base in results))

    num_features = NUM_RUN_FEATURES + NUM_TENSOR_FEATURES + len(choices)
    return as_learned_optimizer(
        Policy(
            name="chooser",
            knobs=Knobs(init, observe, turn, update),
            actor=make_actor(core, num_features, head.num_outputs, hidden_size),
            head=head,
            interval=interval,
            config={
                "bases": list(bases),
                "learning_rates": list(learning_rates),
                "interval": interval,
                "core": core,
                "hidden_size": hidden_size,
            },
        )
    )
