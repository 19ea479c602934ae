"""No search: one threshold for the magnitudes of all weights, one error for all quantized ones."""

import jax
import jax.numpy as jnp
import numpy as np

from l2o.compression.budget import Budget, spend_rest
from l2o.compression.layers import leaves_by_name
from l2o.compression.problem import CompressionProblem
from l2o.compression.quantization import FEWEST_BITS, MOST_BITS, quantize
from l2o.compression.searches.search import Found, Search, check_evaluations


def global_magnitude(problem: CompressionProblem, evaluations: int, seed: int) -> Found:
    """Keep the weights, or units, of the largest magnitude in the whole network; one evaluation.

    Units are compared by their scores over the mean of their layer's, as layers differ in scale.
    Bits go one by one to the layer in which one lowers the squared error of the weights most for
    what it costs.
    """
    del seed
    check_evaluations(evaluations, 1)
    search = Search(problem, 1)
    search.score(by_error(problem) if problem.scheme.name == "bits" else by_threshold(problem))
    return search.found()


def by_threshold(problem: CompressionProblem) -> np.ndarray:
    """Counts at the lowest threshold of magnitudes that the budget allows."""
    budget = problem.budget
    found = problem.scheme.magnitudes(problem.network.params)
    magnitudes = [np.sort(np.asarray(m).ravel())[::-1] for m in found]

    def counts_at(threshold: float) -> np.ndarray:
        above = [np.searchsorted(-m, -threshold, side="right") for m in magnitudes]
        return np.clip(above, budget.lowest, budget.highest).astype(np.int32)

    candidates = np.unique(np.concatenate(magnitudes))
    low, high = 0, len(candidates)  # the highest threshold keeps the least of every group
    while low < high:
        middle = (low + high) // 2
        fits = budget.spent(counts_at(candidates[middle])) <= budget.limit
        low, high = (low, middle) if fits else (middle + 1, high)
    counts = counts_at(candidates[low]) if low < len(candidates) else budget.lowest
    order = np.argsort([m[min(c, len(m) - 1)] for m, c in zip(magnitudes, counts, strict=True)])
    return rest_spent(budget, counts, order[::-1])


def by_error(problem: CompressionProblem) -> np.ndarray:
    """Bits that greedily lower the squared error of the weights within the budget."""
    budget = problem.budget
    leaves = leaves_by_name(problem.network.params)

    @jax.jit
    def error(weights: jax.Array, bits: jax.Array) -> jax.Array:
        values, scale = quantize(weights, bits)
        return jnp.sum(jnp.square(values * scale - weights))

    widths = range(FEWEST_BITS, MOST_BITS + 1)
    errors = np.array([[float(error(leaves[n], b)) for b in widths] for n in budget.names])
    sizes = np.array([leaves[name].size for name in budget.names])
    counts = np.array(budget.lowest)
    while True:
        gains = np.full(len(counts), -np.inf)
        for i in np.flatnonzero(counts < budget.highest):
            more = counts + (np.arange(len(counts)) == i)
            if budget.spent(more) <= budget.limit:
                at = counts[i] - FEWEST_BITS
                gains[i] = (errors[i, at] - errors[i, at + 1]) / sizes[i]
        if not np.isfinite(gains).any():
            return counts
        counts[np.argmax(gains)] += 1


def rest_spent(budget: Budget, counts: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Raise counts as far as the budget goes, see `spend_rest`."""
    raised = jax.jit(lambda counts, order: spend_rest(budget, counts, order))
    return np.asarray(raised(jnp.asarray(counts, jnp.int32), jnp.asarray(order, jnp.int32)))
