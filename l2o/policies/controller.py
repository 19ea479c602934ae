"""Parts that `scheduler` and `per_tensor_controller` share.

Every `action_interval` inner steps an agent observes `l2o.policies.observation` and the current
hyperparameters, and changes each of them by its action, on a scale that suits it:

    x ← clip(x + step · a, low, high),   x = ln rate, ln(1 - decay), ln weight decay, ln norm

so a hyperparameter keeps its value while the action is 0. The base optimizer is optax's own, with
its hyperparameters injected; per tensor, each tensor has one of its own.
"""

import inspect
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o.optimizers.layout import (
    Packed,
    join_leaves,
    map_packed,
    raveled,
    split_leaves,
    unraveled,
)
from l2o.policies.base_optimizers import (
    HYPERPARAMETERS,
    INITIAL_VALUES,
    BaseOptimizer,
    Hyperparameter,
    base_optimizer,
    check_base,
)
from l2o.policies.heads import HeadName, make_head
from l2o.policies.observation import (
    NUM_IDENTITY_FEATURES,
    NUM_RUN_FEATURES,
    NUM_TENSOR_FEATURES,
    RunStatistics,
    identity_features,
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
    separate_networks,
)
from l2o.policies.preference import shares_of
from l2o.stacks import is_stack


class ControllerState(NamedTuple):
    """State of an optimizer whose hyperparameters are controlled.

    Attributes:
        statistics: Statistics of the run.
        codes: Encoded hyperparameters, shape (agents, hyperparameters).
        base_state: State of the base optimizer. Of one for each tensor: their states, in which a
            tree like the parameters takes the place of every array of the tensor's shape, and one
            flat array that of every other.
        batch_fraction: Fraction of the batch that counts, see `l2o.batch_fraction`, a float32
            scalar; () if it is not controlled.
    """

    statistics: RunStatistics
    codes: jax.Array
    base_state: Any
    batch_fraction: jax.Array | tuple[()] = ()


def make_controller(
    name: str,
    *,
    per_tensor: bool,
    base: str,
    hyperparameters: Sequence[str],
    learning_rate: float,
    lowest: float,
    highest: float,
    step: float,
    action_interval: int,
    head: HeadName,
    core: str,
    hidden_size: int,
    base_sha256: str,
    objectives: Sequence[str],
    preference: Sequence[float],
    networks: int = 1,
) -> PolicyOptimizer:
    """Make the design of a name; see `per_tensor_controller` for the other arguments.

    Args:
        name: Name of the design.
        per_tensor: Whether each tensor has an agent of its own.
    """
    optimizer = base_optimizer(base)
    if base_sha256 not in ("", optimizer.sha256):
        raise ValueError(
            f"`base` must be the {base} that this policy was meta-trained with, of sha256 "
            f"{base_sha256[:12]}; got one of {optimizer.sha256[:12] or 'no checksum'}."
        )
    rate = Hyperparameter(lowest, highest, step)
    check_hyperparameters(optimizer, hyperparameters, per_tensor=per_tensor)
    check_rate(rate, learning_rate)
    check_action_interval(action_interval)
    shares = shares_of(objectives, preference)
    if networks < 1:
        raise ValueError(f"`networks` must be at least 1; got {networks}. Try networks=1.")
    table = {"learning_rate": rate, **{n: HYPERPARAMETERS[n] for n in hyperparameters}}
    initial = {"learning_rate": learning_rate, **{n: INITIAL_VALUES[n] for n in hyperparameters}}
    lows, highs = np.array([entry.code_range for entry in table.values()], np.float32).T
    scales = np.array([entry.step for entry in table.values()], np.float32)
    base_names = [n for n in table if n != "batch_fraction"]

    def base_with(horizon: int | jax.Array) -> optax.GradientTransformationExtraArgs:
        values = {n: initial[n] for n in base_names}
        values |= {"horizon": horizon} if optimizer.sha256 else {}
        fixed = set(inspect.signature(optimizer.make).parameters) - set(values)
        make = optax.inject_hyperparams(optimizer.make, static_args=fixed)
        return cast(optax.GradientTransformationExtraArgs, make(**values))

    tx = base_with(1)  # what it is made with is replaced by what the state holds
    check_base(optimizer, tx)

    def packed(state: Any) -> Any:
        return optax.tree.map_params(tx, lambda x: x, state, transform_non_params=Packed)

    init_tensor = lambda p, horizon: packed(base_with(horizon).init(p))
    shapes_of = lambda p: jax.eval_shape(partial(init_tensor, horizon=1), p)
    template = shapes_of(jax.ShapeDtypeStruct((1,), jnp.float32))

    def init_base(params: optax.Params, horizon: int | jax.Array) -> Any:
        if not per_tensor:
            return base_with(horizon).init(params)
        leaves, treedef = jax.tree.flatten(params)
        states = [map_packed(raveled, init_tensor(p, horizon)) for p in leaves]
        return join_leaves(treedef, template, states)

    def update_base(grads, state, params, codes: jax.Array, value: jax.Array):
        if not per_tensor:
            return update_one(grads, state, params, codes[0], value)
        leaves, treedef = jax.tree.flatten(grads)
        shapes = [shapes_of(g) for g in leaves]
        states = split_leaves(treedef, template, state, shapes)
        agents = zip(leaves, states, treedef.flatten_up_to(params), codes, shapes, strict=True)
        results = []
        for g, state, p, agent_codes, like in agents:
            state = map_packed(lambda flat, shape: unraveled(flat, shape).values, state, like)
            step, state = update_one(g, state, p, agent_codes, value)
            results.append((step, map_packed(raveled, packed(state))))
        updates = treedef.unflatten(step for step, _ in results)
        return updates, join_leaves(treedef, template, [state for _, state in results])

    def update_one(grads, state, params, codes: jax.Array, value: jax.Array):
        by_name = dict(zip(table, codes, strict=True))
        values = {n: table[n].decode(by_name[n]) for n in base_names}
        state = state._replace(hyperparams=state.hyperparams | values)
        return tx.update(grads, state, params, value=value)

    def init(params: optax.Params, horizon: int | jax.Array) -> ControllerState:
        codes = [entry.encode(initial[n]) for n, entry in table.items()]
        num_agents = len(jax.tree.leaves(params)) if per_tensor else 1
        if per_tensor and any(map(is_stack, jax.tree.leaves(params, is_leaf=is_stack))):
            raise ValueError(
                f"`stacked` must be empty for {name}, which has an agent for each array; got "
                "layers in one array. Try scheduler, which has one for all."
            )
        if networks not in (1, num_agents):
            raise ValueError(
                f"`networks` must be 1 or one for each of the {num_agents} tensors; got {networks}."
                f" Try networks={num_agents}."
            )
        return ControllerState(
            statistics=init_statistics(params, horizon),
            codes=jnp.tile(jnp.array(codes, jnp.float32), (num_agents, 1)),
            base_state=init_base(params, horizon),
            batch_fraction=jnp.float32(1.0) if "batch_fraction" in table else (),
        )

    def observe(state: ControllerState) -> jax.Array:
        sizes = [jnp.size(m) for m in jax.tree.leaves(state.statistics.momentum)]
        observed = [
            jnp.tile(run_features(state.statistics), (state.codes.shape[0], 1)),
            tensor_features(state.statistics, sizes, pooled=not per_tensor),
            2.0 * (state.codes - lows) / (highs - lows) - 1.0,
        ]
        observed += [identity_features(state.statistics.momentum)] if per_tensor else []
        return jnp.concatenate(observed, axis=-1)

    def apply_action(state: ControllerState, action: jax.Array) -> ControllerState:
        codes = jnp.clip(state.codes + scales * action, lows, highs)
        state = state._replace(codes=codes)
        if "batch_fraction" in table:
            i = list(table).index("batch_fraction")
            state = state._replace(batch_fraction=table["batch_fraction"].decode(codes[0, i]))
        return state

    def update(grads, state: ControllerState, params, value: jax.Array):
        updates, base_state = update_base(grads, state.base_state, params, state.codes, value)
        statistics = update_statistics(state.statistics, grads, params, updates, value)
        return updates, state._replace(statistics=statistics, base_state=base_state)

    num_features = NUM_RUN_FEATURES + NUM_TENSOR_FEATURES + len(table) + len(objectives)
    num_features += NUM_IDENTITY_FEATURES if per_tensor else 0
    if head == "categorical":
        raise ValueError("`head` must be gaussian or squashed; got categorical. Try head=gaussian.")
    distribution = make_head(head, len(table))
    config = {
        "base": base,
        "hyperparameters": list(hyperparameters),
        "learning_rate": learning_rate,
        "lowest": lowest,
        "highest": highest,
        "step": step,
        "action_interval": action_interval,
        "head": head,
        "core": core,
        "hidden_size": hidden_size,
        "base_sha256": optimizer.sha256,
    }
    config |= {"networks": networks} if per_tensor else {}
    config |= {"objectives": list(objectives), "preference": list(shares)} if objectives else {}
    actor = make_actor(core, num_features, distribution.num_outputs, hidden_size)
    return as_learned_optimizer(
        Policy(
            name=name,
            controlled=ControlledOptimizer(init, observe, apply_action, update),
            actor=actor if networks == 1 else separate_networks(actor, networks),
            head=distribution,
            action_interval=action_interval,
            config=config,
            objectives=tuple(objectives),
            preference=shares,
        )
    )


def check_hyperparameters(base: BaseOptimizer, names: Sequence[str], *, per_tensor: bool) -> None:
    """Raise a `ValueError` unless the base has these hyperparameters, each named once."""
    known = base.hyperparameters if per_tensor else (*base.hyperparameters, "batch_fraction")
    for name in names:
        if name not in known:
            raise ValueError(
                f"`hyperparameters` of {base.name} must be among {', '.join(known) or 'none'}; got "
                f"{name}. Drop it."
            )
    if len(set(names)) < len(names):
        raise ValueError(f"`hyperparameters` must differ; got {', '.join(names)}. Drop one.")


def check_rate(rate: Hyperparameter, learning_rate: float) -> None:
    """Raise a `ValueError` unless the range of rates is one, and the initial rate in it."""
    if not 0 < rate.low < rate.high < math.inf:
        raise ValueError(
            f"`lowest` and `highest` must make a range of positive rates; got {rate.low} to "
            f"{rate.high}. Try lowest=1e-4 highest=3.0."
        )
    if not rate.low <= learning_rate <= rate.high:
        raise ValueError(
            f"`learning_rate` must be in the range {rate.low} to {rate.high}; got "
            f"{learning_rate}. Try learning_rate={math.sqrt(rate.low * rate.high):.2g}."
        )
    if not 0 < rate.step < math.inf:
        raise ValueError(f"`step` must be positive; got {rate.step}. Try step=0.3.")
