"""Controllers: an agent, or one for each tensor, turns the hyperparameters of an optax optimizer.

Every `interval` inner steps an agent sees `l2o.policies.observation` and where its knobs stand,
and moves each of them by its action, in steps that suit the knob:

    x ← clip(x + step · a, low, high),   x = ln rate, ln(1 - decay), ln weight decay, ln norm

so a knob keeps its value while the action is 0. The base optimizer is optax's own, with its
hyperparameters injected; per tensor, each tensor has one of its own.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o.policies.base_optimizers import KNOBS, STARTS, Base, Knob, base_of, check_base
from l2o.policies.heads import HeadName, make_head
from l2o.policies.observation import (
    NUM_IDENTITY_FEATURES,
    NUM_RUN_FEATURES,
    NUM_TENSOR_FEATURES,
    Observed,
    identity_features,
    observe_step,
    observed_init,
    run_features,
    tensor_features,
)
from l2o.policies.policy import (
    Knobs,
    Policy,
    PolicyOptimizer,
    as_learned_optimizer,
    make_actor,
    separate,
)


class ControllerState(NamedTuple):
    """State of the knobs.

    Attributes:
        seen: of the run.
        positions: shape (agents, knobs).
        bases: state of the base optimizer of each agent.
        batch_fraction: float32 scalar, see `l2o.batches`; () if it is not turned.
    """

    seen: Observed
    positions: jax.Array
    bases: tuple[Any, ...]
    batch_fraction: jax.Array | tuple[()] = ()


def scheduler(
    base: str = "sgdm",
    learning_rate: float = 0.1,
    lowest: float = 1e-4,
    highest: float = 3.0,
    step: float = 0.3,
    interval: int = 25,
    head: HeadName = "gaussian",
    core: str = "mlp",
    hidden_size: int = 32,
    knobs: Sequence[str] = (),
    base_sha256: str = "",
) -> PolicyOptimizer:
    """One agent that schedules the learning rate of a whole network.

    Args:
        base: see `l2o.policies.base_optimizers.base_of`; for a learned optimizer the rate is a
            factor of its steps.
        learning_rate: where it starts.
        lowest: smallest rate.
        highest: largest rate.
        step: what an action of 1 adds to the rate's logarithm.
        interval: inner steps between two decisions.
        head: "gaussian", or "squashed" for actions between -1 and 1.
        core: "mlp", or "gru" for an agent with a memory.
        hidden_size: of the network.
        knobs: what is turned besides: batch_fraction, the part of each batch that counts, and what
            `tensor_controller` turns.
        base_sha256: of a learned base, which release files of the policy keep.

    Raises:
        ValueError: if the range of rates is empty or the start outside it, `interval` < 1, a name
            is unknown, or the learned base is not the one it was.
    """
    knobs = list(knobs)
    return _controller("scheduler", dict(locals()), knobs, per_tensor=False)


def tensor_controller(
    base: str = "sgdm",
    knobs: Sequence[str] = ("momentum", "weight_decay", "max_norm"),
    learning_rate: float = 0.1,
    lowest: float = 1e-4,
    highest: float = 3.0,
    step: float = 0.3,
    interval: int = 25,
    head: HeadName = "gaussian",
    core: str = "mlp",
    hidden_size: int = 32,
    networks: int = 1,
    base_sha256: str = "",
) -> PolicyOptimizer:
    """One agent for each tensor that turns its hyperparameters.

    Args:
        base: see `l2o.policies.base_optimizers.base_of`.
        knobs: what is turned besides the learning rate: momentum (b1 and b2 for adam),
            weight_decay, max_norm (of the tensor's gradient).
        learning_rate: where it starts, for each tensor.
        lowest: smallest rate.
        highest: largest rate.
        step: what an action of 1 adds to the rate's logarithm.
        interval: inner steps between two decisions.
        head: "gaussian", or "squashed" for actions between -1 and 1.
        core: "mlp", or "gru" for agents with a memory.
        hidden_size: of the network.
        networks: 1 for one that all agents share; or one for each agent, for models with exactly
            so many tensors.
        base_sha256: as for `scheduler`.

    Raises:
        ValueError: as `scheduler`, or if the base has no such knob.
    """
    knobs = list(knobs)
    return _controller("tensor_controller", dict(locals()), knobs, per_tensor=True)


def _controller(
    name: str, config: dict[str, Any], names: Sequence[str], *, per_tensor: bool
) -> PolicyOptimizer:
    """The design of this name; `config` holds the arguments of its constructor."""
    base, learning_rate = base_of(config["base"]), config["learning_rate"]
    if config["base_sha256"] not in ("", base.sha256):
        raise ValueError(
            f"`base` must be the {base.name} that this policy was meta-trained with, of sha256 "
            f"{config['base_sha256'][:12]}; got one of {base.sha256[:12] or 'no checksum'}."
        )
    config["base_sha256"] = base.sha256
    rate = Knob(config["lowest"], config["highest"], config["step"])
    _check(base, names, learning_rate, rate, config["interval"], per_tensor=per_tensor)
    table = {"learning_rate": rate, **{n: KNOBS[n] for n in names}}
    start = {"learning_rate": learning_rate, **{n: STARTS[n] for n in names}}
    ends = np.array([knob.ends for knob in table.values()], np.float32)
    steps = np.array([knob.step for knob in table.values()], np.float32)
    of_base = [n for n in table if n != "batch_fraction"]
    networks = config.get("networks", 1)
    if networks < 1:
        raise ValueError(f"`networks` must be at least 1; got {networks}. Try networks=1.")

    def base_with(horizon: int | jax.Array) -> optax.GradientTransformationExtraArgs:
        values = {n: start[n] for n in of_base}
        values |= {"horizon": horizon} if base.sha256 else {}
        fixed = set(inspect.signature(base.make).parameters) - set(values)
        make = optax.inject_hyperparams(base.make, static_args=fixed)
        return cast(optax.GradientTransformationExtraArgs, make(**values))

    tx = base_with(1)  # what it is made with is replaced by what the state holds
    check_base(base, tx)

    def parts(tree: optax.Params) -> list[optax.Params]:
        return jax.tree.leaves(tree) if per_tensor else [tree]

    def init(params: optax.Params, horizon: int | jax.Array) -> ControllerState:
        encoded = [knob.encode(start[n]) for n, knob in table.items()]
        num_agents = len(parts(params))
        if networks not in (1, num_agents):
            raise ValueError(
                f"`networks` must be 1 or one for each of the {num_agents} tensors; got {networks}."
                f" Try networks={num_agents}."
            )
        fresh = base_with(horizon)
        return ControllerState(
            seen=observed_init(params, horizon),
            positions=jnp.tile(jnp.array(encoded, jnp.float32), (num_agents, 1)),
            bases=tuple(fresh.init(part) for part in parts(params)),
            batch_fraction=jnp.float32(1.0) if "batch_fraction" in names else (),
        )

    def observe(state: ControllerState) -> jax.Array:
        sizes = [jnp.size(m) for m in jax.tree.leaves(state.seen.momentum)]
        low, high = ends.T
        seen = [
            jnp.tile(run_features(state.seen), (state.positions.shape[0], 1)),
            tensor_features(state.seen, sizes, together=not per_tensor),
            2.0 * (state.positions - low) / (high - low) - 1.0,
        ]
        seen += [identity_features(state.seen.momentum)] if per_tensor else []
        return jnp.concatenate(seen, axis=-1)

    def turn(state: ControllerState, action: jax.Array) -> ControllerState:
        moved = jnp.clip(state.positions + steps * action, ends[:, 0], ends[:, 1])
        state = state._replace(positions=moved)
        if "batch_fraction" in names:
            i = list(table).index("batch_fraction")
            state = state._replace(batch_fraction=table["batch_fraction"].decode(moved[0, i]))
        return state

    def update(grads, state: ControllerState, params, value: jax.Array):
        steps, bases = [], []
        of_agents = zip(parts(grads), parts(params), state.bases, state.positions, strict=True)
        for grad, param, base_state, position in of_agents:
            at = dict(zip(table, position, strict=True))
            values = {n: table[n].decode(at[n]) for n in of_base}
            base_state = base_state._replace(hyperparams=base_state.hyperparams | values)
            step, base_state = tx.update(grad, base_state, param, value=value)
            steps.append(step)
            bases.append(base_state)
        updates = jax.tree.structure(grads).unflatten(steps) if per_tensor else steps[0]
        seen = observe_step(state.seen, grads, params, updates, value)
        return updates, state._replace(seen=seen, bases=tuple(bases))

    num_features = NUM_RUN_FEATURES + NUM_TENSOR_FEATURES + len(table)
    num_features += NUM_IDENTITY_FEATURES if per_tensor else 0
    if config["head"] == "categorical":
        raise ValueError("`head` must be gaussian or squashed; got categorical. Try head=gaussian.")
    head = make_head(config["head"], len(table))
    actor = make_actor(config["core"], num_features, head.num_outputs, config["hidden_size"])
    return as_learned_optimizer(
        Policy(
            name=name,
            knobs=Knobs(init, observe, turn, update),
            actor=actor if networks == 1 else separate(actor, networks),
            head=head,
            interval=config["interval"],
            config=config,
        )
    )


def _check(
    base: Base,
    names: Sequence[str],
    learning_rate: float,
    rate: Knob,
    interval: int,
    *,
    per_tensor: bool,
) -> None:
    known = base.knobs if per_tensor else (*base.knobs, "batch_fraction")
    for name in names:
        if name not in known:
            raise ValueError(
                f"`knobs` of {base.name} must be among {', '.join(known) or 'none'}; got {name}. "
                "Drop it."
            )
    if len(set(names)) < len(names):
        raise ValueError(f"`knobs` must differ; got {', '.join(names)}. Drop one.")
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
    check_interval(interval)


def check_interval(interval: int) -> None:
    """Raises a `ValueError` unless there is at least one step between two decisions."""
    if interval < 1:
        raise ValueError(f"`interval` must be at least 1; got {interval}. Try interval=25.")
