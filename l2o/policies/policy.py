"""An optimizer with knobs, an actor that turns them, and the two together as a policy.

Every `interval` inner steps the actor reads what the optimizer has seen and turns its knobs. In
training, actions are drawn (`l2o.rl.rollout`); what ships takes the most likely one, and is
a `LearnedOptimizer` like any other, so evolution strategies can meta-train it, too.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from l2o.learned_optimizer import Horizon, LearnedOptimizer, Theta, require_horizon, require_params
from l2o.optimizers import nets
from l2o.optimizers.per_tensor import as_float32
from l2o.policies.heads import Head
from l2o.task import Key

KnobState = Any
"""Pytree of arrays: the base optimizer's state, where its knobs stand, and what it has seen."""

Carry = Any
"""Memory of a recurrent actor, shape (agents, hidden_size); () if it has none."""


class UpdateFn(Protocol):
    """`(grads, state, params, value) -> (updates, state)`."""

    def __call__(
        self, grads: optax.Updates, state: KnobState, params: optax.Params, value: jax.Array
    ) -> tuple[optax.Updates, KnobState]:
        """One inner step with the knobs where they stand; float32 trees, `value` is the loss."""
        ...


@dataclass(frozen=True, eq=False)
class Knobs:
    """An optimizer whose hyperparameters can be turned while it trains.

    Attributes:
        init: `(params, horizon) -> state`.
        observe: `(state) -> observation` of shape (agents, features).
        turn: `(state, action) -> state`, for an action of shape (agents, actions).
        update: one inner step.
    """

    init: Callable[[optax.Params, int | jax.Array], KnobState]
    observe: Callable[[KnobState], jax.Array]
    turn: Callable[[KnobState, jax.Array], KnobState]
    update: UpdateFn


@dataclass(frozen=True, eq=False)
class Actor:
    """A network from what an agent sees to the outputs that its head takes.

    Attributes:
        init: `(key) -> theta`.
        start: `(agents) -> carry`.
        apply: `(theta, observation, carry) -> (outputs, carry)`, with an agent axis first.
    """

    init: Callable[[Key], Theta]
    start: Callable[[int], Carry]
    apply: Callable[[Theta, jax.Array, Carry], tuple[jax.Array, Carry]]


@dataclass(frozen=True, eq=False)
class Policy:
    """Knobs, what turns them, and how an action is drawn.

    Attributes:
        name: the design, as in `l2o list` and in release files.
        knobs: what can be turned.
        actor: what turns it.
        head: how an action is drawn from the actor's outputs.
        interval: inner steps between two decisions.
        config: the JSON-able keyword arguments that rebuild this design by its constructor.
    """

    name: str
    knobs: Knobs
    actor: Actor
    head: Head
    interval: int
    config: dict[str, Any]


@dataclass(frozen=True, eq=False)
class PolicyOptimizer(LearnedOptimizer):
    """A learned optimizer that is the most likely action of a policy, with the policy at hand."""

    policy: Policy = dataclasses.field(kw_only=True)


class PolicyState(NamedTuple):
    """State of the optimizer that ships.

    Attributes:
        count: number of updates so far, int32 scalar.
        knobs: see `Knobs`.
        carry: of the actor.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    knobs: KnobState
    carry: Carry


def as_learned_optimizer(policy: Policy) -> PolicyOptimizer:
    """The policy's most likely actions, as a learned optimizer; needs `horizon` and `value=loss`.

    A loss that is not given or not finite is left out of what the actor sees.
    """
    knobs, actor, head = policy.knobs, policy.actor, policy.head

    def transform(
        theta: Theta, *, horizon: Horizon = None
    ) -> optax.GradientTransformationExtraArgs:
        num_steps = require_horizon(horizon, policy.name)

        def init(params: optax.Params) -> PolicyState:
            state = knobs.init(as_float32(params), num_steps)
            num_agents = knobs.observe(state).shape[0]
            return PolicyState(jnp.zeros((), jnp.int32), state, actor.start(num_agents))

        def update(
            updates: optax.Updates,
            state: PolicyState,
            params: optax.Params | None = None,
            *,
            value: jax.Array | float = jnp.nan,
            **extra_args: Any,
        ) -> tuple[optax.Updates, PolicyState]:
            del extra_args
            params = require_params(params, policy.name)

            def decide(state: PolicyState) -> PolicyState:
                outputs, carry = actor.apply(theta, knobs.observe(state.knobs), state.carry)
                action = head.squash(head.mode(outputs))
                return state._replace(knobs=knobs.turn(state.knobs, action), carry=carry)

            # Not `cond`: under vmap it computes both sides anyway, and inside `shard_map` JAX 0.10
            # then refuses the constants of a side.
            is_due = state.count % policy.interval == 0
            state = jax.tree.map(lambda new, old: jnp.where(is_due, new, old), decide(state), state)
            steps, turned = knobs.update(
                as_float32(updates), state.knobs, as_float32(params), jnp.float32(value)
            )
            steps = jax.tree.map(lambda s, g: s.astype(jnp.result_type(g)), steps, updates)
            count = jnp.asarray(optax.safe_increment(state.count))
            return steps, state._replace(count=count, knobs=turned)

        return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]

    return PolicyOptimizer(
        name=policy.name,
        init=actor.init,
        transform=transform,
        config=policy.config,
        policy=policy,
    )


def mlp_actor(num_features: int, num_outputs: int, hidden_size: int) -> Actor:
    """Two hidden layers of tanh; the last layer starts at zero, so no knob moves on average."""

    def init(key: Key) -> Theta:
        net = nets.mlp_init(key, (num_features, hidden_size, hidden_size, num_outputs))
        return net | {"w2": jnp.zeros_like(net["w2"])}

    def apply(theta: Theta, observation: jax.Array, carry: Carry) -> tuple[jax.Array, Carry]:
        return nets.mlp_apply(theta, observation, jnp.tanh), carry

    return Actor(init=init, start=lambda agents: (), apply=apply)


def gru_actor(num_features: int, num_outputs: int, hidden_size: int) -> Actor:
    """A gated recurrent unit, which remembers earlier decisions, and a linear layer from zero."""

    def init(key: Key) -> Theta:
        gru = nets.gru_init(key, num_features, hidden_size)
        return gru | {
            "w_out": jnp.zeros((hidden_size, num_outputs)),
            "b_out": jnp.zeros(num_outputs),
        }

    def apply(theta: Theta, observation: jax.Array, carry: Carry) -> tuple[jax.Array, Carry]:
        carry = nets.gru_apply(theta, observation, carry)
        return carry @ theta["w_out"] + theta["b_out"], carry

    return Actor(init=init, start=lambda agents: jnp.zeros((agents, hidden_size)), apply=apply)


def separate(actor: Actor, num_agents: int) -> Actor:
    """An actor with a network of its own for each agent; theta has an agent axis first."""

    def init(key: Key) -> Theta:
        return jax.vmap(actor.init)(jax.random.split(key, num_agents))

    def apply(theta: Theta, observation: jax.Array, carry: Carry) -> tuple[jax.Array, Carry]:
        def of_one(theta: Theta, *one: Any) -> tuple[jax.Array, Carry]:
            outputs, carry = actor.apply(theta, *jax.tree.map(lambda x: x[None], one))
            return outputs[0], jax.tree.map(lambda x: x[0], carry)

        return jax.vmap(of_one)(theta, observation, carry)

    return Actor(init=init, start=actor.start, apply=apply)


def make_actor(core: str, num_features: int, num_outputs: int, hidden_size: int) -> Actor:
    """The actor with this core, "mlp" or "gru".

    Raises:
        ValueError: if there is no such core, or `hidden_size` < 1.
    """
    if hidden_size < 1:
        raise ValueError(f"`hidden_size` must be at least 1; got {hidden_size}. Try 32.")
    if core == "mlp":
        return mlp_actor(num_features, num_outputs, hidden_size)
    if core == "gru":
        return gru_actor(num_features, num_outputs, hidden_size)
    raise ValueError(f"`core` must be mlp or gru; got {core}. Try core=mlp.")
