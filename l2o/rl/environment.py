"""Training runs as the environment of agents: the seam between tasks and policy gradients.

| reinforcement learning | here |
|---|---|
| episode | one training run, to its horizon |
| state | `TrainingState`: parameters, optimizer, current hyperparameters |
| observation | `l2o.policies.observation`, one row an agent |
| action | one row an agent, which changes its hyperparameters for `action_interval` inner steps |
| reward | `l2o.rl.reward`, for the whole interval |
| end | the horizon, or divergence; the end of a window is none, and is bootstrapped |
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from l2o.horizons import check_horizon, staggered_start
from l2o.inner_step import batch_fraction, check_shrinks, inner_step
from l2o.policies.policy import ControlledState, Policy, controlled_transform
from l2o.policies.preference import draw_preference, told
from l2o.problem import InnerState, start_run
from l2o.rl.reward import Reward, check_reward, compute_reward, measure
from l2o.rng import key_of
from l2o.task import Data, Key, Task, validate_task

EnvState = Any

CreditName = Literal["team", "difference"]


class Observation(NamedTuple):
    """Features before an action.

    Attributes:
        agents: Features that each agent acts upon, shape (agents, features).
        critic: Features from which the value is estimated besides, shape (critic features,). They
            may hold what no agent can see, as they are used in training only.
    """

    agents: jax.Array
    critic: jax.Array


class Outcome(NamedTuple):
    """Result of an action; scalars but for `credit` and `rewards`.

    Attributes:
        reward: Weighted sum of the rewards, less a penalty.
        credit: Reward that each agent learns from, shape (agents,).
        rewards: Rewards by name, before weights and penalty, shape (names,).
        done: Whether the episode ends here, at its horizon or by divergence.
        finite: Fraction of the inner steps with a finite training loss.
        diverged: Whether the run has diverged.
    """

    reward: jax.Array
    credit: jax.Array
    rewards: jax.Array
    done: jax.Array
    finite: jax.Array
    diverged: jax.Array


@dataclass(frozen=True, eq=False)
class Environment:
    """Episodes of actions, as policy gradients see them.

    Attributes:
        init: Function `(key) -> state`, an episode that is cut to a random length, so that
            episodes end staggered.
        start: Function `(key) -> state`, an episode before its first action.
        enter: Function `(key, state, data) -> state`, called before the first action of every
            window: it does what an episode that has just started needs the data for, and leaves
            others as they are.
        observe: Function `(state) -> Observation`.
        step: Function `(key, state, action, data) -> (state, Outcome)` for an action of shape
            (agents, actions); it does not start anew by itself.
        num_actions: Number of actions of one window.
        steps_per_action: Number of inner steps of one action, over all that is trained for it.
        reward_names: Names of the rewards.
        data: Data that `enter` and `step` take, an argument of the compiled program.
    """

    init: Callable[[Key], EnvState]
    start: Callable[[Key], EnvState]
    enter: Callable[[Key, EnvState, Data], EnvState]
    observe: Callable[[EnvState], Observation]
    step: Callable[[Key, EnvState, jax.Array, Data], tuple[EnvState, Outcome]]
    num_actions: int
    steps_per_action: int
    reward_names: tuple[str, ...]
    data: Data = field(default=(), repr=False)


class Counterfactual(NamedTuple):
    """For each agent, the same run if that agent had never acted; an agent axis first.

    Attributes:
        params: Parameters of the run.
        opt_state: State of the controlled optimizer.
        potentials: Last measurement, see `TrainingState`.
        is_over: Whether the run has diverged, after which its rewards are 0.
    """

    params: optax.Params
    opt_state: ControlledState
    potentials: jax.Array
    is_over: jax.Array


class TrainingState(NamedTuple):
    """A training run between two actions.

    Attributes:
        run: The run itself, with the state of the controlled optimizer.
        potentials: Last measurement of what is rewarded, shape (names,).
        first_loss: Loss on fresh batches at the start of the run.
        loss: Loss on fresh batches when it was measured last.
        counterfactual: Runs without each of the agents, for credit by difference, else ().
        preference: Share of each reward in what the run pays, shape (names,), of a policy that is
            told them, else of shape (0,).
    """

    run: InnerState
    potentials: jax.Array
    first_loss: jax.Array
    loss: jax.Array
    counterfactual: Counterfactual | tuple[()] = ()
    preference: jax.Array | tuple[float, ...] = ()


def training_environment(
    task: Task,
    policy: Policy,
    *,
    horizon: int | tuple[int, int],
    window: int,
    reward: Reward = Reward(),  # noqa: B008, frozen
    credit: CreditName = "team",
    privileged: tuple[float, ...] = (),
) -> Environment:
    """Make training runs of a task the environment of the agents of a policy.

    The critic observes, besides what agents do: the logarithm of the horizon, how much of it is
    left, the loss on fresh batches and how far it has come.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> policy = l2o.scheduler(action_interval=5).policy
    >>> environment = training_environment(rotated_quadratic(2), policy, horizon=40, window=20)
    >>> environment.num_actions, environment.reward_names
    (4, ('log_loss',))

    A policy with `objectives` is told the share of each reward, drawn for each run, and is paid by
    it: the weights of the reward are then units, by which the shares are multiplied.

    Args:
        task: Task to train.
        policy: Policy whose controlled optimizer is acted upon, every `action_interval` steps.
        horizon: Number of inner steps of a run, a multiple of `window`; a pair (shortest, longest)
            draws it log-uniformly for each run.
        window: Number of inner steps of one window, a multiple of the policy's action interval.
        reward: Reward for an action.
        credit: "team" gives all agents the whole reward; "difference" gives each the reward less
            that of a second run on the same batches, in which this agent alone has left its
            hyperparameters where they began, and the others have done what they did. That is
            biased, and can turn an agent's gradient round, where others react to what the agent
            changed: they do what they did in the second run, too, which then depends on the
            agent's own actions. Where nobody reacts it is exact. All pay the penalty. Each agent's
            run is trained along from the first step to the last, which `steps_per_action` counts.
        privileged: Numbers that tell the critic which task this is.

    Raises:
        ValueError: If the task is malformed or cannot be rewarded so, `horizon`, `window` and the
            policy's action interval do not fit, or the credit or the reward do not suit the policy.
    """
    validate_task(task)
    check_reward(reward, task)
    interval, controlled = policy.action_interval, policy.controlled
    shortest, longest = (horizon, horizon) if isinstance(horizon, int) else horizon
    check_horizon(shortest, longest, window, allow_one=True)
    if window % interval:
        raise ValueError(
            f"`window` must be a multiple of the {interval} steps between two actions of "
            f"{policy.name}; got {window}. Try window={-(-window // interval) * interval}."
        )
    if credit not in get_args(CreditName):
        raise ValueError(f"`credit` must be team or difference; got {credit}. Try credit=team.")
    if credit == "difference" and policy.head.num_choices is not None:
        raise ValueError(
            f"`credit` must be team for {policy.name}, whose agents cannot do nothing; got "
            f"{credit}. Drop it."
        )
    if policy.objectives and reward.names != policy.objectives:
        raise ValueError(
            f"`reward` must be what {policy.name} is told the shares of, "
            f"{' '.join(policy.objectives)}; got {' '.join(reward.names)}. Make them the same."
        )
    task_id = jnp.asarray(privileged, jnp.float32)

    def begin(key: Key, num_steps: jax.Array) -> TrainingState:
        k_preference = key_of(key, "preference")
        state = TrainingState(
            run=start_run(task, controlled_transform(controlled, num_steps), key, num_steps),
            potentials=jnp.zeros(len(reward.names)),
            first_loss=jnp.float32(0.0),
            loss=jnp.float32(0.0),
            preference=draw_preference(k_preference, len(policy.objectives)),
        )
        return state if credit == "team" else with_counterfactual(state)

    def with_counterfactual(state: TrainingState) -> TrainingState:
        """At the start, the runs without each of the agents are alike."""
        run = state.run
        num_agents = controlled.observe(run.opt_state).shape[0]
        same = Counterfactual(run.params, run.opt_state, state.potentials, jnp.bool_(False))
        broadcast = lambda x: jnp.broadcast_to(x, (num_agents, *jnp.shape(x)))
        return state._replace(counterfactual=jax.tree.map(broadcast, same))

    start = staggered_start(begin, shortest, longest, window)

    def enter(key: Key, state: TrainingState, data: Data) -> TrainingState:
        run, other = state.run, state.counterfactual
        loss, potentials, _ = measure(reward, task, key, run.params, run.instance, data)
        measured = state._replace(potentials=potentials, first_loss=loss, loss=loss)
        if isinstance(other, Counterfactual):
            same = jnp.broadcast_to(potentials, other.potentials.shape)
            measured = measured._replace(counterfactual=other._replace(potentials=same))
        has_begun = run.step > 0
        return jax.tree.map(lambda old, new: jnp.where(has_begun, old, new), state, measured)

    def observe(state: TrainingState) -> Observation:
        log_loss = jnp.log(jnp.clip(state.loss, 1e-6, 1e6))
        first = jnp.log(jnp.clip(state.first_loss, 1e-6, 1e6))
        horizon = state.run.horizon.astype(jnp.float32)
        features = [
            0.25 * jnp.log10(horizon),
            1.0 - state.run.step / horizon,
            0.3 * log_loss,
            0.3 * (log_loss - first),
        ]
        critic = jnp.concatenate([jnp.stack(features), task_id])
        agents = told(controlled.observe(state.run.opt_state), state.preference)
        return Observation(agents, jnp.nan_to_num(critic))

    def weigh(state: TrainingState, rewards: jax.Array) -> jax.Array:
        weighted = reward.weight_array * rewards
        shares = jnp.asarray(state.preference) if policy.objectives else 1.0
        return jnp.sum(shares * weighted)

    def step(
        key: Key, state: TrainingState, action: jax.Array, data: Data
    ) -> tuple[TrainingState, Outcome]:
        after, outcome = train_interval(key, state, action, data)
        num_agents = action.shape[0]
        if not isinstance(state.counterfactual, Counterfactual):
            return after, outcome._replace(credit=jnp.full(num_agents, outcome.reward))
        actions = jnp.where(jnp.eye(num_agents, dtype=bool)[..., None], 0.0, action)

        def without_agent(
            old: Counterfactual, action: jax.Array
        ) -> tuple[Counterfactual, jax.Array]:
            before = state._replace(
                run=state.run._replace(params=old.params, opt_state=old.opt_state),
                potentials=old.potentials,
                counterfactual=(),
            )
            other, outcome = train_interval(key, before, action, data)
            is_over = old.is_over | outcome.done
            new = Counterfactual(other.run.params, other.run.opt_state, other.potentials, is_over)
            reward_without = weigh(state, outcome.rewards)
            return new, jnp.where(old.is_over, 0.0, reward_without)

        counterfactual, rewards = jax.vmap(without_agent)(state.counterfactual, actions)
        after = after._replace(counterfactual=counterfactual)
        return after, outcome._replace(credit=outcome.reward - rewards)

    def train_interval(
        key: Key, state: TrainingState, action: jax.Array, data: Data
    ) -> tuple[TrainingState, Outcome]:
        """Apply an action and train until the next; the reward is not credited yet."""
        k_batches, k_measure = jax.random.split(key)
        run, losses, fractions = train(k_batches, state.run, action, data)
        limit = jnp.maximum(task.loss_cap, 2.0 * state.first_loss)
        loss, potentials, diverged = measure(
            reward, task, k_measure, run.params, run.instance, data, limit=limit
        )
        rewards = compute_reward(
            reward,
            task,
            state.potentials,
            potentials,
            losses,
            fractions,
            steps_left=(run.horizon - run.step).astype(jnp.float32),
            horizon=run.horizon,
            diverged=diverged,
        )
        total = weigh(state, rewards) - jnp.where(diverged, reward.penalty, 0.0)
        outcome = Outcome(
            reward=total,
            credit=jnp.zeros(0),
            rewards=rewards,
            done=diverged | (run.step >= run.horizon),
            finite=jnp.mean(jnp.isfinite(losses).astype(jnp.float32)),
            diverged=diverged,
        )
        return state._replace(run=run, potentials=potentials, loss=loss), outcome

    def train(key: Key, run: InnerState, action: jax.Array, data: Data):
        """Apply an action and train; losses and fractions of batches have shape (interval,)."""
        tx = controlled_transform(controlled, run.horizon)

        def step(carry, k_batch: Key):
            params, opt_state, fraction = carry
            params, opt_state, loss, _ = inner_step(
                task, tx, k_batch, params, opt_state, run.instance, data, fraction=fraction
            )
            used = jnp.float32(1.0 if fraction is None else fraction)
            carry = params, opt_state, batch_fraction(opt_state)
            return carry, (loss.astype(jnp.float32), used)

        # An optimizer acts at an update, whose batch has been drawn by then.
        fraction = batch_fraction(run.opt_state)
        carry = run.params, controlled.apply_action(run.opt_state, action), fraction
        (params, opt_state, _), (losses, fractions) = jax.lax.scan(
            step, carry, jax.random.split(key, interval)
        )
        run = run._replace(params=params, opt_state=opt_state, step=run.step + interval)
        return run, losses, fractions

    begun = jax.eval_shape(lambda key: start(key, False), jax.random.key(0))
    if batch_fraction(begun.run.opt_state) is not None:
        check_shrinks(task)
    elif "examples" in reward.names:
        raise ValueError(
            f"`reward` can be examples only if {policy.name} chooses the size of batches; got "
            f"{' '.join(reward.names)}. Drop it, or add the hyperparameter batch_fraction."
        )
    num_agents = jax.eval_shape(observe, begun).agents.shape[0]
    if credit == "difference" and num_agents == 1:
        raise ValueError(
            f"`credit` must be team for {policy.name}, which has one agent; got {credit}. Drop it."
        )
    num_runs = 1 + num_agents if credit == "difference" else 1
    return Environment(
        init=lambda key: start(key, True),
        start=lambda key: start(key, False),
        enter=enter,
        observe=observe,
        step=step,
        num_actions=window // interval,
        steps_per_action=interval * num_runs,
        reward_names=reward.names,
        data=task.data,
    )
