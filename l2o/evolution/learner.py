"""Evolution strategies of evosax as outer optimizers: whole runs, ranked, and no gradient.

One outer step is one generation. The strategy proposes candidates for theta, each of them trains
`num_runs` whole runs of every problem, and the strategy is told what they cost on average. All
candidates train the same runs (instances, initial parameters, batches, horizons), so that what
they cost differs by theta alone; the next generation trains other runs.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from l2o.distributed.mesh import over_devices
from l2o.estimators.estimator import checked_weights, key_of, weighted_mean
from l2o.estimators.population import window_mean
from l2o.learned_optimizer import Theta
from l2o.learner import Learner, MetaState, check_averaging, running_average
from l2o.problem import Problem, unroll_run
from l2o.registry import STRATEGIES
from l2o.task import Data, Key

if TYPE_CHECKING:  # takes seconds to import
    from evosax.algorithms.base import EvolutionaryAlgorithm

OPTIMIZED = frozenset({"Open_ES", "PGPE"})
"""Those that sample antithetic pairs and move their mean with an optax optimizer."""

SCHEDULED_STD = frozenset({"Open_ES", "SimpleGA"})
"""Those that do not adapt their standard deviation, and may have a schedule of it."""

POPULATION_BASED = frozenset({"SimpleGA"})
"""Those that carry candidates from generation to generation instead of a mean."""

MAX_CMA_ES = 2000
"""Numbers in theta above which CMA-ES is refused: it decomposes a matrix of their square."""

MIN_LM_MA_ES = 4
"""Numbers in theta below which LM-MA-ES is refused: its rates are for many, and it diverges."""


def evolution_learner(
    problems: Mapping[str, Problem],
    strategy: str,
    *,
    population_size: int,
    num_runs: int,
    std: float | optax.Schedule,
    optimizer: optax.GradientTransformation | None = None,
    averaging: float = 0.0,
    weights: Mapping[str, float] | None = None,
    families: Mapping[str, Sequence[str]] | None = None,
    mesh: Mesh | None = None,
) -> Learner:
    """Minimises the cost of whole training runs by an evolution strategy of evosax.

    The first generation is drawn around theta. Theta is the strategy's mean; for SimpleGA, which
    has none, the best candidate of the last generation: costs of different generations are of
    different runs, and a lucky one would otherwise stay the best for good. A candidate whose cost
    is not finite ranks behind every other. A generation in which all rank alike, because none is
    finite or because they cost the same, leaves the strategy as it was; it would shrink its std.

    Metrics are `meta_loss`, the mean cost over candidates with a finite one, for each problem as
    `name/meta_loss`, too; `best_loss`, the lowest cost; `finite`, the fraction of inner steps with
    a finite training loss; `valid`, the fraction of candidates with a finite cost.

    Args:
        problems: what to train; by name, from which their random streams derive, so that adding
            one leaves the others' runs as they were.
        strategy: one of `STRATEGIES`.
        population_size: candidates of a generation.
        num_runs: whole runs of each candidate on each problem.
        std: standard deviation of the first generation, in units of theta, which the strategies
            adapt; those in `SCHEDULED_STD` keep it, or take a schedule of it over generations.
        optimizer: what moves the mean of Open_ES and PGPE along their estimate of the gradient of
            the mean rank; the others come with their own update.
        averaging: see `gradient_learner`.
        weights: of the problems' costs in the mean that candidates are ranked by; equal if not
            given.
        families: names of problems to report together, too, under `family/meta_loss`.
        mesh: devices to spread the candidates over.

    Raises:
        ValueError: for an argument outside its range, or no `optimizer` where one is needed; from
            `Learner.init`, for a theta whose size does not suit the strategy or that is not
            float32 throughout.
    """
    _check(problems, strategy, population_size, num_runs, std, optimizer)
    check_averaging(averaging)
    weights = checked_weights(tuple(problems), weights)
    groups = {name: [name] for name in problems} | dict(families or {})

    @functools.cache  # evosax compiles anew for every instance
    def strategy_for(num_dims: int) -> "tuple[EvolutionaryAlgorithm, Any]":
        with jax.ensure_compile_time_eval():
            return _build(strategy, population_size, num_dims, std, optimizer)

    def centre(state: Any) -> jax.Array:
        if strategy in POPULATION_BASED:
            return state.population[jnp.argmin(state.fitness)]
        return state.mean

    def init(key: Key, theta: Theta) -> MetaState:
        _check_theta(strategy, theta)
        flat, _ = ravel_pytree(theta)
        es, params = strategy_for(flat.size)
        if strategy in POPULATION_BASED:
            # Nobody has been evaluated: all are equal, and are replaced by whatever comes next.
            everyone = jnp.broadcast_to(flat, (population_size, flat.size))
            opt_state = es.init(key, everyone, jnp.full(population_size, jnp.inf), params)
        else:
            opt_state = es.init(key, flat, params)
        return MetaState(
            theta=theta,
            average=theta,
            opt_state=opt_state,
            estimator_state=(),
            step=jnp.int32(0),
        )

    def members(indices: jax.Array, thetas: Theta, key: Key, data: Data):
        del indices  # candidates share their draws and differ by theta alone
        costs, finite = {}, {}
        for name, problem in problems.items():

            def train(k_run: Key, theta: Theta, name=name, problem=problem):
                window = unroll_run(problem, k_run, theta, data[name])
                num_steps = jnp.maximum(jnp.sum(window.mask), 1)
                return window_mean(window), jnp.sum(window.finite & window.mask) / num_steps

            k_runs = jax.vmap(jax.random.fold_in, (None, 0))(
                key_of(key, name), jnp.arange(num_runs)
            )
            of_runs = jax.vmap(jax.vmap(train, (0, None)), (None, 0))(k_runs, thetas)
            costs[name], finite[name] = jax.tree.map(lambda x: jnp.mean(x, axis=1), of_runs)
        return costs, sum(jnp.sum(f) for f in finite.values()) / len(problems)

    run = over_devices(members, population_size, mesh, name="population_size")

    def step(key: Key, state: MetaState, data: Data) -> tuple[MetaState, dict[str, jax.Array]]:
        k_ask, k_runs, k_tell = jax.random.split(key, 3)
        flat, unravel = ravel_pytree(state.theta)
        es, params = strategy_for(flat.size)
        candidates, asked = es.ask(k_ask, state.opt_state, params)
        thetas = jax.vmap(unravel)(candidates)
        costs, finite = run(jnp.arange(population_size), thetas, k_runs, data)
        cost = weighted_mean(costs, weights)
        is_valid = jnp.isfinite(cost)
        rank_by = jnp.where(is_valid, cost, jnp.inf)
        told = _tell(strategy, es, k_tell, candidates, rank_by, asked, params)
        is_informed = jnp.min(rank_by) < jnp.max(rank_by)
        opt_state = jax.tree.map(
            lambda new, old: jnp.where(is_informed, new, old), told, state.opt_state
        )
        theta = unravel(centre(opt_state))
        average = running_average(averaging, state.step, state.average, theta)
        metrics = {
            "meta_loss": _finite_mean(cost),
            "best_loss": jnp.where(jnp.any(is_valid), jnp.min(rank_by), jnp.nan),
            "finite": finite / population_size,
            "valid": jnp.mean(is_valid.astype(jnp.float32)),
        }
        for group, names in groups.items():
            of_group = weighted_mean({n: costs[n] for n in names}, {n: weights[n] for n in names})
            metrics[f"{group}/meta_loss"] = _finite_mean(of_group)
        return MetaState(theta, average, opt_state, (), state.step + 1), metrics

    return Learner(
        init=init,
        step=step,
        theta=lambda state: state.average,
        steps=population_size * num_runs * sum(p.horizon for p in problems.values()),
        data={name: problem.data for name, problem in problems.items()},
    )


def _build(
    strategy: str,
    population_size: int,
    num_dims: int,
    std: float | optax.Schedule,
    optimizer: optax.GradientTransformation | None,
) -> "tuple[EvolutionaryAlgorithm, Any]":
    """The evosax object for flat vectors of `num_dims` numbers, and its parameters."""
    from evosax import algorithms

    options: dict[str, Any] = {"metrics_fn": lambda *_: {}}
    if strategy in OPTIMIZED:
        options["optimizer"] = optimizer
    if strategy in SCHEDULED_STD:
        options["std_schedule"] = std if callable(std) else optax.constant_schedule(std)
    es = getattr(algorithms, strategy)(population_size, jnp.zeros(num_dims), **options)
    params = es.default_params
    if not callable(std) and strategy not in SCHEDULED_STD:
        params = params.replace(std_init=jnp.float32(std))
    if strategy == "LM_MA_ES":  # a rate above 1 gives NaN; theirs is population_size / num_dims
        params = params.replace(c_c=jnp.minimum(params.c_c, 1.0))
    return es, params


def _tell(
    strategy: str,
    es: "EvolutionaryAlgorithm",
    key: Key,
    candidates: jax.Array,
    cost: jax.Array,
    state: Any,
    params: Any,
) -> Any:
    """The strategy's state after a generation with these costs."""
    if strategy == "LM_MA_ES":  # evosax 0.3.2 weighs directions by their place, not their rank
        order = jnp.argsort(cost)
        candidates, cost, state = candidates[order], cost[order], state.replace(z=state.z[order])
    told, _ = es.tell(key, candidates, cost, state, params)
    return told


def _finite_mean(costs: jax.Array) -> jax.Array:
    """The mean of those that are finite, or NaN."""
    return jnp.nanmean(jnp.where(jnp.isfinite(costs), costs, jnp.nan))


def _check(
    problems: Mapping[str, Problem],
    strategy: str,
    population_size: int,
    num_runs: int,
    std: float | optax.Schedule,
    optimizer: optax.GradientTransformation | None,
) -> None:
    if not problems:
        raise ValueError("`problems` must not be empty; got {}. Pass at least one.")
    if strategy not in STRATEGIES:
        raise ValueError(
            f"`strategy` must be a known name; got {strategy}. Try {', '.join(STRATEGIES)}."
        )
    if population_size < 4:
        raise ValueError(
            f"`population_size` must be at least 4; got {population_size}. Try population_size=8."
        )
    if strategy in OPTIMIZED and population_size % 2:
        raise ValueError(
            f"`population_size` must be even for {strategy}, which samples pairs; "
            f"got {population_size}. Try population_size={population_size + 1}."
        )
    if num_runs < 1:
        raise ValueError(f"`num_runs` must be at least 1; got {num_runs}. Try num_runs=4.")
    if callable(std):
        if strategy not in SCHEDULED_STD:
            raise ValueError(
                f"`std` must be a number for {strategy}, which adapts it; got a schedule. "
                "Try std=0.1."
            )
    elif not 0 < std < math.inf:
        raise ValueError(f"`std` must be positive and finite; got {std}. Try std=0.1.")
    if strategy in OPTIMIZED and optimizer is None:
        raise ValueError(
            f"`optimizer` must be given for {strategy}, which moves its mean with one; got None. "
            "Try optimizer=optax.adam(0.01)."
        )


def _check_theta(strategy: str, theta: Theta) -> None:
    for path, leaf in jax.tree.leaves_with_path(theta):
        if jnp.result_type(leaf) != jnp.float32:
            raise ValueError(
                f"`theta` must be float32 throughout; got {jnp.result_type(leaf)} at "
                f"theta{jax.tree_util.keystr(path)}. Cast it with jnp.float32."
            )
    num_dims = sum(jnp.size(leaf) for leaf in jax.tree.leaves(theta))
    if strategy == "CMA_ES" and num_dims > MAX_CMA_ES:
        raise ValueError(
            f"`strategy` CMA_ES needs a theta of at most {MAX_CMA_ES} numbers, as it decomposes a "
            f"matrix of their square; got {num_dims}. Try Sep_CMA_ES."
        )
    if strategy == "LM_MA_ES" and num_dims < MIN_LM_MA_ES:
        raise ValueError(
            f"`strategy` LM_MA_ES needs a theta of at least {MIN_LM_MA_ES} numbers, as it diverges "
            f"on fewer; got {num_dims}. Try CMA_ES."
        )
