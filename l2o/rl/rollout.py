"""Windows of decisions of a population, drawn from a policy: what policy gradients learn from.

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


class ActorCritic(NamedTuple):
    """What policy gradients train; the actor is what ships.

    Attributes:
        actor: theta of the policy.
        spread: of the head; see `l2o.policies.heads.Head`.
        critic: an MLP from what is seen to what an agent will earn; see `value_of`.
    """

    actor: Theta
    spread: jax.Array
    critic: nets.MLP


class Run(NamedTuple):
    """A run between two windows.

    Attributes:
        state: of the environment.
        carry: of a recurrent actor.
        is_over: whether its episode has ended, while others of its group go on.
    """

    state: EnvState
    carry: Carry
    is_over: jax.Array


class Transitions(NamedTuple):
    """Decisions and what they led to, with leading axes (groups, runs, decisions).

    Attributes:
        observation: before each.
        raw: what was drawn, (..., agents, actions).
        log_prob: of it, (..., agents).
        outcome: see `Outcome`.
        mask: whether the episode was not over yet; the rest does not count.
    """

    observation: Observation
    raw: jax.Array
    log_prob: jax.Array
    outcome: Outcome
    mask: jax.Array


class Rollout(NamedTuple):
    """A window of a population, with leading axes (groups, runs).

    Attributes:
        transitions: its decisions.
        carry: of the actor, before the first one.
        last: what is seen after the last one.
    """

    transitions: Transitions
    carry: Carry
    last: Observation


@dataclass(frozen=True, eq=False)
class Collector:
    """A population that acts.

    Attributes:
        init: `(key) -> population`.
        collect: `(key, theta, population, data) -> (population, rollout, metrics)`.
        steps: inner steps of one rollout, over all runs.
    """

    init: Callable[[Key], Any]
    collect: Callable[[Key, ActorCritic, Any, Data], tuple[Any, Rollout, dict[str, jax.Array]]]
    steps: int


def first_actor_critic(key: Key, actor: Theta, head: Head, environment: Environment) -> ActorCritic:
    """An actor with a critic that says 0 until it has learned."""
    k_state, k_critic = jax.random.split(key)
    seen = jax.eval_shape(lambda k: environment.observe(environment.start(k)), k_state)
    num_features = 2 * seen.agents.shape[-1] + seen.critic.shape[-1]
    critic = nets.mlp_init(k_critic, (num_features, CRITIC_SIZE, CRITIC_SIZE, 1))
    return ActorCritic(actor, head.spread(), critic | {"w2": jnp.zeros_like(critic["w2"])})


def value_of(critic: nets.MLP, seen: Observation) -> jax.Array:
    """What each agent will earn from here on, shape (..., agents).

    The critic is central: it goes by what the agent sees, what all see on average, and what it sees
    itself. Observations may have leading axes, which values have, too.
    """
    of_all = jnp.concatenate([jnp.mean(seen.agents, axis=-2), seen.critic], axis=-1)
    of_all = jnp.broadcast_to(of_all[..., None, :], (*seen.agents.shape[:-1], of_all.shape[-1]))
    inputs = jnp.concatenate([seen.agents, of_all], axis=-1)
    return nets.mlp_apply(critic, inputs, jnp.tanh)[..., 0]


def collector(
    environment: Environment,
    actor: Actor,
    head: Head,
    *,
    num_groups: int,
    group_size: int,
    antithetic: bool,
    mesh: Mesh | None = None,
    name: str = "num_groups",
) -> Collector:
    """Groups of runs that act, spread over devices.

    Args:
        environment: what they act in.
        actor: what decides.
        head: how actions are drawn.
        num_groups: groups of runs.
        group_size: runs that share everything but the noise of their actions.
        antithetic: give every second run of a group the opposite noise of the one before it.
        mesh: devices to spread the groups over.
        name: what the caller calls the number of groups.

    Raises:
        ValueError: if there is no group, or `num_groups` is not a multiple of the devices.
    """
    if num_groups < 1 or group_size < 1:
        raise ValueError(f"`{name}` must be at least 1; got {num_groups}. Try {name}=16.")

    def fresh(state: EnvState) -> Run:
        num_agents = jax.eval_shape(environment.observe, state).agents.shape[0]
        return Run(state, actor.start(num_agents), jnp.bool_(False))

    def shared(run: Run) -> Run:
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (group_size, *x.shape)), run)

    def init_group(key: Key) -> Run:
        return shared(fresh(environment.init(key)))

    def act(key: Key, k_noise: Key, sign: jax.Array, theta: ActorCritic, run: Run, data: Data):
        """A window of one run."""
        k_enter, k_steps = jax.random.split(key)
        run = run._replace(state=environment.enter(k_enter, run.state, data))

        def decide(run: Run, keys: tuple[Key, Key]):
            k_step, k_noise = keys
            seen = environment.observe(run.state)
            outputs, carry = actor.apply(theta.actor, seen.agents, run.carry)
            noise = head.noise(k_noise, outputs.shape[:-1])
            noise = jnp.where(sign > 0, noise, head.reflect(noise))
            raw = head.draw(outputs, theta.spread, noise)
            state, outcome = environment.step(k_step, run.state, head.squash(raw), data)
            transition = Transitions(
                observation=seen,
                raw=raw,
                log_prob=head.log_prob(outputs, theta.spread, raw),
                outcome=outcome,
                mask=~run.is_over,
            )
            return Run(state, carry, run.is_over | outcome.done), transition

        keys = (
            jax.random.split(k_steps, environment.decisions),
            jax.random.split(k_noise, environment.decisions),
        )
        after, transitions = jax.lax.scan(decide, run, keys)
        return after, Rollout(transitions, run.carry, environment.observe(after.state))

    def act_together(key: Key, theta: ActorCritic, runs: Run, data: Data) -> tuple[Run, Rollout]:
        """A window of one group, which starts anew when all its runs are over."""
        k_act, k_noise, k_start = jax.random.split(key, 3)
        index = jnp.arange(group_size)
        sign, stream = (1 - 2 * (index % 2), index // 2) if antithetic else (index * 0 + 1, index)
        k_noises = jax.vmap(jax.random.fold_in, (None, 0))(k_noise, stream)
        runs, rollout = jax.vmap(act, (None, 0, 0, None, 0, None))(
            k_act, k_noises, sign, theta, runs, data
        )
        # A run that has broken down is not to keep its group from starting anew.
        is_broken = ~jnp.all(is_sound(rollout.transitions.outcome), axis=-1)
        is_over = jnp.all(runs.is_over | is_broken)
        anew = shared(fresh(environment.start(k_start)))
        return jax.tree.map(lambda new, old: jnp.where(is_over, new, old), anew, runs), rollout

    def members(indices: jax.Array, groups: Run, key: Key, theta: ActorCritic, data: Data):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
        groups, rollout = jax.vmap(act_together, (0, None, 0, None))(keys, theta, groups, data)
        rollout, is_whole = without_broken(rollout)
        moves = rollout.transitions
        counts = moves.mask.astype(jnp.float32)
        sums = {
            "number": jnp.sum(counts),
            "reward": jnp.sum(counts * moves.outcome.reward),
            "rewards": jnp.sum(counts[..., None] * moves.outcome.rewards, axis=(0, 1, 2)),
            "finite": jnp.sum(counts * moves.outcome.finite),
            "valid": jnp.sum(is_whole.astype(jnp.float32)),
            "ended": jnp.sum(counts * moves.outcome.done),
        }
        return (groups, rollout), sums

    check_divides(num_groups, mesh, name)
    run = shard_population(members, mesh)

    def init(key: Key) -> Run:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_groups))
        return jax.vmap(init_group)(keys)

    def collect(key: Key, theta: ActorCritic, groups: Run, data: Data):
        (groups, rollout), sums = run(jnp.arange(num_groups), groups, key, theta, data)
        number = jnp.where(sums["number"] > 0, sums["number"], jnp.nan)
        metrics = {
            "meta_loss": -sums["reward"] / number,
            "finite": jnp.nan_to_num(sums["finite"] / number),
            "valid": sums["valid"] / (num_groups * group_size),
            "episodes": sums["ended"],
            **{
                f"reward_{n}": r / number
                for n, r in zip(environment.names, sums["rewards"], strict=True)
            },
        }
        return groups, rollout, metrics

    return Collector(
        init=init,
        collect=collect,
        steps=num_groups * group_size * environment.decisions * environment.inner_steps,
    )


def is_sound(outcome: Outcome) -> jax.Array:
    """Whether what is paid for a decision is finite, to every agent."""
    return jnp.isfinite(outcome.reward) & jnp.all(jnp.isfinite(outcome.credit), axis=-1)


def without_broken(rollout: Rollout) -> tuple[Rollout, jax.Array]:
    """The rollout with runs masked that have a reward that is not finite; nothing is NaN then.

    Returns:
        The rollout, and which runs are whole, shape (groups, runs).
    """
    moves = rollout.transitions
    is_whole = jnp.all(is_sound(moves.outcome) | ~moves.mask, axis=-1)
    mask = moves.mask & is_whole[..., None]
    outcome = moves.outcome._replace(
        reward=jnp.where(mask, moves.outcome.reward, 0.0),
        credit=jnp.where(mask[..., None], moves.outcome.credit, 0.0),
        rewards=jnp.where(mask[..., None], moves.outcome.rewards, 0.0),
    )
    clean = lambda tree: jax.tree.map(lambda x: jnp.nan_to_num(x, posinf=0.0, neginf=0.0), tree)
    cleaned = rollout._replace(
        transitions=moves._replace(
            observation=clean(moves.observation),
            raw=clean(moves.raw),
            log_prob=clean(moves.log_prob),
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
    """What theta says of the actions of a rollout: log-likelihood and entropy.

    A recurrent actor is run again from the carry that the window began with.

    Returns:
        Two arrays of shape (groups, runs, decisions, agents).
    """

    def of_run(carry: Carry, observations: jax.Array, raws: jax.Array):
        def step(carry: Carry, seen: jax.Array):
            outputs, carry = actor.apply(theta.actor, seen, carry)
            return carry, outputs

        _, outputs = jax.lax.scan(step, carry, observations)
        return head.log_prob(outputs, theta.spread, raws), head.entropy(outputs, theta.spread)

    moves = rollout.transitions
    return jax.vmap(jax.vmap(of_run))(rollout.carry, moves.observation.agents, moves.raw)
