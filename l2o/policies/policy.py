"""A controlled optimizer, an actor that changes its hyperparameters, and the two as a policy.

Every `action_interval` inner steps the actor reads the statistics of the run and changes the
hyperparameters. In training, actions are sampled (`l2o.rl.rollout`); what is released takes the
one at the centre of the distribution (`Head.mode`), and is a `LearnedOptimizer` like any other, so
evolution strategies can meta-train it, too.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from l2o.learned_optimizer import Horizon, LearnedOptimizer, Theta, require_horizon, require_params
from l2o.leaves import on_any_tree
from l2o.optimizers import nets
from l2o.optimizers.per_tensor import as_float32
from l2o.policies.heads import Head
from l2o.policies.preference import told
from l2o.task import Key

ControlledState = Any
"""Pytree of arrays: the base optimizer's state, its hyperparameters, and statistics of the run."""

Carry = Any
"""Memory of a recurrent actor, shape (agents, hidden_size); () if it has none."""


class UpdateFn(Protocol):
    """`(grads, state, params, value) -> (updates, state)`."""

    def __call__(
        self, grads: optax.Updates, state: ControlledState, params: optax.Params, value: jax.Array
    ) -> tuple[optax.Updates, ControlledState]:
        """Take an inner step at the hyperparameters as they are; float32, `value` is the loss."""
        ...


@dataclass(frozen=True, eq=False)
class ControlledOptimizer:
    """Optimizer whose hyperparameters can be changed while it trains.

    Attributes:
        init: Function `(params, horizon) -> state`.
        observe: Function `(state) -> observation` of shape (agents, features).
        apply_action: Function `(state, action) -> state`, for an action of shape (agents, actions).
        update: Function `(grads, state, params, value) -> (updates, state)`, one inner step.
    """

    init: Callable[[optax.Params, int | jax.Array], ControlledState]
    observe: Callable[[ControlledState], jax.Array]
    apply_action: Callable[[ControlledState, jax.Array], ControlledState]
    update: UpdateFn


@dataclass(frozen=True, eq=False)
class Actor:
    """Network from observations to the parameters of a distribution over actions.

    Attributes:
        init: Function `(key) -> theta`.
        start: Function `(num_agents) -> carry`.
        apply: Function `(theta, observation, carry) -> (outputs, carry)`, with an agent axis first.
    """

    init: Callable[[Key], Theta]
    start: Callable[[int], Carry]
    apply: Callable[[Theta, jax.Array, Carry], tuple[jax.Array, Carry]]


@dataclass(frozen=True, eq=False)
class Policy:
    """Controlled optimizer, the actor that controls it, and how an action is sampled.

    Attributes:
        name: Name of the design, as in `l2o list` and in release files.
        controlled: Optimizer whose hyperparameters the actor changes.
        actor: Network that selects actions.
        head: Distribution from which actions are sampled.
        action_interval: Number of inner steps between two actions.
        config: JSON-able keyword arguments that rebuild this design by its constructor.
        objectives: Names of the rewards whose shares the actor is told, see
            `l2o.policies.preference`; () if it is told none.
        preference: Share of each in use, in their order, shape (objectives,).
    """

    name: str
    controlled: ControlledOptimizer
    actor: Actor
    head: Head
    action_interval: int
    config: dict[str, Any]
    objectives: tuple[str, ...] = ()
    preference: tuple[float, ...] | jax.Array = ()


@dataclass(frozen=True, eq=False)
class PolicyOptimizer(LearnedOptimizer):
    """Learned optimizer that takes the central actions of a policy, with the policy at hand."""

    policy: Policy = dataclasses.field(kw_only=True)


class PolicyState(NamedTuple):
    """State of a policy as an optimizer.

    Attributes:
        count: Number of updates so far, int32 scalar.
        controlled: State of the controlled optimizer.
        carry: Memory of the actor.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    controlled: ControlledState
    carry: Carry


def controlled_transform(
    controlled: ControlledOptimizer, horizon: int | jax.Array
) -> optax.GradientTransformationExtraArgs:
    """Make a controlled optimizer that nobody acts upon an optax transformation.

    Args:
        controlled: Optimizer, which is given float32 trees.
        horizon: Number of inner steps of the run.
    """

    def init(params: optax.Params) -> ControlledState:
        return controlled.init(as_float32(params), horizon)

    def update(
        updates: optax.Updates,
        state: ControlledState,
        params: optax.Params,
        *,
        value: jax.Array | float,
    ) -> tuple[optax.Updates, ControlledState]:
        steps, state = controlled.update(
            as_float32(updates), state, as_float32(params), jnp.float32(value)
        )
        return jax.tree.map(lambda s, g: s.astype(jnp.result_type(g)), steps, updates), state

    tx = optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]
    return on_any_tree(tx, "a policy")


def as_learned_optimizer(policy: Policy) -> PolicyOptimizer:
    """Make a learned optimizer of a policy's central actions, see `Head.mode`.

    It needs `horizon` and `value=loss`. A loss that is not given or not finite is left out of what
    the actor observes.
    """
    controlled, actor, head = policy.controlled, policy.actor, policy.head

    def transform(
        theta: Theta, *, horizon: Horizon = None
    ) -> optax.GradientTransformationExtraArgs:
        tx = controlled_transform(controlled, require_horizon(horizon, policy.name))

        def observe(state: ControlledState) -> jax.Array:
            with jax.numpy_rank_promotion("allow"):  # as inside of designs, see `l2o.leaves`
                return told(controlled.observe(state), policy.preference)

        def init(params: optax.Params) -> PolicyState:
            state = tx.init(params)
            num_agents = jax.eval_shape(observe, state).shape[0]
            return PolicyState(jnp.zeros((), jnp.int32), state, actor.start(num_agents))

        def update(
            updates: optax.Updates,
            state: PolicyState,
            params: optax.Params | None = None,
            *,
            value: jax.Array | float | None = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, PolicyState]:
            del extra_args
            params = require_params(params, policy.name)

            def select_action(state: PolicyState) -> PolicyState:
                with jax.numpy_rank_promotion("allow"):
                    outputs, carry = actor.apply(theta, observe(state.controlled), state.carry)
                    action = head.squash(head.mode(outputs))
                    acted = controlled.apply_action(state.controlled, action)
                return state._replace(controlled=acted, carry=carry)

            # Not `cond`: under vmap it computes both sides anyway, and inside `shard_map` JAX 0.10
            # then refuses the constants of a side.
            is_due = state.count % policy.action_interval == 0
            acted = select_action(state)
            state = jax.tree.map(lambda new, old: jnp.where(is_due, new, old), acted, state)
            loss = jnp.inf if value is None else value
            steps, stepped = tx.update(updates, state.controlled, params, value=loss)
            count = jnp.asarray(optax.safe_increment(state.count))
            return steps, state._replace(count=count, controlled=stepped)

        return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]

    return PolicyOptimizer(
        name=policy.name,
        init=actor.init,
        transform=transform,
        config=policy.config,
        policy=policy,
    )


def mlp_actor(num_features: int, num_outputs: int, hidden_size: int) -> Actor:
    """Make an actor of two hidden layers of tanh.

    The last layer starts at zero, so that no hyperparameter changes on average.
    """

    def init(key: Key) -> Theta:
        net = nets.mlp_init(key, (num_features, hidden_size, hidden_size, num_outputs))
        return net | {"w2": jnp.zeros_like(net["w2"])}

    def apply(theta: Theta, observation: jax.Array, carry: Carry) -> tuple[jax.Array, Carry]:
        return nets.mlp_apply(theta, observation, jnp.tanh), carry

    return Actor(init=init, start=lambda num_agents: (), apply=apply)


def gru_actor(num_features: int, num_outputs: int, hidden_size: int) -> Actor:
    """Make an actor that remembers: a gated recurrent unit, and a linear layer from zero."""

    def init(key: Key) -> Theta:
        gru = nets.gru_init(key, num_features, hidden_size)
        return gru | {
            "w_out": jnp.zeros((hidden_size, num_outputs), jnp.float32),
            "b_out": jnp.zeros(num_outputs, jnp.float32),
        }

    def apply(theta: Theta, observation: jax.Array, carry: Carry) -> tuple[jax.Array, Carry]:
        carry = nets.gru_apply(theta, observation, carry)
        return carry @ theta["w_out"] + theta["b_out"], carry

    return Actor(init, lambda num_agents: jnp.zeros((num_agents, hidden_size), jnp.float32), apply)


def separate_networks(actor: Actor, num_agents: int) -> Actor:
    """Give each agent a network of its own; theta has an agent axis first."""

    def init(key: Key) -> Theta:
        return jax.vmap(actor.init)(jax.random.split(key, num_agents))

    def apply(theta: Theta, observation: jax.Array, carry: Carry) -> tuple[jax.Array, Carry]:
        def apply_one(theta: Theta, *inputs: Any) -> tuple[jax.Array, Carry]:
            outputs, carry = actor.apply(theta, *jax.tree.map(lambda x: x[None], inputs))
            return outputs[0], jax.tree.map(lambda x: x[0], carry)

        return jax.vmap(apply_one)(theta, observation, carry)

    return Actor(init=init, start=actor.start, apply=apply)


def make_actor(core: str, num_features: int, num_outputs: int, hidden_size: int) -> Actor:
    """Make the actor of a name.

    Args:
        core: "mlp", or "gru" for an actor with a memory.
        num_features: Number of features that an agent observes.
        num_outputs: Number of outputs that the head needs.
        hidden_size: Number of units of each hidden layer.

    Raises:
        ValueError: If there is no such core, or `hidden_size` < 1.
    """
    if hidden_size < 1:
        raise ValueError(f"`hidden_size` must be at least 1; got {hidden_size}. Try 32.")
    if core == "mlp":
        return mlp_actor(num_features, num_outputs, hidden_size)
    if core == "gru":
        return gru_actor(num_features, num_outputs, hidden_size)
    raise ValueError(f"`core` must be mlp or gru; got {core}. Try core=mlp.")


def check_action_interval(action_interval: int) -> None:
    """Raise a `ValueError` unless there is at least one step between two actions."""
    if action_interval < 1:
        raise ValueError(
            f"`action_interval` must be at least 1; got {action_interval}. Try action_interval=25."
        )
