"""A policy that allocates a budget to the layers of a network, and its meta-training.

The policy is an actor of `l2o.compression.environment`. It is trained by PPO over many small
networks, then walks the layers of another once, and takes the central action at each. What it
observes are a network's sensitivities, which takes as many evaluations as the network has layers,
and two; it does not search.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o.compression.environment import (
    NUM_FEATURES,
    Sensitivity,
    WalkState,
    compression_environment,
    make_walk,
    measure_sensitivity,
    shares,
)
from l2o.compression.problem import CompressionProblem
from l2o.compression.scheme import SchemeName
from l2o.compression.searches.search import Found, Search
from l2o.learned_optimizer import Theta
from l2o.policies.heads import make_head
from l2o.policies.policy import Actor, mlp_actor
from l2o.release_file import given_as, invalid, read_file, write_file
from l2o.rl.environment import Environment
from l2o.rl.ppo import ppo_learner
from l2o.rng import check_seed, key_of

HIDDEN_SIZE = 32

HEAD = make_head("squashed", 1)

DESIGN = "compression_policy"
"""What release files of policies are known by."""


def make_actor() -> Actor:
    """Make the network of a policy; before training its central action is 0, which is uniform."""
    return mlp_actor(NUM_FEATURES, HEAD.num_outputs, HIDDEN_SIZE)


@dataclass(frozen=True, eq=False)
class CompressionPolicy:
    """Policy that allocates a budget.

    Attributes:
        theta: Parameters of its actor.
        scheme: What it was trained to allocate: "weights", "units" or "bits".
        summary: JSON-able account of its training.
    """

    theta: Theta = field(repr=False)
    scheme: SchemeName
    summary: dict[str, Any]

    def allocate(self, problem: CompressionProblem) -> Found:
        """Allocate the budget of a network, without search.

        Measuring sensitivities and what results takes three evaluations more than there are groups;
        the uniform allocation, which is one of them, is given where the policy's is no better.

        Raises:
            ValueError: If it was trained for another way to compress.
        """
        if problem.scheme.name != self.scheme:
            raise ValueError(
                f"`policy` must be one for {problem.scheme.name}; got one for {self.scheme}. Train "
                "one by l2o.train_compression_policy."
            )
        measured = measure_sensitivity(problem)
        search = Search(problem, problem.num_groups + 3)
        uniform = problem.project(np.zeros(problem.num_groups))
        search.record(uniform, measured.uniform, measured.evaluations)
        search.score(central_counts(problem, self.theta, measured))
        return search.found()

    def save(self, path: str | Path) -> None:
        """Write a release file, atomically."""
        header = {"design": DESIGN, "config": {"scheme": self.scheme}, "summary": self.summary}
        write_file(Path(path), header, {n: np.asarray(x) for n, x in self.theta.items()})


@given_as("path")
def load_compression_policy(path: str | Path) -> CompressionPolicy:
    """Read a policy from its release file.

    Raises:
        ValueError: If the file is not one of a policy, or is damaged.
    """
    header, arrays = read_file(Path(path))
    if header["design"] != DESIGN:
        raise invalid(Path(path), f"it holds {header['design']}", "Use CompressionPolicy.save")
    theta = {name: jnp.asarray(array) for name, array in arrays.items()}
    expected = jax.eval_shape(make_actor().init, jax.random.key(0))
    shapes = jax.tree.map(jnp.shape, theta), jax.tree.map(lambda x: x.shape, expected)
    if shapes[0] != shapes[1]:
        raise invalid(Path(path), "its arrays are not those of a policy")
    return CompressionPolicy(theta, header["config"]["scheme"], header["summary"])


def central_counts(problem: CompressionProblem, theta: Theta, measured: Sensitivity) -> np.ndarray:
    """Counts of the central actions of a policy on one network."""
    walk_through = _walk_through(problem.architecture)
    return np.asarray(walk_through(theta, jnp.asarray(shares(measured.drops))))


@functools.lru_cache(maxsize=4)
def _walk_through(problem: CompressionProblem) -> Callable[[Theta, jax.Array], jax.Array]:
    """Compiled function `(theta, drops) -> counts` of an architecture."""
    walk, actor = make_walk(problem), make_actor()

    @jax.jit
    def walk_through(theta: Theta, drops: jax.Array) -> jax.Array:
        def act(_: int, state: WalkState) -> WalkState:
            outputs, _ = actor.apply(theta, walk.observe(state).agents, ())
            return walk.advance(state, HEAD.squash(HEAD.mode(outputs))[0, 0])

        first = walk.start(jnp.int32(0))._replace(drops=drops)
        return jax.lax.fori_loop(0, problem.num_groups, act, first).counts

    return walk_through


def train_compression_policy(
    problems: Sequence[Sequence[CompressionProblem]],
    *,
    steps: int = 100,
    num_pairs: int = 8,
    learning_rate: float = 3e-3,
    seed: int = 0,
    report: Callable[[int, float], None] | None = None,
) -> CompressionPolicy:
    """Meta-train a policy over many networks by PPO.

    Args:
        problems: Problems of each architecture, made by `CompressionProblem.of` of its first.
        steps: Number of outer steps.
        num_pairs: Number of pairs of episodes of each architecture in an outer step.
        learning_rate: Learning rate of Adam.
        seed: Seed of everything random.
        report: Called with each outer step, and the mean gain over the uniform allocation in it.

    Raises:
        ValueError: If there are no problems, they are not all of one scheme, or a number is out of
            range.
    """
    check_seed(seed)
    if not problems or not all(problems):
        raise ValueError("`problems` must hold networks of each architecture; got none. Add some.")
    schemes = sorted({p.scheme.name for group in problems for p in group})
    if len(schemes) > 1:
        raise ValueError(
            f"`problems` must be of one scheme; got {' and '.join(schemes)}. Train a policy for "
            "each."
        )
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1; got {steps}. Try steps=100.")
    environments: dict[str, Environment] = {}
    for i, group in enumerate(problems):
        sensitivities = [measure_sensitivity(problem) for problem in group]
        environments[f"architecture_{i}"] = compression_environment(group, sensitivities)
    actor = make_actor()
    learner = ppo_learner(
        environments, actor, HEAD, optax.adam(learning_rate), num_pairs=num_pairs, minibatches=1
    )
    k_theta, k_init, k_steps = jax.random.split(key_of(jax.random.key(seed), "policy"), 3)
    state = learner.init(k_init, actor.init(k_theta))
    step = jax.jit(learner.step)
    gains = []
    for i in range(steps):
        state, metrics = step(jax.random.fold_in(k_steps, i), state, learner.data)
        each = [-metrics[f"{n}/meta_loss"] * e.num_actions for n, e in environments.items()]
        gains.append(float(np.mean(each)))
        if report is not None:
            report(i + 1, gains[-1])
    episodes = steps * 2 * num_pairs * len(problems)
    summary = {
        "steps": steps,
        "evaluations": episodes + sum((g[0].num_groups + 2) * len(g) for g in problems),
        "networks": [len(group) for group in problems],
        "seed": seed,
    }
    return CompressionPolicy(learner.theta(state), problems[0][0].scheme.name, summary)
