"""Evolution strategies of evosax as learners: whole runs, ranked, and no gradient.

One outer step is one generation. The strategy proposes candidates for theta, each of them trains
some whole runs of every problem, and the strategy is told what they cost on average. All
candidates train the same runs (instances, initial parameters, batches, horizons), so that what
they cost differs by theta alone; the next generation trains other runs.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from l2o.distributed.mesh import check_divides, shard_population
from l2o.estimators.estimator import checked_weights, weighted_mean
from l2o.estimators.population import window_mean
from l2o.evolution.strategies import (
    build_strategy,
    check_strategy,
    check_theta,
    init_strategy,
    strategy_mean,
    tell_strategy,
)
from l2o.learned_optimizer import Theta
from l2o.learner import Learner, MetaState, check_ema_decay, update_ema
from l2o.problem import Problem, check_no_curriculum, map_theta, unroll_run
from l2o.rng import key_of
from l2o.task import Data, Key

if TYPE_CHECKING:  # takes seconds to import
    from evosax.algorithms.base import EvolutionaryAlgorithm


def evolution_learner(
    problems: Mapping[str, Problem],
    strategy: str,
    *,
    population_size: int,
    runs_per_candidate: int,
    std: float | optax.Schedule,
    optimizer: optax.GradientTransformation | None = None,
    ema_decay: float = 0.0,
    weights: Mapping[str, float] | None = None,
    report_groups: Mapping[str, Sequence[str]] | None = None,
    mesh: Mesh | None = None,
) -> Learner:
    """Minimise the cost of whole training runs by an evolution strategy of evosax.

    The first generation is drawn around theta. Theta is the strategy's mean; for SimpleGA, which
    has none, the best candidate of the last generation: costs of different generations are of
    different runs, and a lucky one would otherwise stay the best for good. A candidate whose cost
    is not finite ranks behind every other. A generation in which all rank alike, because none is
    finite or because they cost the same, leaves the strategy as it was; it would shrink its std.

    Metrics are `meta_loss`, the mean cost over candidates with a finite one, for each problem as
    `name/meta_loss`, too; `best_loss`, the lowest cost; `finite`, the fraction of inner steps with
    a finite training loss; `diverged`, of those with one that is not, or is above the task's cap;
    `valid`, the fraction of candidates with a finite cost.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rosenbrock
    >>> problem = l2o.inner_problem(rosenbrock(), l2o.learnable_adam(), horizon=20, window=5)
    >>> learner = l2o.evolution_learner(
    ...     {"rosenbrock": problem}, "CMA_ES", population_size=8, runs_per_candidate=4, std=0.1
    ... )
    >>> learner.steps  # inner steps of one generation: 8 candidates x 4 runs x 20 steps
    640

    Args:
        problems: Training runs, by name, from which their random streams derive, so that adding
            a problem leaves the others' runs as they were.
        strategy: Name of a strategy, one of `l2o.evolution.strategies.STRATEGIES`.
        population_size: Number of candidates in a generation.
        runs_per_candidate: Number of whole runs of each candidate on each problem.
        std: Standard deviation of the first generation, in units of theta, which strategies
            adapt; Open_ES and SimpleGA keep it, or take a schedule of it over generations.
        optimizer: Optimizer that moves the mean of Open_ES and PGPE along their estimate of the
            gradient of the mean rank; the others come with their own update.
        ema_decay: Decay in [0, 1) of the moving average of theta; see `gradient_learner`.
        weights: Weight of each problem in the mean cost that ranks candidates; equal if not given.
        report_groups: Problems whose cost is averaged together, too, and reported under
            `group/meta_loss`; by name of the group.
        mesh: Devices to spread the candidates over.

    Raises:
        ValueError: For an argument outside its range, or no `optimizer` where one is needed; from
            `Learner.init`, for a theta whose size does not suit the strategy or that is not
            float32 throughout.
    """
    if not problems:
        raise ValueError("`problems` must not be empty; got {}. Pass at least one.")
    check_strategy(strategy, population_size, std, optimizer)
    for problem in problems.values():
        check_no_curriculum(problem, strategy)
    if runs_per_candidate < 1:
        raise ValueError(
            f"`runs_per_candidate` must be at least 1; got {runs_per_candidate}. "
            "Try runs_per_candidate=4."
        )
    check_ema_decay(ema_decay)
    check_divides(population_size, mesh, "population_size")
    weights = checked_weights(tuple(problems), weights)
    groups = {name: [name] for name in problems} | dict(report_groups or {})

    @functools.cache  # evosax compiles anew for every instance
    def strategy_for(num_dims: int) -> "tuple[EvolutionaryAlgorithm, Any]":
        with jax.ensure_compile_time_eval():
            return build_strategy(strategy, population_size, num_dims, std, optimizer)

    def init(key: Key, theta: Theta) -> MetaState:
        check_theta(strategy, theta)
        mean, _ = ravel_pytree(theta)
        opt_state = init_strategy(strategy, *strategy_for(mean.size), key, mean)
        return MetaState(theta, theta, opt_state, estimator_state=(), step=jnp.int32(0))

    def step(key: Key, state: MetaState, data: Data) -> tuple[MetaState, dict[str, jax.Array]]:
        mean, unravel = ravel_pytree(state.theta)
        es, params = strategy_for(mean.size)

        def members(indices: jax.Array, candidates: jax.Array, key: Key, data: Data):
            """Train all runs of the candidates of one device; they share all random numbers."""
            del indices
            costs, shares = {}, {}
            for name, problem in problems.items():

                def train(k_run: Key, candidate: jax.Array, name=name, problem=problem):
                    window = unroll_run(map_theta(problem, unravel), k_run, candidate, data[name])
                    num_steps = jnp.maximum(jnp.sum(window.mask), 1)
                    of = lambda steps: jnp.sum(steps & window.mask) / num_steps
                    return window_mean(window), jnp.stack([of(window.finite), of(window.diverged)])

                k_runs = jax.vmap(jax.random.fold_in, (None, 0))(
                    key_of(key, name), jnp.arange(runs_per_candidate)
                )
                runs = jax.vmap(jax.vmap(train, (0, None)), (None, 0))(k_runs, candidates)
                costs[name], shares[name] = jax.tree.map(lambda x: jnp.mean(x, axis=1), runs)
            return costs, sum(jnp.sum(s, axis=0) for s in shares.values()) / len(problems)

        k_ask, k_runs, k_tell = jax.random.split(key, 3)
        candidates, asked = es.ask(k_ask, state.opt_state, params)
        costs, shares = shard_population(members, mesh)(
            jnp.arange(population_size), candidates, k_runs, data
        )
        cost = weighted_mean(costs, weights)
        is_valid = jnp.isfinite(cost)
        rank_by = jnp.where(is_valid, cost, jnp.inf)
        told = tell_strategy(strategy, es, k_tell, candidates, rank_by, asked, params)
        is_informed = jnp.min(rank_by) < jnp.max(rank_by)
        opt_state = jax.tree.map(
            lambda new, old: jnp.where(is_informed, new, old), told, state.opt_state
        )
        theta = unravel(strategy_mean(strategy, opt_state))
        average = update_ema(ema_decay, state.step, state.average, theta)
        metrics = {
            "meta_loss": finite_mean(cost),
            "best_loss": jnp.where(jnp.any(is_valid), jnp.min(rank_by), jnp.nan),
            "finite": shares[0] / population_size,
            "diverged": shares[1] / population_size,
            "valid": jnp.mean(is_valid.astype(jnp.float32)),
        }
        for group, names in groups.items():
            group_cost = weighted_mean({n: costs[n] for n in names}, {n: weights[n] for n in names})
            metrics[f"{group}/meta_loss"] = finite_mean(group_cost)
        return MetaState(theta, average, opt_state, (), state.step + 1), metrics

    return Learner(
        init=init,
        step=step,
        theta=lambda state: state.average,
        steps=population_size * runs_per_candidate * sum(p.horizon for p in problems.values()),
        data={name: problem.data for name, problem in problems.items()},
    )


def finite_mean(costs: jax.Array) -> jax.Array:
    """Average the costs that are finite, or return NaN."""
    return jnp.nanmean(jnp.where(jnp.isfinite(costs), costs, jnp.nan))
