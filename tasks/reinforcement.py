"""Agents that learn to act, one update of PPO a batch, in environments of gymnax.

A batch is the seeds of some environments, and the loss plays in them with the parameters at hand:
it is one minus the mean return of the first episodes in units of a good one, and 0 above that. A
return has no derivative. In place of one, the loss has the gradient of the objective of PPO
(Schulman et al. 2017) on what was just played, which is to be lowered:

    -mean min(ρ Â, clip(ρ, 1 - ε, 1 + ε) Â) + c mean (V - T)²/2 - β mean entropy

Here ρ is the ratio of an action's probability to the one with which it was drawn, Â its generalized
advantage A standardized over the batch, V the critic's value and T = V + A its target; Â and T are
constants. As every batch is played anew, it is good for one update, at which ρ = 1: there the clip
does nothing, and the first part has the gradient of -mean Â ln π. So this is PPO with one epoch of
one minibatch, which is advantage actor-critic (Mnih et al. 2016). More epochs would need what an
earlier policy played, and a batch that is drawn without parameters cannot hold that.

Returns change in jumps: where two policies are close, the same seeds often play the same episodes.
An evolution strategy sees no difference then, so its perturbations must not be too small.
"""

import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

import l2o
from l2o import Key, Split, Task, TaskFamily
from l2o.tasks.families import sized_family
from l2o.tasks.networks import actor_critic

GAE_LAMBDA = 0.95
VALUE_WEIGHT = 0.5
DISCOUNT = 0.99
ENTROPY_WEIGHT = 0.01


class Environment(Protocol):
    """What is needed of an environment, as gymnax 1.0 has it."""

    def reset(self, key: Key, params: Any) -> tuple[jax.Array, Any]:
        """Start an episode: `(observation, state)`."""
        ...

    def step(self, key: Key, state: Any, action: jax.Array, params: Any) -> tuple[Any, ...]:
        """Act: `(observation, state, reward, terminated, truncated, info)`.

        Observation and state are those of a new episode where one has ended.
        """
        ...


class Played(NamedTuple):
    """What was played, with axes (environments, steps).

    Attributes:
        observations: Observations before each step and after the last, as vectors, shape
            (environments, steps + 1, inputs).
        actions: Actions, int32.
        rewards: Rewards; in units of a good return where they are learnt from.
        done: Whether the episode ended with the step; the next observation is another's first.
    """

    observations: jax.Array
    actions: jax.Array
    rewards: jax.Array
    done: jax.Array


def make_environment(name: str) -> tuple[Any, Any]:
    """Make an environment of gymnax by its name, and its parameters.

    Raises:
        ValueError: If gymnax is not installed.
    """
    try:
        import gymnax  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"`environment` needs the package gymnax; got {name} without it ({error}). "
            "Try pip install 'l2o[gymnax]'."
        ) from error
    return gymnax.make(name)


def actor_critic_agent(
    name: str,
    environment: str,
    hidden_sizes: tuple[int, ...],
    *,
    good_return: float,
    num_envs: int = 8,
    num_steps: int = 128,
    varied: bool = False,
    family: str = "",
) -> Task:
    """Train an actor and a critic in an environment of gymnax; see the module.

    The metrics are "return", the mean return of the first episodes, up to `num_steps`, and
    "dormant_fraction" of the actor's hidden neurons (`actor_critic.dormancy`). Splits differ in
    nothing: all episodes are played anew.

    Args:
        name: Name of the task.
        environment: Name of an environment in gymnax with discrete actions and no negative rewards.
        hidden_sizes: Widths of the hidden layers of actor and critic.
        good_return: Return at which the loss is 0; rewards are counted in units of it.
        num_envs: Number of environments that a batch plays in.
        num_steps: Number of steps in each of them, fewer than end an episode by a time limit.
        varied: Whether instances differ in discount and entropy weight, which are `DISCOUNT` and
            `ENTROPY_WEIGHT` otherwise.
        family: Name that tasks of other sizes share; empty for the task's own name.

    Raises:
        ValueError: If gymnax is not installed or has no such environment, or an episode can be
            over by its time limit within `num_steps`.
    """
    env, env_params = make_environment(environment)
    if num_steps >= env_params.max_steps_in_episode:
        raise ValueError(
            f"`num_steps` must be below the time limit of {environment}, "
            f"{env_params.max_steps_in_episode}; got {num_steps}. Try num_steps=128."
        )
    num_inputs = math.prod(env.observation_space(env_params).shape)

    def play_batch(params: Any, seeds: jax.Array) -> Played:
        actor = jax.lax.stop_gradient(params["actor"])
        play_one = lambda seed: play(env, env_params, actor, seed, num_steps)
        played = jax.vmap(play_one)(seeds)
        return played._replace(rewards=played.rewards / good_return)

    def sample(key: Key) -> dict[str, jax.Array]:
        if not varied:
            return {"discount": jnp.float32(DISCOUNT), "entropy": jnp.float32(ENTROPY_WEIGHT)}
        k_discount, k_entropy = jax.random.split(key)
        return {
            "discount": 1.0 - l2o.log_uniform(k_discount, 0.005, 0.05),
            "entropy": l2o.log_uniform(k_entropy, 0.001, 0.03),
        }

    def init(key: Key, instance):
        del instance
        return actor_critic.init(key, num_inputs, hidden_sizes, env.num_actions)

    def batch(key: Key, instance, data, split: Split) -> jax.Array:
        del instance, data, split
        return jax.random.bits(key, (num_envs,))

    def loss(params, seeds: jax.Array, instance) -> jax.Array:
        played = play_batch(params, seeds)
        objective = ppo_objective(params, played, instance["discount"], instance["entropy"])
        value = jnp.maximum(1.0 - jnp.mean(first_returns(played)), 0.0)
        return value + (objective - jax.lax.stop_gradient(objective))

    def metrics(params, seeds: jax.Array, instance):
        del instance
        played = play_batch(params, seeds)
        return {
            "return": good_return * jnp.mean(first_returns(played)),
            "dormant_fraction": actor_critic.dormant_fraction(
                params["actor"], played.observations[:, :-1]
            ),
        }

    return Task(
        name=name,
        family=family,
        sample=sample,
        init=init,
        batch=batch,
        loss=loss,
        loss_cap=1.0,
        metrics=metrics,
        maximized=frozenset({"return"}),
        metric_caps={"return": 0.0, "dormant_fraction": 1.0},
        loss_scale=1.0,
        modifies_gradients=True,
        is_differentiable=False,
    )


def play(
    env: Environment,
    env_params: Any,
    actor: actor_critic.Weights,
    seed: jax.Array,
    num_steps: int,
) -> Played:
    """Play in one environment from its start; an episode that ends is followed by another.

    Args:
        env: Environment with `reset` and `step` as gymnax 1.0 has them.
        env_params: Its parameters.
        actor: Weights of the actor, whose outputs are logits of the actions.
        seed: Seed of all that is random, an integer scalar.
        num_steps: Number of steps.

    Returns:
        What was played, without the axis of environments.
    """
    k_reset, k_act, k_steps = jax.random.split(jax.random.key(seed), 3)
    # The action whose logit and noise are largest together is one drawn from their softmax. To draw
    # all noise at once compiles faster.
    num_actions = len(actor[f"b{len(actor) // 2 - 1}"])
    noise = jax.random.gumbel(k_act, (num_steps, num_actions))

    def step(carry: tuple[jax.Array, Any], now: tuple[jax.Array, Key]):
        observation, state = carry
        noise, key = now
        seen = observation.ravel()
        action = jnp.argmax(actor_critic.layers(actor, seen)[-1] + noise)
        observation, state, reward, terminated, _, _ = env.step(key, state, action, env_params)
        return (observation, state), Played(seen, action, reward, terminated)

    start = env.reset(k_reset, env_params)
    draws = noise, jax.random.split(k_steps, num_steps)
    (last, _), played = jax.lax.scan(step, start, draws)
    return played._replace(observations=jnp.concatenate([played.observations, last.reshape(1, -1)]))


def first_returns(played: Played) -> jax.Array:
    """Sum the rewards up to the end of the first episode, shape (environments,)."""
    ended = jnp.cumsum(played.done, axis=1) - played.done > 0
    return jnp.sum(jnp.where(ended, 0.0, played.rewards), axis=1)


def ppo_objective(
    params: Any, played: Played, discount: jax.Array, entropy_weight: jax.Array
) -> jax.Array:
    """Compute a scalar with the gradient of PPO's objective where the policy is what has played."""
    logits = actor_critic.layers(params["actor"], played.observations[:, :-1])[-1]
    values = actor_critic.layers(params["critic"], played.observations)[-1][..., 0]
    advantages = generalized_advantages(played, jax.lax.stop_gradient(values), discount)
    targets = jax.lax.stop_gradient(values[:, :-1]) + advantages
    standardized = (advantages - jnp.mean(advantages)) / (jnp.std(advantages) + 1e-8)
    log_probs = jax.nn.log_softmax(logits)
    taken = jnp.sum(log_probs * jax.nn.one_hot(played.actions, logits.shape[-1]), axis=-1)
    entropy = -jnp.mean(jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1))
    critic = 0.5 * jnp.mean(jnp.square(values[:, :-1] - targets))
    return -jnp.mean(standardized * taken) + VALUE_WEIGHT * critic - entropy_weight * entropy


def generalized_advantages(played: Played, values: jax.Array, discount: jax.Array) -> jax.Array:
    """Estimate generalized advantages (Schulman et al. 2016), shape (environments, steps).

        δₜ = rₜ + γ (1 - dₜ) Vₜ₊₁ - Vₜ,   Aₜ = δₜ + γ λ (1 - dₜ) Aₜ₊₁

    Args:
        played: What was played.
        values: Values of the observations, shape (environments, steps + 1).
        discount: Discount γ.
    """
    goes_on = discount * (1.0 - played.done)
    deltas = played.rewards + goes_on * values[:, 1:] - values[:, :-1]

    def step(later: jax.Array, now: tuple[jax.Array, jax.Array]):
        delta, goes_on = now
        advantage = delta + GAE_LAMBDA * goes_on * later
        return advantage, advantage

    _, advantages = jax.lax.scan(step, jnp.zeros(len(deltas)), (deltas.T, goes_on.T), reverse=True)
    return advantages.T


def ppo_cartpole() -> TaskFamily:
    """Actor-critic agents that learn CartPole-v1 by PPO; `pip install 'l2o[gymnax]'` first."""

    def make(name: str, hidden: tuple[int, ...], varied: bool) -> Task:
        return actor_critic_agent(
            name, "CartPole-v1", hidden, good_return=128.0, varied=varied, family="ppo_cartpole"
        )

    sizes = {"16x16": (16, 16), "32x32": (32, 32)}
    return sized_family("ppo_cartpole", make, sizes, {"64x64": (64, 64)})


def ppo_breakout() -> TaskFamily:
    """Actor-critic agents that learn MinAtar's Breakout by PPO; `pip install 'l2o[gymnax]'`."""

    def make(name: str, hidden: tuple[int, ...], varied: bool) -> Task:
        return actor_critic_agent(
            name, "Breakout-MinAtar", hidden, good_return=11.0, varied=varied, family="ppo_breakout"
        )

    return sized_family("ppo_breakout", make, {"32": (32,), "64": (64,)}, {"64x64": (64, 64)})
