"""PPO on the one network: a policy learns its layers, and the best of all its episodes is kept.

The policy begins with the uniform allocation; measuring the sensitivities that it observes counts
among the evaluations.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o.compression.environment import (
    Sensitivity,
    compression_environment,
    environment_data,
    measure_sensitivity,
)
from l2o.compression.policy import HEAD, central_counts, make_actor
from l2o.compression.problem import CompressionProblem
from l2o.compression.searches.search import Found, Search, check_evaluations
from l2o.learner import Learner
from l2o.rl.ppo import ppo_learner
from l2o.rl.rollout import Rollout
from l2o.rng import key_of

NUM_PAIRS = 5
"""Number of pairs of episodes of an outer step."""

LEARNING_RATE = 0.01

NAME = "network"
"""Name of the environment."""


def ppo(problem: CompressionProblem, evaluations: int, seed: int) -> Found:
    """Train a policy on this network alone, and keep the best counts that it has tried."""
    check_evaluations(evaluations, problem.num_groups + 2 * NUM_PAIRS + 3)
    search = Search(problem, evaluations)
    measured = measure_sensitivity(problem)
    uniform = problem.project(np.zeros(problem.num_groups))
    search.record(uniform, measured.uniform, measured.evaluations)
    data = {NAME: environment_data([problem], [measured])}
    learner, step = _learner(problem.architecture)
    k_theta, k_init, k_steps = jax.random.split(key_of(jax.random.key(seed), "ppo"), 3)
    state = learner.init(k_init, make_actor().init(k_theta))
    for i in range((search.left - 1) // (2 * NUM_PAIRS)):
        state, metrics = step(jax.random.fold_in(k_steps, i), state, data)
        score = measured.uniform + float(metrics["gain"])
        search.record(problem.project(metrics["action"]), score, 2 * NUM_PAIRS)
    search.score(central_counts(problem, learner.theta(state), measured))
    return search.found()


@functools.lru_cache(maxsize=4)
def _learner(problem: CompressionProblem) -> tuple[Learner, Callable[..., Any]]:
    """PPO on an architecture, and its compiled step, which takes the network as data."""
    nothing = Sensitivity(0.0, 0.0, np.zeros(problem.num_groups), 0)

    def best(rollouts: Mapping[str, Rollout]) -> dict[str, jax.Array]:
        """The best action of a window and what it gains over the uniform allocation."""
        transitions = rollouts[NAME].transitions
        gains = transitions.outcome.reward[..., -1].ravel()
        actions = HEAD.squash(transitions.pre_squash)[..., 0, 0].reshape(len(gains), -1)
        return {"action": actions[jnp.argmax(gains)], "gain": jnp.max(gains)}

    learner = ppo_learner(
        {NAME: compression_environment([problem], [nothing])},
        make_actor(),
        HEAD,
        optax.adam(LEARNING_RATE),
        num_pairs=NUM_PAIRS,
        minibatches=1,
        summarize=best,
    )
    return learner, jax.jit(learner.step)
