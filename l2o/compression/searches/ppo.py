"""PPO on the one network: a policy learns its layers, and the best of all its episodes is kept.

The policy begins with the uniform allocation; measuring the sensitivities that it observes counts
among the evaluations.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o.compression.environment import compression_environment, measure_sensitivity
from l2o.compression.policy import HEAD, central_counts, make_actor
from l2o.compression.problem import CompressionProblem
from l2o.compression.searches.search import Found, Search, check_evaluations
from l2o.rl.ppo import ppo_learner
from l2o.rl.rollout import Rollout
from l2o.rng import key_of

NUM_PAIRS = 5
"""Number of pairs of episodes of an outer step."""

LEARNING_RATE = 0.01


def ppo(problem: CompressionProblem, evaluations: int, seed: int) -> Found:
    """Train a policy on this network alone, and keep the best counts that it has tried."""
    check_evaluations(evaluations, problem.num_groups + 2 * NUM_PAIRS + 3)
    search = Search(problem, evaluations)
    measured = measure_sensitivity(problem)
    uniform = problem.project(np.zeros(problem.num_groups))
    search.record(uniform, measured.uniform, measured.evaluations)
    environment = compression_environment([problem], [measured])
    actor = make_actor()

    def best(rollouts: Mapping[str, Rollout]) -> dict[str, jax.Array]:
        """The best action of a window and what it gains over the uniform allocation."""
        transitions = rollouts["network"].transitions
        gains = transitions.outcome.reward[..., -1].ravel()
        actions = HEAD.squash(transitions.pre_squash)[..., 0, 0].reshape(len(gains), -1)
        return {"action": actions[jnp.argmax(gains)], "gain": jnp.max(gains)}

    learner = ppo_learner(
        {"network": environment},
        actor,
        HEAD,
        optax.adam(LEARNING_RATE),
        num_pairs=NUM_PAIRS,
        minibatches=1,
        summarize=best,
    )
    k_theta, k_init, k_steps = jax.random.split(key_of(jax.random.key(seed), "ppo"), 3)
    state = learner.init(k_init, actor.init(k_theta))
    step = jax.jit(learner.step)
    outer_steps = (search.left - 1) // (2 * NUM_PAIRS)
    for i in range(outer_steps):
        state, metrics = step(jax.random.fold_in(k_steps, i), state, learner.data)
        score = measured.uniform + float(metrics["gain"])
        search.record(problem.project(metrics["action"]), score, 2 * NUM_PAIRS)
    search.score(np.asarray(central_counts(problem, learner.theta(state), measured)))
    return search.found()
