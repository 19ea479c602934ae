"""PPO: several passes over a window of actions, while theta stays near what sampled them.

For the ratio ρ = π(a | o) / π_old(a | o) of each agent and the advantage A of the action, it
ascends min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) (Schulman et al. 2017). Advantages are generalized, and
standardized in each minibatch; the critic's value is clipped around what it was, in units of the
standard deviation of the window's returns, so the clip does not depend on the unit of rewards (how
many steps the critic takes to a mean many deviations away from zero does: a fifth of one a window,
by default); a minibatch is some of the groups with their whole windows, so recurrent actors keep
their order.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from l2o.estimators.estimator import average_metrics, checked_weights, weighted_mean
from l2o.learned_optimizer import Theta
from l2o.learner import Learner, MetaState, check_ema_decay, descend, update_ema
from l2o.policies.heads import Head
from l2o.policies.policy import Actor
from l2o.rl.environment import Environment
from l2o.rl.gae import moments, standardized
from l2o.rl.reinforce import (
    Advantages,
    check_discount,
    check_entropy_weight,
    estimate_advantages,
    masked_mean,
)
from l2o.rl.rollout import (
    ActorCritic,
    Rollout,
    first_actor_critic,
    likelihood,
    rollout_worker,
    value_of,
)
from l2o.rng import key_of
from l2o.task import Data, Key

MAX_LOG_RATIO = 20.0
"""Bound of the logarithm of a ratio, which keeps it finite in float32."""


def ppo_learner(
    environments: Mapping[str, Environment],
    actor: Actor,
    head: Head,
    optimizer: optax.GradientTransformation,
    *,
    num_pairs: int,
    discount: float = 1.0,
    gae_lambda: float = 1.0,
    epochs: int = 4,
    minibatches: int = 4,
    clip_ratio: float = 0.2,
    value_clip: float = 0.2,
    value_weight: float = 0.5,
    entropy_weight: float = 0.0,
    standardize: bool = True,
    ema_decay: float = 0.0,
    weights: Mapping[str, float] | None = None,
    report_groups: Mapping[str, Sequence[str]] | None = None,
    summarize: Callable[[Mapping[str, Rollout]], Mapping[str, jax.Array]] | None = None,
    mesh: Mesh | None = None,
) -> Learner:
    """Meta-train a policy by PPO.

    Runs come in pairs that share everything and act with opposite noise. The learner starts from
    theta of the actor and gives one back, see `with_critic`. Metrics are those of
    `l2o.rl.rollout.RolloutWorker`, averaged over environments and under `name/metric`, and of the
    last pass: `entropy`; `value_loss`; `approx_kl`, the divergence from the policy that acted; and
    `clip_fraction`, the fraction of ratios beyond their bounds. A minibatch whose gradient is not
    finite is left out: theta and the optimizer's state stay.

    >>> import l2o, optax
    >>> from l2o.rl.environment import training_environment
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> policy = l2o.scheduler(action_interval=5).policy
    >>> environment = training_environment(rotated_quadratic(2), policy, horizon=40, window=20)
    >>> learner = ppo_learner(
    ...     {"quadratic": environment}, policy.actor, policy.head, optax.adam(1e-3), num_pairs=4
    ... )
    >>> learner.steps
    160

    Args:
        environments: Environments by name, from which their random streams derive.
        actor: Network that is trained.
        head: Distribution from which actions are sampled.
        optimizer: Meta-optimizer, which takes `epochs * minibatches` steps in each outer step.
        num_pairs: Number of pairs of runs in each environment.
        discount: Discount γ of the reward of each later action; below 1, gains do not telescope.
        gae_lambda: Decay λ of the generalized advantages; 1 takes whole returns.
        epochs: Number of passes over a window.
        minibatches: Number of minibatches of each pass, each of some of the pairs.
        clip_ratio: Distance from 1 beyond which a ratio gains nothing; infinite for no clipping.
        value_clip: Distance the critic's value may move from what it was, in standard deviations of
            the window's returns in its environment; infinite for no clipping.
        value_weight: Weight of the critic's loss.
        entropy_weight: Weight of the entropy of actions, which is rewarded.
        standardize: Whether to give the advantages of a minibatch mean 0 and standard deviation 1.
        ema_decay: Decay of the running average of theta that is given back; 0 for none.
        weights: Weight of each environment; equal if not given.
        report_groups: Names of environments to report together, too, under `group/metric`.
        summarize: Function `(rollouts) -> metrics` of the windows of an outer step, by environment,
            whose metrics of any shape are added to the others.
        mesh: Devices to spread the pairs over.

    Raises:
        ValueError: For an argument outside its range.
    """
    check_ema_decay(ema_decay)
    check_discount(discount)
    check_entropy_weight(entropy_weight)
    if not 0 <= gae_lambda <= 1:
        raise ValueError(f"`gae_lambda` must be in [0, 1]; got {gae_lambda}. Try gae_lambda=1.")
    if epochs < 1:
        raise ValueError(f"`epochs` must be at least 1; got {epochs}. Try epochs=4.")
    if minibatches < 1 or num_pairs % minibatches:
        raise ValueError(
            f"`minibatches` must divide the {num_pairs} groups; got {minibatches}. "
            f"Try minibatches={math.gcd(num_pairs, 4)}."
        )
    for name, value in (("clip_ratio", clip_ratio), ("value_clip", value_clip)):
        if not value > 0:
            raise ValueError(f"`{name}` must be positive; got {value}. Try {name}=0.2.")
    weights = checked_weights(tuple(environments), weights)
    workers = {
        name: rollout_worker(
            environment,
            actor,
            head,
            num_groups=num_pairs,
            group_size=2,
            antithetic=True,
            mesh=mesh,
            name="num_pairs",
        )
        for name, environment in environments.items()
    }
    loss_fn = functools.partial(
        ppo_loss,
        actor=actor,
        head=head,
        clip_ratio=clip_ratio,
        value_weight=value_weight,
        entropy_weight=entropy_weight,
        standardize=standardize,
    )

    def init(key: Key, theta: ActorCritic) -> MetaState:
        return MetaState(
            theta=theta,
            average=theta,
            opt_state=optimizer.init(theta),
            estimator_state={n: worker.init(key_of(key, n)) for n, worker in workers.items()},
            step=jnp.int32(0),
        )

    def learn(key: Key, theta: ActorCritic, opt_state, rollouts: dict[str, Rollout]):
        advantages = {
            name: estimate_advantages(theta, rollout, discount=discount, gae_lambda=gae_lambda)
            for name, rollout in rollouts.items()
        }
        reach = {name: value_clip * spread_of_returns(a) for name, a in advantages.items()}

        def loss(theta: ActorCritic, chosen: jax.Array):
            losses, learned = {}, {}
            for name in rollouts:
                minibatch = jax.tree.map(lambda x: x[chosen], (rollouts[name], advantages[name]))
                rollout, found = minibatch
                losses[name], learned[name] = loss_fn(
                    theta, rollout=rollout, advantages=found, value_clip=reach[name]
                )
            means = {
                k: weighted_mean({n: learned[n][k] for n in learned}, weights)
                for k in next(iter(learned.values()))
            }
            return weighted_mean(losses, weights), means

        def update(carry, chosen: jax.Array):
            theta, opt_state = carry
            gradient, learned = jax.grad(loss, has_aux=True)(theta, chosen)
            learned["meta_gradient_norm"] = optax.tree.norm(gradient)
            return descend(optimizer, gradient, opt_state, theta), learned

        orders = minibatch_orders(key, epochs, minibatches, num_pairs)
        (theta, opt_state), learned = jax.lax.scan(update, (theta, opt_state), orders)
        return theta, opt_state, {k: jnp.mean(v[-minibatches:]) for k, v in learned.items()}

    def step(key: Key, state: MetaState, data: Data) -> tuple[MetaState, dict[str, jax.Array]]:
        k_act, k_learn = jax.random.split(key)
        after, rollouts, found = {}, {}, {}
        for name, worker in workers.items():
            after[name], rollouts[name], found[name] = worker.collect(
                key_of(k_act, name), state.theta, state.estimator_state[name], data[name]
            )
        theta, opt_state, learned = learn(k_learn, state.theta, state.opt_state, rollouts)
        metrics = average_metrics(found, weights, report_groups)
        metrics |= dict(summarize(rollouts)) if summarize else {}
        average = update_ema(ema_decay, state.step, state.average, theta)
        return MetaState(theta, average, opt_state, after, state.step + 1), metrics | learned

    return with_critic(
        Learner(
            init=init,
            step=step,
            theta=lambda state: state.average,
            steps=sum(worker.steps for worker in workers.values()),
            data={name: environment.data for name, environment in environments.items()},
        ),
        head,
        next(iter(environments.values())),
    )


def spread_of_returns(advantages: Advantages) -> jax.Array:
    """Compute the standard deviation of the returns of a window, over those that are finite."""
    is_finite = jnp.isfinite(advantages.targets)
    return moments(advantages.targets, advantages.mask & is_finite)[1]


def minibatch_orders(key: Key, epochs: int, minibatches: int, num_groups: int) -> jax.Array:
    """Draw the groups of each minibatch, (updates, groups); every pass in an order of its own."""
    keys = jax.random.split(key, epochs)
    orders = jax.vmap(lambda k: jax.random.permutation(k, num_groups))(keys)
    return orders.reshape(epochs * minibatches, -1)


def ppo_loss(
    theta: ActorCritic,
    actor: Actor,
    head: Head,
    rollout: Rollout,
    advantages: Advantages,
    *,
    clip_ratio: float,
    value_clip: jax.Array | float,
    value_weight: float,
    entropy_weight: float,
    standardize: bool,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Compute the loss of a minibatch, and how far theta is from what sampled it.

    See `ppo_learner` for the arguments; `value_clip` is in units of the value here.
    """
    mask, old_values, targets = advantages.mask, advantages.values, advantages.targets
    scores = advantages.advantages
    scores = standardized(scores, mask) if standardize else scores
    log_prob, entropies = likelihood(theta, actor, head, rollout)
    log_ratio = log_prob - rollout.transitions.log_prob
    ratio = jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    clipped = jnp.clip(ratio, 1.0 - clip_ratio, 1.0 + clip_ratio)
    policy_objective = masked_mean(jnp.minimum(ratio * scores, clipped * scores), mask)
    values = value_of(theta.critic, rollout.transitions.observation)
    near = old_values + jnp.clip(values - old_values, -value_clip, value_clip)
    errors = jnp.maximum(jnp.square(values - targets), jnp.square(near - targets))
    entropy = masked_mean(entropies, mask)
    loss = (
        -policy_objective
        + value_weight * masked_mean(0.5 * errors, mask)
        - entropy_weight * entropy
    )
    is_clipped = (jnp.abs(ratio - 1.0) > clip_ratio).astype(jnp.float32)
    return loss, {
        "entropy": entropy,
        "value_loss": masked_mean(0.5 * jnp.square(values - targets), mask),
        "approx_kl": masked_mean(ratio - 1.0 - log_ratio, mask),
        "clip_fraction": masked_mean(is_clipped, mask),
    }


def with_critic(learner: Learner, head: Head, environment: Environment) -> Learner:
    """Make a learner of an `ActorCritic` start from theta of an actor, and give one back."""

    def init(key: Key, theta: Theta) -> MetaState:
        k_critic, k_population = jax.random.split(key)
        return learner.init(k_population, first_actor_critic(k_critic, theta, head, environment))

    return dataclasses.replace(learner, init=init, theta=lambda state: learner.theta(state).actor)
