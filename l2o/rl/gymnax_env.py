"""Training runs as an environment for other people's agents, in two dialects.

`TrainingEnv` is functional, in the manner of gymnax 1.0: pure `reset` and `step` that can be
vmapped and scanned, parameters as an argument, episodes that start anew by themselves.
`gymnasium_env` wraps one as a `gymnasium.Env`, one episode at a time, for agents of any framework.
Rewards and observations are those of `l2o.rl.environment`; nothing of ours is needed to learn.
"""

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from l2o.policies.policy import PolicyOptimizer
from l2o.rl.environment import EnvState, training_environment
from l2o.rl.reward import Reward
from l2o.task import Data, Key, Task

if TYPE_CHECKING:
    import gymnasium


PROCESS = os.getpid()
"""The process that imported this file; a fork of it has another number."""


def refuse_forks() -> None:
    """Raise a `ValueError` in a copy of a process, where JAX would wait for ever."""
    if os.getpid() != PROCESS:
        raise ValueError(
            "`gymnasium_env` must run in a process of its own; got a fork, in which JAX would "
            "hang. Try gymnasium.vector.SyncVectorEnv, or AsyncVectorEnv(..., context='spawn')."
        )


class EnvParams(NamedTuple):
    """Parameters of an episode besides its key.

    Attributes:
        data: Data of the task.
    """

    data: Data


class TrainingEnv:
    """Training runs in the functional manner of gymnax.

    An observation has shape (features,) for one agent, otherwise (agents, features). An action is
    an index for `optimizer_selector`; otherwise it changes the hyperparameters and is between -1
    and 1, of shape (actions,) or (agents, actions). Beyond its range it counts as the nearest end.
    An episode is over at the horizon, which the observation shows coming, or by divergence: both
    are terminations, and there is no truncation.

    >>> import jax, l2o
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> env = TrainingEnv(rotated_quadratic(2), l2o.scheduler(action_interval=5), horizon=20)
    >>> env.observation_shape, env.action_shape
    ((26,), (1,))

    Args:
        task: Task that is trained.
        optimizer: Policy whose hyperparameters and action interval make the environment; its own
            actions do not matter.
        horizon: Number of inner steps of a run, a multiple of the policy's action interval; a pair
            (shortest, longest) draws it log-uniformly for each run.
        reward: Reward for an action.

    Raises:
        ValueError: As `training_environment`.
    """

    def __init__(
        self,
        task: Task,
        optimizer: PolicyOptimizer,
        *,
        horizon: int | tuple[int, int],
        reward: Reward = Reward(),  # noqa: B008, frozen
    ) -> None:
        policy = optimizer.policy
        self._environment = training_environment(
            task, policy, horizon=horizon, window=policy.action_interval, reward=reward
        )
        observation = jax.eval_shape(
            lambda key: self._environment.observe(self._environment.start(key)).agents,
            jax.random.key(0),
        )
        action = jax.eval_shape(lambda: policy.head.mode(jnp.zeros((1, policy.head.num_outputs))))
        self.num_agents: int = observation.shape[0]
        self.num_choices: int | None = policy.head.num_choices
        self.observation_shape: tuple[int, ...] = (
            observation.shape[1:] if self.num_agents == 1 else observation.shape
        )
        each = action.shape[1:] if self.num_choices is None else ()
        self.action_shape = each if self.num_agents == 1 else (self.num_agents, *each)
        self.name = f"{policy.name}_of_{task.name}"
        self.default_params = EnvParams(self._environment.data)

    def reset(self, key: Key, params: EnvParams | None = None) -> tuple[jax.Array, EnvState]:
        """Start an episode: `(observation, state)`."""
        data = (params or self.default_params).data
        k_start, k_enter = jax.random.split(key)
        state = self._environment.enter(k_enter, self._environment.start(k_start), data)
        return self.observe(state), state

    def step(
        self,
        key: Key,
        state: EnvState,
        action: jax.Array,
        params: EnvParams | None = None,
    ) -> tuple[jax.Array, EnvState, jax.Array, jax.Array, jax.Array, dict[str, Any]]:
        """Take an action and train until the next; a run that ends starts anew.

        Returns:
            `(observation, state, reward, terminated, truncated, info)`. `info` has each reward by
            name, and `final_observation`, from before the new start.
        """
        k_step, k_reset = jax.random.split(key)
        after, reward, terminated, info = self.step_env(k_step, state, action, params)
        observation, anew = self.reset(k_reset, params)
        select = lambda new, old: jnp.where(terminated, new, old)
        info["final_observation"] = self.observe(after)
        return (
            select(observation, info["final_observation"]),
            jax.tree.map(select, anew, after),
            reward,
            terminated,
            jnp.bool_(False),
            info,
        )

    def step_env(
        self, key: Key, state: EnvState, action: jax.Array, params: EnvParams | None = None
    ) -> tuple[EnvState, jax.Array, jax.Array, dict[str, Any]]:
        """Take an action without starting anew: `(state, reward, terminated, info)`."""
        data = (params or self.default_params).data
        rows = jnp.asarray(action, jnp.float32).reshape(self.num_agents, -1)
        ends = (-1.0, 1.0) if self.num_choices is None else (0.0, self.num_choices - 1.0)
        after, outcome = self._environment.step(key, state, jnp.clip(rows, *ends), data)
        info = dict(zip(self._environment.reward_names, outcome.rewards, strict=True))
        return after, outcome.reward, outcome.done, info

    def observe(self, state: EnvState) -> jax.Array:
        """Observe the run; finite even where it has diverged."""
        agents = self._environment.observe(state).agents
        return jnp.nan_to_num(agents.reshape(self.observation_shape))


def gymnasium_env(env: TrainingEnv, *, seed: int = 0) -> "gymnasium.Env":
    """Wrap an environment as a `gymnasium.Env` of the same episodes.

    Args:
        env: Environment to wrap.
        seed: Seed of the first episode, if `reset` is given none.

    Raises:
        ValueError: If gymnasium is not installed, or the process is a fork, as those of
            `gymnasium.vector.AsyncVectorEnv` are unless its `context` is "spawn".
    """
    try:
        from l2o.rl.gymnasium_env import GymnasiumEnv
    except ImportError as error:
        raise ValueError(
            "`gymnasium_env` needs the package gymnasium; got an environment without it. "
            "Try pip install 'l2o[rl]'."
        ) from error
    return GymnasiumEnv(env, seed)
