"""Searches: budgets and evaluations are kept, and what is best by brute force is found."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from small_trained import schemes, trained_mlp

from l2o.compression.problem import compression_problem
from l2o.compression.searches.global_magnitude import by_threshold
from l2o.compression.searches.table import SEARCHES


@pytest.fixture(scope="module")
def problems():
    model = trained_mlp()
    return {n: compression_problem(model, s) for n, s in schemes(model).items()}


@pytest.mark.parametrize("budget", ["keep", "unit_flops", "bits"])
@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_keeps_budget_and_evaluations(problems, budget, name, monkeypatch):
    problem = problems[budget]
    asked = []
    score = problem.score
    monkeypatch.setattr(
        type(problem), "score", lambda self, counts: asked.append(counts) or score(counts)
    )
    found = SEARCHES[name](problem, 40, 0)
    monkeypatch.undo()
    assert problem.budget.spent(found.counts) <= problem.budget.limit
    assert found.score == pytest.approx(problem.score(found.counts), abs=1e-6)
    assert len(asked) <= found.evaluations <= 40
    if name != "ppo":  # which measures its episodes inside of a compiled program
        assert len(asked) == found.evaluations
    if name not in ("global_magnitude", "uniform"):
        uniform = problem.score(problem.project(np.zeros(problem.num_groups)))
        assert found.score >= uniform and found.evaluations > 3


def test_what_is_best_is_found(problems):
    """Of bits there are few enough to try them all."""
    problem = problems["bits"]
    allowed = [
        counts
        for counts in itertools.product(range(2, 9), repeat=3)
        if problem.budget.spent(np.array(counts)) <= problem.budget.limit
    ]
    best = max(problem.score(np.array(counts)) for counts in allowed)
    for name in ("random_search", "tpe", "ppo"):
        assert SEARCHES[name](problem, 60, 0).score >= best - 0.01


def test_searches_gain_where_there_is_something_to_gain(problems):
    problem = problems["keep"]
    uniform = SEARCHES["uniform"](problem, 1, 0).score
    for name in ("greedy", "random_search", "tpe", "ppo"):
        assert SEARCHES[name](problem, 60, 0).score > uniform + 0.03, name


def test_seeds(problems):
    search = SEARCHES["random_search"]
    first, again, other = (search(problems["keep"], 10, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.counts, again.counts)
    assert not np.array_equal(first.counts, other.counts)


def test_one_threshold_for_all_weights(problems):
    problem = problems["keep"]
    counts = by_threshold(problem)
    assert problem.budget.spent(counts) == problem.budget.limit
    magnitudes = [
        np.sort(np.ravel(m))[::-1] for m in problem.scheme.magnitudes(problem.network.params)
    ]
    smallest = [m[c - 1] for m, c in zip(magnitudes, counts, strict=True)]
    largest_gone = [m[c] for m, c in zip(magnitudes, counts, strict=True)]
    assert min(smallest) >= max(largest_gone)


@pytest.mark.parametrize(("name", "least"), [("greedy", 5), ("ppo", 16), ("tpe", 1)])
def test_too_few_evaluations(problems, name, least):
    with pytest.raises(ValueError, match=f"`evaluations` must be at least {least}") as error:
        SEARCHES[name](problems["keep"], least - 1, 0)
    assert "\n" not in str(error.value)
    found = SEARCHES[name](problems["keep"], least, 0)
    assert found.evaluations <= least
    assert jnp.asarray(found.counts).shape == (3,)
