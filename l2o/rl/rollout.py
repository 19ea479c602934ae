"""Windows of actions of a population, sampled from a policy: what policy gradients learn from.

The population is groups of runs that share everything but the noise of their actions: instance,
initial parameters, batches, horizon. A group starts anew when all its runs are over.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from l2o.distributed.mesh import check_divides, shard_population
from l2o.learned_optimizer import Theta
from l2o.optimizers import nets
from l2o.policies.heads import Head
from l2o.policies.policy import Actor, Carry
from l2o.rl.environment import Environment, EnvState, Observation, Outcome
from l2o.task import Data, Key

CRITIC_SIZE = 32
"""Number of units of each of the critic's two hidden layers."""


class ActorCritic(NamedTuple):
    """Parameters that policy gradients train; release files hold the actor alone.

    Attributes:
        actor: Theta of the policy.
        log_std: Log-standard deviations of the head, see `l2o.policies.heads.Head`.
        critic: Network from an observation to the return that an agent expects, see `value_of`.
    """

    actor: Theta
    log_std: jax.Array
    critic: nets.MLP


class Episode(NamedTuple):
    """An episode between two windows.

    Attributes:
        state: State of the environment.
        carry: Memory of a recurrent actor.
        is_over: Whether the episode has ended, while others of its group go on.
    """

    state: EnvState
    carry: Carry
    is_over: jax.Array


class Transitions(NamedTuple):
    """Actions and their outcomes, with leading axes (groups, runs, num_actions).

    Attributes:
        observation: Observation before each action.
        pre_squash: Sampled action before it was squashed, (..., agents, actions).
        log_prob: Log-density of it, (..., agents).
        outcome: Outcome of each action.
        mask: Whether the episode was not over yet; the rest does not count.
    """

    observation: Observation
    pre_squash: jax.Array
    log_prob: jax.Array
    outcome: Outcome
    mask: jax.Array


class Rollout(NamedTuple):
    """Window of a population, with leading axes (groups, runs).

    Attributes:
        transitions: Actions and their outcomes.
        carry: Memory of the actor before the first action.
        last: Observation after the last action.
    """

    transitions: Transitions
    carry: Carry
    last: Observation


@dataclass(frozen=True, eq=False)
class RolloutWorker:
    """Population of runs that is acted upon, a window at a time.

    Attributes:
        init: Function `(key) -> population`.
        collect: Function `(key, theta, population, data) -> (population, rollout, metrics)`.
        steps: Number of inner steps of one rollout, over all runs.
    """

    init: Callable[[Key], Any]
    collect: Callable[[Key, ActorCritic, Any, Data], tuple[Any, Rollout, dict[str, jax.Array]]]
    steps: int


def first_actor_critic(key: Key, actor: Theta, head: Head, environment: Environment) -> ActorCritic:
    """Add to an actor the initial log-std and a critic whose value is 0 until it has learned."""
    k_state, k_critic = jax.random.split(key)
    observation = jax.eval_shape(lambda k: environment.observe(environment.start(k)), k_state)
    num_features = 2 * observation.agents.shape[-1] + observation.critic.shape[-1]
    critic = nets.mlp_init(k_critic, (num_features, CRITIC_SIZE, CRITIC_SIZE, 1))
    return ActorCritic(actor, head.init_log_std(), critic | {"w2": jnp.zeros_like(critic["w2"])})


def value_of(critic: nets.MLP, observation: Observation) -> jax.Array:
    """Estimate the return that each agent expects from here on, shape (..., agents).

    The critic is central: it goes by what the agent observes, what all observe on average, and its
    own features. Observations may have leading axes, which values have, too.
    """
    common = jnp.concatenate([jnp.mean(observation.agents, axis=-2), observation.critic], axis=-1)
    common = jnp.broadcast_to(
        common[..., None, :], (*observation.agents.shape[:-1], common.shape[-1])
    )
    inputs = jnp.concatenate([observation.agents, common], axis=-1)
    return nets.mlp_apply(critic, inputs, jnp.tanh)[..., 0]


def rollout_worker(
    environment: Environment,
    actor: Actor,
    head: Head,
    *,
    num_groups: int,
    group_size: int,
    antithetic: bool,
    mesh: Mesh | None = None,
    name: str = "num_groups",
) -> RolloutWorker:
    """Roll out groups of runs, spread over devices.

    Args:
        environment: Environment of the runs.
        actor: Network that selects actions.
        head: Distribution from which actions are sampled.
        num_groups: Number of groups of runs.
        group_size: Number of runs that share everything but the noise of their actions.
        antithetic: Whether every second run of a group has the opposite noise of the one before it.
        mesh: Devices to spread the groups over.
        name: Name by which the caller knows the number of groups, for errors.

    Raises:
        ValueError: If there is no group, or `num_groups` is not a multiple of the devices.
    """
    if num_groups < 1 or group_size < 1:
        raise ValueError(f"`{name}` must be at least 1; got {num_groups}. Try {name}=16.")

    def new_episode(state: EnvState) -> Episode:
        num_agents = jax.eval_shape(environment.observe, state).agents.shape[0]
        return Episode(state, actor.start(num_agents), jnp.bool_(False))

    def repeat(episode: Episode) -> Episode:
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (group_size, *x.shape)), episode)

    def init_group(key: Key) -> Episode:
        return repeat(new_episode(environment.init(key)))

    def step_run(
        key: Key, k_noise: Key, sign: jax.Array, theta: ActorCritic, run: Episode, data: Data
    ) -> tuple[Episode, Rollout]:
        """Roll out a window of one run."""
        k_enter, k_steps = jax.random.split(key)
        run = run._replace(state=environment.enter(k_enter, run.state, data))

        def act(run: Episode, keys: tuple[Key, Key]):
            k_step, k_noise = keys
            observation = environment.observe(run.state)
            outputs, carry = actor.apply(theta.actor, observation.agents, run.carry)
            noise = head.noise(k_noise, outputs.shape[:-1])
            noise = jnp.where(sign > 0, noise, head.antithetic(noise))
            pre_squash = head.sample(outputs, theta.log_std, noise)
            state, outcome = environment.step(k_step, run.state, head.squash(pre_squash), data)
            transition = Transitions(
                observation=observation,
                pre_squash=pre_squash,
                log_prob=head.log_prob(outputs, theta.log_std, pre_squash),
                outcome=outcome,
                mask=~run.is_over,
            )
            return Episode(state, carry, run.is_over | outcome.done), transition

        keys = (
            jax.random.split(k_steps, environment.num_actions),
            jax.random.split(k_noise, environment.num_actions),
        )
        after, transitions = jax.lax.scan(act, run, keys)
        return after, Rollout(transitions, run.carry, environment.observe(after.state))

    def step_group(
        key: Key, theta: ActorCritic, runs: Episode, data: Data
    ) -> tuple[Episode, Rollout]:
        """Roll out a window of one group, which starts anew when all its runs are over."""
        k_act, k_noise, k_start = jax.random.split(key, 3)
        index = jnp.arange(group_size)
        sign, stream = (1 - 2 * (index % 2), index // 2) if antithetic else (index * 0 + 1, index)
        k_noises = jax.vmap(jax.random.fold_in, (None, 0))(k_noise, stream)
        runs, rollout = jax.vmap(step_run, (None, 0, 0, None, 0, None))(
            k_act, k_noises, sign, theta, runs, data
        )
        # A run that has broken down is not to keep its group from starting anew.
        is_broken = ~jnp.all(has_finite_reward(rollout.transitions.outcome), axis=-1)
        is_over = jnp.all(runs.is_over | is_broken)
        anew = repeat(new_episode(environment.start(k_start)))
        return jax.tree.map(lambda new, old: jnp.where(is_over, new, old), anew, runs), rollout

    def members(indices: jax.Array, groups: Episode, key: Key, theta: ActorCritic, data: Data):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
        groups, rollout = jax.vmap(step_group, (0, None, 0, None))(keys, theta, groups, data)
        rollout, is_whole = mask_broken_runs(rollout)
        transitions = rollout.transitions
        outcome = transitions.outcome
        counts = transitions.mask.astype(jnp.float32)
        sums = {
            "number": jnp.sum(counts),
            "reward": jnp.sum(counts * outcome.reward),
            "rewards": jnp.sum(counts[..., None] * outcome.rewards, axis=(0, 1, 2)),
            "finite": jnp.sum(counts * outcome.finite),
            "diverged": jnp.sum(counts * outcome.diverged),
            "valid": jnp.sum(is_whole.astype(jnp.float32)),
            "ended": jnp.sum(counts * outcome.done),
        }
        return (groups, rollout), sums

    check_divides(num_groups, mesh, name)
    run = shard_population(members, mesh)

    def init(key: Key) -> Episode:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_groups))
        return jax.vmap(init_group)(keys)

    def collect(key: Key, theta: ActorCritic, groups: Episode, data: Data):
        (groups, rollout), sums = run(jnp.arange(num_groups), groups, key, theta, data)
        number = jnp.where(sums["number"] > 0, sums["number"], jnp.nan)
        metrics = {
            "meta_loss": -sums["reward"] / number,
            "finite": jnp.nan_to_num(sums["finite"] / number),
            "diverged": sums["diverged"] / jnp.maximum(sums["ended"], 1.0),
            "valid": sums["valid"] / (num_groups * group_size),
            "episodes": sums["ended"],
            **{
                f"reward_{n}": r / number
                for n, r in zip(environment.reward_names, sums["rewards"], strict=True)
            },
        }
        return groups, rollout, metrics

    return RolloutWorker(
        init=init,
        collect=collect,
        steps=num_groups * group_size * environment.num_actions * environment.steps_per_action,
    )


def has_finite_reward(outcome: Outcome) -> jax.Array:
    """Check that the reward for an action is finite, to every agent."""
    return jnp.isfinite(outcome.reward) & jnp.all(jnp.isfinite(outcome.credit), axis=-1)


def mask_broken_runs(rollout: Rollout) -> tuple[Rollout, jax.Array]:
    """Mask the runs that have a reward that is not finite, so that nothing is NaN.

    Returns:
        The rollout, and which runs are whole, shape (groups, runs).
    """
    transitions = rollout.transitions
    is_whole = jnp.all(has_finite_reward(transitions.outcome) | ~transitions.mask, axis=-1)
    mask = transitions.mask & is_whole[..., None]
    outcome = transitions.outcome._replace(
        reward=jnp.where(mask, transitions.outcome.reward, 0.0),
        credit=jnp.where(mask[..., None], transitions.outcome.credit, 0.0),
        rewards=jnp.where(mask[..., None], transitions.outcome.rewards, 0.0),
    )
    clean = lambda tree: jax.tree.map(lambda x: jnp.nan_to_num(x, posinf=0.0, neginf=0.0), tree)
    cleaned = rollout._replace(
        transitions=transitions._replace(
            observation=clean(transitions.observation),
            pre_squash=clean(transitions.pre_squash),
            log_prob=clean(transitions.log_prob),
            outcome=outcome,
            mask=mask,
        ),
        carry=clean(rollout.carry),
        last=clean(rollout.last),
    )
    return cleaned, is_whole


def likelihood(
    theta: ActorCritic, actor: Actor, head: Head, rollout: Rollout
) -> tuple[jax.Array, jax.Array]:
    """Compute the log-likelihood of the actions of a rollout by theta, and the entropy.

    A recurrent actor is run again from the carry that the window began with.

    Returns:
        Two arrays of shape (groups, runs, num_actions, agents).
    """

    def run_likelihood(carry: Carry, observations: jax.Array, pre_squash: jax.Array):
        def step(carry: Carry, observation: jax.Array):
            outputs, carry = actor.apply(theta.actor, observation, carry)
            return carry, outputs

        _, outputs = jax.lax.scan(step, carry, observations)
        log_prob = head.log_prob(outputs, theta.log_std, pre_squash)
        return log_prob, head.entropy(outputs, theta.log_std)

    transitions = rollout.transitions
    return jax.vmap(jax.vmap(run_likelihood))(
        rollout.carry, transitions.observation.agents, transitions.pre_squash
    )
