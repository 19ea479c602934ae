"""Frozen parts of theta: no noise, no decay, and back in their place at the end."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from analytic import THETA, decay_problem

from l2o.estimators.pes import pes
from l2o.freeze import freeze
from l2o.learner import gradient_learner
from l2o.outer_loop import fit
from l2o.problem import map_theta

TREE = {
    "layers": [{"w": jnp.ones(2), "b": jnp.zeros(1)}, {"w": 2 * jnp.ones(2)}],
    "rate": jnp.ones(()),
}


def test_nothing_frozen_is_theta_itself():
    trained, unravel = freeze(TREE, ())
    assert trained.shape == (6,)
    assert jax.tree.structure(unravel(trained)) == jax.tree.structure(TREE)
    jax.tree.map(np.testing.assert_array_equal, unravel(trained), TREE)


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (("rate",), {"layers/0/b", "layers/0/w", "layers/1/w"}),
        (("layers/*/w",), {"layers/0/b", "rate"}),
        (("layers/0/*", "rate"), {"layers/1/w"}),
    ],
)
def test_what_is_left_and_the_way_back(patterns, left):
    trained, unravel = freeze(TREE, patterns)
    sizes = {"layers/0/b": 1, "layers/0/w": 2, "layers/1/w": 2, "rate": 1}
    assert trained.shape == (sum(sizes[name] for name in left),)
    moved = unravel(trained + 10)
    assert jax.tree.structure(moved) == jax.tree.structure(TREE)
    named = dict(
        zip(("layers/0/b", "layers/0/w", "layers/1/w", "rate"), jax.tree.leaves(moved), strict=True)
    )
    for name, before in zip(named, jax.tree.leaves(TREE), strict=True):
        np.testing.assert_array_equal(named[name], before + 10 * (name in left))


def test_dtypes_come_back_and_integers_are_refused():
    theta = {"half": jnp.ones(2, jnp.bfloat16), "whole": jnp.ones(1)}
    for patterns in ((), ("whole",)):
        trained, unravel = freeze(theta, patterns)
        assert jax.tree.map(lambda x: x.dtype, unravel(trained)) == {
            "half": jnp.bfloat16,
            "whole": jnp.float32,
        }
    with pytest.raises(ValueError, match=r"`theta` must be floating point.*int32 at theta\['n'\]"):
        freeze({"n": jnp.ones(1, jnp.int32)}, ())


def test_a_pattern_that_fits_nothing():
    with pytest.raises(ValueError, match="`freeze` must fit the name of a leaf of theta; got bias"):
        freeze(TREE, ("bias",))


def test_everything_frozen():
    with pytest.raises(ValueError, match="`freeze` must leave something to train"):
        freeze(TREE, ("*",))


def test_a_frozen_leaf_is_neither_perturbed_nor_decayed():
    theta = {"frozen": THETA, "trained": jnp.zeros(2)}
    seen = []
    problem = decay_problem()

    def spied(key, both, state, data):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), both["frozen"])
        return problem.unroll(key, both["frozen"] + both["trained"], state, data)

    trained, unravel = freeze(theta, ("frozen",))
    estimator = pes(map_theta(replace(problem, unroll=spied), unravel), num_pairs=2, std=0.1)
    learner = gradient_learner(estimator, optax.adamw(0.1, weight_decay=1.0))
    state = fit(jax.random.key(0), learner, trained, num_steps=2, log_every=2, checkpoint_every=2)
    whole = unravel(learner.theta(state))
    np.testing.assert_array_equal(whole["frozen"], THETA)
    assert np.all(whole["trained"] != 0)
    assert seen and all(np.array_equal(x, np.broadcast_to(THETA, x.shape)) for x in seen)
