"""Strategies of evosax: what they are, what they need, and what is repaired of them."""

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from l2o.learned_optimizer import Theta
from l2o.task import Key

if TYPE_CHECKING:  # takes seconds to import
    from evosax.algorithms.base import EvolutionaryAlgorithm

STRATEGIES = ("CMA_ES", "Sep_CMA_ES", "LM_MA_ES", "SNES", "Open_ES", "PGPE", "SimpleGA")
"""Strategies that are offered, by their names in evosax."""

OPTIMIZED = frozenset({"Open_ES", "PGPE"})
"""Strategies that sample antithetic pairs and move their mean with an optax optimizer."""

SCHEDULED_STD = frozenset({"Open_ES", "SimpleGA"})
"""Strategies that do not adapt their standard deviation, and may have a schedule of it."""

POPULATION_BASED = frozenset({"SimpleGA"})
"""Strategies that carry candidates from generation to generation instead of a mean."""

MAX_CMA_ES = 2000
"""Numbers in theta above which CMA-ES is refused: it decomposes a matrix of their square."""

MIN_LM_MA_ES = 4
"""Numbers in theta below which LM-MA-ES is refused: its rates are for many, and it diverges."""


def check_strategy(
    strategy: str,
    population_size: int,
    std: float | optax.Schedule,
    optimizer: optax.GradientTransformation | None,
) -> None:
    """Raise a `ValueError` that says what to type if a strategy cannot be made of these."""
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


def check_theta(strategy: str, theta: Theta) -> None:
    """Raise a `ValueError` that says what to type for a theta that does not suit a strategy."""
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


def build_strategy(
    strategy: str,
    population_size: int,
    num_dims: int,
    std: float | optax.Schedule,
    optimizer: optax.GradientTransformation | None,
) -> "tuple[EvolutionaryAlgorithm, Any]":
    """Build the evosax object for vectors of `num_dims` numbers, and its parameters."""
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


def init_strategy(
    strategy: str, es: "EvolutionaryAlgorithm", params: Any, key: Key, mean: jax.Array
) -> Any:
    """Start a strategy's state at a mean, a vector."""
    if strategy not in POPULATION_BASED:
        return es.init(key, mean, params)
    # Nobody has been evaluated: all are equal, and are replaced by whatever comes next.
    population = jnp.broadcast_to(mean, (es.population_size, mean.size))
    return es.init(key, population, jnp.full(es.population_size, jnp.inf), params)


def tell_strategy(
    strategy: str,
    es: "EvolutionaryAlgorithm",
    key: Key,
    candidates: jax.Array,
    cost: jax.Array,
    state: Any,
    params: Any,
) -> Any:
    """Update a strategy's state by the costs of the candidates that it asked for."""
    if strategy == "LM_MA_ES":  # evosax 0.3.2 weighs directions by their place, not their rank
        order = jnp.argsort(cost)
        candidates, cost, state = candidates[order], cost[order], state.replace(z=state.z[order])
    told, _ = es.tell(key, candidates, cost, state, params)
    return told


def strategy_mean(strategy: str, state: Any) -> jax.Array:
    """Return a strategy's mean, or the best candidate of the last generation if it has none."""
    if strategy in POPULATION_BASED:
        return state.population[jnp.argmin(state.fitness)]
    return state.mean
